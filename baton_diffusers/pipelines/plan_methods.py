"""The methods of a pipeline that plan without rendering: they write cues, plan, and read plans off clips."""

from __future__ import annotations

import os
from typing import Unpack

import numpy as np
import torch

from ..cues import Sheet
from ..plan import SemanticPlan
from . import editing, planning
from .checks import check_texts, check_whole_number
from .components import ClipSize, one_call_at_a_time
from .conditions import Noise
from .given import Given, GivenMedia, check_names, read_given
from .pipeline_output import BatonPipelineOutput
from .planning import PlanRequest
from .previews import preview_plan
from .texts import Texts


class BatonPlanMixin:
    """Planning as methods of a pipeline. None of them needs the transformer; `planning.py` does the work."""

    @torch.no_grad()
    @one_call_at_a_time
    def plan(
        self,
        prompt: str | list[str],
        audio_prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_videos_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        cues: str | list[str] | None = None,
        cue_temperature: float | None = None,
        num_cue_candidates: int = 64,
        num_plan_candidates: int | None = None,
        **media: Unpack[GivenMedia],
    ) -> SemanticPlan:
        r"""
        Plans clips as `__call__` would, and renders nothing: cue sheets, the checker's choice among them, and plan tokens.

        `pipe(prompt, plan=plan)` renders the plan. With a generator of the same seed it is the clip that `pipe(prompt)` makes.
        No transformer is needed, but `latent_format` must be known.

        Args:
            prompt (`str` or `list[str]`): what happens in each clip.
            audio_prompt, height, width, num_frames, num_videos_per_prompt, generator, cues, cue_temperature, num_cue_candidates,                 num_plan_candidates, media: as in `__call__`.

        Returns:
            `SemanticPlan` for all clips. It knows its `prompts`, its `sheets`, and the `candidates` with their scores; `print(plan)`
            shows it, and `plan.table()` tells who acts when.

        Raises:
            ValueError: if the pipeline has no planner, or as `__call__` does.
        """
        check_names(media, BatonPlanMixin.plan)
        if self.planner is None:
            raise ValueError(
                "`planner` is missing, and nothing else plans: load the pipeline with one, or read a plan off a clip by `extract_plan`."
            )
        request = PlanRequest(None, True, cues, cue_temperature, num_cue_candidates, num_plan_candidates)
        rates = self.frame_rate, self.sampling_rate, self.latent_format["temporal_stride"]
        given = read_given(*rates, **media, max_seconds=request.longest_clip(self))
        texts = Texts(self.format_prompt(prompt, audio_prompt))
        size = given.default_size(self, height, width, num_frames)
        check_whole_number("num_videos_per_prompt", num_videos_per_prompt)
        texts.check(self)
        size.check(self)
        given.check(self, texts.batch_size, size.num_frames)
        num_clips = texts.batch_size * num_videos_per_prompt
        Noise(generator).check(self, num_clips, size, given.only)
        request.check(self, texts, num_videos_per_prompt, size.num_frames)
        return self._shown(
            request.make(self, texts.prompts, given, num_clips, size, generator, self._execution_device)
        )

    @torch.no_grad()
    @one_call_at_a_time
    def preview(self, plan: SemanticPlan | str | os.PathLike) -> BatonPipelineOutput:
        r"""
        Decodes a plan to small pictures and a scratch track: a storyboard, in a small part of the time of a clip.

        `preview.figure()` draws it with the plan's cues; `preview.save(path)` writes it as a clip. No transformer is needed.

        Args:
            plan (`SemanticPlan` or the path of its file): of this pipeline's planner or semantic encoders.

        Returns:
            [`BatonPipelineOutput`] with arrays: frames at the pipeline's rate, and waveforms at the decoder's; `None` for a modality
            whose decoder is missing.

        Raises:
            ValueError: if the pipeline has no plan decoder, or the plan is of another checkpoint; or a decoder returns NaN.
        """
        return preview_plan(self, plan, self._execution_device)

    @torch.no_grad()
    def prepare_cues(
        self,
        prompt: str | list[str],
        num_frames: int | None = None,
        num_clips: int | None = None,
        cues: str | list[str] | None = None,
        cue_temperature: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        device: torch.device | None = None,
        given_plan: SemanticPlan | None = None,
        num_cue_candidates: int = 64,
        num_plan_candidates: int | None = None,
        goes_on: bool = False,
    ) -> list[str] | None:
        r"""
        Lets the planner write when things happen, or makes given cue sheets ready for the clips. No transformer is needed.

        Args:
            prompt (`str` or `list[str]`): what to plan.
            num_frames (`int`, *optional*): length of the clips; by default the pipeline's.
            num_clips (`int`, *optional*): clips to be made, each with a sheet of its own; by default one for each prompt.
            cues (`str` or `list[str]`, *optional*): take the place of the planner's; one sheet for all prompts, or one for
                each, or one for each clip.
            cue_temperature (`float`, *optional*): as in `__call__`.
            generator (`torch.Generator` or a list with one for each clip, *optional*): decides what is written. It is read,
                not advanced, so the noise of a clip does not depend on its planner. Without one, PyTorch's default generator
                gives a seed.
            device (`torch.device`, *optional*): where the planner runs.
            given_plan (`SemanticPlan`, *optional*): what `prepare_given_plan` reads, for one clip or for each; the cues are then
                fitted to it ([`fit_cues`]).
            num_cue_candidates (`int`, defaults to 64): see [`fit_cues`].
            num_plan_candidates (`int`, *optional*): as in `__call__`.
            goes_on (`bool`, defaults to `False`): whether `given_plan` is of a beginning, and the prompt describes what comes
                after it, as with `continue_from`.

        Returns:
            `list[str]` of `num_clips` sheets, their instants moved to the planner's timestamps; or `None` with a planner that knows
            none.

        Raises:
            ValueError: if the clips cannot be shared out among the prompts, or among the sheets given.
        """
        if self.planner is None or not self.planner.writes_cues:
            return None
        check_texts("prompt", prompt)
        device, prompts = device or self._execution_device, [prompt] if isinstance(prompt, str) else prompt
        request = PlanRequest(None, True, cues, cue_temperature, num_cue_candidates, num_plan_candidates)
        request.check_numbers(self)
        num_clips, num_frames = num_clips or len(prompts), num_frames or self.config.num_frames
        if cues is not None:
            return planning.share_cues(self, [cues] if isinstance(cues, str) else cues, num_clips)
        if given_plan is not None:
            number = num_cue_candidates
            return planning.fit_to_plan(self, prompts, num_clips, given_plan, number, generator, device, goes_on)
        candidates = planning.write_cues(self, prompts, num_clips, num_frames, request, generator, device)
        return [best.sheet for best, *_ in candidates]

    @torch.no_grad()
    def prepare_plan(
        self,
        prompt: str | list[str] | None = None,
        num_frames: int | None = None,
        num_clips: int | None = None,
        plan: SemanticPlan | None = None,
        use_plan: bool = True,
        cues: list[str] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        device: torch.device | None = None,
    ) -> SemanticPlan | None:
        r"""
        Plans clips, or makes a given plan ready for them. No transformer is needed.

        Args:
            prompt (`str` or `list[str]`, *optional*): what to plan; not read if `plan` is given.
            num_frames (`int`, *optional*): length of the clips; by default the pipeline's.
            num_clips (`int`, *optional*): clips to be made; by default one for each plan. Every plan is repeated in a row.
            plan (`SemanticPlan`, *optional*): takes the place of the planner's; one for all prompts, one for each, or one for
                each clip.
            use_plan (`bool`, defaults to `True`): whether to plan at all.
            cues (`list[str]`, *optional*): cue sheets, one for each prompt or for each clip; by default `prepare_cues` makes them.
                With empty ones the plan is the mean over the times that the prompt leaves open.
            generator (`torch.Generator` or a list with one for each prompt, *optional*): decides which cues are written.
            device (`torch.device`, *optional*): where the plan goes.

        Returns:
            `SemanticPlan` for `num_clips` clips; or `None` without a planner or with `use_plan=False`.

        Raises:
            ValueError: if the planner refuses the prompt or the cues, or its plan holds NaN.
        """
        device = device or self._execution_device
        if plan is None:
            if not use_plan or self.planner is None:
                return None
            check_texts("prompt", prompt)
            if cues is None:
                cues = self.prepare_cues(prompt, num_frames, generator=generator, device=device)
            prompts, num_frames = [prompt] if isinstance(prompt, str) else prompt, num_frames or self.config.num_frames
            plan = planning.make_plan(self, prompts, num_frames, cues if self.planner.writes_cues else None, device)
        return planning.ready_plan(self, plan, num_clips, device)

    def prepare_given_plan(
        self, given: Given, height: int, width: int, num_frames: int, device: torch.device | None = None
    ) -> SemanticPlan | None:
        r"""
        Reads the part of the plan that given media show, with the semantic encoders.

        Args:
            given ([`Given`]): pictures and sounds.
            height, width, num_frames (`int`): size of the clips in pixels and frames.
            device (`torch.device`, *optional*): where the semantic encoders run.

        Returns:
            `SemanticPlan` of one clip for all or of one for each prompt, whose masks are `True` for the tokens of given pictures
            and sounds; or `None` if there are none, or their encoder is missing.
        """
        return planning.observe_plan(
            self, given, ClipSize(height, width, num_frames), device or self._execution_device
        )

    @one_call_at_a_time
    def edit_plan(
        self, plan: SemanticPlan, sheet: Sheet | str, prompt: str | None = None, device: torch.device | None = None
    ) -> SemanticPlan:
        r"""
        Plans an edited cue sheet, and keeps all tokens of the plan that the edit does not change: `pipe.edit_plan(plan,
        plan.sheet.move(0, 0.25))`. It cannot plan events that the planner has not learnt: a deed of another kind of actor, or
        two events at the same time.

        Args:
            plan (`SemanticPlan`): of one clip, whose sheet is known (`plan.sheet`).
            sheet ([`Sheet`] or `str`): the edited sheet.
            prompt (`str`, *optional*): the prompt of the edited plan. By default the plan's own, if only instants changed, and
                otherwise the sheet in words ([`Sheet.to_prompt`]).
            device (`torch.device`, *optional*): where the planner runs.

        Returns:
            `SemanticPlan` with its new sheet and prompt: `pipe(edited.prompts[0], plan=edited)` renders it.

        Raises:
            ValueError: if no planner writes cues here, the plan's sheet is not known, the sheet has unknown words or instants beyond
                the end, or the plan's tokens do not lie where the planner writes them.
        """
        return self._shown(editing.edit_plan(self, plan, sheet, prompt, device or self._execution_device))

    def extract_plan(
        self, frames: np.ndarray, waveform: np.ndarray, frame_rate: float, sampling_rate: int
    ) -> SemanticPlan:
        r"""
        Reads the plan off a real clip. The targets of the planner's training were made in the same way.

        Args:
            frames (`np.ndarray` of shape `(num_frames, height, width, 3)`): uint8, or floating point in [0, 1].
            waveform (`np.ndarray` of shape `(num_samples,)` or `(num_channels, num_samples)`): in [-1, 1]; channels are
                averaged. Up to half a second more or less than the picture is cut or filled with silence, with a warning.
            frame_rate (`float`): frames per second of `frames`.
            sampling_rate (`int`): samples per second of `waveform`, the audio semantic encoder's.

        Returns:
            `SemanticPlan` for one clip.

        Raises:
            ValueError: if the pipeline has no semantic encoders, or the clip does not fit them.
        """
        plan = planning.extract_plan(self, frames, waveform, frame_rate, sampling_rate, self._execution_device)
        return self._shown(plan)

    def _shown(self, plan: SemanticPlan) -> SemanticPlan:
        """A plan that a notebook shows with pictures, if the pipeline can draw them."""
        shows = self.video_plan_decoder is not None or self.audio_plan_decoder is not None
        return plan.previewed_by(self.preview) if shows else plan
