"""Baton's VA-Planner: a language model reads the prompt, two towers write the clip's semantic plan (arXiv:2605.25195)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn as nn
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionModuleMixin, FeedForward
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.normalization import FP32LayerNorm
from diffusers.utils.accelerate_utils import apply_forward_hook
from transformers import DynamicCache, Qwen3Config, Qwen3Model

from ..coordinates import (
    PlanLayout,
    apply_rotary_embedding,
    nearest_timestamp,
    num_timestamps_within,
    plan_layout,
    rotary_embedding,
    timestamp_coordinates,
)
from ..cues import Cue, Sheet, format_sheet, format_timestamp, parse_cues, parse_sheet
from ..plan import SemanticPlan


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLANNER_SYSTEM_PROMPT = (
    "You direct short video clips with sound. Read the description and plan, moment by moment, what is seen and what "
    "is heard: who is where, what happens in which order, and which sound belongs to which event."
)


def tokenize_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], system_prompt: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Puts prompts into the form that the planner reads, padded on the left.

    A tokenizer with a chat template (Qwen3's) gets a system and a user turn and the opening of an answer without
    "thinking": the placeholders take the place of the answer. A tokenizer without one (nano's) gets the system prompt, if
    any, and the prompt in one line. Nothing is cut off: `VAPlannerModel.forward` refuses what is too long.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): the planner's tokenizer, with a padding token.
        prompts (`Sequence[str]`): descriptions of clips.
        system_prompt (`str`, *optional*): usually `planner.config.system_prompt`.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: `input_ids` and `attention_mask`, both `(batch_size, text_length)`, int64.

    Raises:
        ValueError: if there is no prompt, or the tokenizer has no padding token.
    """
    if isinstance(prompts, str) or not len(prompts):
        raise ValueError(f"`prompts` is {prompts!r}, but must be a list of at least one prompt.")
    if tokenizer.pad_token is None:
        raise ValueError(f"{type(tokenizer).__name__} has no padding token: set `tokenizer.pad_token`.")
    if tokenizer.chat_template is not None:
        system = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
        texts = [
            tokenizer.apply_chat_template(
                [*system, {"role": "user", "content": prompt}],
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=False,
            )
            for prompt in prompts
        ]
    else:
        texts = [prompt if system_prompt is None else f"{system_prompt} {prompt}" for prompt in prompts]
    encoded = tokenizer(
        texts,
        padding=True,
        padding_side="left",
        add_special_tokens=tokenizer.chat_template is None,
        return_tensors="pt",
        verbose=False,  # `check_lengths` refuses what is too long; transformers would warn of another model's limit
    )
    return encoded.input_ids.long(), encoded.attention_mask.long()


def add_timestamps(tokenizer: PreTrainedTokenizerBase, num_timestamps: int, timestamp_rate: float) -> int:
    """
    Adds timestamp tokens to a tokenizer, for a planner that writes cues.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): the planner's tokenizer.
        num_timestamps (`int`): tokens to add, from 0 seconds on.
        timestamp_rate (`float`): timestamps per second.

    Returns:
        `int`: the id of the first one, `first_timestamp_id` of [`VAPlannerModel`]; the others follow.

    Raises:
        ValueError: if two of the timestamps would read the same, or the tokenizer has some of them already.
    """
    stamps = [format_timestamp(i / timestamp_rate) for i in range(num_timestamps)]
    first = len(tokenizer)
    if len(set(stamps)) < num_timestamps or tokenizer.add_tokens(stamps) < num_timestamps:
        raise ValueError(
            f"{num_timestamps} timestamps at {timestamp_rate} per second are not new and distinct in hundredths of a second: "
            "take a lower rate, and a tokenizer without timestamps."
        )
    return first


def check_sheet_tokens(tokenizer: PreTrainedTokenizerBase, config: Mapping[str, Any]) -> None:
    """
    Refuses a tokenizer that reads cue sheets as other tokens than the planner's configuration names.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): the planner's tokenizer.
        config (`Mapping`): the planner's configuration, with `first_timestamp_id` and, if casts are written, `cast_separator_id`.

    Raises:
        ValueError: if the first timestamp or the semicolon has another id.
    """
    expected = {"first_timestamp_id": format_timestamp(0.0), "cast_separator_id": ";"}
    for name, text in expected.items():
        if config.get(name) is not None:
            ids = tokenizer(text, add_special_tokens=False).input_ids
            if ids != [config[name]]:
                raise ValueError(
                    f"`{name}` of the planner is {config[name]}, but its tokenizer reads {text!r} as {ids}: write the number of "
                    "one token that it has for it."
                )


def snap_cues(sheet: str, timestamp_rate: float) -> str:
    """A cue sheet with its instants moved to the nearest timestamps of a planner, as it reads them."""
    cast, cues = parse_sheet(sheet)
    return format_sheet(Sheet(cast, tuple(Cue(nearest_timestamp(cue.time, timestamp_rate), cue.text) for cue in cues)))


def plan_prompts(prompts: Sequence[str], sheets: Sequence[str], plans_from_sheets: bool) -> list[str]:
    """
    What the planner reads before each sheet when it makes plan tokens: the prompt or, with `plans_from_sheets`, what a sheet
    with a cast says.
    """
    if not plans_from_sheets:
        return list(prompts)
    parsed = map(parse_sheet, sheets)
    return [sheet.to_prompt() if sheet.cast else text for text, sheet in zip(prompts, parsed, strict=True)]


def tokenize_cues(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    cues: Sequence[str],
    system_prompt: str | None = None,
    timestamp_rate: float = 16.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Puts prompts, each with its cue sheet as the answer, into the form that the planner reads, padded on the left.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): the planner's tokenizer, with a padding token, timestamps, and an end of text.
        prompts (`Sequence[str]`): descriptions of clips.
        cues (`Sequence[str]`): a sheet for each prompt, see [`baton_diffusers.cues`]. An empty sheet leaves all times open.
        system_prompt (`str`, *optional*): usually `planner.config.system_prompt`.
        timestamp_rate (`float`, defaults to 16.0): usually `planner.config.timestamp_rate`; instants are moved to the
            nearest timestamp.

    Returns:
        `tuple[torch.Tensor, torch.Tensor, torch.Tensor]`: `input_ids`, `attention_mask` and `labels`, all of shape
        `(batch_size, text_length)`, int64; `labels` are the tokens of the sheets and of their ends, and -100 elsewhere.

    Raises:
        ValueError: if a sheet is malformed or has instants beyond the timestamps, or there is not one for each prompt.
    """
    if isinstance(cues, str) or len(cues) != len(prompts):
        raise ValueError(
            f"`cues` has to be a list with one sheet for each of the {len(prompts)} prompts, got {cues!r}."
        )
    input_ids, attention_mask = tokenize_prompts(tokenizer, prompts, system_prompt)
    answers, known = [], tokenizer.get_added_vocab()
    for sheet in cues:
        sheet = snap_cues(sheet, timestamp_rate)
        answer = tokenizer(sheet, add_special_tokens=False, verbose=False).input_ids
        if unknown := [cue.time for cue in parse_cues(sheet) if format_timestamp(cue.time) not in known]:
            raise ValueError(f"`cues` name the instant {unknown[0]} seconds, but the planner has no timestamp for it.")
        answers.append([*answer, tokenizer.eos_token_id])
    rows = [
        [*ids[mask.bool()].tolist(), *answer]
        for ids, mask, answer in zip(input_ids, attention_mask, answers, strict=True)
    ]
    length = max(len(row) for row in rows)
    input_ids = torch.full((len(rows), length), tokenizer.pad_token_id)
    attention_mask = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, -100)
    for i, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        input_ids[i, length - len(row) :] = torch.tensor(row)
        attention_mask[i, length - len(row) :] = 1
        labels[i, length - len(answer) :] = torch.tensor(answer)
    return input_ids, attention_mask, labels


@dataclass(frozen=True)
class SheetOutline:
    """What a cue sheet must say, as tokens. The language model chooses all instants, and the places that are left open.

    Args:
        cast: each name, and the places that it may have.
        cues: the texts of the cues, in their order.
    """

    cast: dict[tuple[int, ...], tuple[int, ...]]
    cues: list[list[int]]


class _SheetConstraint:
    """The tokens that may come next in a sheet whose cues must name actors of its cast.

    The cast stands before the first timestamp. Its entries, between separators, are a name that no other entry has, and a place as
    the last token. With an outline, the sheet says exactly what the outline says.
    """

    def __init__(self, separator: int, timestamps: range, end: int, outline: SheetOutline | None = None):
        self.separator = separator
        self.timestamps = timestamps
        self.end = end
        self.outline = outline
        self.entries: list[list[int]] = [[]]
        self.cues: list[list[int]] = []

    def append(self, token: int) -> None:
        if token in self.timestamps:
            self.cues.append([])
        elif self.cues:
            self.cues[-1].append(token)
        elif token == self.separator:
            self.entries.append([])
        else:
            self.entries[-1].append(token)

    def impossible(self, tokens: torch.Tensor) -> torch.Tensor:
        """Which of all `tokens` cannot come next."""
        if self.outline is not None:
            possible = self._next_of_cue() if self.cues else self._next_of_cast()
            return ~torch.isin(tokens, tokens.new_tensor(possible))
        *others, last = self.entries
        if not self.cues:
            if self.entries == [[]]:  # a sheet may be empty, or have no cast
                return tokens == self.separator
            names = [entry[:-1] for entry in others]
            again = [name[-1] for name in names if name[:-1] == last]  # tokens that would repeat a name
            unfinished = [] if len(last) > 1 else [self.separator, *self.timestamps, self.end]
            return torch.isin(tokens, tokens.new_tensor([*again, *unfinished]))
        cue, names = self.cues[-1], [entry[:-1] for entry in self.entries if entry]
        if not names or any(cue[: len(name)] == name for name in names):
            return tokens == self.separator
        following = [name[len(cue)] for name in names if name[: len(cue)] == cue]
        return ~torch.isin(tokens, tokens.new_tensor(following))

    def _next_of_cast(self) -> list[int]:
        *others, last = (tuple(entry) for entry in self.entries)
        cast = {name: places for name, places in self.outline.cast.items() if name not in [e[:-1] for e in others]}
        if last[:-1] in cast:  # the entry is whole
            return [self.separator] if len(cast) > 1 else self._next_cue(0)
        if last in cast:
            taken = {entry[-1] for entry in others} | {
                places[0] for name, places in cast.items() if name != last and len(places) == 1
            }
            return [place for place in cast[last] if place not in taken] or list(cast[last])
        names = [name[len(last)] for name in cast if name[: len(last)] == last]
        return names or self._next_cue(0)  # a cast without anybody

    def _next_of_cue(self) -> list[int]:
        text, written = self.outline.cues[len(self.cues) - 1], self.cues[-1]
        return [text[len(written)]] if len(written) < len(text) else self._next_cue(len(self.cues))

    def _next_cue(self, number: int) -> list[int]:
        return list(self.timestamps) if number < len(self.outline.cues) else [self.end]


class AlignmentAttnProcessor:
    """Attention of a tower's tokens to other tokens, both rotated by their own timestamps."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: AlignmentAttention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        rotary_emb: tuple[torch.Tensor, torch.Tensor],
        encoder_rotary_emb: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        query = attn.to_q(hidden_states).unflatten(-1, (attn.heads, -1))
        key = attn.to_k(encoder_hidden_states).unflatten(-1, (attn.heads, -1))
        value = attn.to_v(encoder_hidden_states).unflatten(-1, (attn.heads, -1))
        query = apply_rotary_embedding(query, rotary_emb)
        key = apply_rotary_embedding(key, encoder_rotary_emb)
        hidden_states = dispatch_attention_fn(
            query, key, value, backend=self._attention_backend, parallel_config=self._parallel_config
        )
        return attn.to_out[0](hidden_states.flatten(2))


class AlignmentAttention(nn.Module, AttentionModuleMixin):
    """Cross-attention under timestamp RoPE.

    Args:
        dim (`int`): width of the queries and of the output.
        num_attention_heads (`int`): heads; they divide `dim`.
        cross_attention_dim (`int`): width of the keys and values before projection.
    """

    _default_processor_cls = AlignmentAttnProcessor
    _available_processors = [AlignmentAttnProcessor]
    _supports_qkv_fusion = False

    def __init__(self, dim: int, num_attention_heads: int, cross_attention_dim: int):
        super().__init__()
        self.heads = num_attention_heads
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(cross_attention_dim, dim)
        self.to_v = nn.Linear(cross_attention_dim, dim)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])
        self.set_processor(AlignmentAttnProcessor())

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        rotary_emb: tuple[torch.Tensor, torch.Tensor],
        encoder_rotary_emb: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        return self.processor(self, hidden_states, encoder_hidden_states, rotary_emb, encoder_rotary_emb)


class DualAlignmentBlock(nn.Module):
    """One layer of both semantic alignment towers.

    Each tower reads the hidden states of its own placeholders (`H_hat = CrossAttn(Q, H)`), then the other tower's state, then
    applies an MLP. Both cross-modal attentions read the states before either updates them, so neither modality comes first.
    Residual form and normalisation are ours.

    Args:
        dim (`int`): width of the towers.
        num_attention_heads (`int`): attention heads.
        language_model_dim (`int`): width of the language model's hidden states.
    """

    def __init__(self, dim: int, num_attention_heads: int, language_model_dim: int):
        super().__init__()
        self.norm1 = FP32LayerNorm(dim)
        self.attn1 = AlignmentAttention(dim, num_attention_heads, language_model_dim)
        self.norm2 = FP32LayerNorm(dim)
        self.attn2 = AlignmentAttention(dim, num_attention_heads, dim)
        self.norm3 = FP32LayerNorm(dim)
        self.ff = FeedForward(dim, activation_fn="gelu-approximate")

        self.audio_norm1 = FP32LayerNorm(dim)
        self.audio_attn1 = AlignmentAttention(dim, num_attention_heads, language_model_dim)
        self.audio_norm2 = FP32LayerNorm(dim)
        self.audio_attn2 = AlignmentAttention(dim, num_attention_heads, dim)
        self.audio_norm3 = FP32LayerNorm(dim)
        self.audio_ff = FeedForward(dim, activation_fn="gelu-approximate")

    def forward(
        self,
        hidden_states: torch.Tensor,
        audio_hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        audio_encoder_hidden_states: torch.Tensor,
        rotary_emb: tuple[torch.Tensor, torch.Tensor],
        audio_rotary_emb: tuple[torch.Tensor, torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # 1. Q -> H, within each modality
        hidden_states = hidden_states + self.attn1(
            self.norm1(hidden_states), encoder_hidden_states, rotary_emb, rotary_emb
        )
        audio_hidden_states = audio_hidden_states + self.audio_attn1(
            self.audio_norm1(audio_hidden_states), audio_encoder_hidden_states, audio_rotary_emb, audio_rotary_emb
        )

        # 2. Cross-modal attention, both ways at once
        normed, audio_normed = self.norm2(hidden_states), self.audio_norm2(audio_hidden_states)
        hidden_states = hidden_states + self.attn2(normed, audio_normed, rotary_emb, audio_rotary_emb)
        audio_hidden_states = audio_hidden_states + self.audio_attn2(
            audio_normed, normed, audio_rotary_emb, rotary_emb
        )

        # 3. MLP
        hidden_states = hidden_states + self.ff(self.norm3(hidden_states))
        audio_hidden_states = audio_hidden_states + self.audio_ff(self.audio_norm3(audio_hidden_states))
        return hidden_states, audio_hidden_states


class VAPlannerModel(ModelMixin, ConfigMixin, PeftAdapterMixin):
    r"""
    Plans a clip from its prompt: continuous semantic tokens of picture and sound, aligned in time (Baton,
    arXiv:2605.25195).

    A language model makes one causal pass over `[system; prompt; video placeholders; audio placeholders]`, with one
    placeholder per token of the plan. The hidden states at the placeholders feed two *semantic alignment towers*, whose
    learned queries read them and each other under a timestamp RoPE, in seconds, and regress the features of the frozen
    semantic encoders (`VideoSemanticEncoder`, `AudioSemanticEncoder`).

    Where the paper is silent, ours: one learned placeholder per modality. Queries are tables over (patch) and (position in chunk),
    shared over time, so one planner serves any duration. Keyframes then differ by their times alone, so the attention to the
    language model's states runs under the timestamp RoPE too.

    With timestamps, also ours, the language model may first *write cues* ([`VAPlannerModel.generate_cues`]): when the events of
    the prompt happen. It then plans from `[system; prompt; cues; placeholders]`. A prompt seldom says when, and regressing a plan
    from the prompt alone averages over all possible times. Cues are sampled, and the plan commits to them. Each placeholder carries
    the timestamp of its moment, so it finds its cues by content.

    Args:
        language_model_config (`dict`): configuration of the `transformers.Qwen3Model`; its `tie_word_embeddings` says whether
            cues are written with the weights that read them.
        video_dim (`int`, defaults to 1152): width of the video plan tokens.
        audio_dim (`int`, defaults to 512): width of the audio plan tokens.
        keyframe_rate (`float`, defaults to 6.0): keyframes per second.
        video_grid (`tuple[int, int]`, defaults to `(8, 8)`): rows and columns of patches in a keyframe.
        audio_tokens_per_chunk (`int`, defaults to 25): audio plan tokens per chunk.
        chunk_duration (`float`, defaults to 1.0): seconds per audio chunk.
        tower_depth (`int`, defaults to 2): layers of the towers, at least 1.
        tower_num_attention_heads (`int`, defaults to 32): attention heads of the towers.
        tower_dim (`int`, *optional*): width of the towers; the language model's by default.
        rope_positions_per_second (`float`, defaults to 24.0): one second in units of the towers' RoPE, whose fastest
            channels turn by one radian per unit (ours: about one unit between neighbouring audio tokens).
        rope_theta (`float`, defaults to 10000.0): base of the towers' RoPE frequencies.
        system_prompt (`str`, *optional*): what `tokenize_prompts` puts before every prompt.
        first_timestamp_id (`int`, *optional*): the language model's token for 0 seconds, see [`add_timestamps`]. Without one the
            planner writes no cues, as in the paper.
        num_timestamps (`int`, defaults to 0): timestamp tokens.
        timestamp_rate (`float`, defaults to 16.0): timestamps per second.
        cast_separator_id (`int`, *optional*): the token between two actors of a sheet's cast. With one, decoding makes each cue
            begin with the name of an actor of the cast.
        min_cue_gap (`int`, defaults to 0): least number of timestamps between two cues that are written.
        plans_from_sheets (`bool`, defaults to `False`): make plan tokens from a sheet with a cast alone, not also from the prompt, for
            sheets that settle all that a plan shows. Then an unusual prompt cannot blur the plan of a correct sheet.

    Raises:
        ValueError: if the towers' width does not divide into heads of even size, or the timestamps are not among the language
            model's tokens.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["Qwen3DecoderLayer", "DualAlignmentBlock"]
    _repeated_blocks = ["Qwen3DecoderLayer", "DualAlignmentBlock"]
    _skip_layerwise_casting_patterns = ["embed_tokens", "rotary_emb", "norm", "proj_out", "lm_head"]

    @register_to_config
    def __init__(
        self,
        language_model_config: dict[str, Any],
        video_dim: int = 1152,
        audio_dim: int = 512,
        keyframe_rate: float = 6.0,
        video_grid: tuple[int, int] = (8, 8),
        audio_tokens_per_chunk: int = 25,
        chunk_duration: float = 1.0,
        tower_depth: int = 2,
        tower_num_attention_heads: int = 32,
        tower_dim: int | None = None,
        rope_positions_per_second: float = 24.0,
        rope_theta: float = 10000.0,
        system_prompt: str | None = PLANNER_SYSTEM_PROMPT,
        first_timestamp_id: int | None = None,
        num_timestamps: int = 0,
        timestamp_rate: float = 16.0,
        cast_separator_id: int | None = None,
        min_cue_gap: int = 0,
        plans_from_sheets: bool = False,
    ):
        super().__init__()
        language_model_config = Qwen3Config(**language_model_config)
        hidden_size = language_model_config.hidden_size
        tower_dim = tower_dim or hidden_size
        if tower_depth < 1:
            raise ValueError(f"`tower_depth` is {tower_depth}, but must be at least 1.")
        if tower_dim % (2 * tower_num_attention_heads):
            raise ValueError(
                f"towers of width {tower_dim} do not divide into {tower_num_attention_heads} heads of even size: "
                f"choose `tower_dim` as a multiple of {2 * tower_num_attention_heads}."
            )

        if first_timestamp_id is not None:
            if not (
                num_timestamps > 1 and 0 <= first_timestamp_id <= language_model_config.vocab_size - num_timestamps
            ):
                raise ValueError(
                    f"{num_timestamps} timestamps from {first_timestamp_id} on are not among the language model's "
                    f"{language_model_config.vocab_size} tokens: give at least 2, and a larger `vocab_size`."
                )
            if language_model_config.eos_token_id is None:
                raise ValueError("a planner with timestamps needs `eos_token_id` in `language_model_config`.")

        self.language_model = Qwen3Model(language_model_config)
        if first_timestamp_id is not None:  # neighbours start alike, and a shift in time starts as a rotation
            rows = get_timestep_embedding(torch.arange(num_timestamps), hidden_size)
            with torch.no_grad():
                self.language_model.embed_tokens.weight[first_timestamp_id : first_timestamp_id + num_timestamps] = (
                    math.sqrt(2) * language_model_config.initializer_range * rows
                )
        self.video_placeholder = nn.Parameter(0.02 * torch.randn(hidden_size))
        self.audio_placeholder = nn.Parameter(0.02 * torch.randn(hidden_size))

        self._build_towers(tower_dim)

        self.lm_head = None
        if first_timestamp_id is not None and not language_model_config.tie_word_embeddings:
            self.lm_head = nn.Linear(hidden_size, language_model_config.vocab_size, bias=False)

        self.gradient_checkpointing = False

    def _build_towers(self, dim: int) -> None:
        """The towers of width `dim` with their queries. They regress the plan from the language model's hidden states."""
        config, language_model_dim = self.config, self.language_model.config.hidden_size
        self.video_queries = nn.Parameter(0.02 * torch.randn(math.prod(config.video_grid), dim))
        self.audio_queries = nn.Parameter(0.02 * torch.randn(config.audio_tokens_per_chunk, dim))
        self.norm_out = FP32LayerNorm(dim)
        self.audio_norm_out = FP32LayerNorm(dim)
        self.towers = nn.ModuleList(
            DualAlignmentBlock(dim, config.tower_num_attention_heads, language_model_dim)
            for _ in range(config.tower_depth)
        )
        self.proj_out = nn.Linear(dim, config.video_dim)
        self.audio_proj_out = nn.Linear(dim, config.audio_dim)

    def _align(
        self,
        encoder_hidden_states: torch.Tensor,
        audio_encoder_hidden_states: torch.Tensor,
        video_times: torch.Tensor,
        audio_times: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The towers' states `(batch_size, num_tokens, dim)`, read from the language model's hidden states at the placeholders."""
        batch_size, dtype = len(encoder_hidden_states), encoder_hidden_states.dtype
        rotary_emb = self._timestamp_rotary_embedding(video_times)
        audio_rotary_emb = self._timestamp_rotary_embedding(audio_times)
        num_keyframes = len(video_times) // len(self.video_queries)
        num_chunks = math.ceil(len(audio_times) / len(self.audio_queries))
        hidden_states = self.video_queries.to(dtype).repeat(num_keyframes, 1)
        audio_hidden_states = self.audio_queries.to(dtype).repeat(num_chunks, 1)[: len(audio_times)]
        hidden_states = hidden_states.expand(batch_size, -1, -1)
        audio_hidden_states = audio_hidden_states.expand(batch_size, -1, -1)
        for block in self.towers:
            inputs = (
                hidden_states,
                audio_hidden_states,
                encoder_hidden_states,
                audio_encoder_hidden_states,
                rotary_emb,
                audio_rotary_emb,
            )
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden_states, audio_hidden_states = self._gradient_checkpointing_func(block, *inputs)
            else:
                hidden_states, audio_hidden_states = block(*inputs)
        return self.norm_out(hidden_states), self.audio_norm_out(audio_hidden_states)

    @property
    def writes_cues(self) -> bool:
        """Whether the planner knows timestamps, and so can write cues before it plans."""
        return self.config.first_timestamp_id is not None

    def plan_layout(self, duration: float) -> PlanLayout:
        """Where and when the tokens of a plan of `duration` seconds are."""
        config = self.config
        return plan_layout(
            duration, config.keyframe_rate, config.video_grid, config.audio_tokens_per_chunk, config.chunk_duration
        )

    def check_lengths(self, text_length: int, duration: float) -> None:
        """
        Refuses clips that are too short or too long to be planned.

        Args:
            text_length (`int`): tokens of the longest prompt, with its cue sheet.
            duration (`float`): seconds to plan.

        Raises:
            ValueError: if `duration` ends before the first audio token or, where the planner knows timestamps, after the last
                of them; or if text and plan exceed the language model's positions.
        """
        config, layout = self.config, self.plan_layout(duration)
        if not layout.audio_mask.any():
            raise ValueError(
                f"the clip ends at {duration:g} seconds, but the planner's first audio token lies at "
                f"{layout.audio_times[0].item():g} seconds: make a longer clip, or go without the planner."
            )
        if self.writes_cues and num_timestamps_within(duration, config.timestamp_rate) > config.num_timestamps:
            raise ValueError(
                f"the clip lasts {duration:g} seconds, but the planner knows times up to "
                f"{config.num_timestamps / config.timestamp_rate:g} seconds: make a shorter clip, or go without the planner."
            )
        num_video_tokens, num_audio_tokens = len(layout.video_times), int(layout.audio_mask.sum())
        max_length = self.language_model.config.max_position_embeddings
        if text_length + num_video_tokens + num_audio_tokens > max_length:
            raise ValueError(
                f"{text_length} text tokens and {num_video_tokens} + {num_audio_tokens} plan tokens for {duration:g} seconds "
                f"exceed the language model's {max_length} positions: shorten the prompt or the clip."
            )

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        duration: float | None,
        labels: torch.Tensor | None = None,
        further_texts: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
    ) -> SemanticPlan | tuple[SemanticPlan | None, torch.Tensor]:
        """
        Args:
            input_ids (`torch.Tensor` of shape `(batch_size, text_length)`): tokens from `tokenize_prompts` or
                `tokenize_cues`.
            attention_mask (`torch.Tensor` of shape `(batch_size, text_length)`): 1 for text, 0 for padding on either side. Padding
                has no influence.
            duration (`float`): seconds to plan, the same for the whole batch. With `labels` it may be `None`: then nothing is
                planned, at a fraction of the cost.
            labels (`torch.Tensor` of shape `(batch_size, text_length)`, *optional*): tokens that the language model learns
                to write, -100 elsewhere.
            further_texts (tuple of `input_ids`, `attention_mask` and `labels`, *optional*): more texts that the language
                model learns to write, without a plan. Training calls the module once a step with all of them.

        Returns:
            `SemanticPlan`: its audio tokens fill whole chunks; those beyond `duration` are zero and masked. With `labels`,
            a tuple of it and the cross-entropy of each text, `(batch_size + number of further texts,)`: the mean over its
            labels, 0 for a text without any.

        Raises:
            ValueError: if `duration` is not positive, shapes disagree, or text and plan exceed the language model's
                positions.
        """
        if input_ids.ndim != 2 or attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"`input_ids` of shape {tuple(input_ids.shape)} and `attention_mask` of shape "
                f"{tuple(attention_mask.shape)} must both have shape (batch_size, text_length)."
            )
        if duration is None and labels is not None:
            hidden_states = self._read(self.language_model.embed_tokens(input_ids), attention_mask)
            return None, self._cross_entropies(hidden_states, labels, further_texts)
        if duration is None or not 0 < duration < math.inf:
            raise ValueError(f"`duration` is {duration} seconds, but must be positive.")
        device = input_ids.device
        batch_size, text_length = input_ids.shape

        # 1. The plan's layout. Audio tokens beyond the clip's end would be last in every sequence: they are left out.
        self.check_lengths(text_length, duration)
        layout = self.plan_layout(duration)
        video_times, audio_times = (
            times.to(device, non_blocking=True) for times in (layout.video_times, layout.audio_times)
        )
        num_video_tokens, num_audio_tokens = len(video_times), int(layout.audio_mask.sum())

        # 2. One causal pass over [prompt; video placeholders; audio placeholders]
        text_embeds = self.language_model.embed_tokens(input_ids)
        video_embeds = self._placeholders(self.video_placeholder, video_times, batch_size)
        audio_embeds = self._placeholders(self.audio_placeholder, audio_times[:num_audio_tokens], batch_size)
        attention_mask = nn.functional.pad(attention_mask, (0, num_video_tokens + num_audio_tokens), value=1)
        inputs_embeds = torch.cat([text_embeds, video_embeds.to(text_embeds), audio_embeds.to(text_embeds)], dim=1)
        hidden_states = self._read(inputs_embeds, attention_mask)
        text_hidden_states, hidden_states, audio_hidden_states = hidden_states.split(
            [text_length, num_video_tokens, num_audio_tokens], dim=1
        )

        # 3. Dual semantic alignment towers
        hidden_states, audio_hidden_states = self._align(
            hidden_states, audio_hidden_states, video_times, audio_times[:num_audio_tokens]
        )

        # 4. Regress the semantic encoders' features
        video_tokens = self.proj_out(hidden_states)
        audio_tokens = self.audio_proj_out(audio_hidden_states)
        audio_tokens = nn.functional.pad(audio_tokens, (0, 0, 0, len(audio_times) - num_audio_tokens))
        plan = SemanticPlan.laid_out(layout, video_tokens, audio_tokens, duration)
        return plan if labels is None else (plan, self._cross_entropies(text_hidden_states, labels, further_texts))

    @apply_forward_hook
    @torch.no_grad()
    def generate_cues(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        duration: float,
        temperature: float = 1.0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        max_new_tokens: int = 128,
        outlines: Sequence[SheetOutline | None] | None = None,
        earliest: float = 0.0,
    ) -> list[list[int]]:
        """
        Writes the cue sheets of prompts, token by token. Decoding is constrained to the grammar of sheets: timestamps never go
        back, nor beyond `duration`; with a `cast_separator_id`, a cast may come before the first one, and each cue then
        begins with the name of an actor of the cast. Without one, a sheet begins with a timestamp.

        Args:
            input_ids (`torch.Tensor` of shape `(batch_size, text_length)`): tokens from `tokenize_prompts`, padded left.
            attention_mask (`torch.Tensor` of shape `(batch_size, text_length)`): 1 for text, 0 for padding.
            duration (`float`): seconds of the clip, the same for the whole batch.
            temperature (`float`, defaults to 1.0): divides the logits before a token is drawn; 0 takes the likeliest.
            generator (`torch.Generator` or a list of them, *optional*): one for all rows, or one for each. With a list, a row does not
                depend on the batch.
            max_new_tokens (`int`, defaults to 128): most tokens of a sheet. A longer one ends before its last, unfinished cue.
            outlines (list of [`SheetOutline`] or `None`, *optional*): what each sheet must say; for a planner with a
                `cast_separator_id`.
            earliest (`float`, defaults to 0.0): seconds before which no cue is written.

        Returns:
            `list[list[int]]`: the sheets' tokens, without the end of the text.

        Raises:
            ValueError: if the planner knows no timestamps, or not all that lie within `duration`; the text exceeds the language
                model's positions; or `temperature` is negative.
        """
        config = self.config
        if not self.writes_cues:
            raise ValueError("this planner knows no timestamps (`first_timestamp_id` is None), and so writes no cues.")
        if not 0 <= temperature < math.inf:
            raise ValueError(f"`temperature` is {temperature}, but must be a number from 0 on.")
        self.check_lengths(input_ids.shape[1], duration)
        batch_size, device = len(input_ids), input_ids.device
        generators = generator if isinstance(generator, Sequence) else [generator] * batch_size
        draws = torch.stack(
            [
                torch.rand(max_new_tokens, generator=g, device="cpu" if g is None else g.device).cpu()
                for g in generators
            ]
        ).to(device)
        end = self.language_model.config.eos_token_id
        first, number = config.first_timestamp_id, config.num_timestamps
        last = first + num_timestamps_within(duration, config.timestamp_rate) - 1
        tokens = torch.arange(self.language_model.config.vocab_size, device=device)
        # The layer is called instead of reading its weight: then the hooks of offloading move it to the device.
        head = self.language_model.embed_tokens(tokens) if self.lm_head is None else None
        is_timestamp = (tokens >= first) & (tokens < first + number)
        start = min(first + math.ceil(round(earliest * config.timestamp_rate, 6)), last)
        earliest = torch.full((batch_size, 1), start, device=device)
        latest = torch.full((batch_size, 1), last, device=device)
        casts = None
        if config.cast_separator_id is not None:
            stamps = range(first, first + number)
            casts = [
                _SheetConstraint(config.cast_separator_id, stamps, end, outline)
                for outline in outlines or [None] * batch_size
            ]

        cache, written = DynamicCache(), []
        inputs_embeds = self.language_model.embed_tokens(input_ids)
        finished = torch.zeros(batch_size, dtype=torch.bool, device=device)
        for step in range(max_new_tokens):
            hidden_states = self._read(inputs_embeds, attention_mask, cache)[:, -1]
            impossible = is_timestamp & ((tokens < earliest) | (tokens > latest))
            if casts is None and step == 0:
                impossible = impossible | ~(is_timestamp | (tokens == end))
            if casts is not None:
                impossible = impossible | torch.stack([cast.impossible(tokens) for cast in casts])
            logits = self._logits(hidden_states, head).masked_fill(impossible, -math.inf)
            if temperature == 0:
                token = logits.argmax(dim=-1)
            else:
                cumulative = (logits / temperature).softmax(dim=-1).cumsum(dim=-1)
                token = (cumulative <= draws[:, step, None] * cumulative[:, -1:]).sum(dim=-1)
            finished = finished | (token == end)
            written.append(token.masked_fill(finished, end))
            if finished.all():
                break
            if casts is not None:
                for cast, number_of_token in zip(casts, token.tolist(), strict=True):
                    cast.append(number_of_token)
            earliest = torch.where(is_timestamp[token], token + config.min_cue_gap, earliest[:, 0])[:, None]
            if outlines is not None:
                left = [0 if cast.outline is None else len(cast.outline.cues) - len(cast.cues) for cast in casts]
                latest = (last - config.min_cue_gap * torch.tensor(left, device=device).clamp(min=0))[:, None]
                latest = torch.maximum(latest, earliest.clamp(max=last))
            inputs_embeds = self.language_model.embed_tokens(token)[:, None]
            attention_mask = nn.functional.pad(attention_mask, (0, 1), value=1)

        sheets = []
        for row in torch.stack(written, dim=1).tolist():
            if end in row:
                row = row[: row.index(end)]
            else:
                starts = [i for i, token in enumerate(row) if first <= token < first + number]
                row = row[: starts[-1]] if starts else []
            sheets.append(row)
        return sheets

    def _read(
        self, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor, cache: DynamicCache | None = None
    ) -> torch.Tensor:
        """The language model's hidden states of its newest tokens; padding has no positions."""
        position_ids = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)[:, -inputs_embeds.shape[1] :]
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state

    def _logits(self, hidden_states: torch.Tensor, head: torch.Tensor | None = None) -> torch.Tensor:
        """Logits of the next token. If the head shares the embeddings of the tokens, `head` is these embeddings, if they were
        fetched already."""
        if self.lm_head is not None:
            return self.lm_head(hidden_states).float()
        return nn.functional.linear(
            hidden_states, self.language_model.embed_tokens.weight if head is None else head
        ).float()

    def _cross_entropies(
        self,
        hidden_states: torch.Tensor,
        labels: torch.Tensor,
        further_texts: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None,
    ) -> torch.Tensor:
        losses = [self._cross_entropy(hidden_states, labels)]
        if further_texts is not None:
            input_ids, attention_mask, labels = further_texts
            hidden_states = self._read(self.language_model.embed_tokens(input_ids), attention_mask)
            losses.append(self._cross_entropy(hidden_states, labels))
        return torch.cat(losses)

    def _cross_entropy(self, hidden_states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The mean over each row's labels, each predicted from the tokens before it; 0 for a row without labels."""
        labels = labels[:, 1:]
        written = labels != -100
        losses = nn.functional.cross_entropy(
            self._logits(hidden_states[:, :-1][written]), labels[written], reduction="none"
        )
        sums = losses.new_zeros(len(labels)).index_add(0, written.nonzero()[:, 0], losses)
        return sums / written.sum(dim=1).clamp(min=1)

    def _placeholders(self, placeholder: torch.Tensor, times: torch.Tensor, batch_size: int) -> torch.Tensor:
        embeds = placeholder.expand(len(times), -1)
        if self.writes_cues:
            first, number = self.config.first_timestamp_id, self.config.num_timestamps
            timestamps = self.language_model.embed_tokens(torch.arange(first, first + number, device=times.device))
            place = timestamp_coordinates(times, self.config.timestamp_rate).clamp(max=number - 1)
            before = place.floor().long().clamp(max=number - 2)[:, 0]
            embeds = embeds + torch.lerp(
                timestamps[before], timestamps[before + 1], (place - before[:, None]).to(embeds)
            )
        return embeds.expand(batch_size, -1, -1)

    def _timestamp_rotary_embedding(self, times: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tower_dim = self.config.tower_dim or self.language_model.config.hidden_size
        head_dim = tower_dim // self.config.tower_num_attention_heads
        positions = timestamp_coordinates(times, self.config.rope_positions_per_second)
        return rotary_embedding(positions, (head_dim,), self.config.rope_theta)
