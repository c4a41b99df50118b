"""
Which passes of the denoiser guidance needs, and how their predictions become one.

These functions serve all supported guiders, ours and diffusers' own. The denoising loop reads

    guider.set_state(step=i, num_inference_steps=len(timesteps), timestep=t)
    audio_guider.set_state(step=i, num_inference_steps=len(timesteps), timestep=audio_t)
    for guidance_pass in guidance_passes(guider, audio_guider, has_plan):
        anchor = guidance_pass.anchor
        velocity, audio_velocity = denoise(guidance_pass)
        if guidance_pass.predicts_video:
            predictions[anchor] = velocity
        if guidance_pass.predicts_audio:
            audio_predictions[anchor] = audio_velocity
    velocity = combine(guider, predictions, has_plan)
    audio_velocity = combine(audio_guider, audio_predictions, has_plan)

for every step. At the first step a guider forgets the last clip. If a modality is not predicted, because it is given or because
the clip has none, its guider is `None` here. Guiders are used in place, as in diffusers: what a callback sets on `pipe.guider`
holds from the next step on.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from diffusers.guiders import (
    AdaptiveProjectedGuidance,
    AdaptiveProjectedMixGuidance,
    AutoGuidance,
    BaseGuidance,
    ClassifierFreeGuidance,
    ClassifierFreeZeroStarGuidance,
    FrequencyDecoupledGuidance,
    LTX2Guidance,
    MagnitudeAwareGuidance,
    PerturbedAttentionGuidance,
    SkipLayerGuidance,
    SmoothedEnergyGuidance,
    TangentialClassifierFreeGuidance,
)

from .anchor_guidance import AnchorGuidance
from .anchors import JOINT, UNCONDITIONAL, Anchor


# diffusers' guiders that take two predictions, `pred_cond` and `pred_uncond`, and return one.
TWO_PASS_GUIDERS = (
    ClassifierFreeGuidance,
    ClassifierFreeZeroStarGuidance,
    AdaptiveProjectedGuidance,
    AdaptiveProjectedMixGuidance,
    TangentialClassifierFreeGuidance,
    MagnitudeAwareGuidance,
)

_HOOKS = "hooks layers of the denoiser, and would disturb the other modality too"
_REFUSALS = {
    AutoGuidance: _HOOKS,
    PerturbedAttentionGuidance: _HOOKS,
    SkipLayerGuidance: _HOOKS,
    SmoothedEnergyGuidance: _HOOKS,
    FrequencyDecoupledGuidance: "works on the frequency bands of images, not on latents of video and audio",
    LTX2Guidance: "combines estimates of the clean sample and switches blocks of LTX-2's own transformer (here "
    "`ContextGuidance` has its formula)",
}
_ACCEPTED = "`PlanGuidance`, `SyncGuidance` (or another `AnchorGuidance`), " + ", ".join(
    f"`{c.__name__}`" for c in TWO_PASS_GUIDERS
)


def check_guider(guider: BaseGuidance, name: str) -> None:
    r"""
    Refuse a guider that does more than combine the predictions of one modality.

    Args:
        guider (`BaseGuidance`): The guider of one modality.
        name (`str`): Its name in messages: `"guider"` or `"audio_guider"`.

    Raises:
        ValueError: If the guider is missing, no guider or of an unsupported kind, or if its settings would mix the samples of a batch
            or give NaN.
    """
    if guider is None:
        raise ValueError(
            f"`{name}` is missing. Give one of {_ACCEPTED}. For no guidance give `PlanGuidance(guidance_scale=1.0)`, which costs "
            "one pass."
        )
    if not isinstance(guider, BaseGuidance):
        raise ValueError(
            f"`{name}` is {guider!r}, but must be a guider: {_ACCEPTED}. `presets()` has the published pairs by name."
        )
    if not isinstance(guider, (AnchorGuidance, *TWO_PASS_GUIDERS)):
        why = next(
            (reason for kind, reason in _REFUSALS.items() if isinstance(guider, kind)),
            "is not known to only combine predictions",
        )
        raise ValueError(f"`{name}` is a `{type(guider).__name__}`, which {why}. Accepted: {_ACCEPTED}.")

    if isinstance(guider, ClassifierFreeZeroStarGuidance) and guider.zero_init_steps and guider.guidance_rescale:
        raise ValueError(
            f"`{name}` has `zero_init_steps={guider.zero_init_steps}` and `guidance_rescale={guider.guidance_rescale}`: "
            "rescaling a prediction of zeros gives NaN. Set one of them to 0."
        )
    if isinstance(guider, AdaptiveProjectedGuidance):
        norm_dim = guider.adaptive_projected_guidance_norm_dim
        if norm_dim is not None and 0 in ((norm_dim,) if isinstance(norm_dim, int) else norm_dim):
            raise ValueError(
                f"`{name}` has `adaptive_projected_guidance_norm_dim={norm_dim}`: dimension 0 is the batch, and the clips "
                "of a batch must not change one another. Leave out dimension 0, or use None."
            )


def check_guiders(guider: BaseGuidance, audio_guider: BaseGuidance, num_layers: int | None = None) -> None:
    r"""
    Check the guiders of both modalities, one by one and together.

    One object may serve both modalities unless it remembers earlier steps: adaptive projected guidance with a momentum would add
    up predictions of both.

    Args:
        guider (`BaseGuidance`): The video guider.
        audio_guider (`BaseGuidance`): The audio guider.
        num_layers (`int`, *optional*): Blocks of the transformer. Without it, `skip_layers` of guiders are not checked.

    Raises:
        ValueError: As [`check_guider`]; if a guider has an anchor that does not predict its modality, or skips blocks that the
            transformer does not have; or if both are one object that keeps a state.
    """
    check_guider(guider, "guider")
    check_guider(audio_guider, "audio_guider")
    for g, name, modality in ((guider, "guider", "video"), (audio_guider, "audio_guider", "audio")):
        for anchor in g.anchor_weights() if isinstance(g, AnchorGuidance) else ():
            if not (anchor.gives_video if modality == "video" else anchor.gives_audio):
                raise ValueError(
                    f"`{name}` (`{type(g).__name__}`) has the anchor `{anchor.name}`, a pass that predicts no {modality}. Give "
                    f"`SyncGuidance` as `{name}` with `modality={modality!r}`."
                )
        lacking = [i for i in getattr(g, "skip_layers", ()) if num_layers is not None and i >= num_layers]
        if lacking:
            raise ValueError(
                f"`{name}` leaves out the blocks {lacking} of the transformer, whose blocks are 0 to {num_layers - 1}: set "
                f"`pipe.{name} = pipe.{name}.new(skip_layers=())`, or skip others."
            )
    if guider is audio_guider and getattr(guider, "adaptive_projected_guidance_momentum", None) is not None:
        raise ValueError(
            f"`guider` and `audio_guider` are one `{type(guider).__name__}` object with "
            f"`adaptive_projected_guidance_momentum={guider.adaptive_projected_guidance_momentum}`, whose running average "
            "belongs to one modality. Give each its own: `audio_guider=copy.deepcopy(guider)`."
        )


def required_anchors(guider: BaseGuidance) -> tuple[Anchor, ...]:
    """The passes that `guider` needs at the current step, see its `set_state`. The joint one comes first."""
    if isinstance(guider, AnchorGuidance):
        return guider.required_anchors()
    return (JOINT, UNCONDITIONAL)[: guider.num_conditions]


@dataclass(frozen=True)
class GuidancePass:
    r"""
    One forward of the denoiser within a step, and what is used of it.

    Args:
        anchor (`Anchor`): The conditions that it drops or replaces. Caches are keyed by its name.
        predicts_video (`bool`): Whether the video guider uses its video prediction.
        predicts_audio (`bool`): Whether the audio guider uses its audio prediction.
        video_reads_audio (`bool`): The argument of the transformer's `forward`.
        audio_reads_video (`bool`): The argument of the transformer's `forward`.
    """

    anchor: Anchor
    predicts_video: bool
    predicts_audio: bool
    video_reads_audio: bool
    audio_reads_video: bool

    @property
    def runs_video(self) -> bool:
        """Whether the pass needs the video branch at all."""
        return self.predicts_video or (self.predicts_audio and self.audio_reads_video)

    @property
    def runs_audio(self) -> bool:
        """Whether the pass needs the audio branch at all."""
        return self.predicts_audio or (self.predicts_video and self.video_reads_audio)

    @property
    def keeps_video(self) -> bool:
        """Whether the video branch is the same at every step: a clean clip, given or still, that does not read the audio."""
        return self.runs_video and not self.predicts_video and not self.video_reads_audio

    @property
    def keeps_audio(self) -> bool:
        """Whether the audio branch is the same at every step: a clean clip, given or silent, that does not read the video."""
        return self.runs_audio and not self.predicts_audio and not self.audio_reads_video


def guidance_passes(
    guider: BaseGuidance | None,
    audio_guider: BaseGuidance | None,
    has_plan: bool = True,
    has_other: bool = True,
    given_reads: bool = False,
) -> tuple[GuidancePass, ...]:
    r"""
    The passes that both modalities need at this step, each once, the joint one first.

    Args:
        guider (`BaseGuidance` or `None`):
            The video guider, its `set_state` called for this step; `None` if the video is given, or if there is none.
        audio_guider (`BaseGuidance` or `None`):
            The audio guider, its `set_state` called for this step; `None` if the audio is given, or if there is none.
        has_plan (`bool`, defaults to `True`):
            Whether the clip has a plan. Without one, passes that differ only in the plan are one pass.
        has_other (`bool`, defaults to `True`):
            Whether the clip has both modalities, made or given. If not, passes that differ only in the other are one pass.
        given_reads (`bool`, defaults to `False`):
            Whether a given modality reads the one that is made, as a transformer without context tokens (Ovi's form) has
            learned. With context tokens it does not (CCL's routing, arXiv:2603.18600).
    """
    video_anchors, audio_anchors = (
        () if g is None else tuple(anchor.resolve(has_plan, has_other) for anchor in required_anchors(g))
        for g in (guider, audio_guider)
    )
    return tuple(
        GuidancePass(
            anchor,
            predicts_video=anchor in video_anchors,
            predicts_audio=anchor in audio_anchors,
            video_reads_audio=has_other and (given_reads if guider is None else anchor.video_reads_audio),
            audio_reads_video=has_other and (given_reads if audio_guider is None else anchor.audio_reads_video),
        )
        for anchor in dict.fromkeys(video_anchors + audio_anchors)
    )


def combine(
    guider: BaseGuidance,
    predictions: Mapping[Anchor, torch.Tensor],
    has_plan: bool = True,
    has_other: bool = True,
) -> torch.Tensor:
    r"""
    Combine the predictions of one modality into the guided one.

    Args:
        guider (`BaseGuidance`): The guider of this modality, its `set_state` called for this step.
        predictions (`Mapping[Anchor, torch.Tensor]`):
            The predictions of the passes of [`guidance_passes`], batch first: `(batch_size, num_channels, num_frames, height,
            width)` for video, `(batch_size, audio_length, audio_channels)` for audio. Passes that only the other modality
            needs are ignored.
        has_plan (`bool`, defaults to `True`): As given to [`guidance_passes`].
        has_other (`bool`, defaults to `True`): As given to [`guidance_passes`].

    Returns:
        `torch.Tensor`: The guided prediction, shaped like the others. Each sample depends on its own predictions alone.
    """
    shape = predictions[JOINT].shape
    passes = guider.prepare_inputs({})  # one for each required anchor; step 0 also resets a momentum
    for guidance_pass, anchor in zip(passes, required_anchors(guider), strict=True):
        prediction = predictions[anchor.resolve(has_plan, has_other)]
        # This guider takes norms over all dimensions but the first, and torch.norm takes at most two.
        guidance_pass.noise_pred = prediction.flatten(1) if isinstance(guider, MagnitudeAwareGuidance) else prediction
    return guider(passes).pred.reshape(shape)


def passes_of_steps(
    guider: BaseGuidance | None,
    audio_guider: BaseGuidance | None,
    num_inference_steps: int,
    has_plan: bool = True,
    has_other: bool = True,
    given_reads: bool = False,
) -> Iterator[tuple[GuidancePass, ...]]:
    r"""
    The passes of each step of a clip. The guiders' state does not change.

    They show what a call must prepare: a negative prompt if a pass drops the text, latents of silence if a pass is mute.

    Args:
        guider (`BaseGuidance` or `None`): The video guider, as for [`guidance_passes`].
        audio_guider (`BaseGuidance` or `None`): The audio guider, as for [`guidance_passes`].
        num_inference_steps (`int`): Steps of the denoising loop, `len(timesteps)`.
        has_plan (`bool`, defaults to `True`): Whether the clip has a plan.
        has_other (`bool`, defaults to `True`): Whether the clip has both modalities, made or given.
        given_reads (`bool`, defaults to `False`): As in [`guidance_passes`].
    """
    guider, audio_guider = copy.copy(guider), copy.copy(audio_guider)
    for step in range(num_inference_steps):
        for g in (guider, audio_guider):
            if g is not None:
                g.set_state(step=step, num_inference_steps=num_inference_steps, timestep=None)
        yield guidance_passes(guider, audio_guider, has_plan, has_other, given_reads)


@dataclass(frozen=True)
class ForwardPasses:
    r"""
    What a clip costs. A step without guidance is one call, one run of the video branch and one run of the audio branch.

    Args:
        calls (`int`): Forwards of the denoiser.
        video (`int`): How often its video branch is computed.
        audio (`int`): How often its audio branch is computed.
    """

    calls: int
    video: int
    audio: int


def num_forward_passes(
    guider: BaseGuidance | None,
    audio_guider: BaseGuidance | None,
    num_inference_steps: int,
    has_plan: bool = True,
    has_other: bool = True,
    given_reads: bool = False,
) -> ForwardPasses:
    r"""
    What a clip costs with these guiders, in forwards of the denoiser and in runs of its branches.

    The counts assume `use_cache=True`: a branch that is the same at every step runs once for each anchor. A branch that no
    prediction needs never runs. A run that leaves out blocks counts as one.

    Args:
        guider (`BaseGuidance` or `None`): The video guider, as for [`guidance_passes`].
        audio_guider (`BaseGuidance` or `None`): The audio guider, as for [`guidance_passes`].
        num_inference_steps (`int`):
            Steps of the denoising loop, `len(timesteps)`: with a second-order scheduler such as Heun's 2N - 1, not N.
        has_plan (`bool`, defaults to `True`): Whether the clip has a plan.
        has_other (`bool`, defaults to `True`): Whether the clip has both modalities, made or given.
        given_reads (`bool`, defaults to `False`): As in [`guidance_passes`].
    """
    steps = passes_of_steps(guider, audio_guider, num_inference_steps, has_plan, has_other, given_reads)
    passes = [guidance_pass for step in steps for guidance_pass in step]
    return ForwardPasses(
        calls=len(passes),
        video=len({p.anchor for p in passes if p.keeps_video})
        + sum(p.runs_video and not p.keeps_video for p in passes),
        audio=len({p.anchor for p in passes if p.keeps_audio})
        + sum(p.runs_audio and not p.keeps_audio for p in passes),
    )
