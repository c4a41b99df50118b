"""What a configuration needs on a GPU, before anything is loaded: weights counted, activations followed, on the meta device."""

from __future__ import annotations

import json
import math
import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from diffusers import ModelMixin
from huggingface_hub import snapshot_download
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from . import coordinates
from .models.component_files import component_class
from .pipelines.film import overlap_frames
from .pipelines.pipeline_baton import BatonPipeline
from .plan import SemanticPlan


SOUND = ("audio_vae", "vocoder")
COMPONENTS = ("text_encoder", "planner", "transformer", "vae", *SOUND)

# What runs in each part of a call, in order.
STAGES = {
    "text": ("text_encoder",),
    "plan": ("planner",),
    "encode": ("vae", "audio_vae"),
    "denoise": ("transformer",),
    "decode": ("vae", *SOUND),
}

# What a call may be given beside its prompt. A reference sound is taken to be as long as the clip.
GIVEN = ("image", "video", "audio", "reference_audio")


@dataclass(frozen=True)
class Recipe:
    """A way to run a pipeline.

    Args:
        offload (`str`, *optional*): `"model"`, `"group"` (leaves, one prefetched) or `"sequential"`; by default all weights
            stay on the GPU.
        fp8 (`bool`, defaults to `False`): whether the transformer's weights are stored in float8.
        tiled (`bool`, defaults to `False`): whether the video's autoencoder works tile by tile.
    """

    offload: str | None = None
    fp8: bool = False
    tiled: bool = False

    @property
    def how(self) -> str:
        """The calls that [`follow`](Recipe.follow) makes, as Python."""
        calls = []
        if self.fp8:
            calls.append("pipe.transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.bfloat16)")
        if self.tiled:
            calls.append("pipe.vae.enable_tiling()")
        offload = {
            None: 'pipe.to("cuda")',
            "model": "pipe.enable_model_cpu_offload()",
            "group": 'pipe.enable_group_offload(torch.device("cuda"), offload_type="leaf_level", use_stream=True)',
            "sequential": "pipe.enable_sequential_cpu_offload()",
        }
        return "; ".join([*calls, offload[self.offload]])

    def follow(self, pipe: BatonPipeline) -> None:
        """Prepares a pipeline that was loaded in bfloat16 on the CPU."""
        if self.fp8:
            pipe.transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.bfloat16)
        if self.tiled:
            pipe.vae.enable_tiling()
        match self.offload:
            case None:
                pipe.to("cuda")
            case "model":
                pipe.enable_model_cpu_offload()
            case "group":
                pipe.enable_group_offload(torch.device("cuda"), offload_type="leaf_level", use_stream=True)
            case "sequential":
                pipe.enable_sequential_cpu_offload()


RECIPES = {
    "gpu": Recipe(),
    "gpu-fp8": Recipe(fp8=True),
    "model-offload": Recipe("model"),
    "model-offload-fp8": Recipe("model", fp8=True),
    "group-offload": Recipe("group"),
    "group-offload-tiled": Recipe("group", tiled=True),
    "group-offload-tiled-fp8": Recipe("group", fp8=True, tiled=True),
    "sequential-offload": Recipe("sequential"),
}

# For each size of card in GB, the quickest recipe by which baton-11b makes its 10 s of 704 x 1280.
CARDS = {80: "gpu", 24: "model-offload-fp8", 12: "group-offload-tiled", 8: "group-offload-tiled-fp8"}


@dataclass(frozen=True)
class Estimate:
    """Expected peak of `torch.cuda.max_memory_allocated` under a recipe.

    Args:
        recipe (`str`): its name in `RECIPES`.
        peak (`int`): bytes.
        stage (`str`): when it is reached, a key of `STAGES`.
        weights (`int`): bytes of the weights that are then on the GPU.
        activations (`int`): bytes of everything else that is then alive.
        ram (`int`): bytes of the weights that wait in the computer's memory.
    """

    recipe: str
    peak: int
    stage: str
    weights: int
    activations: int
    ram: int


class LiveTensors(TorchDispatchMode):
    """Tracks the current and peak bytes of meta tensors that are created inside the context.

    Every operation of the model runs, without numbers. Fused attention counts no scores, since flash kernels store none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._alive: set[int] = set()
        self._attention = _FusedAttention()

    def __enter__(self) -> LiveTensors:
        self._attention.__enter__()
        return super().__enter__()

    def __exit__(self, *exception) -> None:
        super().__exit__(*exception)
        self._attention.__exit__(*exception)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default and args[0].dtype == torch.bool:
            return True  # whether a mask keeps everything: a single prompt's mask does
        result = function(*args, **(kwargs or {}))
        given = {storage._cdata for storage in _storages((args, kwargs))}  # weights among them, seen through views
        for storage in _storages(result):
            if storage._cdata not in given:
                self._follow(storage)
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return
        self._alive.add(key)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)

        def gone() -> None:
            self._alive.discard(key)
            self.bytes -= size

        weakref.finalize(storage, gone)


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [x.untyped_storage() for x in tree_leaves(tree) if isinstance(x, torch.Tensor) and x.is_meta]


class _FusedAttention(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is nn.functional.scaled_dot_product_attention:
            query, value = (
                kwargs.get(name, args[i] if i < len(args) else None) for i, name in ((0, "query"), (2, "value"))
            )
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        return function(*args, **kwargs)


def load_components(configuration: str | os.PathLike) -> tuple[dict[str, nn.Module], dict[str, Any]]:
    r"""
    The models of a pipeline's configuration on the meta device, and the configuration's own values. Their dtypes are those of
    `BatonPipeline.from_pretrained(configuration, dtype=torch.bfloat16)`, which leaves some in float32.

    Args:
        configuration (`str` or `os.PathLike`): a folder, a Hub id, or the name of a configuration that comes with the package,
            such as `"baton-11b"`. Weights are neither needed nor fetched.

    Raises:
        ValueError: if there is no such configuration, or it names a class that is no model of diffusers, transformers or this
            package: nothing else is imported.
    """
    package = Path(__file__).parent
    shipped = [root / "model_cards" / str(configuration) for root in (package, package.parent)]
    folder = next((path for path in (Path(configuration), *shipped) if path.is_dir()), None)
    if folder is None:
        if str(configuration).count("/") != 1:
            raise ValueError(f"{configuration} is neither a folder nor a Hub id like 'owner/name'")
        folder = Path(snapshot_download(str(configuration), allow_patterns=["model_index.json", "*/config.json"]))
    index = folder / BatonPipeline.config_name
    if not index.is_file():
        raise ValueError(f"{folder} has no {index.name}: it is not the folder of a pipeline")
    config = json.loads(index.read_text())

    models = {}
    for name in COMPONENTS:
        library, class_name = config.get(name) or (None, None)
        if library is None:
            continue
        cls = component_class(name, library, class_name)
        if not issubclass(cls, (ModelMixin, PreTrainedModel)):
            raise ValueError(
                f"{index} names {library}.{class_name} as its {name}, which is no model: correct the file"
            )
        with torch.device("meta"):
            if hasattr(cls, "load_config"):
                model = cls.from_config(cls.load_config(folder / name))
            else:
                model = cls(cls.config_class.from_pretrained(folder / name))
        models[name] = _cast(model.eval(), torch.float32 if name in SOUND else torch.bfloat16)
    return models, config


def _cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    # What transformers lists under the shorter name, it keeps in float32 beside float16 alone.
    kept = "_keep_in_fp32_modules_strict" if isinstance(model, PreTrainedModel) else "_keep_in_fp32_modules"
    stays = set(getattr(model, kept) or ())
    loaded = model.state_dict().keys()  # buffers that are not saved keep their dtype
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and name in loaded:
            tensor.data = tensor.data.to(torch.float32 if stays & set(name.split(".")) else dtype)
    return model


def num_bytes(model: nn.Module) -> int:
    """Bytes of a model's weights and buffers, those that are shared counted once."""
    return sum(tensor.nbytes for tensor in {id(t): t for t in (*model.parameters(), *model.buffers())}.values())


def activations(
    models: Mapping[str, nn.Module],
    config: Mapping[str, Any],
    height: int,
    width: int,
    num_frames: int,
    given: str | None = None,
    tiled: bool = False,
    stages: Sequence[str] = tuple(STAGES),
) -> dict[str, int]:
    r"""
    Bytes alive besides the weights at the peak of each stage of a call that makes one clip.

    Args:
        models (`Mapping[str, nn.Module]`): from `load_components`.
        config (`Mapping[str, Any]`): the configuration's values.
        height (`int`): of a frame in pixels.
        width (`int`): of a frame in pixels.
        num_frames (`int`): of the clip.
        given (`str`, *optional*): what the call is given beside a prompt, one of `GIVEN`; or `"film"` for a window of a film, which
            is given the end of the one before.
        tiled (`bool`, defaults to `False`): whether the video's autoencoder works tile by tile.
        stages (`Sequence[str]`, defaults to all): the stages that are wanted.

    Raises:
        ValueError: if the configuration cannot make clips of that size.
    """
    transformer, vae, audio_vae = (models[name] for name in ("transformer", "vae", "audio_vae"))
    sizes = transformer.config
    for name, value, patch in zip(("height", "width"), (height, width), sizes.patch_size[1:], strict=True):
        multiple = vae.config.scale_factor_spatial * patch
        if value < 1 or value % multiple:
            raise ValueError(f"`{name}` is {value}, but must be a multiple of {multiple}")
    stride = vae.config.scale_factor_temporal
    if num_frames < 1 or (num_frames - 1) % stride:
        raise ValueError(f"`num_frames` is {num_frames}, but must be a multiple of {stride}, plus 1")

    pipe = BatonPipeline(**{name: models.get(name) for name in COMPONENTS}, scheduler=None, audio_scheduler=None)
    duration = coordinates.clip_duration(num_frames, sizes.frame_rate)
    latent_frames = coordinates.num_latent_frames(num_frames, stride)
    audio_length = coordinates.num_audio_latents(duration, sizes.audio_latent_rate, sizes.audio_latent_min_coverage)
    text_length = config["max_sequence_length"]
    spatial = vae.config.scale_factor_spatial
    latents = torch.empty(1, sizes.in_channels, latent_frames, height // spatial, width // spatial, device="meta")
    audio_latents = torch.empty(1, audio_length, sizes.audio_in_channels, device="meta")
    text = torch.empty(1, text_length, sizes.text_dim, device="meta", dtype=transformer.dtype)
    ids = torch.zeros(1, text_length, device="meta", dtype=torch.long)
    plan = None
    vae.use_tiling = tiled

    peaks = {}
    if "text" in stages and "text_encoder" in models:
        with _Stage(peaks, "text"):
            models["text_encoder"](ids)
    if "planner" in models:
        planner = models["planner"].config
        layout = models["planner"].plan_layout(duration)
        plan = SemanticPlan(  # times and places are real, since rotary embeddings are computed from them
            video_tokens=torch.empty(1, len(layout.video_times), planner.video_dim, device="meta"),
            audio_tokens=torch.empty(1, len(layout.audio_times), planner.audio_dim, device="meta"),
            duration=duration,
            **layout._replace(audio_mask=layout.audio_mask[None])._asdict(),
        )
        if "plan" in stages:
            with _Stage(peaks, "plan"):
                models["planner"](ids, torch.ones_like(ids), duration)
    if "encode" in stages and given is not None:
        with _Stage(peaks, "encode") as live, _each_shape_once(vae.encoder, live):
            given_frames = {
                "image": 1,
                "video": num_frames,
                "film": overlap_frames(num_frames, sizes.frame_rate, stride),
            }
            if given in given_frames:
                pipe.encode_video(torch.empty(1, 3, given_frames[given], height, width, device="meta"))
            else:
                pipe.encode_audio(torch.empty(1, audio_length * audio_vae.latent_hop_length, device="meta"))
    if "denoise" in stages:
        # If a part is given, each latent has its own timestep. All blocks are alike, so two of them are enough.
        timestep = torch.ones(1, device="meta")
        with _Stage(peaks, "denoise"):
            transformer(
                latents.to(transformer.dtype),
                audio_latents.to(transformer.dtype),
                timestep.expand(1, latent_frames) if given in ("image", "film") else timestep,
                text,
                audio_timestep=timestep.expand(1, audio_length) if given == "film" else timestep,
                plan=plan,
                skip_layers=range(2, sizes.num_layers),
                reference_audio_hidden_states=audio_latents.to(transformer.dtype)
                if given == "reference_audio"
                else None,
            )
    if "decode" in stages:
        kept = {"video": (None, audio_latents), "audio": (latents, None)}
        with _Stage(peaks, "decode") as live, _each_shape_once(vae.decoder, live):
            pipe.decode_latents(*kept.get(given, (latents, audio_latents)), num_frames)
    return peaks


@contextmanager
def _each_shape_once(coder: nn.Module, live: LiveTensors) -> Iterator[None]:
    """Runs the encoder or decoder of a video autoencoder once for each shape. The autoencoder calls it a thousand times, for
    chunks of frames and tiles; a later call of the same shapes counts as much memory as the first."""
    run, seen = coder.forward, {}

    def shapes(cache: list) -> tuple:
        return tuple((entry.shape, entry.dtype) if isinstance(entry, torch.Tensor) else entry for entry in cache)

    def forward(x: torch.Tensor, feat_cache: list, feat_idx: list, **kwargs: Any) -> torch.Tensor:
        key = (x.shape, shapes(feat_cache), *kwargs.items())
        if key in seen:
            output, kept, rise = seen[key]
            live.peak = max(live.peak, live.bytes + rise)
            for i, entry in enumerate(kept):
                feat_cache[i] = (
                    torch.empty(entry[0], dtype=entry[1], device="meta") if isinstance(entry, tuple) else entry
                )
            return torch.empty(output[0], dtype=output[1], device="meta")
        before, peak, live.peak = live.bytes, live.peak, live.bytes
        result = run(x, feat_cache=feat_cache, feat_idx=feat_idx, **kwargs)
        seen[key] = (result.shape, result.dtype), shapes(feat_cache), live.peak - before
        live.peak = max(live.peak, peak)
        return result

    coder.forward = forward
    try:
        yield
    finally:
        del coder.forward


class _Stage(LiveTensors):
    """Keeps the peak of a stage, with gradients off."""

    def __init__(self, peaks: dict[str, int], name: str) -> None:
        super().__init__()
        self._peaks, self._name = peaks, name
        self._no_grad = torch.no_grad()

    def __enter__(self) -> LiveTensors:
        self._no_grad.__enter__()
        return super().__enter__()

    def __exit__(self, *exception) -> None:
        super().__exit__(*exception)
        self._no_grad.__exit__(*exception)
        self._peaks[self._name] = self.peak


def estimate(models: Mapping[str, nn.Module], recipe: str, peaks: Mapping[str, int]) -> Estimate:
    r"""
    What a recipe is expected to need on the GPU: the largest, over the stages of a call, of

        weights that the recipe keeps on the GPU during the stage + bytes alive besides them at the stage's peak

    Args:
        models (`Mapping[str, nn.Module]`): from `load_components`, with layerwise casting if the recipe has it.
        recipe (`str`): a key of `RECIPES`.
        peaks (`Mapping[str, int]`): from `activations`, of a tiled autoencoder if the recipe has one.
    """
    offload = RECIPES[recipe].offload
    total = sum(map(num_bytes, models.values()))
    stages = []
    for stage, size in peaks.items():
        present = [models[name] for name in STAGES[stage] if name in models]
        if offload is None:
            weights = total
        elif offload == "model":
            weights = max(map(num_bytes, present))
        else:
            weights = max(map(_largest_leaf, present)) * (2 if offload == "group" else 1)
        if RECIPES[recipe].fp8 and stage == "denoise":
            size += 2 * _largest_leaf(
                models["transformer"], torch.float8_e4m3fn
            )  # that layer in bfloat16, as it computes
        stages.append(Estimate(recipe, weights + size, stage, weights, size, 0 if offload is None else total))
    return max(stages, key=lambda estimate: estimate.peak)


def report(
    configuration: str | os.PathLike,
    recipe: str | None = None,
    height: int | None = None,
    width: int | None = None,
    num_frames: int | None = None,
    given: str | None = None,
    film: float | None = None,
) -> str:
    r"""
    Three tables: the weights of each model, in bfloat16 where it is not kept in float32; what is alive besides them in each
    stage of a call, by what the call is given; and what recipes need.

    Args:
        configuration (`str` or `os.PathLike`): as in `load_components`.
        recipe (`str`, *optional*): a key of `RECIPES`; by default all of them.
        height (`int`, *optional*): of a frame in pixels; by default the configuration's, as for the next two.
        width (`int`, *optional*): of a frame in pixels.
        num_frames (`int`, *optional*): of the clip.
        given (`str`, *optional*): what the call is given beside a prompt, one of `GIVEN`.
        film (`float`, *optional*): seconds of a film, which is made in windows of `num_frames`.

    Raises:
        ValueError: if there is no such recipe, kind of `given` or configuration, or it cannot make clips of that size.
    """
    if recipe is not None and recipe not in RECIPES:
        raise ValueError(f"`recipe` is {recipe!r}, but must be one of {', '.join(RECIPES)}")
    if given not in (None, *GIVEN):
        raise ValueError(f"`given` is {given!r}, but must be one of {', '.join(GIVEN)}")
    if film is not None and given is not None:
        raise ValueError(
            f"`given` is {given!r}, but the windows of a film are given one another's ends: leave one of both out"
        )
    if film is not None and not 0 < film < math.inf:
        raise ValueError(f"`film` is {film!r}, but must be a number of seconds above 0")
    models, config = load_components(configuration)
    size = {
        name: config[name] if value is None else value
        for name, value in (("height", height), ("width", width), ("num_frames", num_frames))
    }
    chosen = list(RECIPES) if recipe is None else [recipe]
    by_given = {None: activations(models, config, **size)}
    given = "film" if film is not None else given
    for kind in GIVEN if film is None else (*GIVEN, "film"):
        own = activations(models, config, **size, given=kind, stages=("encode", "denoise", "decode"))
        by_given[kind] = by_given[None] | own
    peaks = {False: by_given[given]}
    if any(RECIPES[name].tiled for name in chosen):
        peaks[True] = peaks[False] | activations(
            models, config, **size, given=given, tiled=True, stages=("encode", "decode")
        )
    rows = [("component", "class", "parameters", "weights")]
    for name, model in models.items():
        parameters = sum(parameter.numel() for parameter in model.parameters())
        rows.append((name, type(model).__name__, f"{parameters:,}", _gib(num_bytes(model))))

    needs = [("given", *STAGES)]
    for kind, of_stages in by_given.items():
        name = {None: "nothing", "film": "the window before"}.get(kind, str(kind).replace("_", " "))
        needs.append((name, *(_gib(of_stages[stage]) if stage in of_stages else "" for stage in STAGES)))

    results = {name: estimate(models, name, peaks[RECIPES[name].tiled]) for name in chosen if not RECIPES[name].fp8}
    models["transformer"].enable_layerwise_casting(torch.float8_e4m3fn, torch.bfloat16)
    results |= {name: estimate(models, name, peaks[RECIPES[name].tiled]) for name in chosen if RECIPES[name].fp8}
    recipes = [("recipe", "GPU peak", "weights", "rest", "reached in", "RAM", "how")]
    for name in chosen:
        result = results[name]
        sizes = (_gib(size) for size in (result.peak, result.weights, result.activations))
        recipes.append((name, *sizes, result.stage, _gib(result.ram) if result.ram else "", RECIPES[name].how))
    clip = f"{size['num_frames']} frames of {size['height']} x {size['width']}"
    what = "That clip, from its prompt" if given is None else f"That clip, given {given}"
    if film is not None:
        what = _film_of(film, size["num_frames"], models)
    return "\n".join(
        [
            f"{configuration}, loaded with dtype=torch.bfloat16",
            *_align(rows, numbers=(2, 3)),
            "",
            f"Besides weights, in each stage of one clip of {clip}",
            *_align(needs, numbers=range(1, 1 + len(STAGES))),
            "",
            f"{what}; without what other programs and CUDA itself take",
            *_align(recipes, numbers=(1, 2, 3, 5)),
        ]
    )


def _film_of(seconds: float, num_frames: int, models: Mapping[str, nn.Module]) -> str:
    """A line that says how a film is made. Its windows need the same memory, whatever its length."""
    rate, stride = models["transformer"].config.frame_rate, models["vae"].config.scale_factor_temporal
    overlap = overlap_frames(num_frames, rate, stride)
    windows = coordinates.window_starts(coordinates.num_frames_covering(seconds, rate, stride), num_frames, overlap)
    return (
        f"A film of {seconds:g} s, in {len(windows)} such clips that share {coordinates.clip_duration(overlap, rate):.2f} s, one at a "
        "time"
    )


def _largest_leaf(model: nn.Module, dtype: torch.dtype | None = None) -> int:
    return max(
        sum(
            tensor.nbytes
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))
            if dtype in (None, tensor.dtype)
        )
        for module in model.modules()
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def _align(rows: Sequence[Sequence[str]], numbers: Sequence[int]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i in numbers else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
