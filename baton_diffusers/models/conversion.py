"""Published key names to ours: pure mappings, for `from_single_file` and the conversion scripts."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch


# Ovi 1.1 (papers.md 4): what stands before and after the first dot-separated parts of a key, within one branch.
_OVI_BLOCK = {
    "self_attn.q": "attn1.to_q",
    "self_attn.k": "attn1.to_k",
    "self_attn.v": "attn1.to_v",
    "self_attn.o": "attn1.to_out.0",
    "self_attn.norm_q": "attn1.norm_q",
    "self_attn.norm_k": "attn1.norm_k",
    "norm3": "norm2",
    "cross_attn.q": "attn2.to_q",
    "cross_attn.k": "attn2.to_k",
    "cross_attn.v": "attn2.to_v",
    "cross_attn.o": "attn2.to_out.0",
    "cross_attn.norm_q": "attn2.norm_q",
    "cross_attn.norm_k": "attn2.norm_k",
    "cross_attn.pre_attn_norm_fusion": "attn2.norm_fusion",
    "cross_attn.k_fusion": "attn2.to_k_fusion",
    "cross_attn.v_fusion": "attn2.to_v_fusion",
    "cross_attn.norm_k_fusion": "attn2.norm_k_fusion",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "modulation": "scale_shift_table",
}
_OVI_MODEL = {
    "patch_embedding": "patch_embedding",
    "patch_embedding.0": "patch_embedding.conv",
    "patch_embedding.2.w1": "patch_embedding.mlp.conv_gate",
    "patch_embedding.2.w2": "patch_embedding.mlp.conv_out",
    "patch_embedding.2.w3": "patch_embedding.mlp.conv_in",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.modulation_proj",
    "head.head": "proj_out",
    "head": "scale_shift_table",
}


def convert_ovi_key(key: str) -> str:
    """Name in `DualBranchTransformer` of a key of Ovi's checkpoints.

    Raises:
        ValueError: if the key does not belong to an Ovi checkpoint.
    """
    match = re.fullmatch(r"(video|audio)_model\.(?:blocks\.(\d+)\.)?(.+)\.(weight|bias|modulation)", key)
    if match is None:
        raise ValueError(f"{key!r} is not a key of an Ovi checkpoint.")
    branch, block, name, kind = match.groups()
    ours = (_OVI_MODEL if block is None else _OVI_BLOCK).get(name)
    if ours is None:
        raise ValueError(f"{key!r} is not a key of an Ovi checkpoint.")
    prefix = "audio_" if branch == "audio" else ""
    suffix = "" if kind == "modulation" else f".{kind}"
    return f"{'' if block is None else f'blocks.{block}.'}{prefix}{ours}{suffix}"


def convert_ovi_state_dict(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """An Ovi checkpoint under the names of `DualBranchTransformer`; tensors are taken over as they are.

    Raises:
        ValueError: if a key does not belong to an Ovi checkpoint.
    """
    return {convert_ovi_key(key): tensor for key, tensor in state_dict.items()}
