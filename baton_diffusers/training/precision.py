"""Numerics of training in mixed precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F


@contextmanager
def float32_attention() -> Iterator[None]:
    """
    Keeps `scaled_dot_product_attention` in float32 under autocast, within this context and on CPUs only.

    On a CPU the backward pass of the bfloat16 kernel takes six times as long as the float32 one (torch 2.13, head dimension 44).
    That is more than bfloat16 saves in all matrix products of a small model.
    """
    original = F.scaled_dot_product_attention

    def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        dtype = query.dtype
        if query.device.type == "cpu":
            query, key, value = query.float(), key.float(), value.float()
        with torch.autocast("cpu", enabled=False):
            output = original(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
        return output.to(dtype)

    F.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = original
