"""Scores of a checkpoint on Stage: by tier, with intervals, and with the controls that give them a meaning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from .. import coordinates
from ..plan import SemanticPlan
from ..stage import Clip, Scene, render_clip, sample_scene, write_prompt
from ..stage.scene import TIERS
from ..stage.scoring import ASPECTS, ClipScore, score_clip
from .data import to_video
from .features import encode_audio_latents


if TYPE_CHECKING:
    from ..pipelines.pipeline_baton import BatonPipeline


PLANS = ("planner", "none", "ground truth")


@dataclass(frozen=True)
class Example:
    """A scene to be generated from its prompt; `seed` is that of its prompt, its render and its noise."""

    scene: Scene
    seed: int

    @property
    def prompt(self) -> str:
        """What the pipeline is told."""
        return write_prompt(self.scene, self.seed)

    @property
    def clip(self) -> Clip:
        """What it would show at best."""
        return render_clip(self.scene, self.seed)


MakeClips = Callable[[Sequence[Example]], list[tuple[np.ndarray, np.ndarray]]]


def draw_examples(scenes_per_tier: int, split: str = "test", seed: int = 0) -> list[Example]:
    """
    Different scenes of each tier.

    Args:
        scenes_per_tier: How many of each tier.
        split: "train", "validation" or "test".
        seed: Another seed draws other scenes.

    Raises:
        ValueError: `scenes_per_tier` is not positive, or exceeds the scenes that the tier has in this split.
    """
    if scenes_per_tier < 1:
        raise ValueError(f"`scenes_per_tier` is {scenes_per_tier}: ask for at least one.")
    examples = []
    for tier in TIERS:
        chosen: dict[int, Example] = {}
        for draw in range(100 * scenes_per_tier):
            example = Example(sample_scene(seed * 1_000_003 + draw, tier, split), seed * 1_000_003 + draw)
            chosen.setdefault(example.scene.digest, example)
            if len(chosen) == scenes_per_tier:
                break
        else:
            raise ValueError(
                f"`scenes_per_tier` is {scenes_per_tier}, but only {len(chosen)} {tier} scenes of the {split} split were "
                "found: ask for fewer."
            )
        examples += chosen.values()
    return examples


def generated_clips(
    pipe: BatonPipeline,
    examples: Sequence[Example],
    num_inference_steps: int | None = None,
    plan: str = "planner",
    shuffle_prompts: bool = False,
    text: bool = True,
) -> MakeClips:
    """
    What makes clips by generating them, each from the noise of its example's seed, whatever its batch.

    Args:
        pipe: The pipeline.
        examples: All examples to come; `shuffle_prompts` needs to know them.
        num_inference_steps: Denoising steps; by default the pipeline's.
        plan: "planner"; "none", the text alone; or "ground truth", the plan read off the rendered scene.
        shuffle_prompts: Whether each clip is made from the prompt (and plan) of another scene of its tier, yet scored
            against its own: the control, which shows what a model gets right by chance.
        text: Whether the denoiser reads the prompt. If not, it gets an empty one beside the plan.

    Raises:
        ValueError: an unknown `plan`, or one that the pipeline cannot make; a tier of one scene cannot be shuffled.
    """
    if plan not in PLANS:
        raise ValueError(f"`plan` is {plan!r}: choose one of {PLANS}.")
    if plan == "planner" and pipe.planner is None:
        raise ValueError('the pipeline has no planner: evaluate with `plan="none"`.')
    told = {example: example for example in examples}
    if shuffle_prompts:
        for tier in TIERS:
            group = [example for example in examples if example.scene.tier == tier]
            if len(group) == 1:
                raise ValueError(
                    f"the {tier} tier has one scene, whose prompt cannot be exchanged: ask for two or more."
                )
            told |= {own: other for own, other in zip(group, group[1:] + group[:1], strict=True)}

    def make(batch: Sequence[Example]) -> list[tuple[np.ndarray, np.ndarray]]:
        others = [told[example] for example in batch]
        prompts, given = [other.prompt for other in others], None
        if plan == "ground truth":
            given = SemanticPlan.collate([_true_plan(pipe, other.clip) for other in others])
        elif plan == "planner" and not text:
            given = pipe.prepare_plan(prompts)
        output = pipe(
            prompt=prompts if text else [""] * len(prompts),
            num_inference_steps=num_inference_steps,
            generator=[torch.Generator().manual_seed(example.seed) for example in batch],
            plan=given,
            use_plan=plan != "none",
            output_type="pt",
        )
        return [output.clip(index) for index in range(len(batch))]

    return make


def reconstructed_clips(pipe: BatonPipeline) -> MakeClips:
    """What makes clips by sending the rendered scenes through both autoencoders and the vocoder: no generator is better."""

    @torch.no_grad()
    def make(batch: Sequence[Example]) -> list[tuple[np.ndarray, np.ndarray]]:
        clips = [example.clip for example in batch]
        video = to_video(torch.stack([torch.from_numpy(clip.frames) for clip in clips])).to(pipe.vae.device)
        waveform = torch.stack([torch.from_numpy(clip.waveform) for clip in clips]).to(pipe.audio_vae.device)
        num_frames = video.shape[2]
        latents = pipe.encode_video(video)
        duration = coordinates.clip_duration(num_frames, pipe.frame_rate)
        rate = pipe.transformer.config.audio_latent_rate
        audio_latents = encode_audio_latents(pipe.audio_vae, waveform, duration, rate)
        frames, audio = pipe.decode_latents(latents, audio_latents, num_frames, output_type="np")
        return list(zip((frames * 255).round().astype(np.uint8), audio, strict=True))

    return make


def evaluate(make_clips: MakeClips, examples: Sequence[Example], batch_size: int = 8) -> list[ClipScore]:
    """
    Make a clip of each example and score it.

    Args:
        make_clips: Gives frames, uint8 `(num_frames, height, width, 3)`, and a waveform, `(1, num_samples)`, for each
            example of a batch.
        examples: From [`draw_examples`].
        batch_size: Clips made together.

    Returns:
        A score for each example, for `stage.summarise`.
    """
    scores = []
    with tqdm(total=len(examples), desc="clips", unit="clip") as bar:
        for start in range(0, len(examples), batch_size):
            batch = examples[start : start + batch_size]
            for example, (frames, waveform) in zip(batch, make_clips(batch), strict=True):
                scores.append(score_clip(frames, waveform.mean(axis=0), example.scene))
            bar.update(len(batch))
    return scores


def format_summary(summary: dict[str, dict[str, Any]]) -> str:
    """`stage.scoring.summarise`'s result as a Markdown table, with 95% intervals in brackets. The last columns are the
    shares of the facts that hold, aspect by aspect."""
    columns = {"p_acc": "P-Acc", "strict": "strict", "m_wer": "M-WER", "desync": "DeSync (s)"}
    header = ["tier", "clips", *columns.values(), *ASPECTS]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for tier, values in summary.items():
        scores = [
            "-" if values[name] is None else "{value:.3f} [{low:.3f}, {high:.3f}]".format(**values[name])
            for name in columns
        ]
        shares = [f"{values['facts'][aspect]:.2f}" for aspect in ASPECTS]
        lines.append(f"| {' | '.join([tier, str(values['clips']), *scores, *shares])} |")
    return "\n".join(lines)


def _true_plan(pipe: BatonPipeline, clip: Clip) -> SemanticPlan:
    return pipe.extract_plan(clip.frames, clip.waveform, clip.frame_rate, clip.sampling_rate)
