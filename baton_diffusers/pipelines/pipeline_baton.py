"""`BatonPipeline`: plans a clip from a prompt, then denoises picture and sound together under that plan."""

from __future__ import annotations

import math
import numbers
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, DiffusionPipeline, MMAudioVAE, MMAudioVocoder
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.guiders import BaseGuidance
from diffusers.schedulers import SchedulerMixin
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

from .. import coordinates
from ..cues import parse_cues
from ..guiders import (
    JOINT,
    AnchorGuidance,
    GuidancePass,
    PlanGuidance,
    check_guiders,
    combine,
    guidance_passes,
    passes_of_steps,
)
from ..models.cache_dual_branch import CleanStream
from ..models.latents import decode_spectrograms, denormalise_latents, encode_waveforms, normalise_latents
from ..models.semantic_encoders import AudioSemanticEncoder, VideoSemanticEncoder, read_plan
from ..models.transformer_dual_branch import DualBranchTransformer
from ..models.va_planner import VAPlannerModel, snap_cues, tokenize_cues, tokenize_prompts
from ..models.vocoder_griffin_lim import GriffinLimVocoder
from ..plan import SemanticPlan
from ..schedulers import check_schedulers, set_timesteps, step_kwargs
from .conditions import (
    Given,
    GivenClips,
    GivenFrames,
    GivenPicture,
    GivenSound,
    KnownLatents,
    Mask,
    fit_size,
    known_audio_latents,
    known_latent_frames,
    model_frames,
    model_waveform,
    read_given,
)
from .cue_fitting import fit_cues
from .loading import BatonLoadingMixin
from .lora import BatonLoraLoaderMixin
from .pipeline_output import BatonPipelineOutput
from .prompt_forms import PROMPT_FORMS, unknown_words, write_prompt


logger = logging.get_logger(__name__)

# The first device context of a process makes torch note which functions it has to tell the device, for good. transformers replaces one of
# them while it loads a model: were its loading the first, every later `torch.device("meta")` would leave `torch.linspace` on the CPU.
with torch.device("cpu"):
    torch.empty(0)

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class BatonPipeline(BatonLoadingMixin, DiffusionPipeline, BatonLoraLoaderMixin):
    r"""
    Text to video with its sound, planned first; from a picture, a film, a sound or the end of a clip where one is given.

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
        height (`int`, defaults to 704): default height of a frame in pixels.
        width (`int`, defaults to 1280): default width of a frame in pixels.
        num_frames (`int`, defaults to 121): default number of frames.
        num_inference_steps (`int`, defaults to 50): default number of denoising steps.
        max_sequence_length (`int`, defaults to 512): text tokens to which prompts are padded or cut.
        negative_prompt (`str`, defaults to `""`): default text where guidance drops the prompt.
        audio_negative_prompt (`str`, *optional*): the same for the sound; by default it is the picture's.
        prompt_form (`str`, *optional*): how prompts describe the sound, which is a value of the checkpoint: `"audcap"`, as
            `<AUDCAP>...<ENDAUDCAP>`, or `"audio"`, as `Audio: ...` (Ovi). By default they have no form.

    Raises:
        ValueError: if the components do not fit one another, or there is no such form.
    """

    model_cpu_offload_seq = (
        "video_semantic_encoder->audio_semantic_encoder->text_encoder->planner->transformer->vae->audio_vae->vocoder"
    )
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
        height: int = 704,
        width: int = 1280,
        num_frames: int = 121,
        num_inference_steps: int = 50,
        max_sequence_length: int = 512,
        negative_prompt: str = "",
        audio_negative_prompt: str | None = None,
        prompt_form: str | None = None,
    ) -> None:
        super().__init__()
        if prompt_form is not None and prompt_form not in PROMPT_FORMS:
            raise ValueError(
                f"`prompt_form` is {prompt_form!r}, but must be one of {', '.join(PROMPT_FORMS)}, or None."
            )
        self.register_modules(
            transformer=transformer,
            vae=vae,
            audio_vae=audio_vae,
            vocoder=vocoder,
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
        )
        self.register_to_config(
            height=height,
            width=width,
            num_frames=num_frames,
            num_inference_steps=num_inference_steps,
            max_sequence_length=max_sequence_length,
            negative_prompt=negative_prompt,
            audio_negative_prompt=audio_negative_prompt,
            prompt_form=prompt_form,
        )
        self._check_components()
        self.video_processor = VideoProcessor(vae_scale_factor=vae.config.scale_factor_spatial if vae else 8)

    # Properties of a running call

    @property
    def frame_rate(self) -> float:
        """Pixel frames per second of the clips."""
        return self.transformer.config.frame_rate

    @property
    def sampling_rate(self) -> int:
        """Audio samples per second of the clips."""
        return self.audio_vae.config.sample_rate

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
        """Those given to the current call."""
        return self._attention_kwargs

    @property
    def interrupt(self) -> bool:
        """Whether a callback has asked, by `pipe._interrupt = True`, that the remaining steps be left out."""
        return self._interrupt

    # The parts of a call, in the order in which `__call__` uses them

    def check_inputs(
        self,
        *,
        prompt: str | list[str] | None,
        negative_prompt: str | list[str] | None,
        audio_negative_prompt: str | list[str] | None,
        height: int,
        width: int,
        num_frames: int,
        num_inference_steps: int,
        num_videos_per_prompt: int,
        given: Given,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None,
        audio_latents: torch.Tensor | None,
        prompt_embeds: torch.Tensor | None,
        prompt_attention_mask: torch.Tensor | None,
        negative_prompt_embeds: torch.Tensor | None,
        negative_prompt_attention_mask: torch.Tensor | None,
        audio_negative_prompt_embeds: torch.Tensor | None,
        audio_negative_prompt_attention_mask: torch.Tensor | None,
        plan: SemanticPlan | None,
        use_plan: bool,
        cues: str | list[str] | None,
        cue_temperature: float,
        num_cue_candidates: int,
        use_cache: bool,
        output_type: str,
        callback_on_step_end_tensor_inputs: Sequence[str],
    ) -> None:
        """Refuses what cannot work, before any model runs. The arguments are those of `__call__`, pictures and sounds read.

        Raises:
            ValueError: naming the argument, its value and the remedy.
        """
        self._check_components()
        guiders = {"guider": self.guider, "audio_guider": self.audio_guider}
        if given.only is not None:  # no other guider is asked
            guiders["audio_guider" if given.only == "video" else "guider"] = PlanGuidance(guidance_scale=1.0)
        check_guiders(**guiders, num_layers=self.transformer.config.num_layers)
        for name, value in (
            ("num_frames", num_frames),
            ("num_inference_steps", num_inference_steps),
            ("num_videos_per_prompt", num_videos_per_prompt),
        ):
            if not isinstance(value, numbers.Integral) or value < 1:
                raise ValueError(f"`{name}` is {value!r}, but must be an integer of at least 1.")
        check_schedulers(self.scheduler, self.audio_scheduler, num_inference_steps)

        # 1. The text
        if (prompt is None) == (prompt_embeds is None):
            given = "neither" if prompt is None else "both"
            raise ValueError(f"give either `prompt` or `prompt_embeds`; {given} of them was given.")
        if prompt is not None:
            _check_texts("prompt", prompt)
            if self.text_encoder is None or self.tokenizer is None:
                raise ValueError(
                    "`prompt` needs `text_encoder` and `tokenizer`, which this pipeline lacks: load it with them, or give "
                    "`prompt_embeds` with `prompt_attention_mask`."
                )
        batch_size = _batch_size(prompt, prompt_embeds)
        for name, texts, embeds in (
            ("negative_prompt", negative_prompt, negative_prompt_embeds),
            ("audio_negative_prompt", audio_negative_prompt, audio_negative_prompt_embeds),
        ):
            if texts is None:
                continue
            if embeds is not None:
                raise ValueError(f"give either `{name}` or `{name}_embeds`; both of them were given.")
            _check_texts(name, texts)
            if isinstance(texts, list) and len(texts) != batch_size:
                raise ValueError(
                    f"`{name}` lists {len(texts)} texts for {batch_size} prompts: give one for each, or one string for all."
                )
        for name, embeds, mask in (
            ("prompt", prompt_embeds, prompt_attention_mask),
            ("negative_prompt", negative_prompt_embeds, negative_prompt_attention_mask),
            ("audio_negative_prompt", audio_negative_prompt_embeds, audio_negative_prompt_attention_mask),
        ):
            if (embeds is None) != (mask is None):
                given, lacking = ("embeds", "attention_mask") if mask is None else ("attention_mask", "embeds")
                raise ValueError(
                    f"`{name}_{given}` was given without `{name}_{lacking}`: both come from `pipe.encode_prompt`."
                )
            if embeds is None:
                continue
            text_dim = self.transformer.config.text_dim
            if embeds.ndim != 3 or embeds.shape[2] != text_dim or embeds.shape[1] > self.config.max_sequence_length:
                raise ValueError(
                    f"`{name}_embeds` has shape {tuple(embeds.shape)}, but this model takes (batch_size, text_length of at "
                    f"most {self.config.max_sequence_length}, {text_dim})."
                )
            if mask.shape != embeds.shape[:2]:
                raise ValueError(
                    f"`{name}_attention_mask` has shape {tuple(mask.shape)}, but `{name}_embeds` of shape "
                    f"{tuple(embeds.shape)} needs {tuple(embeds.shape[:2])}."
                )
            if embeds.shape[0] not in (1, batch_size):
                raise ValueError(
                    f"`{name}_embeds` holds {embeds.shape[0]} texts for {batch_size} prompts: give one for each, or one for "
                    "all."
                )

        # 2. Sizes and lengths
        for name, value, multiple in zip(("height", "width"), (height, width), self._size_multiples, strict=True):
            if not isinstance(value, numbers.Integral) or value < 1 or value % multiple:
                nearest = max(round(value / multiple), 1) * multiple if isinstance(value, numbers.Real) else multiple
                raise ValueError(f"`{name}` is {value!r}, but must be a multiple of {multiple}: use {nearest}.")
        num_clips = batch_size * num_videos_per_prompt
        video_shape, audio_shape = self._latent_shapes(num_clips, height, width, num_frames)

        # 3. What is given
        self._check_given(given, batch_size, num_frames)
        timesteps = set_timesteps(self.scheduler, num_inference_steps)
        num_steps = len(timesteps)
        passes = [p for step in self._passes_of_steps(num_steps, given, num_frames) for p in step]
        anchors = {guidance_pass.anchor for guidance_pass in passes}
        needed = {"negative_prompt": negative_prompt_embeds}
        if audio_negative_prompt is not None or self.config.audio_negative_prompt is not None:
            needed["audio_negative_prompt"] = audio_negative_prompt_embeds
        lacking = [name for name, embeds in needed.items() if embeds is None]
        lacks_text = lacking and (self.text_encoder is None or self.tokenizer is None)
        if lacks_text and not all(anchor.text for anchor in anchors):
            raise ValueError(
                f"the guiders drop the text, which takes `{lacking[0]}_embeds` with `{lacking[0]}_attention_mask`, or "
                "`text_encoder` and `tokenizer` to make them: give one or the other, or guiders of scale 1."
            )
        if not self.transformer.config.num_context_tokens and any(
            (anchor.mute or anchor.static) and not anchor.clean_reads for anchor in anchors
        ):
            logger.warning(
                "In guidance by a silent or still clip, that clip reads nothing of the other modality, which a transformer without "
                "context tokens has usually not been trained for: set `clean_reads=True` in the `SyncGuidance` of both modalities."
            )
        given_sound = given.audio is not None or given.reference_audio is not None
        if (given_sound or any(anchor.mute for anchor in anchors)) and self.audio_vae.dtype != torch.float32:
            raise ValueError(
                f"`audio_vae` is in {self.audio_vae.dtype}, in which it cannot encode sound: call `pipe.audio_vae.float()`, or "
                "load the pipeline with a single `dtype`, which leaves it in float32."
            )

        skipped = {layer for anchor in anchors for layer in anchor.skip_layers}
        ends = skipped & {0, self.transformer.config.num_layers - 1}
        if self.transformer.is_cache_enabled and ends:
            raise ValueError(
                f"the guiders leave out block {min(ends)}, at one of the transformer's ends, where the enabled cache of diffusers "
                "compares and adds up: give them other `skip_layers`, or call `pipe.transformer.disable_cache()`."
            )
        if given.only is not None and self.transformer.is_cache_enabled:
            raise ValueError(
                f"with `only={given.only!r}` one stream is not run, which the enabled cache of diffusers for whole blocks watches: "
                "call `pipe.transformer.disable_cache()`."
            )
        if self.transformer.is_cache_enabled and any(p.keeps_video for p in passes):
            raise ValueError(
                "the enabled cache of diffusers tells by the picture whether a step may be left out, and here the sound is made for a "
                "picture (a given `video`, or the still one of `SyncGuidance`) that does not change: call "
                "`pipe.transformer.disable_cache()`."
            )
        rests = (timesteps[1:] == timesteps[:-1]).any() or (timesteps == 0).any()
        if self.transformer.is_cache_enabled and rests:
            raise ValueError(
                "the enabled cache of diffusers tells by the picture whether a step may be left out, and with these schedulers the "
                "picture rests while the sound goes on: call `pipe.transformer.disable_cache()`, or let neither of them lead."
            )
        if use_cache and self.transformer.is_cache_enabled and any(p.keeps_video or p.keeps_audio for p in passes):
            raise ValueError(
                "`use_cache` runs a clean stream once, which the enabled cache of diffusers for whole blocks would disturb: call "
                "`pipe.transformer.disable_cache()`, or leave `use_cache` out."
            )

        # 4. Noise
        if isinstance(generator, list) and len(generator) != num_clips:
            raise ValueError(
                f"`generator` lists {len(generator)} generators for {batch_size} prompts with {num_videos_per_prompt} videos "
                f"each: give {num_clips}, or a single one."
            )
        for name, value, shape in (("latents", latents, video_shape), ("audio_latents", audio_latents, audio_shape)):
            if value is not None and given.only == ("audio" if name == "latents" else "video"):
                raise ValueError(
                    f"`{name}` was given with `only={given.only!r}`, which has none: leave out one of them."
                )
            if value is not None and tuple(value.shape) != shape:
                raise ValueError(f"`{name}` has shape {tuple(value.shape)}, but this clip needs {shape}.")

        # 5. The plan
        duration = coordinates.clip_duration(num_frames, self.frame_rate)
        if plan is not None:
            self._check_plan(plan, batch_size, num_clips, num_frames)
            if not use_plan:
                raise ValueError("`plan` was given together with `use_plan=False`: leave one of them out.")
        elif use_plan and self.planner is not None:
            if self.planner_tokenizer is None:
                raise ValueError(
                    "`planner` needs `planner_tokenizer`: set it, give `plan`, or call with `use_plan=False`."
                )
            if prompt is None:
                raise ValueError(
                    "the planner reads the prompt itself, and `prompt_embeds` do not tell it: give `plan` (for example from "
                    "`pipe.prepare_plan`), or call with `use_plan=False`."
                )
            planner = self.planner.config
            prompts = [prompt] if isinstance(prompt, str) else prompt
            tokens, _ = tokenize_prompts(self.planner_tokenizer, prompts, planner.system_prompt)
            self.planner.check_lengths(tokens.shape[1], duration)

        if cues is not None:
            planner = self.planner if use_plan and plan is None else None
            if planner is None or not planner.writes_cues:
                raise ValueError(
                    "`cues` are for a planner that knows timestamps (`pipe.planner.writes_cues`), and here none plans: leave "
                    "them out."
                )
            sheets = [cues] if isinstance(cues, str) else cues
            if len(sheets) not in (1, batch_size, num_clips):
                raise ValueError(
                    f"`cues` has {len(sheets)} sheets for {batch_size} prompts with {num_videos_per_prompt} videos each: give "
                    "one, one for each prompt, or one for each clip."
                )
            _check_texts("cues", cues)
            texts = [cue.text for sheet in sheets for cue in parse_cues(sheet)]
            if unknown := unknown_words(self.planner_tokenizer, texts):
                raise ValueError(
                    f"`cues` have words that the planner does not know: {', '.join(unknown)}. Write them as it does "
                    "(`pipe.prepare_cues(prompt)` shows how)."
                )
            written = (
                max(len(self.planner_tokenizer(sheet, add_special_tokens=False).input_ids) for sheet in sheets) + 1
            )
            planner.check_lengths(tokens.shape[1] + written, duration)
            rate = planner.config.timestamp_rate
            last = (coordinates.num_timestamps_within(duration, rate) - 1) / rate
            for sheet in sheets:
                late = [cue.time for cue in parse_cues(sheet) if coordinates.nearest_timestamp(cue.time, rate) > last]
                if late:
                    raise ValueError(
                        f"`cues` name {late[0]} seconds, but the clip ends at {duration:.4f} and the last timestamp before is "
                        f"{last:g}."
                    )
        if not 0 <= cue_temperature < math.inf:
            raise ValueError(f"`cue_temperature` is {cue_temperature}, but must be a number from 0 on.")
        if not isinstance(num_cue_candidates, numbers.Integral) or num_cue_candidates < 0:
            raise ValueError(f"`num_cue_candidates` is {num_cue_candidates!r}, but must be a whole number from 0 on.")

        # 6. Output
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` is {output_type!r}, but must be one of {OUTPUT_TYPES}.")
        unknown = [name for name in callback_on_step_end_tensor_inputs if name not in self._callback_tensor_inputs]
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` names {unknown}, but must be from {self._callback_tensor_inputs}."
            )

    def format_prompt(self, prompt: str | list[str], audio_prompt: str | list[str] | None = None) -> str | list[str]:
        r"""
        The texts that the checkpoint reads: prompts, and after each what is heard, in the form that it was trained with.

        Args:
            prompt (`str` or `list[str]`): what happens in each clip. A warning tells of tags of another form.
            audio_prompt (`str` or `list[str]`, *optional*): what is heard, without tags; one for all prompts, or one for each.

        Raises:
            ValueError: if the checkpoint has no form, a prompt has such a description already, or the numbers differ.
        """
        _check_texts("prompt", prompt)
        prompts = [prompt] if isinstance(prompt, str) else prompt
        if audio_prompt is not None:
            _check_texts("audio_prompt", audio_prompt)
        if not isinstance(audio_prompt, list):
            audio_prompt = [audio_prompt] * len(prompts)
        if len(audio_prompt) != len(prompts):
            raise ValueError(
                f"`audio_prompt` lists {len(audio_prompt)} texts for {len(prompts)} prompts: give one for each, or one string "
                "for all."
            )
        form = self.config.prompt_form
        texts = [write_prompt(text, sound, form) for text, sound in zip(prompts, audio_prompt, strict=True)]
        return texts[0] if isinstance(prompt, str) else texts

    @torch.no_grad()
    def encode_prompt(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        do_classifier_free_guidance: bool = True,
        num_videos_per_prompt: int = 1,
        prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        audio_negative_prompt: str | list[str] | None = None,
        audio_negative_prompt_embeds: torch.Tensor | None = None,
        audio_negative_prompt_attention_mask: torch.Tensor | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> tuple[torch.Tensor | None, ...]:
        r"""
        Embeds prompts for the transformer.

        Args:
            prompt (`str` or `list[str]`, *optional*): the prompts as [`format_prompt`] writes them; or `prompt_embeds` with
                their mask.
            negative_prompt (`str` or `list[str]`, *optional*): read where guidance drops the text; by default the
                checkpoint's.
            do_classifier_free_guidance (`bool`, defaults to `True`): whether to embed negative prompts at all.
            num_videos_per_prompt (`int`, defaults to 1): every embedding is repeated so many times in a row.
            prompt_embeds (`torch.Tensor` of shape `(batch_size, text_length, text_dim)`, *optional*): instead of `prompt`.
            prompt_attention_mask (`torch.Tensor` of shape `(batch_size, text_length)`, *optional*): 1 for text.
            negative_prompt_embeds (`torch.Tensor`, *optional*): instead of `negative_prompt`.
            negative_prompt_attention_mask (`torch.Tensor`, *optional*): 1 for text.
            audio_negative_prompt (`str` or `list[str]`, *optional*): what the sound reads there; by default the checkpoint's.
            audio_negative_prompt_embeds (`torch.Tensor`, *optional*): instead of `audio_negative_prompt`.
            audio_negative_prompt_attention_mask (`torch.Tensor`, *optional*): 1 for text.
            device (`torch.device`, *optional*): where the embeddings go.
            dtype (`torch.dtype`, *optional*): of the embeddings; by default the transformer's, or the text encoder's in a
                pipeline that was loaded for its texts alone.

        Returns:
            Embeddings `(batch_size * num_videos_per_prompt, max_sequence_length, text_dim)`, zero where the mask is, their
            mask; both for the negative prompts (`None` without guidance); both for the sound's (`None` where it reads the
            picture's).
        """
        device = device or self._execution_device
        dtype = dtype or (self.text_encoder if self.transformer is None else self.transformer).dtype
        batch_size = _batch_size(prompt, prompt_embeds)
        if prompt_embeds is None:
            prompt = [prompt] if isinstance(prompt, str) else prompt
            prompt_embeds, prompt_attention_mask = self._embed_texts(prompt, device)
        prompt_embeds, prompt_attention_mask = self._pad_embeddings(
            prompt_embeds, prompt_attention_mask, batch_size, num_videos_per_prompt, device, dtype
        )
        if not do_classifier_free_guidance:
            negative_prompt_embeds = negative_prompt_attention_mask = None
            audio_negative_prompt_embeds = audio_negative_prompt_attention_mask = None
        else:
            if negative_prompt_embeds is None:
                negative_prompt = self.config.negative_prompt if negative_prompt is None else negative_prompt
                negative_prompt = [negative_prompt] if isinstance(negative_prompt, str) else negative_prompt
                negative_prompt_embeds, negative_prompt_attention_mask = self._embed_texts(negative_prompt, device)
            negative_prompt_embeds, negative_prompt_attention_mask = self._pad_embeddings(
                negative_prompt_embeds,
                negative_prompt_attention_mask,
                batch_size,
                num_videos_per_prompt,
                device,
                dtype,
            )
            if audio_negative_prompt is None:
                audio_negative_prompt = self.config.audio_negative_prompt
            if audio_negative_prompt_embeds is None and audio_negative_prompt is not None:
                texts = [audio_negative_prompt] if isinstance(audio_negative_prompt, str) else audio_negative_prompt
                audio_negative_prompt_embeds, audio_negative_prompt_attention_mask = self._embed_texts(texts, device)
            if audio_negative_prompt_embeds is not None:
                audio_negative_prompt_embeds, audio_negative_prompt_attention_mask = self._pad_embeddings(
                    audio_negative_prompt_embeds,
                    audio_negative_prompt_attention_mask,
                    batch_size,
                    num_videos_per_prompt,
                    device,
                    dtype,
                )
        return (
            prompt_embeds,
            prompt_attention_mask,
            negative_prompt_embeds,
            negative_prompt_attention_mask,
            audio_negative_prompt_embeds,
            audio_negative_prompt_attention_mask,
        )

    @torch.no_grad()
    def prepare_cues(
        self,
        prompt: str | list[str],
        num_frames: int | None = None,
        num_clips: int | None = None,
        cues: str | list[str] | None = None,
        cue_temperature: float = 0.5,
        generator: torch.Generator | list[torch.Generator] | None = None,
        device: torch.device | None = None,
        given_plan: SemanticPlan | None = None,
        num_cue_candidates: int = 64,
    ) -> list[str] | None:
        r"""
        Lets the planner write when things happen, or makes given cue sheets ready for the clips.

        Args:
            prompt (`str` or `list[str]`): what to plan.
            num_frames (`int`, *optional*): length of the clips; by default the pipeline's.
            num_clips (`int`, *optional*): clips to be made, each with a sheet of its own; by default one for each prompt.
            cues (`str` or `list[str]`, *optional*): take the place of the planner's; one sheet for all prompts, or one for
                each, or one for each clip.
            cue_temperature (`float`, defaults to 0.5): see [`VAPlannerModel.generate_cues`].
            generator (`torch.Generator` or a list with one for each clip, *optional*): decides what is written. It is read,
                not advanced: the noise of a clip does not depend on its planner.
            device (`torch.device`, *optional*): where the planner runs.
            given_plan (`SemanticPlan`, *optional*): what is given of the clips as `prepare_given_plan` reads it, for one clip or
                for each: the cues are then those of [`fit_cues`].
            num_cue_candidates (`int`, defaults to 64): see [`fit_cues`].

        Returns:
            `list[str]` of `num_clips` sheets, their instants moved to the planner's timestamps; or `None` with a planner that knows
            none.

        Raises:
            ValueError: if the clips cannot be shared out among the prompts, or among the sheets given.
        """
        if self.planner is None or not self.planner.writes_cues:
            return None
        device = device or self._execution_device
        prompt = [prompt] if isinstance(prompt, str) else prompt
        num_clips = num_clips or len(prompt)
        cues = [cues] if isinstance(cues, str) else cues
        for name, texts in (("prompts", prompt), ("sheets of `cues`", cues)):
            if texts is not None and num_clips % len(texts):
                raise ValueError(
                    f"{num_clips} clips cannot be shared out among {len(texts)} {name}: give as many, or one."
                )
        if cues is not None:
            rate = self.planner.config.timestamp_rate
            return [snap_cues(sheet, rate) for sheet in cues for _ in range(num_clips // len(cues))]
        if isinstance(generator, list):
            generator = [_fork(g) for g in generator]
        else:
            generator = _fork(generator or torch.default_generator)
        prompt = [text for text in prompt for _ in range(num_clips // len(prompt))]
        if given_plan is not None:
            plans = given_plan.repeat_interleave(num_clips // given_plan.batch_size).to(device)
            generators = generator if isinstance(generator, list) else [generator] * num_clips
            parts = self.planner, self.planner_tokenizer
            return [
                fit_cues(*parts, text, plans[index], num_cue_candidates, generators[index])
                for index, text in enumerate(prompt)
            ]
        input_ids, attention_mask = tokenize_prompts(self.planner_tokenizer, prompt, self.planner.config.system_prompt)
        duration = coordinates.clip_duration(num_frames or self.config.num_frames, self.frame_rate)
        sheets = self.planner.generate_cues(
            input_ids.to(device), attention_mask.to(device), duration, cue_temperature, generator
        )
        return self.planner_tokenizer.batch_decode(sheets)

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
        Plans clips, or makes a given plan ready for them.

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
            ValueError: if the planner refuses the prompt or the cues.
        """
        device = device or self._execution_device
        if plan is None:
            if not use_plan or self.planner is None:
                return None
            prompt, planner = [prompt] if isinstance(prompt, str) else prompt, self.planner.config
            if self.planner.writes_cues:
                if cues is None:
                    cues = self.prepare_cues(prompt, num_frames, generator=generator, device=device)
                prompt = [text for text in prompt for _ in range(len(cues) // len(prompt))]
                input_ids, attention_mask, _ = tokenize_cues(
                    self.planner_tokenizer, prompt, cues, planner.system_prompt, planner.timestamp_rate
                )
            else:
                input_ids, attention_mask = tokenize_prompts(self.planner_tokenizer, prompt, planner.system_prompt)
            duration = coordinates.clip_duration(num_frames or self.config.num_frames, self.frame_rate)
            plan = self.planner(input_ids.to(device), attention_mask.to(device), duration)
        plan = plan.to(device, self.transformer.dtype).trimmed()
        return plan.repeat_interleave((num_clips or plan.batch_size) // plan.batch_size)

    @torch.no_grad()
    def prepare_given_plan(
        self, given: Given, height: int, width: int, num_frames: int, device: torch.device | None = None
    ) -> SemanticPlan | None:
        r"""
        Reads off what is given of the clips the part of their plan that it settles.

        Args:
            given ([`Given`]): pictures and sounds.
            height, width, num_frames (`int`): size of the clips in pixels and frames.
            device (`torch.device`, *optional*): where the semantic encoders run.

        Returns:
            `SemanticPlan` of one clip for all or of one for each prompt, whose masks are `True` for the tokens of pictures and
            sounds that are given, and zeros where they are not; or `None` where that is none, or their encoder is missing.
        """
        device = device or self._execution_device
        config, duration = self.planner.config, coordinates.clip_duration(num_frames, self.frame_rate)
        layout = self.planner.plan_layout(duration)
        num_clips = max(number for name, number in given.num_clips.items() if name != "reference audio")
        video_tokens = torch.zeros(num_clips, len(layout.video_times), config.video_dim, device=device)
        audio_tokens = torch.zeros(num_clips, len(layout.audio_times), config.audio_dim, device=device)
        known = torch.zeros(len(layout.video_times), dtype=torch.bool)
        audio_known = torch.zeros(len(layout.audio_times), dtype=torch.bool)
        if given.video is not None and self.video_semantic_encoder is not None:
            frames = model_frames(given.video, num_frames, self.frame_rate, height, width)
            video_tokens[:] = self.video_semantic_encoder.encode(frames.to(device), self.frame_rate)
            new = coordinates.units_in_spans(given.video.new, self.frame_rate, num_frames)
            known = ~new[coordinates.nearest_frames(layout.video_times, num_frames, self.frame_rate)]
        if given.audio is not None and self.audio_semantic_encoder is not None:
            sampling_rate = self.audio_semantic_encoder.sampling_rate
            num_samples = coordinates.num_samples(duration, sampling_rate)
            waveform = model_waveform(given.audio, num_samples, sampling_rate)[:, None].to(device)
            channels = self.audio_semantic_encoder.audio_channels
            audio_tokens[:] = self.audio_semantic_encoder.encode(waveform.expand(-1, channels, -1), sampling_rate)
            rate = config.audio_tokens_per_chunk / config.chunk_duration
            within = [(start, end) for start, end in given.audio.new if start < duration]
            new = coordinates.units_in_spans(within, rate, len(audio_known))
            audio_known = layout.audio_mask & ~new
        if not known.any() and not audio_known.any():
            return None
        plan = SemanticPlan.laid_out(layout, video_tokens, audio_tokens, duration)
        masks = known.to(device).expand(num_clips, -1), audio_known.to(device).expand(num_clips, -1)
        return replace(plan, video_mask=masks[0], audio_mask=masks[1])

    @torch.no_grad()
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
        What is given of the clips as clean tokens, in float32.

        A latent is known if all the frames or samples that it covers are. Nothing else of what is given is looked at. Of a
        modality that the clips are without all latents are, which nobody reads.

        Args:
            given ([`Given`]): pictures and sounds; each one for all clips, or one for each prompt, repeated in a row.
            num_clips (`int`): prompts times videos per prompt.
            height, width, num_frames (`int`): size of the clips in pixels and frames.
            device (`torch.device`, *optional*): where the latents go.

        Returns:
            [`KnownLatents`] of the video and of the audio.
        """
        device = device or self._execution_device
        mask, audio_mask = self._known_masks(given, num_frames)
        video_shape, audio_shape = self._latent_shapes(num_clips, height, width, num_frames)
        latents = torch.zeros(video_shape, device=device)
        audio_latents = torch.zeros(audio_shape, device=device)
        if mask.any():
            if given.video.size != (height, width):
                logger.warning(
                    f"the given picture of {given.video.size[0]} x {given.video.size[1]} pixels (height x width) is resized to "
                    f"{height} x {width}, which this model takes."
                )
            length = int(mask.nonzero().max()) + 1  # latent frames depend on earlier pixel frames alone
            num_given = (length - 1) * self.vae.config.scale_factor_temporal + 1
            frames = model_frames(given.video, num_given, self.frame_rate, height, width)
            encoded = self.encode_video(frames.to(device))
            latents[:, :, :length] = encoded.repeat_interleave(num_clips // len(encoded), dim=0)
        if audio_mask.any():
            length = int(audio_mask.nonzero().max()) + 1
            num_samples = length * self.audio_vae.latent_hop_length
            encoded = self.encode_audio(model_waveform(given.audio, num_samples, self.sampling_rate).to(device))
            audio_latents[:, :length] = encoded.repeat_interleave(num_clips // len(encoded), dim=0)
        mask, audio_mask = self._settled_masks(given, num_frames)
        mask, audio_mask = mask.to(device)[None, None, :, None, None], audio_mask.to(device)[None, :, None]
        return (
            KnownLatents(latents * mask, mask),
            KnownLatents(audio_latents * audio_mask, audio_mask),
        )

    @torch.no_grad()
    def prepare_reference_audio(
        self, given: Given, num_clips: int, device: torch.device | None = None
    ) -> torch.Tensor | None:
        r"""
        The given reference audio as clean latents.

        Args:
            given ([`Given`]): what is given; one reference for all clips, or one for each prompt, repeated in a row.
            num_clips (`int`): prompts times videos per prompt.
            device (`torch.device`, *optional*): where the latents go.

        Returns:
            `torch.Tensor` of shape `(num_clips, reference_length, audio_channels)`, the last latent filled with silence; or
            `None` if no reference is given.
        """
        if given.reference_audio is None:
            return None
        length = coordinates.num_audio_latents(
            given.reference_audio.duration, self.transformer.config.audio_latent_rate
        )
        num_samples = length * self.audio_vae.latent_hop_length
        waveform = model_waveform(given.reference_audio, num_samples, self.sampling_rate)
        latents = self.encode_audio(waveform.to(device or self._execution_device))
        return latents.repeat_interleave(num_clips // len(latents), dim=0)

    @torch.no_grad()
    def prepare_still(
        self,
        given: Given,
        num_clips: int,
        height: int,
        width: int,
        num_frames: int,
        device: torch.device | None = None,
    ) -> torch.Tensor:
        r"""
        Clean latents of a still picture, which guidance puts in the video's place (Harmony's static anchor): the given clip's
        first frame, or mid-grey where none is given (ours).

        Args:
            given, num_clips, height, width, num_frames, device: as for `prepare_conditions`.

        Returns:
            Video latents, shaped as `prepare_latents` shapes them.
        """
        frame = torch.zeros(1, 3, 1, height, width)
        if self._known_masks(given, num_frames)[0][0]:
            frame = model_frames(given.video, 1, self.frame_rate, height, width)
        frames = frame.expand(-1, -1, num_frames, -1, -1).to(device or self._execution_device)
        still = self.encode_video(frames)
        return still.repeat_interleave(num_clips // len(still), dim=0)

    @torch.no_grad()
    def prepare_silence(self, num_clips: int, num_frames: int, device: torch.device | None = None) -> torch.Tensor:
        r"""
        Clean latents of silence, which guidance puts in the audio's place (Harmony's mute anchor).

        Args:
            num_clips, num_frames, device: as for `prepare_conditions`.

        Returns:
            Audio latents, shaped as `prepare_latents` shapes them.
        """
        num_samples = self._audio_length(num_frames) * self.audio_vae.latent_hop_length
        silence = torch.zeros(1, num_samples, device=device or self._execution_device)
        return self.encode_audio(silence).expand(num_clips, -1, -1)

    @torch.no_grad()
    def encode_video(self, frames: torch.Tensor) -> torch.Tensor:
        r"""
        Latents of frames, normalised as the transformer takes them.

        Args:
            frames (`torch.Tensor` of shape `(num_clips, 3, num_frames, height, width)`): in [-1, 1], at the pipeline's rate.

        Returns:
            `torch.Tensor` of shape `(num_clips, num_channels, num_latent_frames, latent_height, latent_width)`, float32.
        """
        return normalise_latents(self.vae, self.vae.encode(frames.to(self.vae.dtype)).latent_dist.mode())

    @torch.no_grad()
    def encode_audio(self, waveform: torch.Tensor) -> torch.Tensor:
        r"""
        Latents of sound, scaled as the transformer takes them.

        Args:
            waveform (`torch.Tensor` of shape `(num_clips, num_samples)`): in [-1, 1], at the pipeline's rate, in whole latents.

        Returns:
            `torch.Tensor` of shape `(num_clips, audio_length, audio_channels)`, float32.
        """
        return encode_waveforms(self.audio_vae, waveform.float())

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
        device = device or self._execution_device
        video_shape, audio_shape = self._latent_shapes(num_clips, height, width, num_frames)
        if latents is None:
            latents = randn_tensor(video_shape, generator=generator, device=device, dtype=torch.float32)
        if audio_latents is None:
            audio_latents = randn_tensor(audio_shape, generator=generator, device=device, dtype=torch.float32)
        return latents.to(device, torch.float32), audio_latents.to(device, torch.float32)

    @torch.no_grad()
    def decode_latents(
        self,
        latents: torch.Tensor | None,
        audio_latents: torch.Tensor | None,
        num_frames: int,
        output_type: str = "pt",
        duration: float | None = None,
    ) -> tuple[Any, Any]:
        r"""
        Frames and waveforms of finished latents.

        Args:
            latents (`torch.Tensor`, *optional*): video latents as `prepare_latents` shapes them.
            audio_latents (`torch.Tensor`, *optional*): audio latents likewise.
            num_frames (`int`): frames of the clip.
            output_type (`str`, defaults to `"pt"`): `"pil"`, `"np"` or `"pt"`.
            duration (`float`, *optional*): seconds to which both are cut; by default what `num_frames` last.

        Returns:
            Frames as [`BatonPipelineOutput`] describes them, and waveforms `(batch_size, 1, num_samples)` in [-1, 1],
            float32: a tensor for `"pt"`, an array otherwise. `None` for latents that are not given.
        """
        clip_duration = coordinates.clip_duration(num_frames, self.frame_rate)
        duration = clip_duration if duration is None else min(duration, clip_duration)
        frames = waveform = None
        if latents is not None:
            latents = denormalise_latents(self.vae, latents).to(self.vae.dtype)
            video = self.vae.decode(latents, return_dict=False)[0]
            video = video[:, :, : coordinates.num_frames_within(duration, self.frame_rate)]
            frames = self.video_processor.postprocess_video(video.float(), output_type=output_type)
        if audio_latents is not None:
            mel = decode_spectrograms(self.audio_vae, audio_latents)
            waveform = self.vocoder(mel.to(self.vocoder.dtype), return_dict=False)[0].float().clamp(-1, 1)
            num_samples = coordinates.num_samples(duration, self.sampling_rate)
            # Latents may end a little before the clip (`audio_latent_min_coverage`): silence follows.
            waveform = F.pad(waveform, (0, max(num_samples - waveform.shape[-1], 0)))[..., :num_samples]
            waveform = waveform if output_type == "pt" else waveform.cpu().numpy()
        return frames, waveform

    @torch.no_grad()
    def extract_plan(
        self, frames: np.ndarray, waveform: np.ndarray, frame_rate: float, sampling_rate: int
    ) -> SemanticPlan:
        r"""
        Reads the plan off a real clip, as the planner's targets were read in training.

        Args:
            frames (`np.ndarray` of shape `(num_frames, height, width, 3)`): uint8, or floating point in [0, 1].
            waveform (`np.ndarray` of shape `(num_samples,)` or `(num_channels, num_samples)`): in [-1, 1]; channels are
                averaged.
            frame_rate (`float`): frames per second of `frames`.
            sampling_rate (`int`): samples per second of `waveform`, the audio semantic encoder's.

        Returns:
            `SemanticPlan` for one clip.

        Raises:
            ValueError: if the pipeline has no semantic encoders, or the clip does not fit them.
        """
        for name in ("video_semantic_encoder", "audio_semantic_encoder"):
            if getattr(self, name) is None:
                raise ValueError(f"`extract_plan` needs `{name}`, which this pipeline lacks: load it with one.")
        frames, waveform = np.asarray(frames), np.asarray(waveform, dtype=np.float32)
        if frames.ndim != 4 or frames.shape[-1] != 3:
            raise ValueError(f"`frames` has shape {frames.shape}, but must be (num_frames, height, width, 3).")
        if waveform.ndim not in (1, 2):
            raise ValueError(
                f"`waveform` has shape {waveform.shape}, but must be (num_samples,) or (num_channels, num_samples)."
            )
        if frames.dtype == np.uint8:
            frames = frames.astype(np.float32) / 255
        device = self._execution_device
        video = torch.from_numpy(frames.astype(np.float32)).permute(3, 0, 1, 2)[None] * 2 - 1
        waveform = torch.from_numpy(waveform if waveform.ndim == 1 else waveform.mean(axis=0))[None, None]
        return read_plan(
            self.video_semantic_encoder,
            self.audio_semantic_encoder,
            video.to(device),
            frame_rate,
            waveform.to(device),
            sampling_rate,
        )

    @torch.no_grad()
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
        num_videos_per_prompt: int = 1,
        image: GivenPicture | None = None,
        video: GivenFrames | None = None,
        audio: GivenSound | None = None,
        reference_audio: GivenSound | None = None,
        continue_from: GivenClips | None = None,
        continue_seconds: float | None = None,
        video_mask: Mask | None = None,
        audio_mask: Mask | None = None,
        video_frame_rate: float | None = None,
        audio_sampling_rate: int | None = None,
        only: str | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        audio_latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        audio_negative_prompt_embeds: torch.Tensor | None = None,
        audio_negative_prompt_attention_mask: torch.Tensor | None = None,
        plan: SemanticPlan | str | os.PathLike | None = None,
        use_plan: bool = True,
        cues: str | list[str] | None = None,
        cue_temperature: float = 0.5,
        num_cue_candidates: int = 64,
        use_cache: bool = False,
        output_type: str = "pil",
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callable[[BatonPipeline, int, int, dict], dict] | PipelineCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents", "audio_latents"),
    ) -> BatonPipelineOutput | tuple[Any, Any]:
        r"""
        Makes clips from prompts, and from what is given of them.

        Without anything else, picture and sound are made. `image` is the first frame of the clip; `video` is the whole
        picture, for which a sound is made; `audio` is the whole sound, for which a picture is made; `continue_from` is a clip
        that goes on. With a mask, parts of `video` or `audio` are made anew. Each is given once for all prompts or once for
        each prompt (as a list, or a batch of arrays), and the clips of one call agree in size, length and rates.

        What is given whole is returned as it is, at its own size and rates; the model sees it at its own, which is said in a
        warning. What is given in part returns as the autoencoders render it. The plan is made from the prompt in any case: for
        one that is read off what is given, see `extract_plan`.

        Args:
            prompt (`str` or `list[str]`, *optional*): what happens in each clip; or `prompt_embeds`.
            negative_prompt (`str` or `list[str]`, *optional*): read where guidance drops the text; one for all prompts, or one
                for each; by default the checkpoint's.
            audio_prompt (`str` or `list[str]`, *optional*): what is heard in each clip. It ends the prompt in the form that
                the checkpoint was trained with, see [`format_prompt`]; for checkpoints that have one.
            audio_negative_prompt (`str` or `list[str]`, *optional*): what the sound reads in place of `negative_prompt`; by
                default the checkpoint's own for the sound, and where it has none, the picture's.
            height (`int`, *optional*): of a frame in pixels; by default the pipeline's, or for a given picture the nearest
                size of its shape and of the pipeline's area.
            width (`int`, *optional*): of a frame in pixels; by default as `height`.
            num_frames (`int`, *optional*): temporal stride of the VAE times k, plus one; by default the pipeline's, or as many
                as `video` or `audio` last.
            num_inference_steps (`int`, *optional*): denoising steps; by default the pipeline's.
            num_videos_per_prompt (`int`, defaults to 1): clips for each prompt, next to one another in the output.
            image (*optional*): the first frame: a file, a PIL image, an array `(height, width, 3)`, or a tensor `(3, height,
                width)`; uint8, or floating point in [0, 1].
            video (*optional*): the picture: a file, a list of PIL images, an array `(num_frames, height, width, 3)`, or a
                tensor `(num_frames, 3, height, width)`; uint8, or floating point in [0, 1].
            audio (*optional*): the sound: a file, or an array or tensor `(num_samples,)` or `(num_channels, num_samples)` of
                one or two channels in [-1, 1].
            reference_audio (*optional*): a sound whose style (voice, timbre, room) the clip is to have, as `audio` takes it and
                of any length (Harmony's global path, arXiv:2511.21579). A checkpoint must have been trained with it.
            continue_from (*optional*): the clip that goes on: a file, a [`BatonPipelineOutput`], a [`~media.Clip`], or a pair
                of what `video` and `audio` take.
            continue_seconds (`float`, *optional*): how much of its end is the start of the new clip, to the nearest whole
                latent frame; by default 1 second. Longer is steadier, and leaves less that is new.
            video_mask (*optional*): what of `video` is made anew: 1 for frames to make and 0 for frames to keep, or spans
                `(start, end)` in seconds to make. A latent frame is kept only if all of its frames are.
            audio_mask (*optional*): the same for `audio`, with a value for each sample.
            video_frame_rate (`float`, *optional*): frames per second of arrays, tensors and images in `video` and
                `continue_from`; by default the pipeline's. Files say their own.
            audio_sampling_rate (`int`, *optional*): samples per second of arrays and tensors in `audio`, `reference_audio` and
                `continue_from`; by default the pipeline's. Files say their own.
            only (`str`, *optional*): "video" or "audio" makes clips of that modality alone, without the work for the other, which
                is `None` in the output. The one that is made reads context tokens in its place (CCL's routing, arXiv:2603.18600):
                a checkpoint must have been trained so. Guidance by the other modality falls away.
            generator (`torch.Generator` or a list with one for each clip, *optional*): makes the noise repeatable. With a
                list, a clip does not depend on the batch that it is made in.
            latents (`torch.Tensor` of shape `(num_clips, num_channels, num_latent_frames, latent_height, latent_width)`,
                *optional*): video noise.
            audio_latents (`torch.Tensor` of shape `(num_clips, audio_length, audio_channels)`, *optional*): audio noise.
            prompt_embeds (`torch.Tensor` of shape `(batch_size, text_length, text_dim)`, *optional*): instead of `prompt`.
            prompt_attention_mask (`torch.Tensor` of shape `(batch_size, text_length)`, *optional*): with `prompt_embeds`.
            negative_prompt_embeds (`torch.Tensor`, *optional*): instead of `negative_prompt`.
            negative_prompt_attention_mask (`torch.Tensor`, *optional*): with `negative_prompt_embeds`.
            audio_negative_prompt_embeds (`torch.Tensor`, *optional*): instead of `audio_negative_prompt`.
            audio_negative_prompt_attention_mask (`torch.Tensor`, *optional*): with `audio_negative_prompt_embeds`.
            plan (`SemanticPlan` or the path of its file, *optional*): takes the place of the planner's; one for all prompts, one
                for each, or one for each clip.
            use_plan (`bool`, defaults to `True`): `False` makes the clips from the text alone.
            cues (`str` or `list[str]`, *optional*): when things happen, for a planner that knows timestamps, as
                `"<|0.50|> red ball <|1.56|> purple face three"`; one sheet for all prompts, one for each, or one for each
                clip. By default the planner writes them. Where `video`, `audio` or a beginning is given, which settles when
                things happen, it writes `num_cue_candidates` sheets, and the one whose plan agrees best with what the semantic
                encoders read off it is fitted to it ([`fit_cues`]). The empty sheet leaves times open, as the paper's planner
                does: the plan is then the mean over them.
            cue_temperature (`float`, defaults to 0.5): how freely the planner writes cues; 0 takes the likeliest. At 1, with which it
                is trained, times are as varied as in its data, and slips more frequent (ours).
            num_cue_candidates (`int`, defaults to 64): sheets from which cues for what is given are chosen. Each costs a pass of the
                planner, and so does each of about 4 to 8 moves of each cue, some times over. With 0, and in a pipeline without
                semantic encoders, the empty sheet is taken there.
            use_cache (`bool`, defaults to `False`): whether a clean stream that reads context tokens alone (a given modality,
                Harmony's anchors) is run once for each guidance pass, and its keys and values are kept for the call. This costs
                `transformer.cache_bytes` of memory for each pass: 20 GB for a clean video of 10 s at full size.
            output_type (`str`, defaults to `"pil"`): `"pil"`, `"np"`, `"pt"` or `"latent"`.
            return_dict (`bool`, defaults to `True`): whether to return a [`BatonPipelineOutput`] instead of a tuple.
            attention_kwargs (`dict`, *optional*): handed to the transformer; `scale` is the weight of LoRA layers.
            callback_on_step_end (`Callable`, *optional*): called as `callback(pipe, step, timestep, tensors)` after each
                step; tensors that it returns replace the loop's. `pipe._interrupt = True` ends the loop.
            callback_on_step_end_tensor_inputs (`Sequence[str]`): names of the tensors that the callback gets, from
                `pipe._callback_tensor_inputs`.

        Returns:
            [`BatonPipelineOutput`], or a tuple of its frames and audio.

        Raises:
            ValueError: if something is given that cannot be read, or from `check_inputs`; before any model runs.
        """
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        num_inference_steps = self.config.num_inference_steps if num_inference_steps is None else num_inference_steps

        # 1. Read what is given, and check inputs
        self._require_components()
        if isinstance(plan, (str, os.PathLike)):
            plan = SemanticPlan.load(plan)
        given = read_given(
            self.frame_rate,
            self.sampling_rate,
            self.vae.config.scale_factor_temporal,
            image=image,
            video=video,
            audio=audio,
            reference_audio=reference_audio,
            continue_from=continue_from,
            continue_seconds=continue_seconds,
            video_mask=video_mask,
            audio_mask=audio_mask,
            video_frame_rate=video_frame_rate,
            audio_sampling_rate=audio_sampling_rate,
            only=only,
        )
        if prompt is not None:
            prompt = self.format_prompt(prompt, audio_prompt)
        elif audio_prompt is not None:
            raise ValueError(
                "`audio_prompt` ends a `prompt`, and none was given: give it, or put both into `prompt_embeds`."
            )
        height, width, num_frames = self._default_sizes(height, width, num_frames, given)
        self.check_inputs(
            prompt=prompt,
            negative_prompt=negative_prompt,
            audio_negative_prompt=audio_negative_prompt,
            height=height,
            width=width,
            num_frames=num_frames,
            num_inference_steps=num_inference_steps,
            num_videos_per_prompt=num_videos_per_prompt,
            given=given,
            generator=generator,
            latents=latents,
            audio_latents=audio_latents,
            prompt_embeds=prompt_embeds,
            prompt_attention_mask=prompt_attention_mask,
            negative_prompt_embeds=negative_prompt_embeds,
            negative_prompt_attention_mask=negative_prompt_attention_mask,
            audio_negative_prompt_embeds=audio_negative_prompt_embeds,
            audio_negative_prompt_attention_mask=audio_negative_prompt_attention_mask,
            plan=plan,
            use_plan=use_plan,
            cues=cues,
            cue_temperature=cue_temperature,
            num_cue_candidates=num_cue_candidates,
            use_cache=use_cache,
            output_type=output_type,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )
        self._attention_kwargs = attention_kwargs
        self._current_timestep = None
        self._interrupt = False
        device = self._execution_device
        num_clips = _batch_size(prompt, prompt_embeds) * num_videos_per_prompt

        # 2. Steps
        timesteps = set_timesteps(self.scheduler, num_inference_steps, device)
        audio_timesteps = set_timesteps(self.audio_scheduler, num_inference_steps, device)
        scheduler_kwargs = step_kwargs(self.scheduler, generator)
        audio_scheduler_kwargs = step_kwargs(self.audio_scheduler, generator)
        self._num_timesteps = len(timesteps)
        self._warn_of_lost_guidance(only)
        passes = [p for step in self._passes_of_steps(len(timesteps), given, num_frames) for p in step]

        # 3. Text
        prompt_embeds, _, negative_prompt_embeds, _, audio_negative_prompt_embeds, _ = self.encode_prompt(
            prompt,
            negative_prompt,
            any(not guidance_pass.anchor.text for guidance_pass in passes),
            num_videos_per_prompt,
            prompt_embeds,
            prompt_attention_mask,
            negative_prompt_embeds,
            negative_prompt_attention_mask,
            audio_negative_prompt,
            audio_negative_prompt_embeds,
            audio_negative_prompt_attention_mask,
            device,
        )

        # 4. Plan. What is given of a clip's course settles when things happen: cues are fitted to it, and never written against it.
        if plan is None and use_plan and self.planner is not None:
            given_plan = None
            mask, audio_mask = self._known_masks(given, num_frames)
            if cues is None and self.planner.writes_cues and (mask[1:].any() or audio_mask.any()):
                if num_cue_candidates:
                    given_plan = self.prepare_given_plan(given, height, width, num_frames, device)
                cues = "" if given_plan is None else None
            cues = self.prepare_cues(
                prompt, num_frames, num_clips, cues, cue_temperature, generator, device, given_plan, num_cue_candidates
            )
        plan = self.prepare_plan(prompt, num_frames, num_clips, plan, use_plan, cues, device=device)
        has_plan, has_other = plan is not None, only is None

        # 5. What is given, as clean latents; noise for the rest
        known, audio_known = self.prepare_conditions(given, num_clips, height, width, num_frames, device)
        reference = self.prepare_reference_audio(given, num_clips, device)
        still = silence = None
        if any(guidance_pass.anchor.static for guidance_pass in passes):
            still = self.prepare_still(given, num_clips, height, width, num_frames, device)
        if any(guidance_pass.anchor.mute for guidance_pass in passes):
            silence = self.prepare_silence(num_clips, num_frames, device)
        latents, audio_latents = self.prepare_latents(
            num_clips, height, width, num_frames, generator, latents, audio_latents, device
        )
        latents, audio_latents = known.keep(latents), audio_known.keep(audio_latents)

        # 6. Denoising loop
        dtype, clean = self.transformer.dtype, torch.zeros(num_clips, device=device)
        reference = None if reference is None else reference.to(dtype)
        # Clean streams by modality and pass. What no prediction needs is not run, unless diffusers' caches watch both streams.
        streams, skips_unread = defaultdict(CleanStream), not self.transformer.is_cache_enabled
        self.transformer._reset_stateful_cache()  # of a call that ended by an exception
        # A modality that has arrived before the other one (`LeadFlowMatchScheduler`) is from then on as if it were given.
        made, audio_made = (
            (scheduler.sigmas[: len(timesteps)] > 0).tolist() for scheduler in (self.scheduler, self.audio_scheduler)
        )
        with self.progress_bar(total=len(timesteps)) as progress_bar:
            for i, (t, audio_t) in enumerate(zip(timesteps, audio_timesteps, strict=True)):
                if self.interrupt:
                    continue
                self._current_timestep = t
                guider = self.guider if made[i] and not known.all else None
                audio_guider = self.audio_guider if audio_made[i] and not audio_known.all else None
                for g, timestep in ((guider, t), (audio_guider, audio_t)):
                    if g is not None:
                        g.set_state(step=i, num_inference_steps=len(timesteps), timestep=timestep)

                predictions, audio_predictions = {}, {}
                for guidance_pass in guidance_passes(guider, audio_guider, has_plan, has_other, self._given_reads):
                    anchor = guidance_pass.anchor
                    if not anchor.text and negative_prompt_embeds is None:
                        raise ValueError(
                            "the guider drops the text, and did not when the clip was begun, so that no negative prompt was encoded: "
                            "set it before the call."
                        )
                    if (anchor.static and still is None) or (anchor.mute and silence is None):
                        raise ValueError(
                            f"the guider puts {'a still clip' if anchor.static else 'silence'} in a modality's place, and did not when "
                            "the clip was begun, so that none was encoded: set it before the call."
                        )
                    clean_video = clean_audio = None
                    if (guidance_pass.keeps_video and use_cache) or (not guidance_pass.runs_video and skips_unread):
                        clean_video = streams["video", anchor.name]
                    if (guidance_pass.keeps_audio and use_cache) or (not guidance_pass.runs_audio and skips_unread):
                        clean_audio = streams["audio", anchor.name]
                    with self.transformer.cache_context(anchor.name):
                        velocity, audio_velocity = self.transformer(
                            hidden_states=(still if anchor.static else latents).to(dtype),
                            audio_hidden_states=(silence if anchor.mute else audio_latents).to(dtype),
                            timestep=clean if anchor.static else known.timestep(t),
                            audio_timestep=clean if anchor.mute else audio_known.timestep(audio_t),
                            encoder_hidden_states=prompt_embeds if anchor.text else negative_prompt_embeds,
                            audio_encoder_hidden_states=None if anchor.text else audio_negative_prompt_embeds,
                            plan=plan if anchor.plan else None,
                            video_reads_audio=guidance_pass.video_reads_audio,
                            audio_reads_video=guidance_pass.audio_reads_video,
                            skip_layers=anchor.skip_layers,
                            reference_audio_hidden_states=reference,
                            clean_video=clean_video,
                            clean_audio=clean_audio,
                            attention_kwargs=attention_kwargs,
                            return_dict=False,
                        )
                    if guidance_pass.predicts_video:
                        predictions[anchor] = known.without_velocity(velocity.float())
                    if guidance_pass.predicts_audio:
                        audio_predictions[anchor] = audio_known.without_velocity(audio_velocity.float())

                if guider is not None:
                    velocity = combine(guider, predictions, has_plan, has_other)
                    latents = known.keep(self.scheduler.step(velocity, t, latents, **scheduler_kwargs)[0])
                if audio_guider is not None:
                    velocity = combine(audio_guider, audio_predictions, has_plan, has_other)
                    audio_latents = audio_known.keep(
                        self.audio_scheduler.step(velocity, audio_t, audio_latents, **audio_scheduler_kwargs)[0]
                    )

                if callback_on_step_end is not None:
                    tensors = {
                        "latents": latents,
                        "audio_latents": audio_latents,
                        "prompt_embeds": prompt_embeds,
                        "negative_prompt_embeds": negative_prompt_embeds,
                        "audio_negative_prompt_embeds": audio_negative_prompt_embeds,
                    }
                    chosen = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                    # What clean streams are made of: no callback changes it unnoticed.
                    moving = {"latents": guider is not None, "audio_latents": audio_guider is not None}
                    settled = [name for name in tensors if not moving.get(name)]
                    before = [_state(tensors[name]) for name in settled]
                    changed = {**tensors, **(callback_on_step_end(self, i, t, chosen) or {})}
                    latents, audio_latents = changed["latents"], changed["audio_latents"]
                    prompt_embeds, negative_prompt_embeds = changed["prompt_embeds"], changed["negative_prompt_embeds"]
                    audio_negative_prompt_embeds = changed["audio_negative_prompt_embeds"]
                    if before != [_state(changed[name]) for name in settled]:
                        streams.clear()
                progress_bar.update()
        self._current_timestep = None

        # 7. Frames and sound; what was given whole is returned as it is
        frame_rate, sampling_rate = self.frame_rate, self.sampling_rate
        latents = None if only == "audio" else latents
        audio_latents = None if only == "video" else audio_latents
        if output_type == "latent":
            frames, audio = latents, audio_latents
        else:
            frames, audio = self.decode_latents(
                None if given.keeps_video else latents,
                None if given.keeps_audio else audio_latents,
                num_frames,
                output_type,
                given.duration,
            )
            if given.keeps_video:
                frames, frame_rate = given.video.output(num_clips, output_type), given.video.frame_rate
            if given.keeps_audio:
                audio, sampling_rate = given.audio.output(num_clips, output_type), given.audio.sampling_rate

        self.maybe_free_model_hooks()
        if not return_dict:
            return frames, audio
        return BatonPipelineOutput(frames, audio, frame_rate, sampling_rate, plan, cues, output_type)

    # What the parts share

    def _embed_texts(self, texts: list[str], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        length = self.config.max_sequence_length
        untruncated = self.tokenizer(texts, padding="longest", return_tensors="pt").input_ids
        if untruncated.shape[1] > length:
            kept = length - self.tokenizer.num_special_tokens_to_add()
            lost = self.tokenizer.batch_decode(untruncated[:, kept:], skip_special_tokens=True)
            logger.warning(f"The text encoder reads {length} tokens; this part of the text was cut off: {lost}")
        if unknown := unknown_words(self.tokenizer, texts):
            logger.warning(f"The text encoder does not know these words, which are left out: {', '.join(unknown)}.")
        inputs = self.tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        mask = inputs.attention_mask.to(device)
        return self.text_encoder(inputs.input_ids.to(device), attention_mask=mask).last_hidden_state, mask

    def _pad_embeddings(
        self,
        embeds: torch.Tensor,
        mask: torch.Tensor,
        batch_size: int,
        num_videos_per_prompt: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings of full length for every clip, zero where the mask is, and their mask."""
        if embeds.shape[0] != batch_size:  # one negative prompt for all
            embeds, mask = embeds.expand(batch_size, -1, -1), mask.expand(batch_size, -1)
        mask = mask.to(device)
        embeds = embeds.to(device=device, dtype=dtype) * mask[..., None].to(dtype)
        padding = self.config.max_sequence_length - embeds.shape[1]
        embeds, mask = F.pad(embeds, (0, 0, 0, padding)), F.pad(mask, (0, padding))
        return tuple(value.repeat_interleave(num_videos_per_prompt, dim=0) for value in (embeds, mask))

    @property
    def _size_multiples(self) -> tuple[int, int]:
        """What height and width in pixels are multiples of."""
        stride = self.vae.config.scale_factor_spatial
        return tuple(stride * patch for patch in self.transformer.config.patch_size[1:])

    def _default_sizes(
        self, height: int | None, width: int | None, num_frames: int | None, given: Given
    ) -> tuple[int, int, int]:
        default = self.config.height, self.config.width
        if given.video is not None:
            default = fit_size(given.video.size, math.prod(default), self._size_multiples)
        if num_frames is None:
            num_frames = self.config.num_frames
            if given.duration is not None:
                num_frames = self._num_frames_of(given)
        return default[0] if height is None else height, default[1] if width is None else width, num_frames

    def _num_frames_of(self, given: Given) -> int:
        return coordinates.num_frames_covering(given.duration, self.frame_rate, self.vae.config.scale_factor_temporal)

    def _known_masks(self, given: Given, num_frames: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Which latents are known: `(num_latent_frames,)` and `(audio_length,)`."""
        duration, config = coordinates.clip_duration(num_frames, self.frame_rate), self.transformer.config
        return (
            known_latent_frames(given.video, num_frames, self.frame_rate, self.vae.config.scale_factor_temporal),
            known_audio_latents(given.audio, duration, config.audio_latent_rate, config.audio_latent_min_coverage),
        )

    def _settled_masks(self, given: Given, num_frames: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Which latents are not to be made, as `_known_masks`: known ones, and all of a modality that the clips are without."""
        mask, audio_mask = self._known_masks(given, num_frames)
        return mask | (given.only == "audio"), audio_mask | (given.only == "video")

    def _passes_of_steps(self, num_steps: int, given: Given, num_frames: int) -> Iterator[tuple[GuidancePass, ...]]:
        """The passes of each step; a modality that is given whole, or that the clips are without, needs none."""
        mask, audio_mask = self._settled_masks(given, num_frames)
        guider, audio_guider = None if mask.all() else self.guider, None if audio_mask.all() else self.audio_guider
        return passes_of_steps(
            guider, audio_guider, num_steps, has_other=given.only is None, given_reads=self._given_reads
        )

    @property
    def _given_reads(self) -> bool:
        """Whether a given modality reads the one that is made: a transformer without context tokens has learned nothing else."""
        return not self.transformer.config.num_context_tokens

    def _warn_of_lost_guidance(self, only: str | None) -> None:
        """Says that a guider can do nothing for clips of one modality."""
        if only is None:
            return
        name = "guider" if only == "video" else "audio_guider"
        guider = getattr(self, name)
        anchors = guider.anchor_weights() if isinstance(guider, AnchorGuidance) else {}
        anchors = [anchor for anchor, weight in anchors.items() if weight]
        if anchors and all(anchor.resolve(has_other=False) == JOINT for anchor in anchors):
            logger.warning(
                f"`{name}` (`{type(guider).__name__}`) guides by the other modality alone, which a clip of {only} alone is without: "
                "it is made without guidance. For guidance by the prompt, set the guider's `guidance_scale`."
            )

    def _latent_shapes(
        self, num_clips: int, height: int, width: int, num_frames: int
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        config = self.transformer.config
        stride = self.vae.config.scale_factor_spatial
        latent_frames = coordinates.num_latent_frames(num_frames, self.vae.config.scale_factor_temporal)
        return (
            (num_clips, config.in_channels, latent_frames, height // stride, width // stride),
            (num_clips, self._audio_length(num_frames), config.audio_in_channels),
        )

    def _audio_length(self, num_frames: int) -> int:
        config = self.transformer.config
        duration = coordinates.clip_duration(num_frames, self.frame_rate)
        return coordinates.num_audio_latents(duration, config.audio_latent_rate, config.audio_latent_min_coverage)

    def _check_given(self, given: Given, batch_size: int, num_frames: int) -> None:
        for name, number in given.num_clips.items():
            if number not in (1, batch_size):
                raise ValueError(
                    f"{number} clips of {name} are given for {batch_size} prompts: give one for each, or one for all."
                )
        if given.duration is not None and num_frames != self._num_frames_of(given):
            decides = given.video is not None and given.video.duration == given.duration  # and is no first frame alone
            name, whole = ("video", given.video) if decides else ("audio", given.audio)
            duration = coordinates.clip_duration(num_frames, self.frame_rate)
            raise ValueError(
                f"`{name}` lasts {whole}, but `num_frames` {num_frames} at "
                f"{self.frame_rate:g} per second last {duration:.4f}: leave `num_frames` out, or cut one to the other."
            )
        mask, audio_mask = self._settled_masks(given, num_frames)
        if given.num_clips and mask.all() and audio_mask.all():
            raise ValueError(
                f"what is given fills all {num_frames} frames of the clip, which leaves nothing to make: give more `num_frames`, "
                "or keep less."
            )
        stride = self.vae.config.scale_factor_temporal
        if given.video is not None and not mask.any():
            raise ValueError(
                f"`video_mask` keeps no latent frame: these are frame 0 alone and then each {stride} frames in a row, from frame 1 "
                "on. Keep more, or leave `video` out."
            )
        if given.audio is not None and not audio_mask.any():
            raise ValueError(
                f"`audio_mask` keeps no audio latent: one covers {1 / self.transformer.config.audio_latent_rate:.4f} seconds. Keep "
                "more, or leave `audio` out."
            )

    def _check_plan(self, plan: SemanticPlan, batch_size: int, num_clips: int, num_frames: int) -> None:
        config = self.transformer.config
        if not isinstance(plan, SemanticPlan):
            raise ValueError(
                f"`plan` is a {type(plan).__name__}, but has to be a `SemanticPlan`, or the path of its file."
            )
        if config.video_plan_dim is None:
            raise ValueError("`plan` was given, but the transformer has no plan layers: leave it out.")
        widths = plan.video_tokens.shape[2], plan.audio_tokens.shape[2]
        if widths != (config.video_plan_dim, config.audio_plan_dim):
            raise ValueError(
                f"`plan` has tokens of width {widths[0]} (video) and {widths[1]} (audio), but the transformer takes "
                f"{config.video_plan_dim} and {config.audio_plan_dim}: use a plan made for this checkpoint."
            )
        duration = coordinates.clip_duration(num_frames, self.frame_rate)
        if abs(plan.duration - duration) > 0.5 / self.frame_rate:
            raise ValueError(
                f"`plan` lasts {plan.duration:.4f} seconds, but {num_frames} frames at {self.frame_rate:g} per second last "
                f"{duration:.4f}: use `plan.slice`, `SemanticPlan.concat`, or another `num_frames`."
            )
        if plan.batch_size not in (1, batch_size, num_clips):
            raise ValueError(
                f"`plan` is for {plan.batch_size} clips, but there are {batch_size} prompts with {num_clips // batch_size} videos "
                "each: give one for all, one for each prompt, or one for each clip."
            )

    def _require_components(self) -> None:
        for name in ("transformer", "vae", "audio_vae", "vocoder", "scheduler", "audio_scheduler"):
            if getattr(self, name) is None:
                raise ValueError(f"`{name}` is missing: load the pipeline with it, or set `pipe.{name}`.")

    def _check_components(self) -> None:
        """Refuses components that do not fit one another; those that are missing are not judged."""

        def disagree(what: str, ours: Any, name: str, theirs: Any, owner: str = "transformer") -> None:
            if ours != theirs:
                raise ValueError(
                    f"the {owner}'s {what} is {ours}, but `{name}` has {theirs}: they do not fit together."
                )

        if self.audio_vae is not None and self.vocoder is not None:
            mel, vocoder = self.audio_vae.config, self.vocoder.config
            if isinstance(self.vocoder, MMAudioVocoder):
                spectrogram = {"mel_bins": vocoder.num_mels, "hop_length": math.prod(vocoder.upsample_rates)}
            else:
                spectrogram = {name: vocoder[name] for name in ("mel_bins", "hop_length", "n_fft")}
                spectrogram["sample_rate"] = vocoder.sampling_rate
            for name, value in spectrogram.items():
                disagree(f"`{name}`", mel[name], "vocoder", value, owner="audio VAE")

        if self.transformer is None:
            return
        config = self.transformer.config
        if self.vae is not None:
            disagree("`in_channels`", config.in_channels, "vae", self.vae.config.z_dim)
            disagree("`temporal_stride`", config.temporal_stride, "vae", self.vae.config.scale_factor_temporal)
        if self.audio_vae is not None:
            rate = self.audio_vae.config.sample_rate / self.audio_vae.latent_hop_length
            disagree(
                "`audio_in_channels`", config.audio_in_channels, "audio_vae", self.audio_vae.config.latent_channels
            )
            disagree("`audio_latent_rate`", config.audio_latent_rate, "audio_vae", rate)
        if self.text_encoder is not None:
            disagree("`text_dim`", config.text_dim, "text_encoder", self.text_encoder.config.d_model)
        if self.planner is not None:
            planner = self.planner.config
            disagree("`video_plan_dim`", config.video_plan_dim, "planner", planner.video_dim)
            disagree("`audio_plan_dim`", config.audio_plan_dim, "planner", planner.audio_dim)
            layouts = []
            if (video := self.video_semantic_encoder) is not None:
                layouts += [
                    ("keyframe_rate", planner.keyframe_rate, "video_semantic_encoder", video.config.keyframe_rate),
                    (
                        "video_grid",
                        tuple(planner.video_grid),
                        "video_semantic_encoder",
                        tuple(video.config.video_grid),
                    ),
                    ("video_dim", planner.video_dim, "video_semantic_encoder", len(video.feature_mean)),
                ]
            if (audio := self.audio_semantic_encoder) is not None:
                tokens, chunk = audio.config.tokens_per_chunk, audio.config.chunk_duration
                layouts += [
                    ("audio_tokens_per_chunk", planner.audio_tokens_per_chunk, "audio_semantic_encoder", tokens),
                    ("chunk_duration", planner.chunk_duration, "audio_semantic_encoder", chunk),
                    ("audio_dim", planner.audio_dim, "audio_semantic_encoder", len(audio.feature_mean)),
                ]
            for name, ours, encoder, theirs in layouts:
                disagree(f"`{name}`", ours, encoder, theirs, owner="planner")


def _state(tensor: torch.Tensor | None) -> tuple[int, int | None]:
    """Tells a tensor from another one, and from itself after it was written to."""
    return id(tensor), None if tensor is None or tensor.is_inference() else tensor._version


def _batch_size(prompt: str | list[str] | None, prompt_embeds: torch.Tensor | None) -> int:
    if prompt is None:
        return prompt_embeds.shape[0]
    return 1 if isinstance(prompt, str) else len(prompt)


def _fork(generator: torch.Generator) -> torch.Generator:
    """A generator of the same state, whose draws leave the other one alone."""
    fork = torch.Generator(generator.device)
    fork.set_state(generator.get_state())
    return fork


def _check_texts(name: str, texts: Any) -> None:
    if isinstance(texts, str):
        return
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"`{name}` is {texts!r}, but must be a string or a list of at least one string.")
