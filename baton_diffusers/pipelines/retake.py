"""A part of a clip is rendered again, with the clip around it given; the rest stays as it is, bit for bit. Ours."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from .. import coordinates
from ..cues import LONGEST_CUE, parse_sheet
from ..media import Clip, VideoFile
from ..plan import SemanticPlan
from .checks import check_number, check_output_type
from .given import MODALITIES, GivenAudio, GivenClips, GivenVideo, at_sampling_rate, read_clips
from .pipeline_output import BatonPipelineOutput
from .planning import PlanRequest


FADE = 0.01  # seconds at each end of a span in which the old sound passes into the new one
FADED_FRAMES = 4  # at each end of a span in which the old picture's difference fades
MAX_DIFFERENCE = 0.06  # of a picture in [0, 1]: more is another picture, and would be a ghost of it

Spans = list[tuple[float, float]]


class BatonRetakeMixin:
    """`retake` as a method of a pipeline. It is built of calls of the pipeline."""

    def retake(
        self,
        clip: GivenClips,
        start: float | None = None,
        end: float | None = None,
        prompt: str | None = None,
        cues: str | None = None,
        plan: SemanticPlan | str | os.PathLike | None = None,
        generator: torch.Generator | None = None,
        modality: str | None = None,
        actor: str | None = None,
        output_type: str = "pil",
        **call: Any,
    ) -> BatonPipelineOutput:
        r"""
        Renders a span of a clip again, and leaves the rest of it as it is, bit for bit.

        Picture and sound around the span are given, so the new part continues them and leads back to them. The old sound passes into
        the new one within 10 ms at the ends of the span, inside it. The plan of the new part is the first of these that there is:
        `plan`; a plan of `cues`; the clip's own plan, if the prompt is unchanged; a plan of `prompt`, with cues fitted to the rest of the
        clip.

        A change ends with the span: an actor with another colour in it has the old colour afterwards.

        Args:
            clip: one clip: a [`BatonPipelineOutput`], which knows its prompt and its plan, a file, a [`~media.Clip`], or a pair (frames,
                audio).
            start, end (`float`, *optional*): the span in seconds, rounded to frames; by default the clip's ends.
            prompt (`str`, *optional*): what happens in the clip as a whole; by default the prompt of `plan` or of the clip.
            cues (`str`, *optional*): the cue sheet of the clip as a whole.
            plan (`SemanticPlan` or the path of its file, *optional*): of the clip as a whole, as `edit_plan` or `SemanticPlan.splice`
                make it.
            generator (`torch.Generator`, *optional*): another seed is another take.
            modality (`str`, *optional*): "video" or "audio" renders that modality alone; the other one is given whole.
            actor (`str`, *optional*): renders only the events of this actor of the cue sheet within the span, half a second to both sides
                of each. Events of others at the same time are rendered with them.
            output_type (`str`, defaults to `"pil"`): `"pil"`, `"np"` or `"pt"`.
            call: further arguments of `__call__`, such as `num_inference_steps`.

        Returns:
            [`BatonPipelineOutput`] of one clip, at the clip's size and rates, with the plan that the new part follows.

        Raises:
            ValueError: if the clip, its rates or the span do not fit, nothing says what to render, the span leaves nothing of the clip, or
                as `__call__`.
            TypeError: if `call` has arguments that are not for a retake.
        """
        check_output_type(output_type)
        if output_type == "latent":
            raise ValueError(
                "`output_type` is 'latent', but a retake joins frames and samples: choose 'pil', 'np' or 'pt'."
            )
        if modality not in (None, *MODALITIES):
            raise ValueError(f"`modality` is {modality!r}, but must be one of {MODALITIES}, or None for both.")
        if given := sorted(set(call) & _OWN_ARGUMENTS):
            raise TypeError(f"`{given[0]}` is decided by the clip in a retake: leave it out.")
        plan = PlanRequest(plan).read().plan
        before, old_plan = read_clip(self, clip)
        start, end = check_span(start, end, before)
        prompt, plan = self._follow(prompt, cues, plan, old_plan)
        spans = [(start, end)]
        if actor is not None:
            sheets = (
                [cues] if cues is not None else [p.sheets[0] for p in (old_plan, plan) if p is not None and p.sheets]
            )
            spans = spans_of_actor(actor, sheets, start, end)
        spans = [
            tuple(round(time * before.frame_rate) / before.frame_rate for time in span) for span in spans
        ]  # both modalities change at the same instants
        if sum(end - start for start, end in spans) > before.duration - 0.5 / before.frame_rate:
            raise ValueError(
                "the retake leaves nothing of the clip: name a `start` or an `end` within it, or make a new clip."
            )

        masks = {f"{name}_mask": spans for name in MODALITIES if modality in (None, name)}
        new = self(
            prompt,
            plan=plan,
            cues=cues,
            generator=generator,
            video=before.frames,
            audio=before.waveform,
            video_frame_rate=before.frame_rate,
            audio_sampling_rate=before.sampling_rate,
            output_type="pt",
            **masks,
            **call,
        )
        frames, waveform = before.frames, before.waveform
        if modality != "audio":
            frames = replace_frames(frames, new.frames[0], before.frame_rate, spans)
        if modality != "video":
            sound = at_sampling_rate(new.audio[0].float().cpu().numpy(), new.sampling_rate, before.sampling_rate)
            waveform = replace_samples(waveform, sound, before.sampling_rate, spans)
        return BatonPipelineOutput(
            GivenVideo(frames[None], before.frame_rate).output(1, output_type),
            GivenAudio(waveform[None], before.sampling_rate).output(1, output_type),
            before.frame_rate,
            before.sampling_rate,
            new.plan,
            output_type,
        )

    def _follow(
        self, prompt: str | None, cues: str | None, plan: SemanticPlan | None, old_plan: SemanticPlan | None
    ) -> tuple[str, SemanticPlan | None]:
        """The prompt of a retake, and the plan that it follows where none is made."""
        known = next((p.prompts[0] for p in (plan, old_plan) if p is not None and p.prompts), None)
        if prompt is None and known is None:
            raise ValueError("nothing says what happens in the clip, which knows no prompt itself: give `prompt`.")
        if plan is not None and cues is not None:
            raise ValueError("`plan` and `cues` both decide what is rendered: leave one of them out.")
        if plan is None and cues is None and prompt in (None, known):
            plan = old_plan
        return known if prompt is None else prompt, plan


# Arguments that the clip and the span decide.
_OWN_ARGUMENTS = {
    "image",
    "video",
    "audio",
    "continue_from",
    "continue_seconds",
    "video_mask",
    "audio_mask",
    "video_frame_rate",
    "audio_sampling_rate",
    "only",
    "num_frames",
    "num_videos_per_prompt",
    "latents",
    "audio_latents",
    "return_dict",
}


def read_clip(pipe: Any, clip: GivenClips) -> tuple[Clip, SemanticPlan | None]:
    """
    One clip, its values as they are, and its plan if it knows one.

    Raises:
        ValueError: if there is not one clip, it cannot be read, or has another frame rate than the pipeline.
    """
    plan = None
    if isinstance(clip, BatonPipelineOutput):
        if clip.num_clips != 1 or clip.output_type == "latent" or clip.frames is None or clip.audio is None:
            raise ValueError(
                f"`clip` is a {str(clip).splitlines()[0]}: give one clip with frames and sound, such as `media.Clip(*output.clip(i), "
                "output.frame_rate, output.sampling_rate)`."
            )
        plan, frames, waveform = clip.plan, clip.frames[0], clip.audio[0]
        if isinstance(clip.frames, list):
            frames = np.stack([np.asarray(frame.convert("RGB")) for frame in frames])
        elif isinstance(frames, torch.Tensor):
            frames = frames.movedim(1, -1).float().cpu().numpy()
        if isinstance(waveform, torch.Tensor):
            waveform = waveform.float().cpu().numpy()
        before = Clip(frames, waveform, clip.frame_rate, clip.sampling_rate)
    else:
        clips = read_clips(clip, pipe.frame_rate, pipe.sampling_rate, name="clip")
        if len(clips) != 1:
            raise ValueError(f"`clip` holds {len(clips)} clips: give one at a time.")
        before = clips[0]
        if isinstance(before.frames, VideoFile):
            before = before._replace(frames=before.frames.array())
    if before.frame_rate != pipe.frame_rate:
        raise ValueError(
            f"`clip` has {before.frame_rate:g} frames per second, but the pipeline makes {pipe.frame_rate:g}: convert it first, by "
            f"`media.read_clip(path, frame_rate={pipe.frame_rate:g})`."
        )
    return before, plan


def check_span(start: float | None, end: float | None, clip: Clip) -> tuple[float, float]:
    """The span in seconds.

    Raises:
        ValueError: if it is shorter than a frame, or not within the clip.
    """
    start, end = 0.0 if start is None else start, clip.duration if end is None else end
    for name, value in (("start", start), ("end", end)):
        check_number(name, value)
    if not 0 <= start < end <= clip.duration + 1e-6:
        raise ValueError(
            f"the span from {start!r} to {end!r} seconds does not lie within the clip of {clip.duration:g}."
        )
    if round(end * clip.frame_rate) == round(start * clip.frame_rate):
        raise ValueError(f"the span from {start:g} to {end:g} seconds is shorter than a frame: make it longer.")
    return start, end


def spans_of_actor(actor: str, sheets: Sequence[str], start: float, end: float) -> Spans:
    """The spans within `[start, end)` seconds in which an actor acts by one of the sheets.

    Raises:
        ValueError: if there are none.
    """
    spans: Spans = []
    for sheet in map(parse_sheet, sheets):
        for number, cue in enumerate(sheet.cues):
            if sheet.actor_of(number) == actor and start <= cue.time < end:
                spans.append((max(cue.time - LONGEST_CUE, start), min(cue.time + LONGEST_CUE, end)))
    if not spans:
        raise ValueError(
            f"{actor!r} does nothing from {start:g} to {end:g} seconds by the cue sheet {(*sheets, None)[0]!r}: name an actor of it, or "
            "give the `plan` or the `cues` that have one."
        )
    joined: Spans = []
    for span in sorted(spans):
        if joined and span[0] <= joined[-1][1]:
            span = (joined[-1][0], max(joined.pop()[1], span[1]))
        joined.append(span)
    return joined


def replace_frames(frames: np.ndarray, new: torch.Tensor, frame_rate: float, spans: Spans) -> np.ndarray:
    """
    Frames of a clip, with the spans from another one.

    An autoencoder does not reproduce its input exactly. So the difference between both clips in the frames beside a span is added to the
    frames within it, fading over `FADED_FRAMES`. Otherwise brightness and grain would jump at the seam.

    Args:
        frames (`np.ndarray` of shape `(num_frames, height, width, 3)`): uint8, or float32 in [0, 1].
        new (`torch.Tensor` of shape `(num_frames, 3, height, width)`): in [0, 1], of any height and width.
        frame_rate (`float`): of both.
        spans: in seconds.
    """
    result, num_frames = frames.copy(), len(frames)

    def old(number: int) -> np.ndarray:
        return frames[number].astype(np.float32) / (255 if frames.dtype == np.uint8 else 1)

    def rendered(first: int, last: int) -> np.ndarray:
        chosen = new[first:last].float()
        if chosen.shape[2:] != frames.shape[1:3]:
            chosen = F.interpolate(chosen, frames.shape[1:3], mode="bicubic", antialias=True).clamp(0, 1)
        return chosen.movedim(1, -1).cpu().numpy()

    for start, end in spans:
        first, last = (min(round(time * frame_rate), num_frames) for time in (start, end))
        inside = rendered(first, last)
        fade = (1 - np.arange(1, FADED_FRAMES + 1, dtype=np.float32) / (FADED_FRAMES + 1))[: last - first]
        for beside, order in ((first - 1, 1), (last, -1)):
            if 0 <= beside < num_frames:
                difference = np.clip(old(beside) - rendered(beside, beside + 1)[0], -MAX_DIFFERENCE, MAX_DIFFERENCE)
                inside[::order][: len(fade)] += fade[:, None, None, None] * difference
        inside = inside.clip(0, 1)
        result[first:last] = (inside * 255).round() if frames.dtype == np.uint8 else inside
    return result


def replace_samples(waveform: np.ndarray, new: np.ndarray, sampling_rate: int, spans: Spans) -> np.ndarray:
    """Samples of a clip, with the spans from another one. They are cross-faded within `FADE` seconds, inside the spans.

    Args:
        waveform (`np.ndarray` of shape `(num_channels, num_samples)`).
        new (`np.ndarray` of shape `(num_channels, num_samples)`): its channels are averaged if they are not as many.
        sampling_rate (`int`): of both.
        spans: in seconds.
    """
    result, num_samples = waveform.copy(), waveform.shape[1]
    if len(new) != len(waveform):
        new = new.mean(axis=0, keepdims=True)
    new = np.pad(new, ((0, 0), (0, max(num_samples - new.shape[1], 0))))[:, :num_samples]
    for start, end in spans:
        first, last = (min(coordinates.num_samples(time, sampling_rate), num_samples) for time in (start, end))
        fade = min(coordinates.num_samples(FADE, sampling_rate), (last - first) // 2)
        weight = np.ones(last - first, dtype=np.float32)
        rising = (np.arange(fade, dtype=np.float32) + 0.5) / max(fade, 1)
        if first > 0:
            weight[:fade] = rising
        if last < num_samples:
            weight[len(weight) - fade :] = rising[::-1]
        old = waveform[:, first:last]
        result[:, first:last] = old + weight * (new[:, first:last] - old)
    return result
