"""Anchors: the passes of the denoiser that guidance moves a prediction away from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class Anchor:
    r"""
    A pass of the denoiser, described by the conditions that it drops or replaces.

    Args:
        text (`bool`, defaults to `True`):
            Whether the pass reads the prompt. If not, it reads the negative prompt.
        plan (`bool`, defaults to `True`):
            Whether the pass reads the semantic plan. If not, the transformer is called with `plan=None`.
        cross_modal (`bool`, defaults to `True`):
            Whether picture and sound read each other. If not, both branches read only their context tokens, CCL's unconditional
            context (arXiv:2603.18600). Without context tokens they skip the cross-modal term, as in LTX-2.
        mute (`bool`, defaults to `False`):
            Whether clean latents of silence replace the audio, at audio timestep 0 (Harmony). Such a pass predicts only the
            video.
        static (`bool`, defaults to `False`):
            Whether clean latents of a still clip replace the video, at timestep 0 (Harmony). Such a pass predicts only the
            audio.
        clean_reads (`bool`, defaults to `False`):
            Whether the clean stream of a mute or static pass reads the noisy one, as in Ovi's and Harmony's networks. If not, it
            reads what `cross_modal=False` reads. It is then the same at every step, and one run serves the whole clip.
        skip_layers (`tuple[int, ...]`, defaults to `()`):
            Blocks of the transformer that the pass skips, counted from 0.

    Raises:
        ValueError: If the conditions contradict each other.
    """

    text: bool = True
    plan: bool = True
    cross_modal: bool = True
    mute: bool = False
    static: bool = False
    clean_reads: bool = False
    skip_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.mute and self.static:
            raise ValueError(f"{self} replaces both modalities, so there is nothing to predict: choose one.")
        if (self.mute or self.static) and not self.cross_modal:
            raise ValueError(f"{self} replaces a modality that the other does not read: leave `cross_modal` True.")
        if self.clean_reads and not (self.mute or self.static):
            raise ValueError(f"{self} has no clean stream: `clean_reads` belongs to `mute` or `static`.")

    @property
    def name(self) -> str:
        """A stable name such as `"no_text_mute"`, for `transformer.cache_context(name)`. `"joint"` changes nothing."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        dropped = [f"no_{name}" for name in ("text", "plan", "cross_modal") if not values[name]]
        replaced = [name for name in ("mute", "static", "clean_reads") if values[name]]
        skipped = ["skip", *map(str, self.skip_layers)] if self.skip_layers else []
        return "_".join(dropped + replaced + skipped) or "joint"

    @property
    def gives_video(self) -> bool:
        """Whether the pass predicts the video: it does unless it replaces it."""
        return not self.static

    @property
    def gives_audio(self) -> bool:
        """Whether the pass predicts the audio: it does unless it replaces it."""
        return not self.mute

    @property
    def video_reads_audio(self) -> bool:
        """The argument of the transformer's `forward`: whether the video branch reads the audio branch."""
        return self.clean_reads if self.static else self.cross_modal

    @property
    def audio_reads_video(self) -> bool:
        """The argument of the transformer's `forward`: whether the audio branch reads the video branch."""
        return self.clean_reads if self.mute else self.cross_modal

    def resolve(self, has_plan: bool = True, has_other: bool = True) -> Anchor:
        r"""
        The pass to run for this anchor. Dropping what a clip does not have changes nothing.

        Args:
            has_plan (`bool`, defaults to `True`): Whether the clip has a plan.
            has_other (`bool`, defaults to `True`):
                Whether the clip has the other modality, made or given. Without it there is nothing to drop or replace.
        """
        anchor = self if has_plan else dataclasses.replace(self, plan=True)
        return anchor if has_other else Anchor(text=anchor.text, plan=anchor.plan, skip_layers=anchor.skip_layers)


JOINT = Anchor()
NO_TEXT = Anchor(text=False)
NO_PLAN = Anchor(plan=False)
UNCONDITIONAL = Anchor(text=False, plan=False)
NO_CROSS_MODAL = Anchor(cross_modal=False)
NOTHING = Anchor(text=False, plan=False, cross_modal=False)
MUTE = Anchor(mute=True)
STATIC = Anchor(static=True)
