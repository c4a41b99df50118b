import pytest
import torch
from peft import LoraConfig
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from baton_diffusers.cues import parse_sheet
from baton_diffusers.models.va_planner import (
    AlignmentAttention,
    VAPlannerModel,
    add_timestamps,
    check_sheet_tokens,
    plan_prompts,
    tokenize_cues,
    tokenize_prompts,
)

from ..tiny import tiny_language_model


LANGUAGE_MODEL = tiny_language_model(vocab_size=30)
CONFIG = {
    "language_model_config": LANGUAGE_MODEL,
    "video_dim": 6,
    "audio_dim": 5,
    "video_grid": (2, 3),
    "audio_tokens_per_chunk": 8,
    "tower_num_attention_heads": 2,
}
DURATION = 1.3  # 8 keyframes; 11 audio tokens within it, 16 in whole chunks


def make_planner(**changes):
    torch.manual_seed(0)
    planner = VAPlannerModel(**CONFIG | changes).eval()
    for parameter in planner.parameters():  # away from the tiny initialisation, or nothing shows in the output
        if parameter.ndim >= 2:
            torch.nn.init.normal_(parameter, std=0.3)
    return planner


@pytest.fixture
def planner():
    return make_planner()


@pytest.fixture
def prompt():
    return torch.tensor([[3, 4, 5, 6, 7]]), torch.ones(1, 5, dtype=torch.long)


@pytest.mark.parametrize(
    "duration, keyframes, chunks, real", [(0.5, 3, 1, 4), (1.0, 6, 1, 8), (1.3, 8, 2, 10), (3, 18, 3, 24)]
)
def test_plans_any_duration(prompt, planner, duration, keyframes, chunks, real):
    plan = planner(*prompt, duration)
    assert plan.video_tokens.shape == (1, keyframes * 6, 6)
    assert plan.audio_tokens.shape == (1, chunks * 8, 5)
    assert plan.duration == duration
    assert plan.audio_mask.sum() == real and plan.audio_mask[0, :real].all()
    assert not plan.audio_tokens[~plan.audio_mask].any()
    torch.testing.assert_close(plan.video_times[5:7], torch.tensor([0.0, 1 / 6]))
    torch.testing.assert_close(plan.video_centres[6 + 4], torch.tensor([0.75, 0.5]))
    torch.testing.assert_close(plan.audio_times[:2], torch.tensor([1 / 16, 3 / 16]))


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_of_unequal_prompts_equals_the_prompts_one_by_one(planner, side):
    prompts = [[3], [4, 5, 6, 7, 8, 9], [10, 11, 12]]
    length = max(map(len, prompts))
    pads = [[0] * (length - len(p)) for p in prompts]
    ids = [pad + p if side == "left" else p + pad for p, pad in zip(prompts, pads, strict=True)]
    ones = [[1] * len(p) for p in prompts]
    mask = [pad + one if side == "left" else one + pad for one, pad in zip(ones, pads, strict=True)]
    batch = planner(torch.tensor(ids), torch.tensor(mask), DURATION)
    for index, p in enumerate(prompts):
        single = planner(torch.tensor([p]), torch.ones(1, len(p), dtype=torch.long), DURATION)
        torch.testing.assert_close(batch[index].video_tokens, single.video_tokens, atol=1e-5, rtol=0)
        torch.testing.assert_close(batch[index].audio_tokens, single.audio_tokens, atol=1e-5, rtol=0)
    assert (batch[0].video_tokens - batch[1].video_tokens).abs().max() > 0.01


def test_what_lies_in_the_padding_has_no_influence(planner):
    mask = torch.tensor([[0, 0, 1, 1, 1]])
    one, other = (planner(torch.tensor([[a, b, 5, 6, 7]]), mask, DURATION) for a, b in ((0, 0), (8, 9)))
    torch.testing.assert_close(one.video_tokens, other.video_tokens, atol=1e-6, rtol=0)


def test_audio_beyond_the_end_has_no_influence(planner, prompt):
    def effect_of_the_queries_from_the_third_on(duration):
        plan = planner(*prompt, duration)
        with torch.no_grad():
            planner.audio_queries[2:].neg_()
        changed = planner(*prompt, duration)
        return torch.stack(
            [
                (changed.video_tokens - plan.video_tokens).abs().max(),
                (changed.audio_tokens - plan.audio_tokens).abs().max(),
            ]
        )

    assert (effect_of_the_queries_from_the_third_on(DURATION) > 1e-3).all()
    assert not effect_of_the_queries_from_the_third_on(0.2).any()  # tokens 0 and 1 lie within 0.2 seconds


def test_the_video_side_sees_the_audio_side_although_the_language_model_is_causal(planner, prompt):
    before = planner(*prompt, DURATION).video_tokens
    with torch.no_grad():
        planner.audio_placeholder += 1
    assert not torch.equal(before, planner(*prompt, DURATION).video_tokens)


def test_timestamp_rope_depends_on_differences_of_time_alone(planner):
    attention = AlignmentAttention(16, 2, 16)
    hidden_states, context = torch.randn(1, 4, 16), torch.randn(1, 7, 16)
    query_times, key_times = torch.rand(4) * 3, torch.rand(7) * 3

    def attend(query_shift, key_shift):
        rotary = planner._timestamp_rotary_embedding(query_times + query_shift)
        return attention(hidden_states, context, rotary, planner._timestamp_rotary_embedding(key_times + key_shift))

    torch.testing.assert_close(attend(5.0, 5.0), attend(0.0, 0.0), atol=1e-5, rtol=0)
    assert (attend(0.1, 0.0) - attend(0.0, 0.0)).abs().max() > 1e-3


def test_keyframes_differ_although_queries_are_shared_over_time(planner, prompt):
    tokens = planner(*prompt, DURATION).video_tokens.unflatten(1, (-1, 6))[0]
    assert (tokens[1:] - tokens[:-1]).abs().amax(dim=(1, 2)).min() > 1e-3


def test_saved_and_loaded(planner, prompt, tmp_path):
    planner.save_pretrained(tmp_path)
    loaded = VAPlannerModel.from_pretrained(tmp_path)
    for one, other in ((planner, loaded), (loaded, planner)):
        assert torch.equal(one(*prompt, DURATION).video_tokens, other(*prompt, DURATION).video_tokens)
        assert torch.equal(one(*prompt, DURATION).audio_tokens, other(*prompt, DURATION).audio_tokens)


def test_gradient_checkpointing_gives_the_same_gradients(prompt):
    gradients = []
    for checkpointing in (False, True):
        planner = make_planner().train()
        if checkpointing:
            planner.enable_gradient_checkpointing()
            assert planner.is_gradient_checkpointing
        plan = planner(*prompt, DURATION)
        (plan.video_tokens.square().sum() + plan.audio_tokens.square().sum()).backward()
        gradients.append({name: p.grad for name, p in planner.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        torch.testing.assert_close(gradient, gradients[1][name], msg=name)


def test_a_lora_adapter_changes_the_plan_and_comes_off(planner, prompt):
    before = planner(*prompt, DURATION).video_tokens
    planner.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "to_q"], init_lora_weights=False))
    assert not torch.equal(before, planner(*prompt, DURATION).video_tokens)
    planner.disable_adapters()
    assert torch.equal(before, planner(*prompt, DURATION).video_tokens)


def test_layerwise_casting_keeps_the_plan(planner, prompt):
    before = planner(*prompt, DURATION).video_tokens
    planner.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    after = planner(*prompt, DURATION).video_tokens
    assert after.dtype == torch.float32
    torch.testing.assert_close(before, after, atol=0.2, rtol=0.1)


def test_wrong_input_is_refused(planner, prompt):
    input_ids, mask = prompt
    with pytest.raises(ValueError, match="`duration` is -1 seconds"):
        planner(input_ids, mask, -1)
    with pytest.raises(ValueError, match="ends at 0.01 seconds, but the planner's first audio token lies at 0.0625"):
        planner(input_ids, mask, 0.01)
    with pytest.raises(ValueError, match=r"`attention_mask` of shape \(1, 4\)"):
        planner(input_ids, mask[:, :4], DURATION)
    with pytest.raises(
        ValueError, match=r"5 text tokens and 216 \+ 48 plan tokens for 6 seconds exceed .* 256 positions"
    ):
        planner(input_ids, mask, 6)
    with pytest.raises(ValueError, match="`tower_dim` as a multiple of 4"):
        VAPlannerModel(**CONFIG, tower_dim=18)


@pytest.fixture
def tokenizer():
    words = ["<pad>", "a", "b", "c", "sys", "system", "user", "assistant", ":"]
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    backend.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>")


def test_prompts_are_padded_on_the_left(tokenizer):
    input_ids, mask = tokenize_prompts(tokenizer, ["a", "b c"])
    assert input_ids.tolist() == [[0, 1], [2, 3]] and mask.tolist() == [[0, 1], [1, 1]]
    assert tokenize_prompts(tokenizer, ["a"], "sys")[0].tolist() == [[4, 1]]


def test_prompts_take_the_chat_form_of_a_tokenizer_that_has_one(tokenizer):
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }} : {{ m.content }} {% endfor %}"
        "{% if add_generation_prompt and not enable_thinking %}assistant :{% endif %}"
    )
    assert tokenizer.decode(tokenize_prompts(tokenizer, ["a b"], "sys")[0][0]) == "system : sys user : a b assistant :"
    assert tokenizer.decode(tokenize_prompts(tokenizer, ["a b"])[0][0]) == "user : a b assistant :"


def test_prompts_that_are_no_list_and_tokenizers_without_padding_are_refused(tokenizer):
    with pytest.raises(ValueError, match="`prompts` is 'a'"):
        tokenize_prompts(tokenizer, "a")
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="no padding token"):
        tokenize_prompts(tokenizer, ["a"])


def test_the_full_size_planner_is_the_same_class():
    qwen3_8b = {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40960,
    }
    with torch.device("meta"):
        planner = VAPlannerModel(qwen3_8b)
    language_model = sum(p.numel() for p in planner.language_model.parameters())
    assert language_model == 8_190_735_360 - 151936 * 4096  # Qwen3-8B's parameters less its output head
    assert planner.video_queries.shape == (64, 4096) and planner.audio_queries.shape == (25, 4096)
    assert planner.proj_out.out_features == 1152 and planner.audio_proj_out.out_features == 512


TIMESTAMPS = {"first_timestamp_id": 10, "num_timestamps": 20, "timestamp_rate": 10.0}


@pytest.fixture(params=[False, True], ids=["head", "tied"])
def cue_planner(request):
    language_model = {**LANGUAGE_MODEL, "eos_token_id": 1, "tie_word_embeddings": request.param}
    return make_planner(language_model_config=language_model, **TIMESTAMPS)


@pytest.fixture
def cue_tokenizer():
    words = {word: i for i, word in enumerate("<pad> </s> <unk> a red ball purple face three jumps".split())}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")
    assert add_timestamps(tokenizer, 20, 10.0) == 10
    return tokenizer


@pytest.mark.parametrize(
    "config, message",
    [
        (
            {"first_timestamp_id": 9},
            r"`first_timestamp_id` of the planner is 9, but its tokenizer reads '<\|0.00\|>' as \[10\]",
        ),
        (
            {"first_timestamp_id": 10, "cast_separator_id": 5},
            r"`cast_separator_id` .* is 5, but its tokenizer reads ';' as \[2\]",
        ),
    ],
)
def test_a_tokenizer_with_other_tokens_of_sheets_is_refused(cue_tokenizer, config, message):
    check_sheet_tokens(cue_tokenizer, {"first_timestamp_id": 10, "cast_separator_id": None})
    check_sheet_tokens(cue_tokenizer, {"first_timestamp_id": None})
    with pytest.raises(ValueError, match=message):
        check_sheet_tokens(cue_tokenizer, config)


def test_cues_stand_between_the_prompt_and_the_placeholders(cue_tokenizer):
    prompts = ["a red ball jumps", "a face"]
    input_ids, attention_mask, labels = tokenize_cues(
        cue_tokenizer, prompts, ["<|0.31|> red ball <|1.40|> red ball", ""], timestamp_rate=10.0
    )
    assert input_ids.tolist() == [[3, 4, 5, 9, 13, 4, 5, 24, 4, 5, 1], [0] * 8 + [3, 7, 1]]
    assert attention_mask.tolist() == [[1] * 11, [0] * 8 + [1] * 3]
    assert labels.tolist() == [[-100] * 4 + [13, 4, 5, 24, 4, 5, 1], [-100] * 10 + [1]]
    assert cue_tokenizer.decode(labels[0, 4:-1]) == "<|0.30|> red ball <|1.40|> red ball"
    with pytest.raises(ValueError, match="2.5 seconds, but the planner has no timestamp"):
        tokenize_cues(cue_tokenizer, ["a ball"], ["<|2.50|> red ball"], timestamp_rate=10.0)
    with pytest.raises(ValueError, match="one sheet for each of the 2 prompts"):
        tokenize_cues(cue_tokenizer, prompts, ["<|0.50|> red ball"])
    with pytest.raises(ValueError, match="not new and distinct"):
        add_timestamps(cue_tokenizer, 20, 10.0)


def test_the_loss_of_cues_is_the_cross_entropy_of_each_from_the_tokens_before(cue_planner):
    input_ids = torch.tensor([[3, 4, 5, 13, 6, 1], [0, 3, 4, 12, 7, 1]])
    attention_mask = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]])
    labels = input_ids.clone()
    labels[:, :3] = -100
    plan, loss = cue_planner(input_ids, attention_mask, DURATION, labels)
    expected = []
    for row, (ids, mask) in enumerate(zip(input_ids, attention_mask, strict=True)):
        for i in range(3, 6):
            kept = ids[:i][mask[:i].bool()][None]
            hidden = cue_planner.language_model(input_ids=kept, attention_mask=torch.ones_like(kept)).last_hidden_state
            logits = cue_planner._logits(hidden[0, -1])
            expected.append(torch.nn.functional.cross_entropy(logits, labels[row, i]))
    torch.testing.assert_close(loss, torch.stack(expected).view(2, 3).mean(dim=1))
    torch.testing.assert_close(plan.video_tokens, cue_planner(input_ids, attention_mask, DURATION).video_tokens)

    # a text without labels counts 0; further texts are read in the same call, padded as they come
    further = (input_ids[1:, 1:], attention_mask[1:, 1:], labels[1:, 1:])
    nothing = torch.full_like(labels, -100)
    _, losses = cue_planner(input_ids, attention_mask, DURATION, nothing, further)
    torch.testing.assert_close(losses, torch.stack([torch.zeros(()), torch.zeros(()), loss[1]]))


def test_cues_change_the_plan(cue_planner):
    ones = torch.ones(1, 5, dtype=torch.long)
    early = cue_planner(torch.tensor([[3, 4, 11, 5, 1]]), ones, DURATION)
    late = cue_planner(torch.tensor([[3, 4, 21, 5, 1]]), ones, DURATION)
    assert (early.video_tokens - late.video_tokens).abs().max() > 1e-3


def test_a_placeholder_between_two_timestamps_carries_both(cue_planner):
    timestamps = cue_planner.language_model.embed_tokens.weight[10:30]
    carried = cue_planner._placeholders(torch.zeros(16), torch.tensor([0.0, 0.34, 1.9, 7.0]), 2)
    assert carried.shape == (2, 4, 16)
    torch.testing.assert_close(carried[0, 1], 0.6 * timestamps[3] + 0.4 * timestamps[4])
    torch.testing.assert_close(carried[1, [0, 2, 3]], timestamps[[0, 19, 19]])


def test_cues_are_written_within_the_clip_and_in_order(cue_planner):
    input_ids, attention_mask = torch.randint(3, 10, (40, 6)), torch.ones(40, 6, dtype=torch.long)
    generator = torch.Generator().manual_seed(0)
    sheets = cue_planner.generate_cues(input_ids, attention_mask, DURATION, generator=generator)
    stamps = [[token - 10 for token in sheet if token >= 10] for sheet in sheets]
    assert any(len(row) > 2 for row in stamps)
    assert all(sheet[0] >= 10 for sheet in sheets if sheet)
    assert all(row == sorted(row) and all(0 <= stamp < 13 for stamp in row) for row in stamps)
    assert all(1 not in sheet for sheet in sheets)
    longest = max(range(40), key=lambda i: len(sheets[i]))
    generator.manual_seed(0)
    cut = cue_planner.generate_cues(input_ids, attention_mask, DURATION, generator=generator, max_new_tokens=3)
    assert len(cut[longest]) < 3
    late = cue_planner.generate_cues(input_ids, attention_mask, DURATION, generator=generator, earliest=0.3)
    stamps = [token - 10 for sheet in late for token in sheet if token >= 10]
    assert stamps and min(stamps) >= 3


def test_what_is_written_for_a_prompt_does_not_depend_on_the_batch(cue_planner):
    input_ids = torch.tensor([[3, 4, 5, 6], [0, 0, 7, 8], [0, 3, 9, 4]])
    attention_mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1], [0, 1, 1, 1]])

    def write(rows, temperature=1.0):
        generators = [torch.Generator().manual_seed(row) for row in rows]
        return cue_planner.generate_cues(input_ids[rows], attention_mask[rows], DURATION, temperature, generators)

    together = write([0, 1, 2])
    assert together == write([0]) + write([1]) + write([2])
    assert together == write([0, 1, 2]) and len({tuple(sheet) for sheet in together}) == 3
    # and not on how much padding there is
    generator = torch.Generator().manual_seed(1)
    assert cue_planner.generate_cues(torch.tensor([[7, 8]]), torch.ones(1, 2), DURATION, 1.0, generator) == [
        together[1]
    ]
    # the likeliest sheet takes no generator
    assert write([0, 1, 2], 0.0) == cue_planner.generate_cues(input_ids, attention_mask, DURATION, 0.0)


def test_the_likeliest_sheet_is_what_the_head_says(cue_planner):
    prompts = torch.arange(3, 10).repeat(3, 1).T + torch.tensor([0, 1, 2])
    sheets = cue_planner.generate_cues(prompts, torch.ones_like(prompts), DURATION, 0.0, max_new_tokens=8)
    assert any(sheets)
    for ids, sheet in zip(prompts.tolist(), sheets, strict=True):
        for token in sheet:
            kept = torch.tensor([ids])
            hidden = cue_planner.language_model(input_ids=kept, attention_mask=torch.ones_like(kept)).last_hidden_state
            logits = cue_planner._logits(hidden[0, -1])
            written = ids[3:]
            stamps = [t for t in written if t >= 10]
            others = range(10) if written else [1]  # a sheet begins with a timestamp, or is empty
            possible = [*others, *range(stamps[-1] if stamps else 10, 23)]
            assert token == max(possible, key=lambda t: logits[t].item())
            ids = [*ids, token]


def test_each_cue_names_an_actor_of_the_cast(cue_planner):
    planner = make_planner(
        language_model_config=dict(cue_planner.config.language_model_config), **TIMESTAMPS, cast_separator_id=3
    )
    input_ids, attention_mask = torch.randint(4, 10, (40, 6)), torch.ones(40, 6, dtype=torch.long)
    sheets = planner.generate_cues(input_ids, attention_mask, DURATION, generator=torch.Generator().manual_seed(0))
    assert any(sheet and sheet[0] < 10 for sheet in sheets) and any(sheet and sheet[0] >= 10 for sheet in sheets)
    num_cues = 0
    for sheet in sheets:
        words = " ".join(";" if token == 3 else f"<|{token}|>" if token >= 10 else f"w{token}" for token in sheet)
        parsed = parse_sheet(words)  # refuses casts that are no casts
        names = [member.name for member in parsed.cast]
        for cue in parsed.cues:
            assert not names or any(f"{cue.text} ".startswith(f"{name} ") for name in names)
        num_cues += len(parsed.cues) * bool(names)
    assert num_cues > 10


def test_timestamps_that_cannot_be_are_refused(planner, prompt):
    with pytest.raises(ValueError, match="knows no timestamps"):
        planner.generate_cues(*prompt, DURATION)
    with pytest.raises(ValueError, match="20 timestamps from 15 on.*30 tokens"):
        make_planner(first_timestamp_id=15, num_timestamps=20)
    with pytest.raises(ValueError, match="eos_token_id"):
        make_planner(**TIMESTAMPS)


def test_a_negative_temperature_is_refused(cue_planner, prompt):
    with pytest.raises(ValueError, match="temperature.*-1"):
        cue_planner.generate_cues(*prompt, DURATION, temperature=-1)


def test_a_planner_of_sheets_reads_what_a_sheet_with_a_cast_says():
    prompts = ["balll bounce!!", "A red ball bounces.", "A red ball bounces."]
    sheets = ["red ball left <|0.50|> red ball bounces", "<|0.50|> red ball bounces", ""]
    said = "A red ball is on the left. The red ball bounces once."
    assert plan_prompts(prompts, sheets, True) == [said, *prompts[1:]]
    assert plan_prompts(prompts, sheets, False) == prompts
