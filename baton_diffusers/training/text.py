"""Nano's text encoder learns to read before anything is drawn, as the published ones have: it answers who is where and who does what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedTokenizerBase, UMT5Config, UMT5EncoderModel

from ..stage import Scene, sample_scene, write_prompt
from ..stage.scene import DIGITS, MAX_ACTIONS, MAX_COUNT, SPOTS
from .config import TrainerConfig
from .semantic import IDENTITIES


# What is asked of each spot and of each step of the script, and how many answers there are; 0 is "nobody" and "nothing".
QUESTIONS = {
    "at": 1 + len(IDENTITIES),
    "actor": 1 + len(IDENTITIES),
    "target": 1 + len(IDENTITIES),
    "count": 1 + MAX_COUNT,
    **{f"word {number}": 1 + len(DIGITS) for number in range(1, 1 + MAX_COUNT)},
}


@dataclass
class TextEncoderTraining:
    """
    Training of nano's text encoder.

    A text encoder that learns with the transformer alone hears of a word's part in its sentence through the pictures only, which
    takes more clips than nano is trained on. Ours: it first answers questions about the scene, see [`SceneReader`].

    Args:
        trainer: The run; a sample is one prompt.
        tokenizer: Folder of the tokenizer.
        output: Folder to which the encoder is saved.
        text_encoder: Arguments of `UMT5Config`.
        position_learning_rate: Learning rate of the relative attention biases, by which alone a UMT5 knows the order of words. They
            start near zero, and have to come to several units: at the rate of the rest a short training leaves a bag of words.
        num_scenes: Training scenes, whose prompts are paraphrased at every epoch.
        evaluation_scenes: Validation scenes on which the answers are checked after training; 0 for none.
    """

    trainer: TrainerConfig
    tokenizer: str
    output: str
    text_encoder: dict[str, Any]
    position_learning_rate: float = 0.03
    num_scenes: int = 20000
    evaluation_scenes: int = 500

    def __post_init__(self) -> None:
        if not self.position_learning_rate > 0:
            raise ValueError(f"`position_learning_rate` must be positive, got {self.position_learning_rate}.")


class SceneReader(nn.Module):
    """
    A text encoder, and one layer of cross-attention that asks it who is at each spot, and of each step who acts on whom, how often
    and in which words. The layer is no deeper than those by which the transformer reads, so that it is the encoder that has to
    bring together what belongs together.

    Args:
        text_encoder (`UMT5EncoderModel`): what is trained for.
    """

    def __init__(self, text_encoder: UMT5EncoderModel) -> None:
        super().__init__()
        dim = text_encoder.config.d_model
        self.text_encoder = text_encoder
        self.queries = nn.Parameter(torch.randn(len(SPOTS) + MAX_ACTIONS, dim))
        self.attention = nn.MultiheadAttention(dim, text_encoder.config.num_heads, batch_first=True)
        self.norm = nn.LayerNorm(dim)
        self.heads = nn.ModuleDict({name: nn.Linear(dim, answers) for name, answers in QUESTIONS.items()})

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits of the answers to each of [`QUESTIONS`], `(batch_size, spots or steps, answers)`."""
        text = self.text_encoder(input_ids, attention_mask=attention_mask).last_hidden_state
        queries = self.queries.expand(len(text), -1, -1)
        heard, _ = self.attention(queries, text, text, key_padding_mask=attention_mask == 0, need_weights=False)
        spots, steps = self.norm(heard).split([len(SPOTS), MAX_ACTIONS], dim=1)
        return {name: head(spots if name == "at" else steps) for name, head in self.heads.items()}


def answers(scene: Scene) -> dict[str, torch.Tensor]:
    """What is right for a scene: of each of [`QUESTIONS`] one answer for each spot, or each step up to `MAX_ACTIONS`."""
    who = [1 + IDENTITIES.index((actor.kind, actor.colour)) for actor in scene.actors]
    at = dict(zip((actor.spot for actor in scene.actors), who, strict=True))
    right = {name: [0] * MAX_ACTIONS for name in QUESTIONS}
    right["at"] = [at.get(spot, 0) for spot in SPOTS]
    for step, action in enumerate(scene.script):
        right["actor"][step] = who[action.actor]
        right["target"][step] = 0 if action.target is None else who[action.target]
        right["count"][step] = action.count
        for number, word in enumerate(action.words, start=1):
            right[f"word {number}"][step] = 1 + DIGITS.index(word)
    return {name: torch.tensor(values) for name, values in right.items()}


class QuestionedScenes:
    """
    Prompts of Stage with the right answers, as an endless dataset.

    Sample `i` is of scene `i % num_scenes`, in words that change from epoch to epoch.

    Args:
        num_scenes (`int`): scenes in an epoch.
        split (`str`, defaults to `"train"`): Stage's split.
    """

    def __init__(self, num_scenes: int, split: str = "train") -> None:
        self.num_scenes = num_scenes
        self.split = split
        self._scenes: dict[int, Scene] = {}

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = index % self.num_scenes
        if number not in self._scenes:
            self._scenes[number] = sample_scene(number, split=self.split)
        scene = self._scenes[number]
        return {"prompt": write_prompt(scene, index), **answers(scene)}


class ReadingLoss:
    """
    The cross-entropy of the answers, as [`Trainer`] wants it; also the share of the answers that are right.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): the encoder's.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def __call__(
        self, module: nn.Module, batch: dict[str, Any], generator: torch.Generator, step: int
    ) -> dict[str, torch.Tensor]:
        """The loss of one batch."""
        tokens = self.tokenizer(batch["prompt"], padding=True, return_tensors="pt").to(generator.device)
        said = module(tokens.input_ids, tokens.attention_mask)
        losses = [F.cross_entropy(said[name].flatten(0, 1), batch[name].flatten()) for name in QUESTIONS]
        right = [(said[name].argmax(dim=-1) == batch[name]).float().mean() for name in QUESTIONS]
        return {"loss": torch.stack(losses).sum(), **dict(zip(QUESTIONS, right, strict=True))}


@torch.no_grad()
def share_understood(
    reader: SceneReader, tokenizer: PreTrainedTokenizerBase, num_scenes: int, split: str = "validation"
) -> dict[str, float]:
    """
    How well prompts are read.

    Args:
        reader: The trained reader.
        tokenizer: Its tokenizer.
        num_scenes: How many scenes are asked about.
        split: Stage's split.

    Returns:
        For each of [`QUESTIONS`] the share of the scenes of which all answers to it are right; `"all"`: of which all answers are.
    """
    scenes = QuestionedScenes(num_scenes, split)
    samples = [scenes[index] for index in range(num_scenes)]
    prompts = [sample["prompt"] for sample in samples]
    tokens = tokenizer(prompts, padding=True, return_tensors="pt").to(reader.queries.device)
    said = reader(tokens.input_ids, tokens.attention_mask)
    right = {
        name: (said[name].argmax(dim=-1).cpu() == torch.stack([sample[name] for sample in samples])).all(dim=1)
        for name in QUESTIONS
    }
    right["all"] = torch.stack([*right.values()]).all(dim=0)
    return {name: values.float().mean().item() for name, values in right.items()}


def build_reader(config: TextEncoderTraining) -> SceneReader:
    """A fresh reader of the configuration."""
    return SceneReader(UMT5EncoderModel(UMT5Config(**config.text_encoder)))


def parameter_groups(reader: SceneReader, config: TextEncoderTraining) -> list[dict[str, Any]]:
    """The parameter groups of [`Trainer`] that give positions a learning rate of their own."""
    named = [("relative_attention_bias" in name, value) for name, value in reader.named_parameters()]
    return [
        {"params": [value for position, value in named if not position and value.ndim >= 2]},
        {"params": [value for position, value in named if not position and value.ndim < 2], "weight_decay": 0.0},
        {
            "params": [value for position, value in named if position],
            "weight_decay": 0.0,
            "lr": config.position_learning_rate,
        },
    ]
