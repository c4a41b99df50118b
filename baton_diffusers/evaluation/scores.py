"""Scores of a checkpoint on Stage: by tier, with intervals and controls."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from .. import coordinates
from ..media import Clip as MediaClip
from ..media import read_clip, write_clip
from ..models.latents import encode_audio_latents, to_video
from ..pipelines.given import KEPT_SECONDS
from ..plan import SemanticPlan
from ..stage import Clip, Scene, render_clip, sample_scene, write_cues
from ..stage.prompts import Prompt, describe
from ..stage.scene import EVENTS, TIERS, VERBS
from ..stage.scoring import ASPECTS, ClipScore, score_clip
from .bootstrap import Estimate, bootstrap, ratio
from .plan_variants import SHEET_LENGTH, sheet_embeds


if TYPE_CHECKING:
    from ..pipelines.pipeline_baton import BatonPipeline


PLANS = ("planner", "none", "ground truth", "sheet as text")
PLANNED = ("planner", "sheet as text")  # from the planner's sheets
CUES = ("written", "none", "ground truth")

# What is given of a scene's render: nothing, the sound, the picture, the first frame, the first second.
DIRECTIONS = ("t2av", "a2v", "v2a", "i2av", "continuation")
# Source of the given media: Stage's renders, or the pipeline's own clips, saved as mp4 files and read again.
SOURCES = ("render", "mp4")
# Splits of Stage. The last one has the scenes of "test" in wordings that no training stream yields.
SPLITS = ("validation", "test", "test-combinations", "test-paraphrase")
# Aspects whose facts depend on the given modality alone. The place of an action depends on both.
GIVEN_ASPECTS = {"a2v": ("heard", "pitch", "words", "quiet"), "v2a": ("present", "place", "alone", "seen")}

SHARES = ("p_acc", "p_acc_made", "strict")  # figures in [0, 1]


@dataclass(frozen=True)
class Example:
    """A scene to be generated from its prompt; `seed` seeds its prompt, its render and its noise, and `wordings` says how the
    prompt is worded: "train", or "held-out"."""

    scene: Scene
    seed: int
    wordings: str = "train"

    @cached_property
    def told(self) -> Prompt:
        """The prompt, and what it leaves open."""
        return describe(self.scene, self.seed, self.wordings)

    @property
    def prompt(self) -> str:
        """The text of the prompt."""
        return self.told.text

    @property
    def clip(self) -> Clip:
        """Stage's render, the best possible clip."""
        return render_clip(self.scene, self.seed)

    def score(self, frames: np.ndarray, waveform: np.ndarray) -> ClipScore:
        """Scores a clip against the facts of this example's prompt.

        Args:
            frames: uint8 `(num_frames, 64, 64, 3)`.
            waveform: `(num_channels, num_samples)`.
        """
        return score_clip(frames, waveform.mean(axis=0), self.scene, self.told.places, self.told.colours)


MakeClips = Callable[[Sequence[Example]], list[tuple[np.ndarray, np.ndarray]]]


def draw_examples(scenes_per_tier: int, split: str = "validation", seed: int = 0) -> list[Example]:
    """
    Different scenes of each tier.

    Args:
        scenes_per_tier: How many of each tier.
        split: One of `SPLITS`. Use "validation" to choose models, and the others once, for published results.
        seed: Another seed draws other scenes.

    Raises:
        ValueError: an unknown `split`; `scenes_per_tier` is not positive, or exceeds the scenes that the tier has in this split.
    """
    if scenes_per_tier < 1:
        raise ValueError(f"`scenes_per_tier` is {scenes_per_tier}: ask for at least one.")
    if split not in SPLITS:
        raise ValueError(f"`split` is {split!r}: choose one of {SPLITS}.")
    scenes, wordings = ("test", "held-out") if split == "test-paraphrase" else (split, "train")
    examples = []
    for tier in TIERS:
        chosen: dict[int, Example] = {}
        for draw in range(100 * scenes_per_tier):
            number = seed * 1_000_003 + draw
            example = Example(sample_scene(number, tier, scenes), number, wordings)
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
    direction: str = "t2av",
    cues: str = "written",
    given_from: str = "render",
) -> MakeClips:
    """
    A function that generates clips. Each example's seed draws its noise, whatever the batch.

    In every direction except "t2av", a part of the scene's own render is given. A modality that is given whole stays in the clip
    unchanged, and is scored together with the generated one. Text and plan are used as in "t2av".

    Args:
        pipe: The pipeline.
        examples: All examples; `shuffle_prompts` exchanges their prompts.
        num_inference_steps: Denoising steps; by default the pipeline's.
        plan: "planner", "none" (text alone), "ground truth" (the plan read off the rendered scene) or "sheet as text" (no plan, but the
            planner's sheet is read beside the prompt, see [`~plan_variants.sheet_embeds`]).
        shuffle_prompts: Whether each clip is made from the prompt (and plan) of another scene of its tier, but scored against its
            own. This control shows what a model gets right by chance.
        text: Whether the denoiser reads the prompt. If not, it gets an empty one beside the plan.
        direction: One of `DIRECTIONS`. "t2av": nothing is given. "a2v": the sound is given. "v2a": the picture is given. "i2av": the
            first frame is given. "continuation": the first second of both is given, as the autoencoders render it.
        cues: Cues of a planner that knows timestamps: "written" (by the planner, as in the pipeline), "none" (it plans as in the paper)
            or "ground truth" (the cues of the rendered scene).
        given_from: Source of the given media: "render" (the scene's own) or "mp4" (the clip that the pipeline makes from the same prompt
            and noise, saved and read again, which is what users have).

    Raises:
        ValueError: an unknown `direction`, `plan`, `cues` or `given_from`, or one that does not suit the direction; cues for a
            planner that knows none; a plan that the pipeline cannot make; a tier of one scene, which cannot be shuffled.
    """
    check_direction(direction, given_from)
    if plan not in PLANS:
        raise ValueError(f"`plan` is {plan!r}: choose one of {PLANS}.")
    if cues not in CUES:
        raise ValueError(f"`cues` is {cues!r}: choose one of {CUES}.")
    if cues != "written" and (plan not in PLANNED or pipe.planner is None or not pipe.planner.writes_cues):
        raise ValueError(f"`cues` is {cues!r}, but no planner that knows timestamps is used: leave it out.")
    if plan in PLANNED and pipe.planner is None:
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

    def make(batch: Sequence[Example], direction: str = direction) -> list[tuple[np.ndarray, np.ndarray]]:
        sources: list[Clip | MediaClip] = [example.clip for example in batch]
        if given_from == "mp4" and direction != "t2av":
            sources = [through_mp4(*clip, pipe) for clip in make(batch, "t2av")]
        others = [told[example] for example in batch]
        prompts, given = [other.prompt for other in others], None
        if plan == "ground truth":
            given = SemanticPlan.collate([_true_plan(pipe, other.clip) for other in others])
        generator = [torch.Generator().manual_seed(example.seed) for example in batch]
        sheets = {"none": [""] * len(batch), "ground truth": [write_cues(o.scene, o.seed) for o in others]}.get(cues)
        if plan == "planner" and not text:
            if sheets is None and direction in ("a2v", "v2a", "continuation"):
                sheets = [""] * len(batch)  # a plan that is made in advance ignores the given media
            given = pipe.prepare_plan(prompts, cues=pipe.prepare_cues(prompts, cues=sheets, generator=generator))
            sheets = None
        texts: dict[str, Any] = {"prompt": prompts if text else [""] * len(prompts)}
        if plan == "sheet as text":
            texts = _with_sheets(pipe, prompts, sheets or pipe.prepare_cues(prompts, generator=generator))
            sheets = None
        output = pipe(
            **texts,
            num_inference_steps=num_inference_steps,
            generator=generator,
            cues=sheets,
            plan=given,
            use_plan=plan in ("planner", "ground truth"),
            use_cache=True,  # nano's clips take little memory, and a given modality is run once
            output_type="pt",
            **_given(pipe, sources, direction),
        )
        return [output.clip(index) for index in range(len(batch))]

    return make


def _with_sheets(pipe: BatonPipeline, prompts: list[str], sheets: list[str]) -> dict[str, torch.Tensor]:
    """Embeddings of prompts, each with its sheet as text after it, and of the negative prompt."""
    embeds, negative, _ = pipe.encode_prompt(prompts)
    read = sheet_embeds(pipe.planner, pipe.planner_tokenizer, prompts, sheets).to(embeds)
    length = pipe.config.max_sequence_length - SHEET_LENGTH
    return {"prompt_embeds": torch.cat([embeds[:, :length], read], dim=1), "negative_prompt_embeds": negative[:1]}


def rendered_clips(batch: Sequence[Example]) -> list[tuple[np.ndarray, np.ndarray]]:
    """The scenes' own renders."""
    return [(example.clip.frames, example.clip.waveform[None]) for example in batch]


def reconstructed_clips(pipe: BatonPipeline) -> MakeClips:
    """A function that encodes and decodes the rendered scenes, with both autoencoders and the vocoder: the ceiling of every
    generator."""

    def make(batch: Sequence[Example]) -> list[tuple[np.ndarray, np.ndarray]]:
        return reconstruct(pipe, rendered_clips(batch))

    return make


@torch.no_grad()
def reconstruct(
    pipe: BatonPipeline, clips: Sequence[tuple[np.ndarray, np.ndarray]]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """
    Clips, encoded and decoded by both autoencoders and the vocoder.

    Args:
        pipe: The pipeline with these components.
        clips: All of one length: frames, uint8 `(num_frames, height, width, 3)`, and a mono waveform, `(1, num_samples)`, at the
            pipeline's rates.
    """
    video = to_video(torch.stack([torch.from_numpy(frames) for frames, _ in clips])).to(pipe.vae.device)
    waveform = torch.stack([torch.from_numpy(sound[0]) for _, sound in clips]).to(pipe.audio_vae.device)
    num_frames = video.shape[2]
    latents = pipe.encode_video(video)
    duration = coordinates.clip_duration(num_frames, pipe.frame_rate)
    grid = pipe.transformer.config.audio_latent_rate, pipe.transformer.config.audio_latent_min_coverage
    audio_latents = encode_audio_latents(pipe.audio_vae, waveform, duration, *grid)
    frames, audio = pipe.decode_latents(latents, audio_latents, num_frames, output_type="np")
    return list(zip((frames * 255).round().astype(np.uint8), audio, strict=True))


def through_mp4(frames: np.ndarray, waveform: np.ndarray, pipe: BatonPipeline) -> MediaClip:
    """A clip, saved as an mp4 file and read again at the pipeline's rates.

    Args:
        frames: uint8 `(num_frames, height, width, 3)`.
        waveform: `(num_channels, num_samples)`.
        pipe: The pipeline.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clip.mp4")
        write_clip(path, frames, waveform, pipe.frame_rate, pipe.sampling_rate)
        return read_clip(path, pipe.frame_rate, pipe.sampling_rate)


def evaluate(make_clips: MakeClips, examples: Sequence[Example], batch_size: int = 8) -> list[ClipScore]:
    """
    Make a clip of each example and score it.

    Args:
        make_clips: Gives frames, uint8 `(num_frames, height, width, 3)`, and a waveform, `(1, num_samples)`, for each
            example of a batch.
        examples: From [`draw_examples`].
        batch_size: Clips made together.

    Returns:
        A score for each example, for [`summarise`].
    """
    return [score for batch in scored_batches(make_clips, examples, batch_size) for score in batch]


def scored_batches(
    make_clips: MakeClips, examples: Sequence[Example], batch_size: int = 8
) -> Iterator[list[ClipScore]]:
    """As [`evaluate`], batch by batch, so that scores can be kept if a later batch fails."""
    with tqdm(total=len(examples), desc="clips", unit="clip") as bar:
        for start in range(0, len(examples), batch_size):
            batch = examples[start : start + batch_size]
            yield [
                example.score(frames, waveform)
                for example, (frames, waveform) in zip(batch, make_clips(batch), strict=True)
            ]
            bar.update(len(batch))


def check_direction(direction: str, given_from: str = "render") -> None:
    """Refuses an unknown direction or source, or a source for a direction without given media.

    Raises:
        ValueError: naming the value and the choices.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"`direction` is {direction!r}: choose one of {DIRECTIONS}.")
    if given_from not in SOURCES:
        raise ValueError(f"`given_from` is {given_from!r}: choose one of {SOURCES}.")
    if given_from != "render" and direction == "t2av":
        raise ValueError(
            f"`given_from` is {given_from!r}, but in the direction t2av nothing is given: choose another."
        )


def p_acc_made(score: ClipScore, direction: str = "t2av") -> float:
    """
    P-Acc over the facts that the generated part can influence.

    If a modality is given whole, some facts hold without any model, and are left out: in "v2a" the cast and everything that is
    *seen*; in "a2v" everything that is *heard*, with its *pitch* and *words*. In the other directions this is P-Acc itself.

    Args:
        score: The clip's score.
        direction: How the clip was made, one of `DIRECTIONS`.
    """
    facts = [fact for fact in score.facts if fact.aspect not in GIVEN_ASPECTS.get(direction, ())]
    return sum(fact.holds for fact in facts) / len(facts)


def summarise(
    scores: Sequence[ClipScore], direction: str = "t2av", scenes: Sequence[Hashable] | None = None
) -> dict[str, dict[str, Any]]:
    """
    The figures of all clips and of each tier.

    Args:
        scores: One for each clip.
        direction: How the clips were made, one of `DIRECTIONS`.
        scenes: The scene of each clip; by default every clip has its own.

    Returns:
        For "all" and for each tier with clips: `clips`, their number; `p_acc`, `p_acc_made` (see [`p_acc_made`]), `strict`, `m_wer`
        and `desync` (seconds), each `{"value", "low", "high"}` with the bounds of a 95% interval over scenes; `facts`, the share of
        the facts of each aspect that hold (None where there are none); and `verbs`, see [`facts_by_verb`]. `m_wer` pools the word
        errors over all clips; it is None where nobody is to speak.

    Raises:
        ValueError: If there is no score.
    """
    if not scores:
        raise ValueError("`scores` is empty: score at least one clip.")
    scenes = range(len(scores)) if scenes is None else scenes
    summary = {}
    for tier in ("all", *TIERS):
        rows = [row for row, score in enumerate(scores) if tier in ("all", score.tier)]
        if not rows:
            continue
        chosen, of_clips = [scores[row] for row in rows], [scenes[row] for row in rows]
        facts = [fact for score in chosen for fact in score.facts]
        holds = {aspect: [fact.holds for fact in facts if fact.aspect == aspect] for aspect in ASPECTS}
        summary[tier] = {
            "clips": len(chosen),
            **{
                name: bootstrap(ratio, parts, of_clips, share=name in SHARES)
                for name, parts in figure_parts(chosen, direction).items()
            },
            "facts": {aspect: float(np.mean(of)) if of else None for aspect, of in holds.items()},
            "verbs": facts_by_verb(chosen),
        }
    return summary


def figure_parts(scores: Sequence[ClipScore], direction: str = "t2av") -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Numerator and denominator of each figure, one value for each clip. The figure is the [`ratio`] of their sums."""
    one = np.ones(len(scores))
    errors, words = np.array([score.word_errors for score in scores], dtype=float).T
    return {
        "p_acc": (np.array([score.p_acc for score in scores]), one),
        "p_acc_made": (np.array([p_acc_made(score, direction) for score in scores]), one),
        "strict": (np.array([score.strict for score in scores], dtype=float), one),
        "m_wer": (errors, words),
        "desync": (np.array([score.desync for score in scores]), one),
    }


def facts_by_verb(scores: Sequence[ClipScore]) -> dict[str, dict[str, dict[str, float]]]:
    """
    The facts that hold, by verb of Stage: bounce (balls), ring (bells), hit (boxes) and say (faces).

    Args:
        scores: One for each clip.

    Returns:
        For each verb, and each aspect of its facts: `share`, the share of the facts that hold, and `facts`, their number. The presence
        of an actor counts for the verb of its kind, whether or not it acts. Verbs and aspects without facts are left out.
    """
    holds: dict[str, dict[str, list[bool]]] = {}
    for fact in (fact for score in scores for fact in score.facts):
        word = fact.subject.split()[-1]  # the kind in "red ball", the verb in "1. red ball bounce"
        holds.setdefault(VERBS.get(word, word), {}).setdefault(fact.aspect, []).append(fact.holds)
    return {
        verb: {a: {"share": float(np.mean(of[a])), "facts": len(of[a])} for a in ASPECTS if a in of}
        for verb, of in ((verb, holds[verb]) for verb in EVENTS if verb in holds)
    }


def hits_by_neighbours(scores: Sequence[ClipScore], examples: Sequence[Example]) -> dict[int, Estimate | None]:
    """
    The share of hits that visibly reach their target, by the number of the box's neighbours. A box with two neighbours has to
    choose the right one.

    Args:
        scores: One for each clip.
        examples: The example of each clip.

    Returns:
        For 1 and 2 neighbours: the share with its 95% interval over scenes, and `hits`, the number of hits; None without hits.
    """
    hits: dict[int, list[tuple[int, bool]]] = {1: [], 2: []}
    for score, example in zip(scores, examples, strict=True):
        number, script = len(example.scene.actors), example.scene.script
        seen = [fact.holds for fact in score.facts if fact.aspect == "seen"]
        for action, holds in zip(script, seen, strict=True):
            if action.verb == "hit":
                neighbours = (action.actor > 0) + (action.actor < number - 1)
                hits[neighbours].append((example.scene.digest, holds))
    shares: dict[int, Estimate | None] = {}
    for neighbours, of in hits.items():
        scenes, holds = [scene for scene, _ in of], np.array([float(held) for _, held in of])
        share = bootstrap(ratio, [holds, np.ones(len(of))], scenes, share=True) if of else None
        shares[neighbours] = None if share is None else share | {"hits": len(of)}
    return shares


def format_summary(summary: dict[str, dict[str, Any]]) -> str:
    """The result of [`summarise`] as a Markdown table, with 95% intervals in brackets. The last columns are the shares of the facts
    that hold, by aspect. *made* is P-Acc over the facts that are not given."""
    columns = {"p_acc": "P-Acc", "p_acc_made": "made", "strict": "strict", "m_wer": "M-WER", "desync": "DeSync (s)"}
    if all(values["p_acc_made"] == values["p_acc"] for values in summary.values()):
        del columns["p_acc_made"]
    lines = [["tier", "clips", *columns.values(), *ASPECTS]]
    for tier, values in summary.items():
        scores = [format_estimate(values[name]) for name in columns]
        shares = ["-" if values["facts"][a] is None else f"{values['facts'][a]:.2f}" for a in ASPECTS]
        lines.append([tier, str(values["clips"]), *scores, *shares])
    return markdown_table(lines)


def format_verbs(verbs: dict[str, dict[str, dict[str, float]]]) -> str:
    """The result of [`facts_by_verb`] as a Markdown table: the share of the facts that hold, and their number."""
    aspects = [aspect for aspect in ASPECTS if any(aspect in of for of in verbs.values())]
    lines = [["verb", *aspects]]
    for verb, of in verbs.items():
        lines.append([verb, *(f"{of[a]['share']:.2f} of {of[a]['facts']}" if a in of else "-" for a in aspects)])
    return markdown_table(lines)


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """Cells as a Markdown table; the first line is its header."""
    header, *rows = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([header, "|---" * len(lines[0]) + "|", *rows])


def format_estimate(estimate: Estimate | None, form: str = ".3f") -> str:
    """A value with its interval in brackets, or a dash for None."""
    if estimate is None:
        return "-"
    value, low, high = (format(estimate[name], form) for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _given(pipe: BatonPipeline, clips: Sequence[Clip | MediaClip], direction: str) -> dict[str, Any]:
    """The media arguments of a call for this direction, taken from `clips`."""
    if direction == "a2v":
        return {"audio": [clip.waveform for clip in clips], "audio_sampling_rate": clips[0].sampling_rate}
    if direction == "v2a":
        return {"video": [clip.frames for clip in clips], "video_frame_rate": clips[0].frame_rate}
    if direction == "i2av":
        return {"image": [clip.frames[0] for clip in clips]}
    if (
        direction == "continuation"
    ):  # with masks, since the prompt describes the whole clip, not only what comes after the beginning
        num_frames = coordinates.num_frames_nearest(
            KEPT_SECONDS, pipe.frame_rate, pipe.vae.config.scale_factor_temporal
        )
        kept = coordinates.clip_duration(num_frames, pipe.frame_rate)
        new = [(kept, coordinates.clip_duration(len(clips[0].frames), clips[0].frame_rate))]
        whole = _given(pipe, clips, "v2a") | _given(pipe, clips, "a2v")
        return whole | {"video_mask": new, "audio_mask": new}
    return {}


def _true_plan(pipe: BatonPipeline, clip: Clip) -> SemanticPlan:
    return pipe.extract_plan(clip.frames, clip.waveform, clip.frame_rate, clip.sampling_rate)
