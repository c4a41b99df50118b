"""The attention layers of `DualBranchTransformer`: within a modality, to text and the other modality, to the plan (by
RS-RoPE, Relative Semantic RoPE)."""

from __future__ import annotations

import functools

import torch
import torch.nn as nn
from diffusers.hooks.context_parallel import EquipartitionSharder, PartitionAnythingSharder
from diffusers.models._modeling_parallel import ParallelConfig
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.normalization import FP32LayerNorm

from .. import coordinates
from .cache_dual_branch import KeysValues


RotaryEmbedding = tuple[torch.Tensor, torch.Tensor]

# For each group of windows of equal size: the indices of their queries, `(num_windows, num_queries)`, and of their keys,
# `(num_windows, num_keys)`, which count over `[context ; other]`.
WindowGroups = tuple[tuple[torch.Tensor, torch.Tensor], ...]


def group_windows(
    windows: list[tuple[int, int]],
    queries_per_place: int,
    keys_per_place: int,
    num_context_tokens: int,
    device: torch.device,
    tokens: range | None = None,
) -> WindowGroups:
    """
    Sorts the windows of the other modality into groups of equal size. A group is attended without a mask.

    Args:
        windows (`list[tuple[int, int]]`): for each place in time of the reading modality (a latent frame, an audio latent),
            the first place and the end of the places that it reads in the other modality.
        queries_per_place (`int`): tokens at each place of the reading modality.
        keys_per_place (`int`): tokens at each place of the other modality.
        num_context_tokens (`int`): context tokens before the other modality's tokens. Every window has them.
        device (`torch.device`): where the indices go.
        tokens (`range`, *optional*): the reading tokens of this process, by default all. Indices count from the first one.

    Returns:
        `WindowGroups`: token indices of both modalities. Neighbouring places that read the same are one window.
    """
    if tokens is None:
        tokens = range(len(windows) * queries_per_place)
    runs: list[list[int]] = []
    previous = None
    for place, (first, end) in enumerate(windows):
        first_query = max(place * queries_per_place, tokens.start)
        num_queries = min((place + 1) * queries_per_place, tokens.stop) - first_query
        if num_queries <= 0:
            continue
        if (first, end) == previous:
            runs[-1][1] += num_queries
        else:
            num_keys = (end - first) * keys_per_place
            runs.append([first_query - tokens.start, num_queries, first * keys_per_place, num_keys])
        previous = (first, end)
    starts_of_size: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for first_query, num_queries, first_key, num_keys in runs:
        starts_of_size.setdefault((num_queries, num_keys), []).append((first_query, first_key))

    groups = []
    for (num_queries, num_keys), starts in starts_of_size.items():
        first_query, first_key = torch.tensor(starts).unbind(-1)
        queries = first_query[:, None] + torch.arange(num_queries)
        keys = num_context_tokens + first_key[:, None] + torch.arange(num_keys)
        context = torch.arange(num_context_tokens).expand(len(starts), -1)
        groups.append((queries.to(device), torch.cat([context, keys], dim=1).to(device)))
    return tuple(groups)


@functools.lru_cache(maxsize=8)
@torch.inference_mode(False)
def make_windows(
    num_frames: int,
    tokens_per_frame: int,
    reference_length: int,
    audio_length: int,
    window: int | None,
    audio_window: int | None,
    rates: tuple[float, int, float],
    num_context_tokens: int,
    own_tokens: range,
    device: torch.device,
) -> tuple[WindowGroups | None, WindowGroups | None]:
    """The windows of audio that video tokens read, and the mirror; `None` if a modality reads everything.

    The windows of the last eight sizes are kept. They are made outside of inference mode, so that training can use them too.

    Args:
        num_frames (`int`): video latent frames.
        tokens_per_frame (`int`): video tokens in each frame.
        reference_length (`int`): tokens of reference audio before the audio. They read the whole video. The video does not
            read them.
        audio_length (`int`): audio tokens.
        window (`int`, *optional*): as `cross_modal_window` of `DualBranchTransformer`.
        audio_window (`int`, *optional*): as `audio_cross_modal_window`.
        rates (`tuple[float, int, float]`): frames per second, temporal stride, audio latents per second.
        num_context_tokens (`int`): context tokens before the other modality's tokens.
        own_tokens (`range`): the video tokens of this process.
        device (`torch.device`): where the tokens are.
    """
    audio_windows = video_windows = None
    if window is not None and window < num_frames:
        audio_windows = coordinates.audio_windows(num_frames, audio_length, window, *rates)
    elif reference_length > 0:
        audio_windows = [(0, audio_length)] * num_frames
    if audio_window is not None and audio_window < num_frames:
        video_windows = coordinates.video_windows(audio_length, num_frames, audio_window, *rates)
        video_windows = [(0, num_frames)] * reference_length + video_windows
    if audio_windows is not None:
        audio_windows = [(reference_length + first, reference_length + end) for first, end in audio_windows]
        audio_windows = group_windows(audio_windows, tokens_per_frame, 1, num_context_tokens, device, own_tokens)
    if video_windows is not None:
        video_windows = group_windows(video_windows, 1, tokens_per_frame, num_context_tokens, device)
    return audio_windows, video_windows


def gather_tokens(states: torch.Tensor, parallel_config: ParallelConfig) -> torch.Tensor:
    """The tokens `(batch_size, num_tokens, ...)` of all processes. Each process holds a part."""
    config = parallel_config.context_parallel_config
    if config.ulysses_anything or config.ring_anything:
        return PartitionAnythingSharder.unshard_anything(states, 1, config._flattened_mesh)
    return EquipartitionSharder.unshard(states, 1, config._flattened_mesh)


class DualBranchAttnProcessor:
    """Self-attention within one modality, with rotary embedding."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self, attn: DualBranchAttention, hidden_states: torch.Tensor, rotary_emb: RotaryEmbedding
    ) -> torch.Tensor:
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        key = attn.norm_k(attn.to_k(hidden_states)).unflatten(2, (attn.heads, -1))
        value = attn.to_v(hidden_states).unflatten(2, (attn.heads, -1))

        query = coordinates.apply_rotary_embedding(query, rotary_emb)
        key = coordinates.apply_rotary_embedding(key, rotary_emb)

        parallel_config = self._parallel_config if attn.is_sharded else None
        hidden_states = dispatch_attention_fn(
            query, key, value, backend=self._attention_backend, parallel_config=parallel_config
        )
        return attn.to_out[0](hidden_states.flatten(2, 3).type_as(query))


class FusionAttnProcessor:
    """Cross-attention to the text and to the other modality. Both share query, query norm and output projection.

    `o(attn(q, k_text, v_text) + attn(rope(q), [k_context ; rope(k_fusion)], [v_context ; v_fusion]))` is Ovi's form with
    CCL's context tokens (arXiv:2603.18600), if the layer has any. The second term is

    - attention to all of the other modality, or within `windows` of it. Every window has the context tokens too;
    - for a sample that does not read the other modality, attention to the context tokens alone. Without context tokens the
      term is left out. No bit of it depends on the other modality.

    No attention mask is used. Under context parallelism each process has its own queries, and the keys and values of all
    tokens of the other modality.
    """

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: FusionAttention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        other_hidden_states: torch.Tensor | None,
        rotary_emb: RotaryEmbedding,
        other_rotary_emb: RotaryEmbedding,
        reads_other: bool | torch.Tensor,
        windows: WindowGroups | None = None,
        kept_other: KeysValues | None = None,
    ) -> torch.Tensor:
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        key = attn.norm_k(attn.to_k(encoder_hidden_states)).unflatten(2, (attn.heads, -1))
        value = attn.to_v(encoder_hidden_states).unflatten(2, (attn.heads, -1))
        hidden_states = dispatch_attention_fn(query, key, value, backend=self._attention_backend).flatten(2, 3)

        if reads_other is not False or attn.context_tokens is not None:
            query = coordinates.apply_rotary_embedding(query, rotary_emb)
        fusion = None
        if reads_other is not False:
            project = functools.partial(self.project_other, attn, other_hidden_states, other_rotary_emb)
            key, value = project() if kept_other is None else kept_other.once(project)
            if windows is None:
                fusion = self.attend(query, key, value)
            else:
                fusion = self.attend_windows(query, key, value, windows)
        if reads_other is not True:
            alone = None
            if attn.context_tokens is not None:
                context = attn.context_tokens.to(query.dtype).expand(query.shape[0], -1, -1)
                alone = self.attend(query, *self.project_fusion(attn, context))
            if fusion is None:
                fusion = alone
            else:
                reads_other = reads_other[:, None, None, None]
                fusion = torch.where(reads_other, fusion, torch.zeros_like(fusion) if alone is None else alone)

        if fusion is not None:
            hidden_states = hidden_states + fusion.flatten(2, 3)
        return attn.to_out[0](hidden_states.type_as(query))

    def project_other(
        self, attn: FusionAttention, states: torch.Tensor, rotary_emb: RotaryEmbedding
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values `(batch_size, num_tokens, heads, head_dim)` of `[context ; other]`, the other modality's keys
        rotated."""
        key, value = self.project_fusion(attn, attn.norm_fusion(states))
        key = coordinates.apply_rotary_embedding(key, rotary_emb)
        if self._parallel_config is not None and attn.is_sharded:
            key, value = gather_tokens(key, self._parallel_config), gather_tokens(value, self._parallel_config)
        if attn.context_tokens is not None:
            context = attn.context_tokens.to(states.dtype).expand(states.shape[0], -1, -1)
            context_key, context_value = self.project_fusion(attn, context)
            key, value = torch.cat([context_key, key], dim=1), torch.cat([context_value, value], dim=1)
        return key, value

    def project_fusion(self, attn: FusionAttention, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the other modality's normed tokens, or of context tokens."""
        key = attn.norm_k_fusion(attn.to_k_fusion(states)).unflatten(2, (attn.heads, -1))
        return key, attn.to_v_fusion(states).unflatten(2, (attn.heads, -1))

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Attention of all queries to all keys."""
        return dispatch_attention_fn(query, key, value, backend=self._attention_backend)

    def attend_windows(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, windows: WindowGroups
    ) -> torch.Tensor:
        """Attention within windows. Windows of one size are stacked in the batch dimension."""
        fusion = torch.empty_like(query)
        for queries, keys in windows:
            gathered = (
                states.index_select(1, tokens.flatten()).unflatten(1, tokens.shape).flatten(0, 1)
                for states, tokens in ((query, queries), (key, keys), (value, keys))
            )
            attended = self.attend(*gathered).unflatten(0, (-1, queries.shape[0])).flatten(1, 2)
            fusion.index_copy_(1, queries.flatten(), attended.type_as(fusion))
        return fusion


class RSRoPEAttnProcessor:
    """Plan attention under Relative Semantic RoPE (Baton, arXiv:2605.25195; the equations are ours).

    Latents are queries, plan tokens are keys. One frequency table rotates both by their coordinates in the shared space-time
    frame. A score depends on offsets in that frame only.
    """

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: PlanAttention,
        hidden_states: torch.Tensor,
        plan_hidden_states: torch.Tensor,
        rotary_emb: RotaryEmbedding,
        plan_rotary_emb: RotaryEmbedding,
        plan_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        query = self.rotate(query, rotary_emb)
        key = attn.norm_k(attn.to_k(plan_hidden_states)).unflatten(2, (attn.heads, -1))
        key = self.rotate(key, plan_rotary_emb)
        value = attn.to_v(plan_hidden_states).unflatten(2, (attn.heads, -1))

        attention_mask, has_plan = None, None
        if plan_mask is not None:
            # A sample without a plan would take a softmax over nothing. It attends to everything, and its output is dropped.
            has_plan = plan_mask.any(dim=-1)
            attention_mask = (plan_mask | ~has_plan[:, None])[:, None, None, :]

        hidden_states = dispatch_attention_fn(
            query, key, value, attn_mask=attention_mask, backend=self._attention_backend
        )
        hidden_states = attn.to_out[0](hidden_states.flatten(2, 3).type_as(query))
        if has_plan is not None:
            hidden_states = hidden_states * has_plan[:, None, None].to(hidden_states.dtype)
        return hidden_states

    def rotate(self, states: torch.Tensor, rotary_emb: RotaryEmbedding) -> torch.Tensor:
        """Rotates queries or keys by their coordinates."""
        return coordinates.apply_rotary_embedding(states, rotary_emb)


class DualBranchAttention(nn.Module, AttentionModuleMixin):
    """Multi-head self-attention of one branch, with RMS-normalised queries and keys.

    `is_sharded` says that context parallelism splits the tokens that it reads over the processes.
    """

    _default_processor_cls = DualBranchAttnProcessor
    _available_processors = [DualBranchAttnProcessor]
    _supports_qkv_fusion = False

    def __init__(self, dim: int, heads: int, eps: float, is_sharded: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.is_sharded = is_sharded
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])
        self.norm_q = nn.RMSNorm(dim, eps=eps)
        self.norm_k = nn.RMSNorm(dim, eps=eps)
        self.set_processor(self._default_processor_cls())

    def forward(self, hidden_states: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        return self.processor(self, hidden_states, *args, **kwargs)


class FusionAttention(DualBranchAttention):
    """Cross-attention to the text and to the other modality, with learnable context tokens after CCL (arXiv:2603.18600).

    CCL's formulas are not public. Ours: context tokens join the other modality's tokens after `norm_fusion`. They pass the
    same projections and the same norm of the keys, but are not rotated. They start near zero, the mean of the normed tokens.
    On a trained checkpoint, fresh context tokens pull the result a little towards the mean of the values, not in a random
    direction.
    """

    _default_processor_cls = FusionAttnProcessor
    _available_processors = [FusionAttnProcessor]

    def __init__(
        self, dim: int, heads: int, eps: float, num_context_tokens: int = 0, is_sharded: bool = False
    ) -> None:
        super().__init__(dim, heads, eps, is_sharded)
        self.norm_fusion = FP32LayerNorm(dim, eps, elementwise_affine=True)
        self.to_k_fusion = nn.Linear(dim, dim)
        self.to_v_fusion = nn.Linear(dim, dim)
        self.norm_k_fusion = nn.RMSNorm(dim, eps=eps)
        self.context_tokens = None
        if num_context_tokens > 0:
            self.context_tokens = nn.Parameter(0.02 * torch.randn(num_context_tokens, dim))


class PlanAttention(DualBranchAttention):
    """Cross-attention from the latents of one modality to its plan: Baton's `VCAttn` and `ACAttn` (arXiv:2605.25195).

    The output projection starts at zero: fresh plan layers do not change the output of a converted checkpoint.
    """

    _default_processor_cls = RSRoPEAttnProcessor
    _available_processors = [RSRoPEAttnProcessor]

    def __init__(self, dim: int, heads: int, eps: float) -> None:
        super().__init__(dim, heads, eps)
        nn.init.zeros_(self.to_out[0].weight)
        nn.init.zeros_(self.to_out[0].bias)
