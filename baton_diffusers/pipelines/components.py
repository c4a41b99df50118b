"""The components of a pipeline together: whether they fit, the sizes and rates of the clips, and one call at a time."""

from __future__ import annotations

import functools
import itertools
import math
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral, Number, Real
from typing import Any

import torch
from diffusers import MMAudioVocoder, ModelMixin
from diffusers.utils import logging

from .. import coordinates
from ..media import MAX_SIDE
from ..models.va_planner import check_sheet_tokens
from .checks import check_whole_number


logger = logging.get_logger(__name__)

# The pipeline's settings besides its components, and their defaults.
SETTINGS = {
    "height": 704,
    "width": 1280,
    "num_frames": 121,
    "num_inference_steps": 50,
    "max_sequence_length": 512,
    "negative_prompt": "",
    "audio_negative_prompt": None,
    "prompt_form": None,
    "latent_format": None,
}

REQUIRED = ("transformer", "vae", "audio_vae", "vocoder", "scheduler", "audio_scheduler")

# The most that one call makes, whatever the memory. Longer films are made of several calls, see `film`.
MAX_SECONDS = 600.0

_IMAGE_BYTES = 4  # of a pixel in an image, which is the smallest form of a finished frame
_BLOCK_TENSORS = 5  # residual, normalised input, queries, keys and values: at once in memory in every block
SOUND = ("audio_vae", "vocoder")
PLAN_DECODERS = ("video_plan_decoder", "audio_plan_decoder")
CHECKED = (
    "transformer",
    "vae",
    "audio_vae",
    "vocoder",
    "text_encoder",
    "planner",
    "video_semantic_encoder",
    "audio_semantic_encoder",
    "plan_checker",
    *PLAN_DECODERS,
)


def latent_format(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Rates, strides and channels of the latents, from the configurations of these components."""
    found: dict[str, Any] = {}
    if (transformer := _config(parts, "transformer")) is not None:
        for name in ("frame_rate", "temporal_stride", "audio_latent_rate", "audio_latent_min_coverage"):
            found[name] = transformer[name]
        found["patch_size"] = list(transformer.patch_size)
        found["channels"], found["audio_channels"] = transformer.in_channels, transformer.audio_in_channels
    if (vae := _config(parts, "vae")) is not None:
        found["spatial_stride"], found["temporal_stride"] = vae.scale_factor_spatial, vae.scale_factor_temporal
        found["channels"] = vae.z_dim
    if (audio_vae := _config(parts, "audio_vae")) is not None:
        found["sampling_rate"], found["audio_channels"] = audio_vae.sample_rate, audio_vae.latent_channels
    return found


def _config(parts: Mapping[str, Any], name: str) -> Any:
    return getattr(parts.get(name), "config", None)


class ClipGeometry:
    """Sizes, lengths and rates of a pipeline's clips. They come from configurations, so they are known without the transformer.

    [`BatonPipeline`] and [`BatonModularPipeline`] inherit this.
    """

    @property
    def latent_format(self) -> dict[str, Any]:
        """Rates, strides and channels of the latents, from the loaded components, else from the pipeline's configuration.

        Raises:
            ValueError: if neither says the frame rate.
        """
        names = ("transformer", "vae", "audio_vae")
        found = latent_format({name: getattr(self, name, None) for name in names})
        found = {**(self.config.get("latent_format") or {}), **found}
        if "frame_rate" not in found:
            raise ValueError(
                "the frame rate of the clips is unknown: load the pipeline with its `transformer`, or save it again, which writes "
                "`latent_format` into its configuration."
            )
        return found

    @property
    def frame_rate(self) -> float:
        """Pixel frames per second of the clips."""
        return self.latent_format["frame_rate"]

    @property
    def sampling_rate(self) -> int:
        """Audio samples per second of the clips."""
        return self.latent_format["sampling_rate"]

    @property
    def size_multiples(self) -> tuple[int, int]:
        """The numbers of pixels that height and width must be multiples of."""
        found = self.latent_format
        return tuple(found["spatial_stride"] * patch for patch in found["patch_size"][1:])

    def clip_duration(self, num_frames: int) -> float:
        """Seconds that a number of frames last."""
        return coordinates.clip_duration(num_frames, self.frame_rate)

    def audio_length(self, num_frames: int) -> int:
        """Audio latents of a clip."""
        config = self.latent_format
        return coordinates.num_audio_latents(
            self.clip_duration(num_frames), config["audio_latent_rate"], config["audio_latent_min_coverage"]
        )

    def latent_shapes(self, num_clips: int, size: ClipSize) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of the video and the audio latents.

        Raises:
            ValueError: if `num_frames` is not 1 more than a multiple of the VAE's temporal stride.
        """
        found = self.latent_format
        stride, latent_frames = (
            found["spatial_stride"],
            coordinates.num_latent_frames(size.num_frames, found["temporal_stride"]),
        )
        return (
            (num_clips, found["channels"], latent_frames, size.height // stride, size.width // stride),
            (num_clips, self.audio_length(size.num_frames), found["audio_channels"]),
        )


class PipelineParts(ClipGeometry):
    """The components and configuration of a pipeline, as the functions and objects of this folder read them; any may be `None`.

    [`BatonPipeline`] inherits this, and so does the object that the modular blocks pass. A function accepts any object with the
    components that it names."""

    config: Any
    transformer: Any
    vae: Any
    audio_vae: Any
    vocoder: Any
    scheduler: Any
    audio_scheduler: Any
    guider: Any
    audio_guider: Any
    text_encoder: Any
    tokenizer: Any
    planner: Any
    planner_tokenizer: Any
    plan_checker: Any
    video_semantic_encoder: Any
    audio_semantic_encoder: Any


@dataclass(frozen=True)
class ClipSize:
    """Size of the clips of a call: height and width in pixels, and number of frames."""

    height: int
    width: int
    num_frames: int

    def check(self, pipe: ClipGeometry, num_clips: int = 1, only: str | None = None) -> None:
        """Refuses a size that the models do not take, or that no memory of this machine holds.

        Args:
            pipe: whose models make the clips.
            num_clips (`int`, defaults to 1): how many are made at once.
            only (`str`, *optional*): the modality that is made alone.

        Raises:
            ValueError: naming the argument, its value and the nearest size, or the bound.
        """
        check_whole_number("num_frames", self.num_frames)
        sizes = zip(("height", "width"), (self.height, self.width), pipe.size_multiples, strict=True)
        for name, value, multiple in sizes:
            if isinstance(value, bool) or not isinstance(value, Integral) or value < 1 or value % multiple:
                is_number = isinstance(value, Real) and math.isfinite(value)
                nearest = max(round(value / multiple), 1) * multiple if is_number else multiple
                raise ValueError(f"`{name}` is {value!r}, but must be a multiple of {multiple}: use {nearest}.")
            if value > MAX_SIDE:
                raise ValueError(f"`{name}` is {value}, but must be at most {MAX_SIDE}, which films are written with.")
        seconds = self.num_frames / pipe.frame_rate
        if seconds > MAX_SECONDS + 1:
            raise ValueError(
                f"`num_frames` is {self.num_frames}, which last {seconds:.0f} seconds, but a clip lasts at most {MAX_SECONDS:g}: make "
                "fewer, or a film of several shots (`pipe.film`)."
            )
        shapes = pipe.latent_shapes(num_clips, self)  # refuses a `num_frames` that the VAE cannot make
        needed = self._least_bytes(pipe, shapes, num_clips, only)
        if needed > (there := _largest_memory()):
            raise ValueError(
                f"{num_clips} clips of {self.num_frames} frames of {self.height} x {self.width} pixels take at least "
                f"{needed / 2**30:.0f} GiB, and the largest memory here has {there / 2**30:.0f}: make fewer or smaller ones."
            )

    def _least_bytes(
        self, pipe: ClipGeometry, shapes: tuple[tuple[int, ...], ...], num_clips: int, only: str | None
    ) -> int:
        """What the clips take in any case: their finished frames, or what a block of the transformer works with."""
        if only == "audio":
            return 0
        frames = num_clips * self.num_frames * self.height * self.width * _IMAGE_BYTES
        transformer = getattr(pipe, "transformer", None)
        if transformer is None:
            return frames
        config = transformer.config
        num_tokens = num_clips * math.prod(
            length // patch for length, patch in zip(shapes[0][2:], config.patch_size, strict=True)
        )
        width = config.num_attention_heads * config.attention_head_dim
        return max(frames, num_tokens * width * _BLOCK_TENSORS * transformer.dtype.itemsize)


def _largest_memory() -> int:
    """Bytes of the machine's memory, or of its largest GPU's."""
    try:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not on every system
        machine = 2**40
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    return max([machine, *(torch.cuda.get_device_properties(gpu).total_memory for gpu in gpus)])


# Whether they fit


def require_components(pipe: Any) -> None:
    """Refuses to make clips without the components that every call needs, or with weights that were never loaded.

    Raises:
        ValueError: naming the first that is missing.
    """
    for name in REQUIRED:
        if getattr(pipe, name) is None:
            raise ValueError(f"`{name}` is missing: load the pipeline with it, or set `pipe.{name}`.")
    for name, part in pipe.components.items():
        # Accelerate's hooks bring weights from elsewhere when a layer runs.
        if not isinstance(part, torch.nn.Module) or any(hasattr(module, "_hf_hook") for module in part.modules()):
            continue
        weights = itertools.chain(part.named_parameters(), part.named_buffers())
        empty = [key for key, weight in weights if weight.is_meta]
        if empty:
            raise ValueError(
                f"weights of `{name}` were never loaded ({len(empty)}, the first is {empty[0]}): load the pipeline with "
                f"`{type(pipe).__name__}.from_pretrained`, which checks the files, or set `pipe.{name}` to a whole model."
            )


def check_components(parts: Mapping[str, Any]) -> None:
    """Refuses components that do not fit one another. Missing components are not checked.

    Args:
        parts (`Mapping`): components by name.

    Raises:
        ValueError: naming the setting in which two of them disagree.
    """
    configs = {name: getattr(parts.get(name), "config", None) for name in CHECKED}
    transformer, vae, audio_vae, vocoder, text_encoder, planner, video_encoder, audio_encoder, checker, *_ = (
        configs.values()
    )
    if audio_vae and vocoder:
        if isinstance(parts["vocoder"], MMAudioVocoder):
            spectrogram = {"mel_bins": vocoder.num_mels, "hop_length": math.prod(vocoder.upsample_rates)}
        else:
            spectrogram = {name: vocoder[name] for name in ("mel_bins", "hop_length", "n_fft")}
            spectrogram["sample_rate"] = vocoder.sampling_rate
        for name, value in spectrogram.items():
            _agree("audio VAE", name, audio_vae[name], "vocoder", value)
    if transformer and vae:
        _agree("transformer", "in_channels", transformer.in_channels, "vae", vae.z_dim)
        _agree("transformer", "temporal_stride", transformer.temporal_stride, "vae", vae.scale_factor_temporal)
    if transformer and audio_vae:
        rate = audio_vae.sample_rate / parts["audio_vae"].latent_hop_length
        _agree(
            "transformer", "audio_in_channels", transformer.audio_in_channels, "audio_vae", audio_vae.latent_channels
        )
        _agree("transformer", "audio_latent_rate", transformer.audio_latent_rate, "audio_vae", rate)
    if transformer and text_encoder:
        _agree("transformer", "text_dim", transformer.text_dim, "text_encoder", text_encoder.d_model)
    if text_encoder and checker:
        _agree("plan checker", "text_dim", checker.text_dim, "text_encoder", text_encoder.d_model)
    if transformer and planner:
        _agree("transformer", "video_plan_dim", transformer.video_plan_dim, "planner", planner.video_dim)
        _agree("transformer", "audio_plan_dim", transformer.audio_plan_dim, "planner", planner.audio_dim)
    if planner and parts.get("planner_tokenizer") is not None:
        check_sheet_tokens(parts["planner_tokenizer"], planner)
    if planner and video_encoder:
        name, encoder = "video_semantic_encoder", parts["video_semantic_encoder"]
        grids = tuple(planner.video_grid), tuple(video_encoder.video_grid)
        _agree("planner", "keyframe_rate", planner.keyframe_rate, name, video_encoder.keyframe_rate)
        _agree("planner", "video_grid", grids[0], name, grids[1])
        _agree("planner", "video_dim", planner.video_dim, name, len(encoder.feature_mean))
    if planner and audio_encoder:
        name, encoder = "audio_semantic_encoder", parts["audio_semantic_encoder"]
        tokens = planner.audio_tokens_per_chunk, audio_encoder.tokens_per_chunk
        _agree("planner", "audio_tokens_per_chunk", tokens[0], name, tokens[1])
        _agree("planner", "chunk_duration", planner.chunk_duration, name, audio_encoder.chunk_duration)
        _agree("planner", "audio_dim", planner.audio_dim, name, len(encoder.feature_mean))
    _check_plan_decoders(parts, **{name: configs[name] for name in ("planner", "audio_vae", *PLAN_DECODERS)})


def _check_plan_decoders(
    parts: Mapping[str, Any], planner: Any, audio_vae: Any, video_plan_decoder: Any, audio_plan_decoder: Any
) -> None:
    if planner and video_plan_decoder:
        name = "video_plan_decoder"
        _agree("planner", "video_dim", planner.video_dim, name, video_plan_decoder.video_dim)
        grids = tuple(planner.video_grid), tuple(video_plan_decoder.video_grid)
        _agree("planner", "video_grid", grids[0], name, grids[1])
    if planner and audio_plan_decoder:
        name, rate = "audio_plan_decoder", planner.audio_tokens_per_chunk / planner.chunk_duration
        _agree("planner", "audio_dim", planner.audio_dim, name, audio_plan_decoder.audio_dim)
        _agree("planner", "rate of audio tokens", rate, name, audio_plan_decoder.audio_rate)
    if audio_vae and audio_plan_decoder and not parts["audio_plan_decoder"].gives_waveform:
        name, decoder = "audio_plan_decoder", audio_plan_decoder
        _agree("audio VAE", "mel_bins", audio_vae.mel_bins, name, decoder.mel_bins)
        _agree("audio VAE", "hop_length", audio_vae.hop_length, name, decoder.hop_length)
        _agree("audio VAE", "sample_rate", audio_vae.sample_rate, name, decoder.sampling_rate)


def _agree(owner: str, what: str, ours: Any, name: str, theirs: Any) -> None:
    if ours != theirs:
        raise ValueError(f"the {owner}'s `{what}` is {ours}, but `{name}` has {theirs}: they do not fit together.")


# What a pipeline does with them


class CheckedComponents:
    """A pipeline of diffusers whose components are checked when they are set, and whose settings stay with the transformer."""

    _registering = False

    def register_modules(self, **modules: Any) -> None:
        """Sets components, several at once.

        Raises:
            ValueError: if they do not fit one another.
        """
        for name, module in modules.items():
            if isinstance(module, (Number, str, bytes, dict)):
                raise ValueError(f"`{name}` is {module!r}, which is no component: give a model, or None.")
        check_components({**self.__dict__, **modules})
        self._registering = True
        try:
            super().register_modules(**modules)
        finally:
            self._registering = False

    def __setattr__(self, name: str, value: Any) -> None:
        if not self._registering and name in CHECKED:
            check_components({**self.__dict__, name: value})
        super().__setattr__(name, value)
        if name in ("transformer", "vae", "audio_vae") and value is not None and "latent_format" in self.config:
            self.register_to_config(latent_format=self.latent_format)

    def register_settings(self, **settings: Any) -> None:
        """Registers settings. A setting of `None` is taken from the transformer's last pipeline, else from the defaults."""
        remembered = getattr(self.transformer, "pipeline_settings", {})
        settings = {name: value for name, value in settings.items() if value is not None}
        self.register_to_config(**{**SETTINGS, **remembered, **settings})
        self.register_to_config(
            latent_format={**(self.config.latent_format or {}), **latent_format(self.__dict__)} or None
        )

    def register_to_config(self, **kwargs: Any) -> None:
        """As in diffusers. The transformer remembers the settings for later pipelines with the same components."""
        super().register_to_config(**kwargs)
        transformer = self.__dict__.get("transformer")
        if transformer is not None and SETTINGS.keys() <= self.config.keys():
            transformer.pipeline_settings = {name: self.config[name] for name in SETTINGS}

    def to(self, *args: Any, **kwargs: Any) -> Any:
        r"""
        Moves and casts the components, as `DiffusionPipeline.to`; `audio_vae` and `vocoder` stay in float32.

        Raises:
            ValueError: if the device is not there.
        """
        values = [*args, kwargs.get("device"), kwargs.get("dtype"), kwargs.get("torch_dtype")]
        dtypes = [value for value in values if isinstance(value, torch.dtype)]
        devices = [value for value in values if value is not None and not isinstance(value, torch.dtype)]
        for device in devices[:1]:
            check_device(device)
        if not dtypes:
            return super().to(*args, **kwargs)
        if devices:
            super().to(devices[0])
        for name, component in self.components.items():
            if isinstance(component, torch.nn.Module):
                cast(component, torch.float32 if name in SOUND else dtypes[0])
        return self


def cast(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Casts a model as `from_pretrained` would load it: layers that a model of diffusers keeps in float32 stay in float32."""
    kept = getattr(model, "_keep_in_fp32_modules", None) or ()
    if not isinstance(model, ModelMixin) or getattr(model, "is_quantized", False):
        model.to(dtype)
        return
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(torch.float32 if set(kept) & set(name.split(".")) else dtype)


def in_float32(
    name: str, model: torch.nn.Module | None, transformer: torch.nn.Module | None
) -> torch.nn.Module | None:
    """A sound component in float32, if it was loaded in half precision together with the transformer; a warning says so.

    `DiffusionPipeline.from_pretrained` puts all components into one dtype, and half precision is audible.
    """
    half = (torch.float16, torch.bfloat16)
    if model is None or model.dtype not in half or transformer is None or transformer.dtype != model.dtype:
        return model
    logger.warning(
        f"`{name}` was loaded in {model.dtype} and is put into float32, but its weights stay rounded: load the pipeline with "
        "`BatonPipeline.from_pretrained`, which leaves it in float32."
    )
    return model.float()


def check_device(device: Any) -> None:
    """Refuses a device that this machine or this build of torch does not have.

    Raises:
        ValueError: naming the device.
    """
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"torch knows no device {device!r}: use 'cuda', 'mps' or 'cpu'.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        reason = "this torch is built without CUDA" if torch.version.cuda is None else "no GPU is visible"
        raise ValueError(f"the device {str(device)!r} was asked for, but {reason}: leave out `.to`, or use 'cpu'.")


# Whose turn it is

_LOCKS: weakref.WeakKeyDictionary[Any, _Turn] = weakref.WeakKeyDictionary()
_LOCKS_GUARD = threading.Lock()


class _Turn:
    """A lock that knows which thread holds it."""

    def __init__(self) -> None:
        self.lock, self.owner = threading.Lock(), None


@contextmanager
def one_at_a_time(components: Iterable[Any]) -> Iterator[None]:
    """Lets one thread at a time work with these components; others wait. Schedulers, guiders, caches and tokenizers keep a state.

    Raises:
        RuntimeError: if this thread works with one of them already, for example in a callback.
    """
    with _LOCKS_GUARD:
        turns = {id(part): _LOCKS.setdefault(part, _Turn()) for part in components if part is not None}
    # All threads use the same order, so that no two of them wait for each other.
    turns = [turns[key] for key in sorted(turns)]
    if any(turn.owner == threading.get_ident() for turn in turns):
        raise RuntimeError(
            "the pipeline was called within its own call, for example by a callback, which would disturb the clip that is "
            "being made: call it afterwards, or give the callback a pipeline of its own."
        )
    taken = []
    try:
        for turn in turns:
            turn.lock.acquire()
            turn.owner = threading.get_ident()
            taken.append(turn)
        yield
    finally:
        for turn in reversed(taken):
            turn.owner = None
            turn.lock.release()


def one_call_at_a_time(call: Callable) -> Callable:
    """Decorates a pipeline's `__call__`: threads take turns, and no call leaves state behind, even if it raises."""

    @functools.wraps(call)
    def wrapped(pipe: Any, *args: Any, **kwargs: Any) -> Any:
        with one_at_a_time(pipe.components.values()):
            try:
                return call(pipe, *args, **kwargs)
            finally:
                pipe.maybe_free_model_hooks()

    return wrapped
