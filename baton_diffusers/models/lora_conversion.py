"""LoRA files of this package and of its neighbours to layers of `DualBranchTransformer`.

Ovi's video branch is Wan2.2's 5B transformer, and so is ours: adapters for either find their layers by name. A file may name a layer

- as we do, which is as diffusers names Wan's: `blocks.0.attn1.to_q`, `blocks.0.audio_attn1.to_q`;
- as Ovi does: `video_model.blocks.0.self_attn.q`, `audio_model.blocks.0.self_attn.q`;
- as Wan does: `blocks.0.self_attn.q`, for the video branch;

with dots or, as kohya's and musubi's trainers write them, with underscores; behind one of the prefixes of diffusers, PEFT, ComfyUI and
kohya; and its matrices `lora_A` and `lora_B`, `lora_down` and `lora_up`, or `lora.down` and `lora.up`, with or without an `alpha`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn as nn

from .component_files import is_finite
from .conversion import published_ovi_key
from .transformer_dual_branch import TimeTextEmbedding


PREFIXES = ("transformer.", "diffusion_model.", "base_model.model.", "model.", "unet.", "dit.", "pipe.")
FLAT_PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_", "lora_")
STEP_EMBEDDER = "step_embedder"  # the layers of a flow map, which a transformer gets with its adapter
# Modules that wrap a layer while it is trained or compiled.
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module", "base_layer"}
_TENSOR = re.compile(
    r"\.(?P<kind>lora_A|lora_B|lora_down|lora_up|lora\.down|lora\.up|lora_magnitude_vector|alpha|diff_b)"
    r"(?:\.(?!weight$|bias$)[^.]+)?(?:\.(?P<part>weight|bias))?$"
)
_MAX_ALPHA = 1e6
_ROLES = {"lora_A": "down", "lora_down": "down", "lora.down": "down", "lora_B": "up", "lora_up": "up", "lora.up": "up"}


@dataclass(frozen=True)
class LoraLayer:
    """What a LoRA adds to one layer: `scale * (up @ down @ x + bias)`.

    Args:
        down (`torch.Tensor` of shape `(rank, in_features)`): or `(rank, in_channels, *kernel_size)`.
        up (`torch.Tensor` of shape `(out_features, rank)`): or `(out_channels, rank, 1, ...)`.
        scale (`float`): the alpha divided by the rank, or by its root (rsLoRA).
        bias (`torch.Tensor` of shape `(out_features,)`, *optional*): what is added to the bias, divided by `scale`.
        magnitude (`torch.Tensor` of shape `(out_features,)`, *optional*): DoRA's.
    """

    down: torch.Tensor
    up: torch.Tensor
    scale: float
    bias: torch.Tensor | None = None
    magnitude: torch.Tensor | None = None

    @property
    def rank(self) -> int:
        """Rows of `down`."""
        return self.down.shape[0]


@dataclass(frozen=True)
class LoraMatch:
    """The layers of a LoRA file: those that match the transformer, and the rest.

    Args:
        layers (`dict[str, LoraLayer]`): by the name of the transformer's layer.
        unmatched (`tuple[str, ...]`): names in the file that no layer of the transformer has, and tensors of other kinds.
    """

    layers: dict[str, LoraLayer]
    unmatched: tuple[str, ...]

    def __repr__(self) -> str:
        return f"LoraMatch({len(self.layers)} layers matched, {len(self.unmatched)} left out)"

    @property
    def matched(self) -> tuple[str, ...]:
        """Names of the transformer's layers that get something added."""
        return tuple(self.layers)

    @property
    def is_flow_map(self) -> bool:
        """Whether the adapter makes the transformer a flow map."""
        return any(name.endswith(STEP_EMBEDDER) for name in self.layers)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The tensors under PEFT's names."""
        tensors = {}
        for name, layer in self.layers.items():
            tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = layer.down, layer.up
            if layer.magnitude is not None:
                tensors[f"{name}.lora_magnitude_vector"] = layer.magnitude
            if layer.bias is not None:
                tensors[f"{name}.lora_B.bias"] = layer.bias
        return tensors

    @torch.no_grad()
    def add_to(self, transformer: nn.Module) -> None:
        """Adds the updates to the transformer's own weights, once and for all, without PEFT.

        Raises:
            ValueError: if it has magnitudes (DoRA), which do more than add.
        """
        if any(layer.magnitude is not None for layer in self.layers.values()):
            raise ValueError(
                "this adapter has DoRA magnitudes, which are not added to weights: load it as an adapter."
            )
        if self.is_flow_map:
            transformer.make_flow_map()
        for name, layer in self.layers.items():
            module = transformer.get_submodule(name)
            module = getattr(module, "base_layer", module)
            weight, bias = module.weight, module.bias
            update = (
                layer.scale
                * layer.up.to(weight.device).float().flatten(1)
                @ layer.down.to(weight.device).float().flatten(1)
            )
            weight.copy_(weight.float() + update.view_as(weight))
            if layer.bias is not None:
                bias.copy_(bias.float() + layer.scale * layer.bias.to(bias.device).float())

    def peft_config(self) -> dict[str, Any]:
        """The arguments of PEFT's `LoraConfig`, with a rank and an alpha for each layer."""
        first = next(iter(self.layers.values()))
        return {
            "r": first.rank,
            "lora_alpha": first.scale * first.rank,
            "rank_pattern": {f"^{name}": layer.rank for name, layer in self.layers.items()},
            "alpha_pattern": {f"^{name}": layer.scale * layer.rank for name, layer in self.layers.items()},
            "target_modules": list(self.layers),
            "use_dora": first.magnitude is not None,
            "lora_bias": first.bias is not None,
        }


def match_lora(
    state_dict: Mapping[str, torch.Tensor],
    transformer: nn.Module,
    prefix: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> LoraMatch:
    r"""
    Finds the layers of a LoRA in the transformer.

    Args:
        state_dict (`Mapping[str, torch.Tensor]`): the file, in one of the forms above.
        transformer (`torch.nn.Module`): a [`DualBranchTransformer`], with other adapters or without.
        prefix (`str`, *optional*): what the names of its layers begin with; other names are then left out. By default the
            usual prefixes are known.
        config (`Mapping[str, Any]`, *optional*): PEFT's, for a file without alphas: `lora_alpha`, `alpha_pattern`, `use_rslora`.

    Raises:
        ValueError: if no layer matches, or one that does is of another shape, lacks a part, or is not finite.
    """
    sizes = _layer_sizes(transformer)
    names = _layer_names(sizes)
    parts: dict[str, dict[str, torch.Tensor]] = {}
    paths: dict[str, str] = {}
    unmatched: dict[str, None] = {}
    for key, tensor in state_dict.items():
        if not isinstance(key, str) or not isinstance(tensor, torch.Tensor):
            raise ValueError(f"a LoRA holds tensors by name, but this one has {key!r}: {type(tensor).__name__}.")
        found = _TENSOR.search(key)
        path = key[: found.start()] if found else key
        name = _find_layer(path, names, prefix or "") if found else None
        if name is None:
            unmatched[path] = None
            continue
        role = "bias" if found["part"] == "bias" else _ROLES.get(found["kind"], found["kind"])
        if role in parts.setdefault(name, {}):
            raise ValueError(
                f"this LoRA has two tensors for the {role} part of {name!r}, such as {key!r}: load one adapter at a time."
            )
        if not is_finite(tensor):
            raise ValueError(f"{key!r} of this LoRA holds NaN or infinite values: fetch or save the file again.")
        parts[name][role], paths[name] = tensor, path
    for name in [name for name, tensors in parts.items() if set(tensors) == {"diff_b"}]:
        unmatched[f"{paths[name]} (its bias alone)"] = None
        del parts[name]
    if not parts:
        found = ", ".join(map(repr, list(unmatched)[:3])) or "nothing"
        raise ValueError(
            f"no layer of this LoRA is one of the transformer's: the file has {found}{_more(len(unmatched) - 3)}, and the "
            f"transformer {next(iter(sizes))!r}{_more(len(sizes) - 1)}; Ovi's and Wan's names for them are known, and if yours "
            "begin with something else, give it as `prefix=`."
        )
    layers = {name: _layer(name, paths[name], tensors, sizes[name], config or {}) for name, tensors in parts.items()}
    return LoraMatch(_for_all_or_none(layers), tuple(unmatched))


def _more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""


def _layer_sizes(transformer: nn.Module) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Shapes of `down`, without the rank, and of `up`, likewise, of each layer that can take a LoRA."""
    sizes = {}
    for name, module in transformer.named_modules():
        name = name.removesuffix(".base_layer")
        if isinstance(module, TimeTextEmbedding):
            size = module.time_embedder.linear_1.weight.shape
            sizes[f"{name}.{STEP_EMBEDDER}"] = (size[1],), (size[0],)
        if isinstance(module, nn.Linear) and "lora_" not in name:
            sizes[name] = (module.in_features,), (module.out_features,)
        elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and "lora_" not in name:
            sizes[name] = (
                (module.in_channels, *module.kernel_size),
                (module.out_channels, *(1 for _ in module.kernel_size)),
            )
    return sizes


def _layer_names(sizes: Mapping[str, Any]) -> dict[str, str]:
    """Our name of each layer, by every name that a file may have for it."""
    names = {}
    for ours in sizes:
        known = [ours]
        try:
            ovi = published_ovi_key(f"{ours}.weight").removesuffix(".weight")
        except ValueError:
            pass  # a layer of plans or context tokens, which Ovi lacks
        else:
            known.append(ovi)
            if ovi.startswith("video_model."):
                known += [ovi.removeprefix("video_model."), ours.replace("modulation_proj", "time_proj")]
        for name in known:
            names.setdefault(name, ours)
            names.setdefault(name.replace(".", "_"), ours)
    return names


def _find_layer(path: str, names: Mapping[str, str], prefix: str) -> str | None:
    """Our name of the layer that a file calls `path`."""
    if not path.startswith(prefix):
        return None
    path = path.removeprefix(prefix)
    path = ".".join(part for part in path.split(".") if part not in _WRAPPERS)
    while path not in names:
        prefix = next((prefix for prefix in (*PREFIXES, *FLAT_PREFIXES) if path.startswith(prefix)), None)
        if prefix is None:
            return None
        path = path.removeprefix(prefix)
    return names[path]


def _layer(
    name: str,
    path: str,
    tensors: Mapping[str, torch.Tensor],
    size: tuple[tuple[int, ...], ...],
    config: Mapping[str, Any],
) -> LoraLayer:
    """A layer of the tensors that a file has for it."""
    for role in ("down", "up"):
        if role not in tensors:
            raise ValueError(
                f"this LoRA has {', '.join(tensors)} for {name!r}, but no {role} matrix: fetch or save the file again."
            )
    down, up = tensors["down"], tensors["up"]
    inner, outer = size
    rank = down.shape[0] if down.ndim else 0
    expected = {
        "down": (rank, *inner),
        "up": (*outer[:1], rank, *outer[1:]),
        "magnitude": outer[:1],
        "bias": outer[:1],
    }
    given = {"down": down, "up": up, "magnitude": tensors.get("lora_magnitude_vector")}
    given["bias"] = tensors.get("bias", tensors.get("diff_b"))
    for part, tensor in given.items():
        if tensor is not None and (tuple(tensor.shape) != expected[part] or rank < 1):
            raise ValueError(
                f"this LoRA is for a model of another size: its {part} part for {name!r} has shape {tuple(tensor.shape)}, but must "
                f"have {expected[part]}."
            )
        if tensor is not None and not tensor.is_floating_point():
            raise ValueError(
                f"this LoRA's {part} part for {name!r} is {tensor.dtype}, but must be floating-point: fetch or save the file again."
            )
    alpha = _alpha(path, tensors, config)
    scale = 1.0 if alpha is None else alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    bias = tensors.get("bias")
    if bias is None and "diff_b" in tensors:  # which is not scaled
        bias = tensors["diff_b"] / scale
    return LoraLayer(down, up, scale, bias, given["magnitude"])


def _alpha(path: str, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> float | None:
    """The alpha of a layer: its own, PEFT's for its name or for all, or none."""
    alpha = config.get("lora_alpha")
    for pattern, value in dict(config.get("alpha_pattern") or {}).items():
        if not re.fullmatch(r"\^?[\w.]+", pattern):
            raise ValueError(f"this LoRA's `alpha_pattern` has {pattern!r}, but only names of layers are read there.")
        if path == pattern.removeprefix("^") or path.endswith(f".{pattern.removeprefix('^')}"):
            alpha = value
    if "alpha" in tensors:
        alpha = tensors["alpha"].item() if tensors["alpha"].numel() == 1 else tensors["alpha"]
    if alpha is None:
        return None
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 < abs(alpha) <= _MAX_ALPHA:
        raise ValueError(
            f"the alpha of this LoRA for {path!r} is {alpha!r}, but must be a number other than 0, of at most {_MAX_ALPHA:g}."
        )
    return float(alpha)


def _for_all_or_none(layers: dict[str, LoraLayer]) -> dict[str, LoraLayer]:
    """PEFT's biases are for all layers or for none, and so are DoRA's magnitudes."""
    if any(layer.magnitude is None for layer in layers.values()) and any(
        layer.magnitude is not None for layer in layers.values()
    ):
        raise ValueError(
            "this LoRA has a DoRA magnitude for some layers and none for others: fetch or save the file again."
        )
    if all(layer.bias is None for layer in layers.values()):
        return layers
    zeros = {name: layer.up.new_zeros(layer.up.shape[0]) for name, layer in layers.items() if layer.bias is None}
    return {name: replace(layer, bias=zeros[name]) if name in zeros else layer for name, layer in layers.items()}
