"""Clips made and scored while a training goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import nn

from ..evaluation.scores import Example, draw_examples, summarise
from ..media import convert_frame_rate, resample
from ..pipelines.pipeline_baton import BatonPipeline
from ..stage.scene import FRAME_RATE, SAMPLING_RATE
from ..stage.scoring import ClipScore
from ..stage.show import contact_sheet
from .config import ValidationConfig


if TYPE_CHECKING:
    from .transformer import TransformerWithText


_SHEET_WIDTH = 1000  # pixels
_SCORES = ("p_acc", "strict", "m_wer", "desync")


@dataclass(frozen=True)
class _Clip:
    name: str
    prompt: str
    seed: int  # of its noise
    example: Example | None = None


class Validation:
    """
    Makes the clips of a [`ValidationConfig`]. For [`Trainer`]'s `validate`.

    The clips of a step are mp4 files in `folder/step_00001000`, with their prompts in text files, and one contact sheet,
    `folder/step_00001000.jpg`, with frames, sounds and the recognised events of Stage. Existing files are replaced.

    Args:
        config: The clips.
        folder: Folder of all steps.
        parts: Components that replace the pipeline's, such as other guiders.

    Raises:
        ValueError: If `config.model` is not the folder of a pipeline, or has no planner for plans.
    """

    def __init__(self, config: ValidationConfig, folder: str | Path, parts: dict[str, Any] | None = None) -> None:
        index = None if config.model is None else Path(config.model) / "model_index.json"
        if index is None or not index.is_file():
            raise ValueError(
                f"`validation.model` is {config.model!r}, but must be the folder of a pipeline, with a model_index.json."
            )
        if config.use_plan and json.loads(index.read_text()).get("planner", [None])[0] is None:
            raise ValueError(f"{config.model} has no planner: set `validation.use_plan` to false.")
        self.config = config
        self.folder = Path(folder)
        self.parts = parts or {}
        examples = draw_examples(config.scenes_per_tier, split="validation") if config.scenes_per_tier else []
        self._clips = [_Clip(f"prompt-{i}", prompt, i) for i, prompt in enumerate(config.prompts)]
        self._clips += [_Clip(f"{e.scene.tier}-{e.seed}", e.prompt, e.seed, e) for e in examples]

    @cached_property
    def pipe(self) -> BatonPipeline:
        """The pipeline, loaded on first use: only one process makes clips."""
        pipe = BatonPipeline.from_pretrained(self.config.model, **self.parts)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def __call__(self, module: TransformerWithText, step: int) -> dict[str, float]:
        """Scores over Stage's scenes by the names of `summarise`; without scenes there are none."""
        folder = self.folder / f"step_{step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        self.pipe.register_modules(transformer=module.transformer)
        if module.text_encoder is not None:
            self.pipe.register_modules(text_encoder=module.text_encoder)
        self.pipe.to(module.transformer.device)
        scores: list[ClipScore] = []
        sheets: list[Image.Image] = []
        for start in range(0, len(self._clips), self.config.batch_size):
            batch = self._clips[start : start + self.config.batch_size]
            output = self.pipe(
                prompt=[clip.prompt for clip in batch],
                num_inference_steps=self.config.num_inference_steps,
                generator=[torch.Generator().manual_seed(clip.seed) for clip in batch],
                use_plan=self.config.use_plan,
                output_type="pt",
            )
            for number, clip in enumerate(batch):
                path = output.save(folder / f"{clip.name}.mp4", number, self.config.scale)
                path.with_suffix(".txt").write_text(clip.prompt + "\n")
                frames, waveform = output.clip(number)
                score = None if clip.example is None else clip.example.score(frames, waveform)
                scores += [] if score is None else [score]
                frames = convert_frame_rate(frames, output.frame_rate, FRAME_RATE)
                sound = resample(waveform, output.sampling_rate, SAMPLING_RATE).mean(axis=0)
                found = [] if score is None else sorted([*score.sights, *score.sounds], key=lambda event: event.time)
                sheets.append(contact_sheet(frames, sound, found, clip.prompt))
        _stacked(sheets).save(folder.with_suffix(".jpg"), quality=85)
        for component in self.pipe.components.values():  # until the next validation, the training has the GPU's memory
            if isinstance(component, nn.Module) and component not in module.children():
                component.to("cpu")
        if not scores:
            return {}
        summary = summarise(scores)["all"]
        return {name: summary[name]["value"] for name in _SCORES if summary[name] is not None}


def _stacked(sheets: Sequence[Image.Image]) -> Image.Image:
    """Sheets one below the other, scaled to a common width."""
    heights = [round(sheet.height * _SHEET_WIDTH / sheet.width) for sheet in sheets]
    page = Image.new("RGB", (_SHEET_WIDTH, sum(heights)), "white")
    top = 0
    for sheet, height in zip(sheets, heights, strict=True):
        page.paste(sheet.resize((_SHEET_WIDTH, height), Image.Resampling.LANCZOS), (0, top))
        top += height
    return page
