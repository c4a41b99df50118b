"""Anchors: the passes of the denoiser that guidance moves a prediction away from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class Anchor:
    r"""
    A pass of the denoiser, told by the conditions that it drops or replaces.

    Args:
        text (`bool`, defaults to `True`):
            Whether the pass reads the prompt. Where it does not, it reads the negative prompt.
        plan (`bool`, defaults to `True`):
            Whether the pass reads the semantic plan. Where it does not, the transformer is called with `plan=None`.
        cross_modal (`bool`, defaults to `True`):
            Whether picture and sound read each other. Where they do not, both branches read their context tokens alone, which
            is CCL's unconditional context (arXiv:2603.18600); on a transformer without context tokens the cross-modal term
            is left out, as in LTX-2.
        mute (`bool`, defaults to `False`):
            Whether the audio is replaced by the clean latents of silence, at audio timestep 0 (Harmony). Such a pass gives a
            prediction of the video only.
        static (`bool`, defaults to `False`):
            Whether the video is replaced by the clean latents of a still clip, at timestep 0 (Harmony). Such a pass gives a
            prediction of the audio only.
        clean_reads (`bool`, defaults to `False`):
            Whether the clean stream of a mute or static pass reads the noisy one, as in Ovi's and Harmony's networks. If not, it
            reads what `cross_modal=False` reads; then it is the same at every step and can be computed once for a clip.
        skip_layers (`tuple[int, ...]`, defaults to `()`):
            Blocks of the transformer, counted from 0, that the pass leaves out.

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
            raise ValueError(f"{self} replaces both modalities, which leaves nothing to predict: choose one.")
        if (self.mute or self.static) and not self.cross_modal:
            raise ValueError(f"{self} replaces a modality that the other does not read: leave `cross_modal` True.")
        if self.clean_reads and not (self.mute or self.static):
            raise ValueError(f"{self} has no clean stream: `clean_reads` belongs to `mute` or `static`.")

    @property
    def name(self) -> str:
        """A stable name such as `"no_text_mute"`, made for `transformer.cache_context(name)`; `"joint"` changes nothing."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        dropped = [f"no_{name}" for name in ("text", "plan", "cross_modal") if not values[name]]
        replaced = [name for name in ("mute", "static", "clean_reads") if values[name]]
        skipped = ["skip", *map(str, self.skip_layers)] if self.skip_layers else []
        return "_".join(dropped + replaced + skipped) or "joint"

    @property
    def gives_video(self) -> bool:
        """Whether the pass predicts the video: its own is not replaced."""
        return not self.static

    @property
    def gives_audio(self) -> bool:
        """Whether the pass predicts the audio: its own is not replaced."""
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
        The pass to run for this anchor: dropping what a clip does not have changes nothing.

        Args:
            has_plan (`bool`, defaults to `True`): Whether the clip has a plan.
            has_other (`bool`, defaults to `True`):
                Whether the clip has the other modality, made or given. A clip of one modality has none to drop or replace.
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
