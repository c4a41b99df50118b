"""Trains nano's text encoder to read, and the plan checker that reads with it.

    python examples/nano/reading.py examples/nano/reading.yaml [key=value ...]
    python examples/nano/reading.py examples/nano/reading.yaml train_text_encoder=false initial=my_nano   # the checker alone

If a text encoder is trained only through the transformer's velocities, it needs hours to distinguish words, and only then
learns which place belongs to which actor, and which words to which step. With questions about prompts it learns this in
minutes. The checker that answers them is shipped, since it also scores cue sheets against prompts. When a text encoder is
trained further with a transformer, train its checker anew on the new encoder.
"""

from __future__ import annotations

import baton_diffusers.interrupts  # noqa: F401


# isort: split
import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import nll_loss
from transformers import AutoTokenizer, PreTrainedTokenizerBase, UMT5Config, UMT5EncoderModel

from baton_diffusers.cues import parse_sheet
from baton_diffusers.models.plan_checker import PlanChecker, PlanCheckerOutput, sheet_steps
from baton_diffusers.stage.clips import StageClips
from baton_diffusers.stage.prompts import TRAINING_WORDINGS, describe, write_cues
from baton_diffusers.stage.scene import COLOURS, DIGITS, KINDS, MAX_ACTIONS, MAX_COUNT, SPOTS, VOICES, Scene
from baton_diffusers.training.config import TrainerConfig
from baton_diffusers.training.script import run
from baton_diffusers.training.trainer import Trainer


NAMES = tuple(f"{colour} {kind}" for kind in KINDS for colour in (VOICES if kind == "face" else COLOURS))
PLACES = tuple(SPOTS)
DEEDS = {
    "ball": ["bounces"],
    "bell": ["rings"],
    "box": [f"hits {name}" for name in NAMES],
    "face": [f"says {word}" for word in DIGITS],
}


@dataclass
class Reading:
    """
    Training of the text encoder and the plan checker.

    Args:
        trainer: The run; a sample is `paraphrases` prompts of one scene.
        tokenizer: Folder of the text encoder's tokenizer.
        output: Folder to which `text_encoder` and `plan_checker` are saved.
        text_encoder: Arguments of `UMT5Config`.
        initial: Folder with a `text_encoder` to start from, and a `plan_checker` if it has one; None starts from fresh ones.
        train_text_encoder: False trains the checker alone, on the encoder of `initial`.
        position_learning_rate: Learning rate of the relative attention biases; a UMT5 knows the order of words from them alone.
            They start near zero, and have to come to several units.
        keep_weight: Weight of the distance from the embeddings of the `initial` text encoder, so that a transformer that reads them
            needs no new training.
        paraphrases: Prompts of each scene.
        tier_weights: See `StageClips`.
        evaluation_scenes: Validation scenes on which the answers are checked after training; 0 for none.
    """

    trainer: TrainerConfig
    tokenizer: str
    output: str
    text_encoder: dict[str, Any] = field(default_factory=dict)
    initial: str | None = None
    train_text_encoder: bool = True
    position_learning_rate: float = 0.03
    keep_weight: float = 0.0
    paraphrases: int = 4
    tier_weights: dict[str, float] | None = None
    evaluation_scenes: int = 500

    def __post_init__(self) -> None:
        if not self.position_learning_rate > 0:
            raise ValueError(f"`position_learning_rate` must be positive, got {self.position_learning_rate}.")
        if self.keep_weight and self.initial is None:
            raise ValueError("`keep_weight` keeps the embeddings of a text encoder: name its `initial` folder.")
        if not self.train_text_encoder and self.initial is None:
            raise ValueError(
                "`train_text_encoder` is false: name the `initial` folder whose encoder the checker reads with."
            )


class Reader(nn.Module):
    """A text encoder with its checker: `forward(input_ids, attention_mask)` gives what is read in prompts, and the embeddings."""

    def __init__(self, text_encoder: UMT5EncoderModel, checker: PlanChecker) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.checker = checker

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[PlanCheckerOutput, torch.Tensor]:
        text = self.text_encoder(input_ids, attention_mask=attention_mask).last_hidden_state
        text = text * attention_mask[..., None].to(text.dtype)
        return self.checker(text), text


def answers(scene: Scene, places: tuple[bool, ...]) -> dict[str, torch.Tensor]:
    """What is right for a prompt of a scene that states the `places` of some of its actors."""
    cast = torch.zeros(len(NAMES), dtype=torch.long)
    for actor, stated in zip(scene.actors, places, strict=True):
        cast[NAMES.index(actor.name)] = 1 + PLACES.index(actor.spot) if stated else 1 + len(PLACES)
    actors = torch.zeros(MAX_ACTIONS, dtype=torch.long)
    deeds = torch.zeros(MAX_ACTIONS, MAX_COUNT, dtype=torch.long)
    numbers = [deed for some in DEEDS.values() for deed in some]
    for step, (name, done) in enumerate(sheet_steps(parse_sheet(write_cues(scene, 0)), NAMES)):
        actors[step] = 1 + NAMES.index(name)
        for i, deed in enumerate(done):
            deeds[step, i] = 1 + numbers.index(deed)
    return {"cast": cast, "actors": actors, "deeds": deeds}


def counting(scene: Scene, seed: int) -> Scene:
    """In one of eight scenes, the spoken words become a run such as "two three four": such runs are rare by chance, but people
    ask for them."""
    rng = np.random.default_rng([seed, 0xC0])
    if rng.random() > 1 / 8:
        return scene
    script = []
    for action in scene.script:
        if action.verb == "say" and action.count > 1:
            first = int(rng.integers(len(DIGITS) - action.count + 1))
            words = DIGITS[first : first + action.count]
            action = replace(action, words=tuple(words if rng.random() < 0.7 else reversed(words)))
        script.append(action)
    counted = replace(scene, script=tuple(script))
    return counted if counted.split == scene.split else scene


class QuestionedScenes:
    """Stage's prompts with the right answers, as an endless dataset: a sample is a list of paraphrases of one scene."""

    def __init__(self, clips: StageClips, paraphrases: int) -> None:
        self.clips = clips
        self.paraphrases = paraphrases

    def __getitem__(self, index: int) -> list[dict[str, Any]]:
        scene, seed = self.clips.scene(index)
        if self.clips.split == "train":
            scene = counting(scene, seed)
        wordings = TRAINING_WORDINGS if self.clips.split == "train" else ("train",)
        names = [wordings[i % len(wordings)] for i in range(self.paraphrases)]
        prompts = [(describe(scene, seed + i, name), name) for i, name in enumerate(names)]
        return [
            {"prompt": prompt.text, "is_free": torch.tensor(name != "train"), **answers(scene, prompt.places)}
            for prompt, name in prompts
        ]


class PromptCollator:
    """Joins samples of [`QuestionedScenes`]: tokens of the prompts, and the answers."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def __call__(self, samples: list[list[dict[str, Any]]]) -> dict[str, torch.Tensor]:
        rows = [row for sample in samples for row in sample]
        tokens = self.tokenizer([row["prompt"] for row in rows], padding=True, return_tensors="pt")
        right = {name: torch.stack([row[name] for row in rows]) for name in ("cast", "actors", "deeds", "is_free")}
        return {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask, **right}


class ReadingLoss:
    """The cross-entropy of the answers, as `Trainer` wants it; also the share of the answers that are right.

    Args:
        old_text_encoder: The text encoder that a transformer has learnt with; None keeps nothing.
        weight: Of the distance from its embeddings, in units of their variance, on prompts in the wordings of evaluation.
    """

    def __init__(self, old_text_encoder: UMT5EncoderModel | None = None, weight: float = 0.0) -> None:
        self.old_text_encoder = old_text_encoder
        self.weight = weight

    def to(self, device: torch.device) -> ReadingLoss:
        if self.old_text_encoder is not None:
            self.old_text_encoder.to(device)
        return self

    def __call__(
        self, module: nn.Module, batch: dict[str, torch.Tensor], generator: torch.Generator, step: int
    ) -> dict[str, torch.Tensor]:
        read, text = module(batch["input_ids"], batch["attention_mask"])
        losses, right = [], {}
        for name in ("cast", "actors", "deeds"):
            said = read[name].flatten(0, -2)
            losses.append(nll_loss(said, batch[name].flatten()))
            right[name] = (said.argmax(dim=-1) == batch[name].flatten()).float().mean()
        loss = torch.stack(losses).sum()
        if self.old_text_encoder is not None:
            with torch.no_grad():
                old = self.old_text_encoder(
                    batch["input_ids"], attention_mask=batch["attention_mask"]
                ).last_hidden_state
            is_kept = (batch["attention_mask"].bool() & ~batch["is_free"][:, None])[..., None]
            moved = ((text - old).square() * is_kept).sum() / ((old.square() * is_kept).sum() + 1e-6)
            loss, right["moved"] = loss + self.weight * moved, moved.detach()
        return {"loss": loss, **right}


@torch.no_grad()
def share_understood(
    reader: Reader, collate: PromptCollator, num_scenes: int, batch_size: int = 64
) -> dict[str, float]:
    """For each kind of answer, the share of validation prompts with all such answers right; `all` counts every answer."""
    scenes = QuestionedScenes(StageClips("validation", seed=1), 1)
    rows = []
    for start in range(0, num_scenes, batch_size):
        batch = collate([scenes[index] for index in range(start, min(start + batch_size, num_scenes))])
        device = reader.checker.queries.device
        read, _ = reader(batch["input_ids"].to(device), batch["attention_mask"].to(device))
        rows.append({name: (read[name].argmax(dim=-1).cpu() == batch[name]).flatten(1).all(dim=1) for name in read})
    right = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    right["all"] = torch.stack([*right.values()]).all(dim=0)
    return {name: values.float().mean().item() for name, values in right.items()}


def main(config: Reading) -> None:
    tokenizer = AutoTokenizer.from_pretrained(config.tokenizer)
    if config.initial is None:
        text_encoder = UMT5EncoderModel(UMT5Config(**config.text_encoder))
    else:
        text_encoder = UMT5EncoderModel.from_pretrained(Path(config.initial) / "text_encoder", dtype=torch.float32)
    text_encoder.requires_grad_(config.train_text_encoder)
    checker = PlanChecker(text_encoder.config.d_model, list(NAMES), list(PLACES), DEEDS, MAX_ACTIONS, MAX_COUNT)
    if config.initial is not None and (Path(config.initial) / "plan_checker").is_dir():
        checker = PlanChecker.from_pretrained(Path(config.initial) / "plan_checker")
    reader = Reader(text_encoder, checker)
    trained = [(name, value) for name, value in reader.named_parameters() if value.requires_grad]
    groups = [
        {"params": [value for name, value in trained if value.ndim >= 2 and "relative_attention_bias" not in name]},
        {"params": [value for name, value in trained if value.ndim < 2], "weight_decay": 0.0},
        {
            "params": [value for name, value in trained if "relative_attention_bias" in name],
            "weight_decay": 0.0,
            "lr": config.position_learning_rate,
        },
    ]
    collate = PromptCollator(tokenizer)
    scenes = QuestionedScenes(StageClips("train", config.trainer.seed, config.tier_weights), config.paraphrases)
    old = copy.deepcopy(text_encoder).eval().requires_grad_(False) if config.keep_weight else None
    loss = ReadingLoss(old, config.keep_weight)
    trainer = Trainer(config.trainer, reader, loss, scenes, groups, collate, settings=config)
    reader = trainer.fit().eval()
    reader.text_encoder.save_pretrained(Path(config.output) / "text_encoder")
    reader.checker.save_pretrained(Path(config.output) / "plan_checker")
    if config.evaluation_scenes:
        for name, share in share_understood(reader, collate, config.evaluation_scenes).items():
            print(f"{name:8} {share:.4f}")


if __name__ == "__main__":
    run(main, Reading, __doc__)
