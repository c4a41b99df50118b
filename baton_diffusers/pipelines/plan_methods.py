"""What a pipeline does with plans besides rendering them: it writes cues, plans, and reads plans off clips."""

from __future__ import annotations

import numpy as np
import torch

from ..plan import SemanticPlan
from . import planning
from .checks import check_texts
from .components import ClipSize
from .given import Given
from .planning import PlanRequest


class BatonPlanMixin:
    """Planning as methods of a pipeline. None of them needs the transformer; `planning.py` does the work."""

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
        num_clips, num_frames = num_clips or len(prompts), num_frames or self.config.num_frames
        if cues is not None:
            return planning.share_cues(self, [cues] if isinstance(cues, str) else cues, num_clips)
        if given_plan is not None:
            return planning.fit_to_plan(self, prompts, num_clips, given_plan, num_cue_candidates, generator, device)
        request = PlanRequest(cue_temperature=cue_temperature, num_plan_candidates=num_plan_candidates)
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
            cues (`list[str]`, *optional*): cue sheets, one for each prompt or for each clip; by default those of `prepare_cues`.
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

    def extract_plan(
        self, frames: np.ndarray, waveform: np.ndarray, frame_rate: float, sampling_rate: int
    ) -> SemanticPlan:
        r"""
        Reads the plan off a real clip, as the planner's targets were read in training.

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
        return planning.extract_plan(self, frames, waveform, frame_rate, sampling_rate, self._execution_device)
