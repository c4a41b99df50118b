"""Arms of an ablation: checkpoints and ways to use them, scored on the same scenes from the same noise, in one table."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import guiders
from ..stage.scene import TIERS
from ..stage.scoring import ClipScore, summarise
from .evaluation import PLANS, Example, evaluate, generated_clips


if TYPE_CHECKING:
    from ..pipelines.pipeline_baton import BatonPipeline


@dataclass(frozen=True)
class Arm:
    """
    One row of an ablation for each tier.

    Args:
        name: What the table calls it.
        models: Folders or Hub ids of its checkpoints, one for each seed that it was trained with. Their scores are pooled.
        plan: Where plans come from, see [`generated_clips`].
        text: Whether the denoiser reads the prompt; if not, the plan alone tells it what to make.
        guider: A video guider in place of the checkpoint's: `class`, a name in `baton_diffusers.guiders`, and its arguments.
        audio_guider: The same for the audio.
    """

    name: str
    models: tuple[str, ...]
    plan: str = "planner"
    text: bool = True
    guider: dict[str, Any] | None = None
    audio_guider: dict[str, Any] | None = None

    def __post_init__(self):
        if not self.models:
            raise ValueError(f"the arm {self.name!r} has no `models`: name at least one checkpoint.")
        if self.plan not in PLANS:
            raise ValueError(f"the arm {self.name!r} has the `plan` {self.plan!r}: choose one of {PLANS}.")
        if not self.text and self.plan == "none":
            raise ValueError(f"the arm {self.name!r} has neither text nor plan: there is nothing to follow.")
        for field in ("guider", "audio_guider"):
            if getattr(self, field) is not None:
                self.build_guider(field)

    def build_guider(self, field: str):
        """The guider described by `guider` or `audio_guider`.

        Raises:
            ValueError: if there is no such class, or it does not take these arguments.
        """
        settings = dict(getattr(self, field))
        name = settings.pop("class", None)
        known = [key for key in guiders.__all__ if key.endswith("Guidance") and key != "AnchorGuidance"]
        if name not in known:
            raise ValueError(f"the arm {self.name!r} has a `{field}` of class {name!r}: choose one of {known}.")
        try:
            return getattr(guiders, name)(**settings)
        except TypeError as error:
            raise ValueError(f"the arm {self.name!r}: `{field}` cannot be made: {error}.") from error


def load_arms(path: str | Path) -> list[Arm]:
    """
    Reads arms from a TOML file, a table `[[arm]]` for each; the first one is what the others are compared with.

    A model's folder is relative to the working directory.

    Raises:
        ValueError: for a file that is not TOML, unknown or missing keys, two arms of one name, or a folder that is missing.
    """
    try:
        with open(path, "rb") as file:
            content = tomllib.load(file)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not a TOML file: {error}.") from error
    tables = content.get("arm")
    if not isinstance(tables, list) or not tables or len(content) != 1:
        raise ValueError(
            f"{path} must hold tables [[arm]] and nothing else, but it has {', '.join(content) or 'none'}."
        )
    known = [field.name for field in fields(Arm)]
    arms = []
    for table in tables:
        if unknown := [key for key in table if key not in known]:
            raise ValueError(f"{path}: unknown key `{unknown[0]}` in an arm; it knows {', '.join(known)}.")
        for key in ("name", "models"):
            if key not in table:
                raise ValueError(f"{path}: arm {len(arms) + 1} lacks `{key}`.")
        arms.append(Arm(**{**table, "models": tuple(table["models"])}))
    names = [arm.name for arm in arms]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{path}: two arms are called {twice[0]!r}.")
    for arm in arms:
        for model in arm.models:
            if not Path(model).is_dir() and model.count("/") != 1:
                raise ValueError(f"{path}: the model {model!r} of arm {arm.name!r} is neither a folder nor a Hub id.")
    return arms


def run_arm(
    arm: Arm,
    load_pipeline: Callable[[str], BatonPipeline],
    examples: Sequence[Example],
    num_inference_steps: int | None = None,
    batch_size: int = 8,
) -> list[ClipScore]:
    """
    The scores of one arm: those of its first model on all examples, then those of the next.

    Args:
        arm: The arm.
        load_pipeline: Gives the pipeline of a folder or Hub id.
        examples: From [`draw_examples`]; every arm gets the same ones, each from the noise of its own seed.
        num_inference_steps: Denoising steps; by default the pipeline's.
        batch_size: Clips made together.
    """
    scores = []
    for model in arm.models:
        pipe = load_pipeline(model)
        pipe.set_progress_bar_config(disable=True)
        for field in ("guider", "audio_guider"):
            if getattr(arm, field) is not None:
                pipe.register_modules(**{field: arm.build_guider(field)})
        make_clips = generated_clips(pipe, examples, num_inference_steps, arm.plan, text=arm.text)
        scores += evaluate(make_clips, examples, batch_size)
    return scores


def paired_difference(
    scores: Sequence[ClipScore],
    reference: Sequence[ClipScore],
    num_scenes: int,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, float]:
    """
    How much more P-Acc `scores` have than `reference`, scene by scene, as `{"value", "low", "high"}` with the bounds of a
    95% bootstrap interval over scenes. Each holds one or several times (for its models) the scores of the same scenes.
    """
    means = [
        np.array([s.p_acc for s in x], dtype=float).reshape(-1, num_scenes).mean(axis=0) for x in (scores, reference)
    ]
    difference = means[0] - means[1]
    samples = np.random.default_rng(seed).integers(num_scenes, size=(num_resamples, num_scenes))
    low, high = np.percentile(difference[samples].mean(axis=1), (2.5, 97.5))
    return {"value": float(difference.mean()), "low": float(low), "high": float(high)}


def summarise_arms(scores: dict[str, list[ClipScore]], examples: Sequence[Example]) -> dict[str, dict[str, dict]]:
    """For each tier, "all" included, and each arm: `stage.scoring.summarise`'s figures, and `p_acc_gain` over the first arm."""
    reference = next(iter(scores.values()))
    summaries = {name: summarise(values) for name, values in scores.items()}
    table: dict[str, dict[str, dict]] = {}
    for tier in ("all", *TIERS):
        num_scenes = sum(tier in ("all", example.scene.tier) for example in examples)
        if num_scenes == 0:
            continue
        of_tier = {
            name: [s for s in values if tier in ("all", s.tier)] for name, values in {**scores, "": reference}.items()
        }
        table[tier] = {
            name: summaries[name][tier] | {"p_acc_gain": paired_difference(of_tier[name], of_tier[""], num_scenes)}
            for name in scores
        }
    return table


def format_arms(table: dict[str, dict[str, dict]]) -> str:
    """[`summarise_arms`]'s result as a Markdown table, with 95% intervals in brackets."""
    columns = {"p_acc": "P-Acc", "p_acc_gain": "gain", "strict": "strict", "m_wer": "M-WER", "desync": "DeSync (s)"}
    header = ["tier", "arm", "clips", *columns.values()]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for tier, arms in table.items():
        for name, values in arms.items():
            cells = [
                "-" if values[key] is None else "{value:.3f} [{low:.3f}, {high:.3f}]".format(**values[key])
                for key in columns
            ]
            lines.append(f"| {' | '.join([tier, name, str(values['clips']), *cells])} |")
    return "\n".join(lines)
