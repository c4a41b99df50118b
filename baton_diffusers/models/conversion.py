"""Published weights to ours: names, sizes and folded normalisations, for `from_single_file` and the conversion scripts.

For each kind of published file there are two pure functions: one reads the configuration off the shapes of its tensors, the
other gives the published key of each of our parameters. `check_keys` then finds whatever is missing, unexpected or
misshapen before any tensor is read.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.models.autoencoders.autoencoder_mmaudio import normalize
from huggingface_hub import hf_hub_download

from .component_files import PublishedWeights, Shapes, check_keys


OVI_NUM_ATTENTION_HEADS = 24
OVI_AUDIO_ROPE_SCALE = 0.19676
# Ovi's published defaults (`inference_fusion.yaml` in its repository).
OVI_NEGATIVE_PROMPT = "jitter, bad hands, blur, distortion"
OVI_AUDIO_NEGATIVE_PROMPT = "robotic, muffled, echo, distorted"
# Ovi lists its audio latents: 157 for 121 frames and 314 for 241. Exactly 157.55 and 313.80 would cover them. Any share from
# 0.56 to 0.80 gives both; the choice is ours.
OVI_AUDIO_LATENT_MIN_COVERAGE = 0.75

# Ovi 1.1: parts of names within one branch, ours and theirs.
_OVI_BLOCK = {
    "attn1.to_q": "self_attn.q",
    "attn1.to_k": "self_attn.k",
    "attn1.to_v": "self_attn.v",
    "attn1.to_out.0": "self_attn.o",
    "attn1.norm_q": "self_attn.norm_q",
    "attn1.norm_k": "self_attn.norm_k",
    "norm2": "norm3",
    "attn2.to_q": "cross_attn.q",
    "attn2.to_k": "cross_attn.k",
    "attn2.to_v": "cross_attn.v",
    "attn2.to_out.0": "cross_attn.o",
    "attn2.norm_q": "cross_attn.norm_q",
    "attn2.norm_k": "cross_attn.norm_k",
    "attn2.norm_fusion": "cross_attn.pre_attn_norm_fusion",
    "attn2.to_k_fusion": "cross_attn.k_fusion",
    "attn2.to_v_fusion": "cross_attn.v_fusion",
    "attn2.norm_k_fusion": "cross_attn.norm_k_fusion",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    "scale_shift_table": "modulation",
}
_OVI_MODEL = {
    "patch_embedding": "patch_embedding",
    "patch_embedding.conv": "patch_embedding.0",
    "patch_embedding.mlp.conv_gate": "patch_embedding.2.w1",
    "patch_embedding.mlp.conv_out": "patch_embedding.2.w2",
    "patch_embedding.mlp.conv_in": "patch_embedding.2.w3",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.modulation_proj": "time_projection.1",
    "proj_out": "head.head",
    "scale_shift_table": "head",
}
# Tables of Wan2.2's VAE: the parts of a residual block, and the ends of encoder and decoder.
_WAN_RESIDUAL = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6"}
_WAN_ENDS = {"conv_in": "conv1", "norm_out": "head.0", "conv_out": "head.2"}
_WAN_MIDDLE = {"resnets.0": "middle.0", "attentions.0": "middle.1", "resnets.1": "middle.2"}
# UMT5: transformers' names within a block, and Wan's.
_UMT5_BLOCK = {
    "layer.0.SelfAttention.q": "attn.q",
    "layer.0.SelfAttention.k": "attn.k",
    "layer.0.SelfAttention.v": "attn.v",
    "layer.0.SelfAttention.o": "attn.o",
    "layer.0.SelfAttention.relative_attention_bias": "pos_embedding.embedding",
    "layer.0.layer_norm": "norm1",
    "layer.1.DenseReluDense.wi_0": "ffn.gate.0",
    "layer.1.DenseReluDense.wi_1": "ffn.fc1",
    "layer.1.DenseReluDense.wo": "ffn.fc2",
    "layer.1.layer_norm": "norm2",
}

# Mean and standard deviation of the latents of Wan2.2's VAE, by channel: they are not in its file.
WAN22_LATENTS_MEAN = (
    -0.2289,
    -0.0052,
    -0.1323,
    -0.2339,
    -0.2799,
    0.0174,
    0.1838,
    0.1557,
    -0.1382,
    0.0542,
    0.2813,
    0.0891,
    0.157,
    -0.0098,
    0.0375,
    -0.1825,
    -0.2246,
    -0.1207,
    -0.0698,
    0.5109,
    0.2665,
    -0.2108,
    -0.2158,
    0.2502,
    -0.2055,
    -0.0322,
    0.1109,
    0.1567,
    -0.0729,
    0.0899,
    -0.2799,
    -0.123,
    -0.0313,
    -0.1649,
    0.0117,
    0.0723,
    -0.2839,
    -0.2083,
    -0.052,
    0.3748,
    0.0152,
    0.1957,
    0.1433,
    -0.2944,
    0.3573,
    -0.0548,
    -0.1681,
    -0.0667,
)
WAN22_LATENTS_STD = (
    0.4765,
    1.0364,
    0.4514,
    1.1677,
    0.5313,
    0.499,
    0.4818,
    0.5013,
    0.8158,
    1.0344,
    0.5894,
    1.0901,
    0.6885,
    0.6165,
    0.8454,
    0.4978,
    0.5759,
    0.3523,
    0.7135,
    0.6804,
    0.5833,
    1.4146,
    0.8986,
    0.5659,
    0.7069,
    0.5338,
    0.4889,
    0.4917,
    0.4069,
    0.4999,
    0.6866,
    0.4093,
    0.5709,
    0.6065,
    0.6415,
    0.4944,
    0.5726,
    1.2042,
    0.5458,
    1.6887,
    0.3971,
    1.06,
    0.3943,
    0.5537,
    0.5444,
    0.4089,
    0.7468,
    0.7744,
)


_HUB_FILE = re.compile(
    r"(?P<host>https://(?:www\.)?(?:huggingface\.co|hf\.co)/)?(?P<repo>[A-Za-z0-9][\w.-]*/[\w.-]+)/"
    r"(?:(?:blob|resolve)/(?P<revision>[^/]+)/)?(?P<file>[^?]+)"
)


def _shape(shapes: Shapes, key: str, name: str, hint: str = "") -> Sequence[int]:
    if key not in shapes:
        raise ValueError(f"{name} lacks {key!r}.{hint}")
    return shapes[key]


def _count(shapes: Shapes, pattern: str) -> int:
    """One more than the largest number at the group of `pattern` in the keys."""
    return 1 + max((int(match[1]) for match in map(re.compile(pattern).match, shapes) if match), default=-1)


# Ovi's transformer

OVI_HINT = (
    " Ovi's files (`model.safetensors`, `model_960x960.safetensors`, `model_960x960_10s.safetensors`,"
    " `model_fp8_e4m3fn.safetensors`) have keys that begin with 'video_model.' and 'audio_model.'."
)


def ovi_config(
    shapes: Shapes,
    num_attention_heads: int = OVI_NUM_ATTENTION_HEADS,
    audio_rope_scale: float = OVI_AUDIO_ROPE_SCALE,
    name: str = "the file",
) -> dict[str, Any]:
    r"""
    The arguments of the `DualBranchTransformer` that fits an Ovi checkpoint.

    Args:
        shapes (`Mapping[str, Sequence[int]]`): shapes of its tensors, by published key.
        num_attention_heads (`int`, defaults to 24): heads of both branches; no shape shows their number.
        audio_rope_scale (`float`, defaults to 0.19676): video latent frames for each audio latent, likewise.
        name (`str`): what to call the file in messages.

    Raises:
        ValueError: if a key that tells a size is missing, or the width does not divide into heads of even size.
    """
    shape = partial(_shape, shapes, name=name, hint=OVI_HINT)
    dim, in_channels, *patch_size = shape("video_model.patch_embedding.weight")
    if num_attention_heads < 1 or dim % (2 * num_attention_heads):
        raise ValueError(
            f"{name} has branches of width {dim}, which does not divide into {num_attention_heads} heads of even size:"
            " give its number of heads as `num_attention_heads`."
        )
    return {
        "patch_size": tuple(patch_size),
        "in_channels": in_channels,
        "out_channels": shape("video_model.head.head.weight")[0] // math.prod(patch_size),
        "audio_in_channels": shape("audio_model.patch_embedding.0.weight")[1],
        "audio_out_channels": shape("audio_model.head.head.weight")[0],
        "num_layers": _count(shapes, r"(?:video|audio)_model\.blocks\.(\d+)\."),
        "num_attention_heads": num_attention_heads,
        "attention_head_dim": dim // num_attention_heads,
        "ffn_dim": shape("video_model.blocks.0.ffn.0.weight")[0],
        "audio_ffn_dim": shape("audio_model.blocks.0.ffn.0.weight")[0],
        "audio_patch_hidden_dim": shape("audio_model.patch_embedding.2.w1.weight")[0],
        "text_dim": shape("video_model.text_embedding.0.weight")[1],
        "freq_dim": shape("video_model.time_embedding.0.weight")[1],
        "audio_rope_scale": audio_rope_scale,
        "audio_latent_min_coverage": OVI_AUDIO_LATENT_MIN_COVERAGE,
    }


def published_ovi_key(name: str) -> str:
    """Key in Ovi's checkpoints of a parameter of `DualBranchTransformer`; its plan layers have none.

    Raises:
        ValueError: if Ovi has no such parameter.
    """
    block, part, kind = re.fullmatch(r"(?:blocks\.(\d+)\.)?(.+?)(?:\.(weight|bias))?", name).groups()
    branch = "audio" if part.startswith("audio_") else "video"
    theirs = (_OVI_MODEL if block is None else _OVI_BLOCK).get(part.removeprefix("audio_"))
    if theirs is None:
        raise ValueError(f"{name!r} is not a parameter of Ovi's transformer.")
    return f"{branch}_model.{'' if block is None else f'blocks.{block}.'}{theirs}.{kind or 'modulation'}"


def ovi_keys(names: Iterable[str]) -> dict[str, str]:
    """Published key of each of `names` that Ovi's transformer has: all parameters except the plan layers."""
    return {name: published_ovi_key(name) for name in names if "plan" not in name}


def without_fp8(tensor: torch.Tensor) -> torch.Tensor:
    r"""
    Converts float8 weights to bfloat16, which holds each of their values exactly; other tensors stay as they are.

    The community's float8 file of Ovi stores rounded weights without scales (its author: all layers but those with "norm" or
    "bias" in their name, https://github.com/character-ai/Ovi/pull/11; Ovi loads it under the keys of the other files). So
    `enable_layerwise_casting(torch.float8_e4m3fn)` restores exactly its values, in its size.
    """
    return tensor.to(torch.bfloat16) if tensor.dtype == torch.float8_e4m3fn else tensor


def single_file(link_or_path: str | os.PathLike, **kwargs: Any) -> Path:
    r"""
    A safetensors file here, or the local copy of one on the Hub.

    Args:
        link_or_path (`str` or `os.PathLike`): a path, or `https://huggingface.co/OWNER/NAME/blob/REVISION/FILE`, of which the
            host and `blob/REVISION` may be left out.
        kwargs: for the Hub: `cache_dir`, `force_download`, `local_files_only`, `revision`, `token`.

    Raises:
        ValueError: if it is neither, or the Hub does not give it, or it is not named as safetensors.
    """
    name = os.fspath(link_or_path)
    name = name.partition("?")[0] if "://" in name else name
    if not name.endswith(".safetensors"):
        raise ValueError(f"{name} is not named .safetensors: only those are loaded, since pickles can hold code.")
    if os.path.isfile(name):
        return Path(name)
    found = _HUB_FILE.fullmatch(name)
    if found is None or (found["host"] is None and not isinstance(link_or_path, str)):
        raise ValueError(
            f"{name} is not a file, nor an address like https://huggingface.co/OWNER/NAME/blob/main/FILE."
        )
    if found["revision"] is not None:
        kwargs["revision"] = found["revision"]
    try:
        return Path(hf_hub_download(found["repo"], found["file"], **kwargs))
    except Exception as error:  # of the Hub's client, of httpx or of the system
        raise ValueError(f"{name} is no file here, and could not be loaded from the Hub: {error}") from error


class FromOviFileMixin:
    """Gives `DualBranchTransformer` a `from_single_file` for Ovi's published checkpoints."""

    @classmethod
    def from_single_file(
        cls,
        pretrained_model_link_or_path: str | os.PathLike,
        num_attention_heads: int = OVI_NUM_ATTENTION_HEADS,
        audio_rope_scale: float = OVI_AUDIO_ROPE_SCALE,
        dtype: torch.dtype | None = None,
        torch_dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> Self:
        r"""
        Loads the transformer from one of Ovi's files, without plan layers.

        Args:
            pretrained_model_link_or_path (`str` or `os.PathLike`): a `.safetensors` file, here or on the Hub, as
                `https://huggingface.co/chetwinlow1/Ovi/blob/main/model.safetensors`.
            num_attention_heads (`int`, defaults to 24): heads of both branches; the file does not store their number.
            audio_rope_scale (`float`, defaults to 0.19676): video latent frames for each audio latent, likewise.
            dtype (`torch.dtype`, *optional*): by default the file's, bfloat16 for its float8 weights. What has to
                stay in float32 does.
            torch_dtype (`torch.dtype`, *optional*): the same, by its older name.
            kwargs: for a file on the Hub: `cache_dir`, `force_download`, `local_files_only`, `revision`, `token`.

        Raises:
            ValueError: if there is no such file, it is truncated or corrupt, a key is missing, unexpected, misshapen or not finite,
                or an argument is of the wrong type.
        """
        dtype = dtype or torch_dtype
        if dtype is not None and not isinstance(dtype, torch.dtype):
            raise ValueError(f"`dtype` is {dtype!r}, but must be a torch.dtype such as torch.bfloat16.")
        published = PublishedWeights(single_file(pretrained_model_link_or_path, **kwargs))
        with torch.device("meta"):
            model = cls(**ovi_config(published.shapes, num_attention_heads, audio_rope_scale, published.name))
        parameters = model.state_dict()
        keys = ovi_keys(parameters)
        check_keys(published.shapes, {keys[name]: parameters[name].shape for name in keys}, published.name, OVI_HINT)
        published.check_finite()
        state = {}
        for name, key in keys.items():
            tensor = without_fp8(published.read([key])[key])
            stays = set(name.split(".")) & set(cls._keep_in_fp32_modules)
            state[name] = tensor.float() if stays else tensor.to(dtype or tensor.dtype)
        model.load_state_dict(state, assign=True)
        return model.eval()


# Wan2.2's video autoencoder


def wan_vae_config(shapes: Shapes, name: str = "the file") -> dict[str, Any]:
    r"""
    The arguments of the `AutoencoderKLWan` that fits a Wan2.2 VAE, read off the shapes of its tensors.

    Raises:
        ValueError: if a key that tells a size is missing, or the latents are not the 48 channels of Wan2.2, whose statistics
            are known.
    """
    shape = partial(_shape, shapes, name=name)
    base_dim, in_channels = shape("encoder.conv1.weight")[:2]
    z_dim = shape("conv2.weight")[0]
    if z_dim != len(WAN22_LATENTS_MEAN):
        raise ValueError(f"{name} has {z_dim} latent channels, but Wan2.2's VAE has {len(WAN22_LATENTS_MEAN)}.")
    num_levels = _count(shapes, r"encoder\.downsamples\.(\d+)\.downsamples\.")
    num_res_blocks = _count(shapes, r"encoder\.downsamples\.0\.downsamples\.(\d+)\.residual\.")
    patch_size = math.isqrt(in_channels // 3)
    downsample = [
        f"encoder.downsamples.{level}.downsamples.{num_res_blocks}.time_conv.weight" in shapes
        for level in range(num_levels - 1)
    ]
    return {
        "base_dim": base_dim,
        "decoder_base_dim": shape("decoder.head.2.weight")[1],
        "z_dim": z_dim,
        "dim_mult": [
            shape(f"encoder.downsamples.{level}.downsamples.0.residual.6.weight")[0] // base_dim
            for level in range(num_levels)
        ],
        "num_res_blocks": num_res_blocks,
        "temperal_downsample": downsample,
        "latents_mean": list(WAN22_LATENTS_MEAN),
        "latents_std": list(WAN22_LATENTS_STD),
        "is_residual": True,
        "in_channels": in_channels,
        "out_channels": shape("decoder.head.2.weight")[0],
        "patch_size": patch_size,
        "scale_factor_temporal": 2 ** sum(downsample),
        "scale_factor_spatial": patch_size * 2 ** (num_levels - 1),
    }


def published_wan_vae_key(name: str, num_res_blocks: int) -> str:
    """Key in Wan2.2's VAE of a parameter of `AutoencoderKLWan` in its residual form."""
    if name.startswith(("quant_conv", "post_quant_conv")):
        return name.replace("post_quant_conv", "conv2").replace("quant_conv", "conv1")
    side, name = name.split(".", maxsplit=1)
    steps, samplers, num_blocks = (
        ("downsamples", "down_blocks", num_res_blocks)
        if side == "encoder"
        else ("upsamples", "up_blocks", num_res_blocks + 1)
    )
    name = re.sub(r"^(conv_in|norm_out|conv_out)\b", lambda match: _WAN_ENDS[match[0]], name)
    name = re.sub(r"^mid_block\.(\w+\.\d)", lambda match: _WAN_MIDDLE[match[1]], name)
    name = re.sub(rf"^{samplers}\.(\d+)\.resnets\.", rf"{steps}.\1.{steps}.", name)
    name = re.sub(rf"^{samplers}\.(\d+)\.(?:down|up)sampler\.", rf"{steps}.\1.{steps}.{num_blocks}.", name)
    name = re.sub(r"\.(norm1|conv1|norm2|conv2)\.(?=\w+$)", lambda match: f".{_WAN_RESIDUAL[match[1]]}.", name)
    return f"{side}.{name.replace('conv_shortcut', 'shortcut')}"


# UMT5's encoder in Wan's form


def umt5_config(shapes: Shapes, name: str = "the file") -> dict[str, Any]:
    """The arguments of the `UMT5Config` that fits Wan's UMT5 encoder, read off the shapes of its tensors.

    Raises:
        ValueError: if a key that tells a size is missing.
    """
    shape = partial(_shape, shapes, name=name)
    vocab_size, d_model = shape("token_embedding.weight")
    num_buckets, num_heads = shape("blocks.0.pos_embedding.embedding.weight")
    return {
        "vocab_size": vocab_size,
        "d_model": d_model,
        "d_kv": shape("blocks.0.attn.q.weight")[0] // num_heads,
        "d_ff": shape("blocks.0.ffn.fc1.weight")[0],
        "num_layers": _count(shapes, r"blocks\.(\d+)\."),
        "num_heads": num_heads,
        "relative_attention_num_buckets": num_buckets,
        "architectures": ["UMT5EncoderModel"],
    }


def published_umt5_key(name: str) -> str:
    """Key in Wan's UMT5 encoder of a parameter of `UMT5EncoderModel`."""
    if name in ("shared.weight", "encoder.embed_tokens.weight"):
        return "token_embedding.weight"
    if name == "encoder.final_layer_norm.weight":
        return "norm.weight"
    block, part = re.fullmatch(r"encoder\.block\.(\d+)\.(.+)\.weight", name).groups()
    return f"blocks.{block}.{_UMT5_BLOCK[part]}.weight"


# MMAudio's 16 kHz autoencoder and vocoder


def mmaudio_vae_config(shapes: Shapes, name: str = "the file") -> dict[str, Any]:
    """The arguments of the `MMAudioVAE16kHz` that fits MMAudio's 16 kHz autoencoder, read off the shapes of its tensors.

    Raises:
        ValueError: if a key that tells a size is missing.
    """
    shape = partial(_shape, shapes, name=name)
    hidden_channels, mel_bins, _ = shape("encoder.conv_in.weight")
    return {
        "mel_bins": mel_bins,
        "latent_channels": shape("decoder.conv_in.weight")[1],
        "hidden_channels": hidden_channels,
        "channel_multipliers": tuple(
            shape(f"encoder.down.{level}.block.0.conv1.weight")[0] // hidden_channels
            for level in range(_count(shapes, r"encoder\.down\.(\d+)\."))
        ),
        "layers_per_block": _count(shapes, r"encoder\.down\.0\.block\.(\d+)\."),
    }


def normalise_mmaudio_weight(key: str, tensor: torch.Tensor) -> torch.Tensor:
    """Normalises a convolution of MMAudio's autoencoder, which is published as it was trained, without its normalisation.

    Each filter comes to unit magnitude and is divided by the root of its size (Karras et al. 2024, equations 47 and 66).
    """
    tensor = tensor.float()
    return normalize(tensor) / math.sqrt(tensor[0].numel()) if key.endswith(".weight") else tensor


def bigvgan_config(shapes: Shapes, name: str = "the file") -> dict[str, Any]:
    """The arguments of the `MMAudioVocoder16kHz` that fits a BigVGAN, read off the shapes of its folded tensors.

    Strides are not in the file: as in all published BigVGANs they are half of the kernels that they go with, and the
    dilations are 1, 3, 5.

    Raises:
        ValueError: if a key that tells a size is missing.
    """
    shape = partial(_shape, shapes, name=name)
    width, num_mels, _ = shape("conv_pre.weight")
    kernels = tuple(shape(f"ups.{stage}.0.weight")[2] for stage in range(_count(shapes, r"ups\.(\d+)\.")))
    num_blocks = _count(shapes, r"resblocks\.(\d+)\.") // max(len(kernels), 1)
    return {
        "num_mels": num_mels,
        "upsample_initial_channel": width,
        "upsample_rates": tuple(kernel // 2 for kernel in kernels),
        "upsample_kernel_sizes": kernels,
        "resblock_kernel_sizes": tuple(shape(f"resblocks.{block}.convs1.0.weight")[2] for block in range(num_blocks)),
        "resblock_dilation_sizes": ((1, 3, 5),) * num_blocks,
    }


_WEIGHT_NORM = re.compile(r"(.*)\.(?:weight_g|weight_v|parametrizations\.weight\.original([01]))")


def fold_weight_norm(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    r"""
    Folds weight norm into the weights: `w = g * v / |v|`, the norm over all dimensions but the first.

    Args:
        tensors (`Mapping[str, torch.Tensor]`): both halves of each weight under either of PyTorch's names for them, `weight_g`
            and `weight_v` or `parametrizations.weight.original0` and `original1`, among other tensors.

    Raises:
        ValueError: if one half is missing.
    """
    folded = {}
    for key, tensor in tensors.items():
        match = _WEIGHT_NORM.fullmatch(key)
        if match is None:
            folded[key] = tensor
            continue
        is_norm = key.endswith(("weight_g", "original0"))
        half = (
            key[:-1] + ("v" if is_norm else "g")
            if key.endswith(("_g", "_v"))
            else key[:-1] + ("1" if is_norm else "0")
        )
        if half not in tensors:
            raise ValueError(f"{key!r} is one half of a weight, but {half!r} is missing.")
        if is_norm:
            folded[f"{match[1]}.weight"] = torch._weight_norm(tensors[half].float(), tensor.float(), 0)
    return folded


# WavTokenizer's encoder


def wavtokenizer_config(shapes: Shapes, name: str = "the file") -> dict[str, Any]:
    r"""
    The arguments of the `EncodecConfig` whose encoder is WavTokenizer's (24 kHz), read off the shapes of its tensors.

    Args:
        shapes (`Mapping[str, Sequence[int]]`): by published key, without `feature_extractor.encodec.encoder.`.
        name (`str`): what to call the file in messages.

    Raises:
        ValueError: if a key that tells a size is missing.
    """
    num_filters, audio_channels, _ = _shape(shapes, "model.0.conv.conv.weight_v", name)
    matches = (re.fullmatch(r"model\.(\d+)\.conv\.conv\.weight_v", key) for key in shapes)
    convolutions = [shapes[f"model.{index}.conv.conv.weight_v"] for index in sorted(int(m[1]) for m in matches if m)]
    # Each strided convolution has a kernel of twice its stride; EnCodec lists the strides of its decoder.
    ratios = [shape[2] // 2 for shape in reversed(convolutions[1:-1])]
    hidden_size = convolutions[-1][0]
    return {
        "sampling_rate": 24_000,
        "audio_channels": audio_channels,
        "num_filters": num_filters,
        "hidden_size": hidden_size,
        "codebook_dim": hidden_size,
        "upsampling_ratios": ratios,
        "use_causal_conv": False,
    }


def published_wavtokenizer_key(name: str) -> str:
    """Key in WavTokenizer, without `feature_extractor.encodec.encoder.`, of a parameter of `EncodecModel`'s encoder."""
    name = name.replace("conv.parametrizations.weight.original0", "conv.weight_g")
    name = name.replace("conv.parametrizations.weight.original1", "conv.weight_v")
    return re.sub(r"\bconv\.(?=\w+$)", "conv.conv.", re.sub(r"^layers\.", "model.", name))


# WavTokenizer's decoder


def wavtokenizer_decoder_config(shapes: Shapes, name: str = "the file") -> dict[str, Any]:
    r"""
    The arguments of the [`WavTokenizerPlanDecoder`] of a WavTokenizer (24 kHz), read off the shapes of its tensors.

    Args:
        shapes (`Mapping[str, Sequence[int]]`): by published key.
        name (`str`): what to call the file in messages.

    Raises:
        ValueError: if a key that tells a size is missing.
    """
    hidden_dim, audio_dim, _ = _shape(shapes, "backbone.embed.weight", name)
    (n_fft,) = _shape(shapes, "head.istft.window", name)
    return {
        "audio_dim": audio_dim,
        "hidden_dim": hidden_dim,
        "intermediate_dim": _shape(shapes, "backbone.convnext.0.pwconv1.weight", name)[0],
        "num_layers": _count(shapes, r"backbone\.convnext\.(\d+)\."),
        "n_fft": n_fft,
        "hop_length": n_fft // 4,
        "sampling_rate": 24_000,
    }


def published_wavtokenizer_decoder_key(name: str) -> str:
    """Key in WavTokenizer of a weight of [`WavTokenizerPlanDecoder`]. Those of the norms which a bandwidth scales and shifts hold one
    row for each bandwidth."""
    name = re.sub(r"^(convnext\.\d+\.norm|norm)\.weight$", r"\1.scale.weight", name)
    name = re.sub(r"^(convnext\.\d+\.norm|norm)\.bias$", r"\1.shift.weight", name)
    if name == "window":
        return "head.istft.window"
    return f"head.{name}" if name.startswith("out.") else f"backbone.{name}"


# diffusers' AutoencoderRAE


def rae_decoder_config(config: Mapping[str, Any]) -> dict[str, Any]:
    r"""
    The arguments of the [`RAEPlanDecoder`] of an `AutoencoderRAE`, for tokens in the grid of its encoder.

    Args:
        config (`Mapping`): the autoencoder's configuration.

    Raises:
        ValueError: if its encoder is not SigLIP2's.
    """
    if config.get("encoder_type") != "siglip2":
        raise ValueError(
            f"the autoencoder decodes features of {config.get('encoder_type')!r}, but plans are of SigLIP2's: take one of siglip2."
        )
    side = config["encoder_input_size"] // config["encoder_patch_size"]
    names = ("decoder_hidden_size", "decoder_num_hidden_layers", "decoder_num_attention_heads")
    names += ("decoder_intermediate_size", "patch_size")
    return {
        "video_dim": config["encoder_hidden_size"],
        "video_grid": (side, side),
        "num_patches": side**2,
        **{name: config[name] for name in names},
    }
