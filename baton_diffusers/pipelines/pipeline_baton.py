"""`BatonPipeline`: plans a clip from a prompt, then denoises picture and sound together under that plan.

`__call__` is the algorithm; each of its steps lives in a module of its own: `texts.py`, `given.py` and `conditions.py`,
`planning.py`, `denoise.py`. `components.py` checks whether the components fit, and `plan_methods.py` has the methods that plan
without rendering.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Unpack

import torch
from diffusers import AutoencoderKLWan, DiffusionPipeline, MMAudioVAE, MMAudioVocoder
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.guiders import BaseGuidance
from diffusers.schedulers import SchedulerMixin
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

from ..guiders import GuidancePass, PlanGuidance
from ..models.plan_checker import PlanChecker
from ..models.plan_decoder import AudioPlanDecoder, VideoPlanDecoder
from ..models.published_plan_decoders import RAEPlanDecoder, WavTokenizerPlanDecoder
from ..models.semantic_encoders import AudioSemanticEncoder, VideoSemanticEncoder
from ..models.transformer_dual_branch import DualBranchTransformer
from ..models.va_planner import VAPlannerModel
from ..models.vocoder_griffin_lim import GriffinLimVocoder
from ..plan import SemanticPlan
from . import conditions
from .checks import check_callback, check_flags, check_output_type, check_whole_number
from .components import (
    CheckedComponents,
    ClipSize,
    PipelineParts,
    in_float32,
    one_call_at_a_time,
    require_components,
)
from .conditions import KnownLatents, Noise
from .denoise import Denoiser, Denoising, Stream, warn_of_lost_guidance
from .film import BatonFilmMixin
from .given import Given, GivenMedia, check_names, read_given
from .loading import BatonLoadingMixin
from .lora import BatonLoraLoaderMixin
from .pipeline_output import BatonPipelineOutput
from .plan_methods import BatonPlanMixin
from .planning import PlanRequest
from .retake import BatonRetakeMixin
from .texts import PROMPT_FORMS, Texts, format_prompts


class BatonPipeline(
    CheckedComponents,
    PipelineParts,
    BatonLoadingMixin,
    BatonPlanMixin,
    BatonRetakeMixin,
    BatonFilmMixin,
    DiffusionPipeline,
    BatonLoraLoaderMixin,
):
    r"""
    Text to video with its sound, planned first. A picture, a video, a sound or a clip to continue can be given.

    A transformer remembers the settings of its last pipeline, so `BatonPipeline(**pipe.components)` keeps the checkpoint's. For a new
    transformer the defaults below hold.

    `audio_vae` and `vocoder` stay in float32 if the pipeline is loaded or cast in half precision, which is heard in the sound.

    Args:
        transformer ([`DualBranchTransformer`]): denoises video and audio latents together.
        vae ([`AutoencoderKLWan`]): video latents from and to frames.
        audio_vae ([`MMAudioVAE`]): audio latents from waveforms, and to mel spectrograms.
        vocoder ([`GriffinLimVocoder`] or [`MMAudioVocoder`]): mel spectrograms to waveforms.
        scheduler (`SchedulerMixin`): a flow-matching scheduler for the video.
        audio_scheduler (`SchedulerMixin`): a flow-matching scheduler for the audio, of the same number of steps.
        text_encoder ([`UMT5EncoderModel`], *optional*): needed unless prompt embeddings are given.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): the text encoder's.
        planner ([`VAPlannerModel`], *optional*): without one, clips are made from the text alone unless a plan is given.
        planner_tokenizer (`PreTrainedTokenizerBase`, *optional*): the planner's.
        guider (`BaseGuidance`, *optional*): combines the video predictions; by default [`PlanGuidance`] of scale 4.
        audio_guider (`BaseGuidance`, *optional*): combines the audio predictions; by default [`PlanGuidance`] of scale 3.
        video_semantic_encoder ([`VideoSemanticEncoder`], *optional*): reads plans off real clips, see `extract_plan`.
        audio_semantic_encoder ([`AudioSemanticEncoder`], *optional*): the same for their sound.
        plan_checker ([`PlanChecker`], *optional*): scores cue sheets against prompts, so that the best of several is planned.
        video_plan_decoder ([`VideoPlanDecoder`] or [`RAEPlanDecoder`], *optional*): small pictures from plans, see `preview`.
        audio_plan_decoder ([`AudioPlanDecoder`] or [`WavTokenizerPlanDecoder`], *optional*): a scratch track likewise.
        height (`int`, defaults to 704): default height of a frame in pixels.
        width (`int`, defaults to 1280): default width of a frame in pixels.
        num_frames (`int`, defaults to 121): default number of frames.
        num_inference_steps (`int`, defaults to 50): default number of denoising steps.
        max_sequence_length (`int`, defaults to 512): text tokens to which prompts are padded or cut.
        negative_prompt (`str`, defaults to `""`): default text where guidance drops the prompt.
        audio_negative_prompt (`str`, *optional*): the same for the sound; by default it is the picture's.
        prompt_form (`str`, *optional*): how the checkpoint's prompts describe the sound: `"audcap"`, as
            `<AUDCAP>...<ENDAUDCAP>`, or `"audio"`, as `Audio: ...` (Ovi). By default they have no form.
        latent_format (`dict`, *optional*): rates, strides and channels of the latents, for a pipeline that is loaded without
            transformer or autoencoders. `save_pretrained` writes them.

    Raises:
        ValueError: if the components do not fit one another, or there is no such form.
    """

    model_cpu_offload_seq = "video_semantic_encoder->audio_semantic_encoder->text_encoder->plan_checker->planner->video_plan_decoder->audio_plan_decoder->transformer->vae->audio_vae->vocoder"
    _callback_tensor_inputs = [
        "latents",
        "audio_latents",
        "prompt_embeds",
        "negative_prompt_embeds",
        "audio_negative_prompt_embeds",
    ]
    _optional_components = [
        "text_encoder",
        "tokenizer",
        "planner",
        "planner_tokenizer",
        "guider",
        "audio_guider",
        "video_semantic_encoder",
        "audio_semantic_encoder",
        "plan_checker",
        "video_plan_decoder",
        "audio_plan_decoder",
    ]

    def __init__(
        self,
        transformer: DualBranchTransformer,
        vae: AutoencoderKLWan,
        audio_vae: MMAudioVAE,
        vocoder: GriffinLimVocoder | MMAudioVocoder,
        scheduler: SchedulerMixin,
        audio_scheduler: SchedulerMixin,
        text_encoder: UMT5EncoderModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        planner: VAPlannerModel | None = None,
        planner_tokenizer: PreTrainedTokenizerBase | None = None,
        guider: BaseGuidance | None = None,
        audio_guider: BaseGuidance | None = None,
        video_semantic_encoder: VideoSemanticEncoder | None = None,
        audio_semantic_encoder: AudioSemanticEncoder | None = None,
        plan_checker: PlanChecker | None = None,
        video_plan_decoder: VideoPlanDecoder | RAEPlanDecoder | None = None,
        audio_plan_decoder: AudioPlanDecoder | WavTokenizerPlanDecoder | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        max_sequence_length: int | None = None,
        negative_prompt: str | None = None,
        audio_negative_prompt: str | None = None,
        prompt_form: str | None = None,
        latent_format: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if prompt_form is not None and prompt_form not in PROMPT_FORMS:
            raise ValueError(
                f"`prompt_form` is {prompt_form!r}, but must be one of {', '.join(PROMPT_FORMS)}, or None."
            )
        settings = {
            "height": height,
            "width": width,
            "num_frames": num_frames,
            "num_inference_steps": num_inference_steps,
            "max_sequence_length": max_sequence_length,
            "negative_prompt": negative_prompt,
            "audio_negative_prompt": audio_negative_prompt,
            "prompt_form": prompt_form,
            "latent_format": latent_format,
        }
        self.register_modules(
            transformer=transformer,
            vae=vae,
            audio_vae=in_float32("audio_vae", audio_vae, transformer),
            vocoder=in_float32("vocoder", vocoder, transformer),
            scheduler=scheduler,
            audio_scheduler=audio_scheduler,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            planner=planner,
            planner_tokenizer=planner_tokenizer,
            guider=guider or PlanGuidance(guidance_scale=4.0),
            audio_guider=audio_guider or PlanGuidance(guidance_scale=3.0),
            video_semantic_encoder=video_semantic_encoder,
            audio_semantic_encoder=audio_semantic_encoder,
            plan_checker=plan_checker,
            video_plan_decoder=video_plan_decoder,
            audio_plan_decoder=audio_plan_decoder,
        )
        self.register_settings(**settings)

    # Properties of a running call

    @property
    def num_timesteps(self) -> int:
        """Steps of the current denoising loop."""
        return self._num_timesteps

    @property
    def current_timestep(self) -> torch.Tensor | None:
        """The video timestep of the current step; `None` outside the loop."""
        return self._current_timestep

    @property
    def attention_kwargs(self) -> dict[str, Any] | None:
        """The `attention_kwargs` of the current call."""
        return self._attention_kwargs

    @property
    def interrupt(self) -> bool:
        """Whether the remaining steps are skipped, because a callback has set `pipe._interrupt = True`."""
        return self._interrupt

    # The parts of a call, in the order in which `__call__` uses them

    def check_inputs(
        self,
        texts: Texts,
        size: ClipSize,
        given: Given,
        noise: Noise,
        request: PlanRequest,
        denoising: Denoising,
        num_videos_per_prompt: int,
        output_type: str,
    ) -> tuple[GuidancePass, ...]:
        """Refuses invalid arguments, before any model runs.

        Returns:
            The guidance passes of all steps.

        Raises:
            ValueError: naming the argument, its value and the remedy.
        """
        denoising.check_steps(self, given.only)
        check_whole_number("num_videos_per_prompt", num_videos_per_prompt)
        texts.check(self)
        size.check(self, texts.batch_size * num_videos_per_prompt, given.only)
        given.check(self, texts.batch_size, size.num_frames)
        passes = denoising.check(self, given, size.num_frames)
        if not all(guidance_pass.anchor.text for guidance_pass in passes):
            texts.check_negative(self)
        noise.check(self, texts.batch_size * num_videos_per_prompt, size, given.only)
        request.check(self, texts, num_videos_per_prompt, size.num_frames)
        check_output_type(output_type)
        if given.keeps_video:
            given.video.check_output(output_type)
        return passes

    def format_prompt(self, prompt: str | list[str], audio_prompt: str | list[str] | None = None) -> str | list[str]:
        r"""
        The texts that the checkpoint reads: prompts, and after each what is heard, in the form that it was trained with.

        Args:
            prompt (`str` or `list[str]`): what happens in each clip. A warning names tags of another form.
            audio_prompt (`str` or `list[str]`, *optional*): what is heard, without tags; one for all prompts, or one for each.

        Raises:
            ValueError: if the checkpoint has no form, a prompt has such a description already, or the numbers differ.
        """
        return format_prompts(prompt, audio_prompt, self.config.prompt_form)

    @torch.no_grad()
    def encode_prompt(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        do_classifier_free_guidance: bool = True,
        num_videos_per_prompt: int = 1,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        audio_negative_prompt: str | list[str] | None = None,
        audio_negative_prompt_embeds: torch.Tensor | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        r"""
        Embeds prompts for the transformer. It needs `text_encoder` and `tokenizer` alone.

        Args:
            prompt (`str` or `list[str]`, *optional*): the prompts as [`format_prompt`] writes them; or `prompt_embeds`.
            negative_prompt (`str` or `list[str]`, *optional*): read where guidance drops the text; by default the
                checkpoint's.
            do_classifier_free_guidance (`bool`, defaults to `True`): whether to embed negative prompts at all.
            num_videos_per_prompt (`int`, defaults to 1): every embedding is repeated so many times in a row.
            prompt_embeds (`torch.Tensor` of shape `(batch_size, text_length, text_dim)`, *optional*): instead of `prompt`,
                zero where there is no text.
            negative_prompt_embeds (`torch.Tensor`, *optional*): instead of `negative_prompt`.
            audio_negative_prompt (`str` or `list[str]`, *optional*): what the sound reads there; by default the checkpoint's.
            audio_negative_prompt_embeds (`torch.Tensor`, *optional*): instead of `audio_negative_prompt`.
            device (`torch.device`, *optional*): where the embeddings go.
            dtype (`torch.dtype`, *optional*): of the embeddings; by default the transformer's, or without one the text encoder's.

        Returns:
            Embeddings `(batch_size * num_videos_per_prompt, max_sequence_length, text_dim)`, zero where there is no text: of the
            prompts, of the negative prompts (`None` without guidance), and of the sound's (`None` if it reads the picture's).

        Raises:
            ValueError: if a text is no text, or the text encoder returns NaN.
        """
        texts = Texts(
            prompt,
            negative_prompt,
            audio_negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            audio_negative_prompt_embeds,
        )
        texts.check(self)
        dtype = dtype or (self.text_encoder if self.transformer is None else self.transformer).dtype
        device = device or self._execution_device
        prompt_embeds, negative_prompt_embeds, audio_negative_prompt_embeds = texts.encode(
            self, do_classifier_free_guidance, num_videos_per_prompt, device, dtype
        )
        return prompt_embeds, negative_prompt_embeds, audio_negative_prompt_embeds

    def prepare_conditions(
        self,
        given: Given,
        num_clips: int,
        height: int,
        width: int,
        num_frames: int,
        device: torch.device | None = None,
    ) -> tuple[KnownLatents, KnownLatents]:
        r"""
        The given media as clean latents, in float32. A latent is known if all the frames or samples that it covers are given.

        Args:
            given ([`Given`]): pictures and sounds; each one for all clips, or one for each prompt, repeated in a row.
            num_clips (`int`): prompts times videos per prompt.
            height, width, num_frames (`int`): size of the clips in pixels and frames.
            device (`torch.device`, *optional*): where the latents go.

        Returns:
            [`KnownLatents`] of the video and of the audio.

        Raises:
            ValueError: if an autoencoder returns NaN.
        """
        size, device = ClipSize(height, width, num_frames), device or self._execution_device
        known = conditions.encode_given_video(self, given, num_clips, size, device)
        return known, conditions.encode_given_audio(self, given, num_clips, size, device)

    def encode_video(self, frames: torch.Tensor) -> torch.Tensor:
        r"""
        Latents of frames, normalised as the transformer takes them.

        Args:
            frames (`torch.Tensor` of shape `(num_clips, 3, num_frames, height, width)`): in [-1, 1], at the pipeline's rate.

        Returns:
            `torch.Tensor` of shape `(num_clips, num_channels, num_latent_frames, latent_height, latent_width)`, float32.
        """
        return conditions.encode_video(self, frames)

    def encode_audio(self, waveform: torch.Tensor) -> torch.Tensor:
        r"""
        Latents of sound, scaled as the transformer takes them.

        Args:
            waveform (`torch.Tensor` of shape `(num_clips, num_samples)`): in [-1, 1], at the pipeline's rate, in whole latents.

        Returns:
            `torch.Tensor` of shape `(num_clips, audio_length, audio_channels)`, float32.
        """
        return conditions.encode_audio(self, waveform)

    def prepare_latents(
        self,
        num_clips: int,
        height: int,
        width: int,
        num_frames: int,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        audio_latents: torch.Tensor | None = None,
        device: torch.device | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        r"""
        Noise for both modalities, drawn video first, in float32: the loop works in float32 whatever the model's dtype.

        Args:
            num_clips (`int`): prompts times videos per prompt.
            height, width, num_frames (`int`): size of the clips in pixels and frames.
            generator (`torch.Generator` or a list of `num_clips` of them, *optional*): where the noise comes from.
            latents (`torch.Tensor`, *optional*): video noise to use instead.
            audio_latents (`torch.Tensor`, *optional*): audio noise to use instead.
            device (`torch.device`, *optional*): where the noise goes.

        Returns:
            Video latents `(num_clips, num_channels, num_latent_frames, latent_height, latent_width)` and audio latents
            `(num_clips, audio_length, audio_channels)`.
        """
        noise, size = Noise(generator, latents, audio_latents), ClipSize(height, width, num_frames)
        return noise.draw(self, num_clips, size, device or self._execution_device)

    def decode_latents(
        self,
        latents: torch.Tensor | None,
        audio_latents: torch.Tensor | None,
        num_frames: int,
        output_type: str = "pt",
        duration: float | None = None,
    ) -> tuple[Any, Any]:
        r"""
        Frames and waveforms of finished latents. No transformer is needed.

        Args:
            latents (`torch.Tensor`, *optional*): video latents as `prepare_latents` shapes them.
            audio_latents (`torch.Tensor`, *optional*): audio latents likewise.
            num_frames (`int`): frames of the clip.
            output_type (`str`, defaults to `"pt"`): `"pil"`, `"np"` or `"pt"`.
            duration (`float`, *optional*): seconds to which both are cut; by default what `num_frames` last.

        Returns:
            Frames as [`BatonPipelineOutput`] describes them, and waveforms `(batch_size, 1, num_samples)` in [-1, 1],
            float32: a tensor for `"pt"`, an array otherwise. `None` for latents that are not given.

        Raises:
            ValueError: if a decoder returns NaN.
        """
        frames = audio = None
        if latents is not None:
            frames = conditions.decode_video(self, latents, num_frames, output_type, duration)
        if audio_latents is not None:
            audio = conditions.decode_audio(self, audio_latents, num_frames, output_type, duration)
        return frames, audio

    @torch.no_grad()
    @one_call_at_a_time
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        audio_prompt: str | list[str] | None = None,
        audio_negative_prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        sigmas: Sequence[float] | None = None,
        timesteps: Sequence[float] | None = None,
        num_videos_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        audio_latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        audio_negative_prompt_embeds: torch.Tensor | None = None,
        plan: SemanticPlan | str | os.PathLike | None = None,
        use_plan: bool = True,
        cues: str | list[str] | None = None,
        cue_temperature: float | None = None,
        num_cue_candidates: int = 64,
        num_plan_candidates: int | None = None,
        use_cache: bool = False,
        output_type: str = "pil",
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callable[[BatonPipeline, int, int, dict], dict] | PipelineCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents", "audio_latents"),
        **media: Unpack[GivenMedia],
    ) -> BatonPipelineOutput | tuple[Any, Any]:
        r"""
        Makes clips from prompts, and from media that are given.

        From a prompt alone, picture and sound are generated. The clip begins with `image`; for `video` a sound is generated;
        for `audio` a picture is generated; `continue_from` is a clip to continue; a mask marks the parts of `video` or `audio`
        to generate. Media that are given whole are returned as they are, at their own size and rates. A modality that is given
        in part is returned as the autoencoders decode it. The plan is made from the prompt in any case; `extract_plan` reads
        one off media.

        Args:
            prompt (`str` or `list[str]`, *optional*): what happens in each clip; or `prompt_embeds`.
            negative_prompt (`str` or `list[str]`, *optional*): read where guidance drops the text; one for all prompts, or one
                for each; by default the checkpoint's.
            audio_prompt (`str` or `list[str]`, *optional*): what is heard in each clip. It ends the prompt in the form that
                the checkpoint was trained with, see [`format_prompt`]; for checkpoints that have one.
            audio_negative_prompt (`str` or `list[str]`, *optional*): what the sound reads in place of `negative_prompt`; by
                default the checkpoint's own for the sound, or if it has none, the picture's.
            height (`int`, *optional*): of a frame in pixels; by default the pipeline's, or for a given picture the nearest
                size of its shape and of the pipeline's area.
            width (`int`, *optional*): of a frame in pixels; by default as `height`.
            num_frames (`int`, *optional*): temporal stride of the VAE times k, plus one; by default the pipeline's, or as many
                as `video` or `audio` last.
            num_inference_steps (`int`, *optional*): denoising steps; by default the pipeline's, or as many as `sigmas` or
                `timesteps` has.
            sigmas (`list[float]`, *optional*): noise levels of the steps, falling from 1, to which each modality's scheduler
                applies its own shift; by default equal parts. 0 follows.
            timesteps (`list[float]`, *optional*): instead of `sigmas`, 1000 times the noise levels of both modalities after the
                shift, falling from 1000.
            num_videos_per_prompt (`int`, defaults to 1): clips for each prompt, next to one another in the output.
            generator (`torch.Generator` or a list with one for each clip, *optional*): makes the clips repeatable. With a list, a
                clip does not depend on the batch that it is made in.
            latents (`torch.Tensor` of shape `(num_clips, num_channels, num_latent_frames, latent_height, latent_width)`,
                *optional*): video noise.
            audio_latents (`torch.Tensor` of shape `(num_clips, audio_length, audio_channels)`, *optional*): audio noise.
            prompt_embeds (`torch.Tensor` of shape `(batch_size, text_length, text_dim)`, *optional*): instead of `prompt`, zero
                where there is no text, as `encode_prompt` returns them.
            negative_prompt_embeds (`torch.Tensor`, *optional*): instead of `negative_prompt`.
            audio_negative_prompt_embeds (`torch.Tensor`, *optional*): instead of `audio_negative_prompt`.
            plan (`SemanticPlan` or the path of its file, *optional*): takes the place of the planner's; one for all prompts, one
                for each, or one for each clip.
            use_plan (`bool`, defaults to `True`): `False` makes the clips from the text alone.
            cues (`str` or `list[str]`, *optional*): cue sheets, for a planner that knows timestamps, such as `"<|0.50|> red
                ball <|1.56|> purple face three"`; one sheet for all prompts, one for each, or one for each clip. By default the
                planner writes them, or, if given media fix the timing, fits them to the media ([`fit_cues`]). The empty sheet
                leaves times open: the plan is then the mean over all times.
            cue_temperature (`float`, *optional*): sampling temperature of the cues; 0 takes the likeliest, 1 is as varied as
                the training data. By default 1 if the best of several sheets is chosen, and 0.5 for a single sheet.
            num_cue_candidates (`int`, defaults to 64): sheets that are tried if media fix the timing. Cost: as many passes of the
                planner, plus 4 to 8 for each cue and round. With 0, or without semantic encoders, the sheet is empty there.
            num_plan_candidates (`int`, *optional*): cue sheets that the planner writes for each clip; the one that fits the
                prompt best by `plan_checker` is planned and rendered. By default 8 with a checker, 1 without. The sheets of a
                clip are written as one batch.
            use_cache (`bool`, defaults to `False`): run a clean stream that reads context tokens alone (a given modality, or one of
                Harmony's anchors) once for each guidance pass, and keep its keys and values for the call. It costs
                `transformer.cache_bytes` of memory for each pass: 20 GB for a clean video of 10 s at full size.
            output_type (`str`, defaults to `"pil"`): `"pil"`, `"np"`, `"pt"` or `"latent"`.
            return_dict (`bool`, defaults to `True`): whether to return a [`BatonPipelineOutput`] instead of a tuple.
            attention_kwargs (`dict`, *optional*): handed to the transformer; `scale` is the weight of LoRA layers.
            callback_on_step_end (`Callable`, *optional*): called as `callback(pipe, step, timestep, tensors)` after each
                step; tensors that it returns replace the loop's. `pipe._interrupt = True` ends the loop.
            callback_on_step_end_tensor_inputs (`Sequence[str]`): names of the tensors that the callback gets, from
                `pipe._callback_tensor_inputs`.
            media: `image`, `video`, `audio`, `reference_audio`, `continue_from`, `continue_seconds`, `video_mask`, `audio_mask`,
                `video_frame_rate`, `audio_sampling_rate` and `only`, as [`GivenMedia`] describes them.

        Returns:
            [`BatonPipelineOutput`], or a tuple of its frames and audio.

        Raises:
            ValueError: from `check_inputs`, or if media cannot be read, before any model runs; or if a model returns NaN.
            TypeError: if there is no such argument.
        """
        # 1. Read what is given, and check inputs
        check_names(media, BatonPipeline.__call__)
        check_flags(use_plan=use_plan, use_cache=use_cache, return_dict=return_dict)
        require_components(self)
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        check_callback(callback_on_step_end, callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        request = PlanRequest(plan, use_plan, cues, cue_temperature, num_cue_candidates, num_plan_candidates).read()
        rates = self.frame_rate, self.sampling_rate, self.latent_format["temporal_stride"]
        given = read_given(*rates, **media, max_seconds=request.longest_clip(self))
        texts = Texts(
            self.format_prompt(prompt, audio_prompt),
            negative_prompt,
            audio_negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            audio_negative_prompt_embeds,
        )
        size = given.default_size(self, height, width, num_frames)
        noise = Noise(generator, latents, audio_latents)
        denoising = Denoising.of(
            self, num_inference_steps, sigmas, timesteps, use_cache=use_cache, attention_kwargs=attention_kwargs
        )
        passes = self.check_inputs(texts, size, given, noise, request, denoising, num_videos_per_prompt, output_type)
        warn_of_lost_guidance(self, given.only)
        self._attention_kwargs, self._current_timestep, self._interrupt = attention_kwargs, None, False
        device, num_clips = self._execution_device, texts.batch_size * num_videos_per_prompt

        # 2. Text
        drops_text = not all(guidance_pass.anchor.text for guidance_pass in passes)
        embeds = texts.encode(self, drops_text, num_videos_per_prompt, device, self.transformer.dtype)

        # 3. Plan
        plan = request.make(self, texts.prompts, given, num_clips, size, generator, device)

        # 4. What is given, as clean latents; noise for the rest
        known, audio_known = self.prepare_conditions(
            given, num_clips, size.height, size.width, size.num_frames, device
        )
        reference = conditions.reference_latents(self, given, num_clips, device)
        still, silence = conditions.stand_ins(self, passes, given, num_clips, size, device)
        latents, audio_latents = noise.draw(self, num_clips, size, device)

        # 5. Denoising loop
        timesteps = denoising.set_timesteps(self.scheduler, device)
        audio_timesteps = denoising.set_timesteps(self.audio_scheduler, device)
        video = Stream(latents, known, self.scheduler, timesteps, generator, still)
        audio = Stream(audio_latents, audio_known, self.audio_scheduler, audio_timesteps, generator, silence)
        denoiser = Denoiser(self, video, audio, embeds, plan, reference, given.only, denoising)
        self._num_timesteps = denoiser.num_steps
        with self.progress_bar(total=denoiser.num_steps) as progress_bar:
            for i, t in enumerate(timesteps):
                if self.interrupt:
                    continue
                self._current_timestep = t
                denoiser.step(i)
                if callback_on_step_end is not None:
                    denoiser.call_back(callback_on_step_end, callback_on_step_end_tensor_inputs, i)
                progress_bar.update()
        self._current_timestep = None
        denoiser.check_finite()

        # 6. Frames and sound; what was given whole is returned as it is
        num_frames = size.num_frames
        frames, frame_rate = conditions.finished_video(self, given, video.latents, num_frames, output_type)
        sound, sampling_rate = conditions.finished_audio(self, given, audio.latents, num_frames, output_type)
        if not return_dict:
            return frames, sound
        return BatonPipelineOutput(frames, sound, frame_rate, sampling_rate, plan, output_type)
