"""`SemanticPlan`: a plan cut, joined, batched, moved, saved and loaded is the plan; anything else is refused."""

import os
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from baton_diffusers.cues import PlanCandidate
from baton_diffusers.plan import SemanticPlan

from .tiny import random_plan


FIELDS = ("video_tokens", "video_times", "video_centres", "audio_tokens", "audio_times", "video_mask", "audio_mask")
TIMES = ("video_times", "audio_times")


def assert_same(plan, other, times_atol=0.0):
    for name in FIELDS:
        ours, theirs = getattr(plan, name), getattr(other, name)
        if theirs is None:
            assert ours is None, name
            continue
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=0, atol=times_atol if name in TIMES else 0, msg=name)
    assert plan.duration == pytest.approx(other.duration, abs=1e-12 if times_atol else 0)


@pytest.fixture
def plan():
    """3.0625 s: the fourth second holds a single sixteenth, and most of its tokens are masked."""
    return random_plan(batch_size=2, duration=3.0625)


# Time


@pytest.mark.parametrize(
    "cuts",
    [(1.5,), (0.1,), (1 / 6,), (1 / 3, 2 / 3), (0.123, 0.124, 2.9), (1.0, 2.0, 3.0), (3.05,), (0.0625, 0.1875)],
    ids=str,
)
def test_sliced_and_rejoined_is_the_plan(plan, cuts):
    for whole in (plan, plan.masked(torch.tensor([True, False])), plan.trimmed()):
        edges = (0.0, *cuts, whole.duration)
        parts = [whole.slice(start, end) for start, end in zip(edges, edges[1:], strict=False)]
        assert_same(SemanticPlan.concat(parts), whole, times_atol=1e-6)


def test_the_whole_slice_and_a_single_part_are_the_plan_bit_for_bit(plan):
    assert_same(plan.slice(0.0, plan.duration), plan)
    assert_same(SemanticPlan.concat([plan]), plan)


def test_a_slice_holds_what_lies_within_it(plan):
    part = plan.slice(1.0, 2.0)
    assert part.duration == 1.0 and part.batch_size == 2
    torch.testing.assert_close(part.video_times, (torch.arange(6) / 6).repeat_interleave(4))
    torch.testing.assert_close(part.audio_times, (torch.arange(8) + 0.5) / 8)
    assert torch.equal(part.video_tokens, plan.video_tokens[:, 24:48])
    assert torch.equal(part.video_centres, plan.video_centres[24:48])
    assert torch.equal(part.audio_tokens, plan.audio_tokens[:, 8:16])
    assert part.audio_mask.all()


def test_the_tail_of_the_last_chunk_stays_with_the_last_part(plan):
    assert plan.audio_times[-1] > plan.duration and not plan.audio_mask[:, -1].any()
    assert len(plan.slice(3.0, plan.duration).audio_times) == 8
    assert len(plan.slice(3.0, 3.05).audio_times) == 0


def test_a_joined_plan_counts_on_and_leaves_out_inner_tails(plan):
    joined = SemanticPlan.concat([plan, plan.trimmed(), plan])
    assert joined.duration == 3 * plan.duration
    counted = int((plan.audio_times < plan.duration).sum())
    assert joined.audio_tokens.shape[1] == 2 * counted + 32
    assert joined.video_tokens.shape[1] == 3 * plan.video_tokens.shape[1]
    assert joined.video_times[76] == plan.duration and joined.audio_times[counted] == plan.duration + 1 / 16
    assert (joined.audio_mask.sum(dim=1) == 3 * counted).all() and joined.video_mask is None


@pytest.mark.parametrize("start, end", [(-0.1, 1.0), (1.0, 1.0), (2.0, 1.0), (0.0, 3.1), (float("nan"), 1.0)])
def test_a_slice_beyond_the_plan_is_refused(plan, start, end):
    with pytest.raises(ValueError, match=rf"\[{start}, {end}\).*3.0625 seconds"):
        plan.slice(start, end)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda plan: plan.slice("a", 2), "`start` is 'a', but must be a number"),
        (lambda plan: plan.shift(None), "`seconds` is None"),
        (lambda plan: plan.stretch("2"), "`factor` is '2'"),
        (lambda plan: plan.stretch(1e9), "a plan lasts at most 86400"),
        (lambda plan: plan.splice(5, 0, 1), "`splice` takes plans, and one is 5"),
        (lambda plan: plan.concat([plan, 5]), "`concat` takes plans, and one is 5"),
        (lambda plan: plan.transfer(5), "`prompt` is 5"),
        (lambda plan: plan.load("x" * 300), "there is no plan at xxx"),
    ],
)
def test_arguments_of_another_type_are_refused(plan, change, message):
    with pytest.raises(ValueError, match=message):
        change(plan)


def test_plans_that_cannot_follow_one_another_are_refused(plan):
    with pytest.raises(ValueError, match="at least one plan"):
        SemanticPlan.concat([])
    with pytest.raises(ValueError, match=r"plan 1 has `video_tokens` of shape \(1, .*batch size and width"):
        SemanticPlan.concat([plan, plan[0]])
    wider = replace(plan, audio_tokens=torch.zeros(2, plan.audio_tokens.shape[1], 9))
    with pytest.raises(ValueError, match=r"plan 1 has `audio_tokens` of shape \(2, 32, 9\)"):
        SemanticPlan.concat([plan, wider])


def test_trimmed_drops_the_tail_and_masks_that_say_nothing(plan):
    trimmed = plan.trimmed()
    assert trimmed.audio_times[-1] < plan.duration and trimmed.audio_mask is None
    assert torch.equal(trimmed.audio_tokens, plan.audio_tokens[:, : trimmed.audio_tokens.shape[1]])
    masked = plan.masked(torch.tensor([True, False])).trimmed()
    assert masked.audio_mask.tolist() == [[True] * len(masked.audio_times), [False] * len(masked.audio_times)]


# Batch


def test_batches_come_apart_and_together(plan):
    assert [plan[0].batch_size, plan[-1].batch_size, plan[1:].batch_size] == [1, 1, 1]
    assert torch.equal(plan[-1].video_tokens[0], plan.video_tokens[1])
    assert_same(SemanticPlan.collate([plan[0], plan[1]]), plan)
    assert_same(SemanticPlan.collate([plan[:1], plan[0:0], plan[1:]]), plan)
    for index in (2, -3):
        with pytest.raises(IndexError, match=f"clip {index} of a plan for 2"):
            plan[index]


def test_a_plan_that_was_cut_and_joined_batches_with_the_whole_one(plan):
    edges = (0.0, 0.37, plan.duration)
    joined = SemanticPlan.concat([plan.slice(start, end) for start, end in zip(edges, edges[1:], strict=False)])
    assert not torch.equal(joined.video_times, plan.video_times)  # the last bits differ
    assert SemanticPlan.collate([plan, joined]).batch_size == 4


def test_clips_of_one_prompt_are_neighbours(plan):
    repeated = plan.repeat_interleave(3)
    assert_same(repeated, SemanticPlan.collate([plan[0]] * 3 + [plan[1]] * 3))
    assert repeated.audio_mask.shape[0] == 6


def test_plans_of_another_layout_make_no_batch(plan):
    with pytest.raises(ValueError, match="at least one plan"):
        SemanticPlan.collate([])
    with pytest.raises(ValueError, match="plan 1 differs from the first in `video_times`"):
        SemanticPlan.collate([plan, plan.slice(0, 2)])
    with pytest.raises(ValueError, match="plan 1 differs from the first in `audio_times`"):
        SemanticPlan.collate([plan, replace(plan, audio_times=plan.audio_times + 0.01)])
    with pytest.raises(ValueError, match="plan 1 lasts 3.5 seconds, the first one 3.0625"):
        SemanticPlan.collate([plan, replace(plan, duration=3.5)])
    with pytest.raises(ValueError, match="plan 1 .*masks"):
        SemanticPlan.collate([plan, replace(plan, audio_mask=None)])


def test_masked_drops_whole_plans_and_keeps_what_was_masked(plan):
    masked = plan.masked(torch.tensor([False, True]))
    assert not masked.video_mask[0].any() and masked.video_mask[1].all()
    assert not masked.audio_mask[0].any() and torch.equal(masked.audio_mask[1], plan.audio_mask[1])
    assert masked.video_tokens is plan.video_tokens


# Device and dtype


@pytest.mark.parametrize("arguments", [(torch.bfloat16,), ("cpu", torch.bfloat16), (None, torch.bfloat16)], ids=str)
def test_a_dtype_moves_only_tokens(plan, arguments):
    moved = plan.to(*arguments)
    assert moved.video_tokens.dtype == moved.audio_tokens.dtype == torch.bfloat16
    assert moved.video_times.dtype == moved.video_centres.dtype == moved.audio_times.dtype == torch.float32
    assert moved.audio_mask.dtype == torch.bool and moved.video_mask is None
    assert_same(replace(moved, video_tokens=plan.video_tokens, audio_tokens=plan.audio_tokens), plan)


def test_a_device_moves_everything(plan):
    moved = plan.masked(torch.tensor([True, False])).to("meta", non_blocking=True)
    assert {getattr(moved, name).device.type for name in FIELDS} == {"meta"}
    assert moved.video_tokens.dtype == torch.float32


# Files


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_and_loaded_is_the_plan(plan, tmp_path, dtype):
    for whole in (plan, plan.trimmed(), plan.masked(torch.tensor([True, False])), plan.slice(0.1, 0.7)[1]):
        whole = whole.to(dtype)
        whole.save(tmp_path / "plan.safetensors")
        assert_same(SemanticPlan.load(tmp_path / "plan.safetensors"), whole)
    first = (tmp_path / "plan.safetensors").read_bytes()
    SemanticPlan.load(tmp_path / "plan.safetensors").save(str(tmp_path / "plan.safetensors"))
    assert (tmp_path / "plan.safetensors").read_bytes() == first
    assert os.listdir(tmp_path) == ["plan.safetensors"]


def test_a_saved_plan_is_as_readable_as_other_files(plan, tmp_path):
    (tmp_path / "other").touch()
    plan.save(tmp_path / "plan.safetensors")
    assert (tmp_path / "plan.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_folder_that_does_not_exist_is_named(plan, tmp_path):
    with pytest.raises(ValueError, match="nowhere is not a folder: make it"):
        plan.save(tmp_path / "nowhere" / "plan.safetensors")
    assert not any(tmp_path.iterdir())


def test_a_failed_save_leaves_the_old_plan_and_nothing_else(plan, tmp_path, monkeypatch):
    path = tmp_path / "plan.safetensors"
    plan.save(path)
    before = path.read_bytes()

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        plan[0].save(path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["plan.safetensors"]


@pytest.mark.parametrize("length", [0, 4, 100, -1], ids=["empty", "in the length", "in the header", "in the data"])
def test_a_truncated_file_is_named(plan, tmp_path, length):
    path = tmp_path / "plan.safetensors"
    plan.save(path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match="plan.safetensors is truncated or not a safetensors file"):
        SemanticPlan.load(path)


def test_a_foreign_file_is_named(plan, tmp_path):
    path = tmp_path / "plan.safetensors"
    tensors = {name: getattr(plan, name).contiguous() for name in FIELDS if getattr(plan, name) is not None}
    for content, metadata in (
        ({"weight": torch.zeros(2)}, None),
        (tensors, None),
        ({"weight": torch.zeros(2)}, {"baton_diffusers.SemanticPlan": '{"duration": 1.0}'}),
        ({**tensors, "more": torch.zeros(2)}, {"baton_diffusers.SemanticPlan": '{"duration": 1.0}'}),
    ):
        save_file(content, path, metadata=metadata)
        with pytest.raises(ValueError, match="plan.safetensors holds .*not a plan"):
            SemanticPlan.load(path)
    with pytest.raises(ValueError, match="no plan at .*missing.safetensors"):
        SemanticPlan.load(tmp_path / "missing.safetensors")
    with pytest.raises(ValueError, match="no plan at"):
        SemanticPlan.load(tmp_path)


# Shapes


@pytest.mark.parametrize(
    "name, shape, message",
    [
        ("video_tokens", (2, 6), r"`video_tokens` must have shape .* has shape \(2, 6\)"),
        ("audio_tokens", (2, 3, 4, 5), r"`audio_tokens` must have shape .* has shape \(2, 3, 4, 5\)"),
        ("audio_tokens", (3, 32, 4), r"`audio_tokens` has shape \(3, 32, 4\), .* need \(2, 32, 4\)"),
        ("video_times", (75,), r"`video_times` has shape \(75,\), .* need \(76,\)"),
        ("video_centres", (76, 3), r"`video_centres` has shape \(76, 3\), .* need \(76, 2\)"),
        ("audio_times", (2, 32), r"`audio_times` has shape \(2, 32\), .* need \(32,\)"),
        ("video_mask", (76,), r"`video_mask` has shape \(76,\), .* need \(2, 76\)"),
        ("audio_mask", (1, 32), r"`audio_mask` has shape \(1, 32\), .* need \(2, 32\)"),
    ],
)
def test_shapes_that_disagree_are_refused(plan, name, shape, message):
    with pytest.raises(ValueError, match=message):
        replace(plan, **{name: torch.zeros(shape)})


@pytest.mark.parametrize("duration", [0.0, -1.0, float("nan"), float("inf"), 1e12, "3", None, True])
def test_a_duration_that_is_none_is_refused(plan, duration):
    with pytest.raises(ValueError, match=f"`duration` is {duration!r} seconds|a plan lasts at most"):
        replace(plan, duration=duration)


NAN = float("nan")


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("video_times", lambda times: times * NAN, "`video_times` go from nan to nan, but must lie in the 3.0625"),
        ("video_times", lambda times: times - 1e6, "`video_times` go from -1e[+]06 to"),
        ("audio_times", lambda times: times + 15, "`audio_times` go from 15.06"),
        ("audio_times", lambda times: times.masked_fill(times == times[3], NAN), "`audio_times` go from nan"),
        ("video_centres", lambda centres: centres * 64, r"`video_centres` go from .* to .*, but must lie in \[0, 1\]"),
        ("video_times", lambda times: times.round().long(), "`video_times` is torch.int64, but must be"),
        ("video_tokens", lambda tokens: tokens.long(), "`video_tokens` is torch.int64, but must be floating-point"),
        ("audio_tokens", lambda tokens: tokens > 0, "`audio_tokens` is torch.bool, but must be floating-point"),
        ("video_tokens", lambda tokens: tokens * NAN, "`video_tokens` of the plan hold NaN or infinite values"),
        ("audio_mask", lambda mask: mask.float(), "`audio_mask` is torch.float32, but must be bool"),
        ("audio_mask", lambda mask: mask.long() * 2, "`audio_mask` is torch.int64, but must be bool"),
        ("audio_times", lambda times: times.tolist(), "`audio_times` is a list, but must be a tensor"),
        ("video_tokens", lambda tokens: None, "`video_tokens` is a NoneType, but must be a tensor"),
    ],
)
def test_values_of_no_clip_are_refused_when_a_plan_is_made(plan, name, change, message):
    with pytest.raises(ValueError, match=message):
        replace(plan, **{name: change(getattr(plan, name))})


@pytest.mark.parametrize("modality", ["video", "audio"])
def test_a_plan_without_tokens_is_refused_and_a_slice_without_any_is_a_part(plan, modality, tmp_path):
    names = [name for name in FIELDS if name.startswith(modality) and getattr(plan, name) is not None]
    empty = {
        name: getattr(plan, name)[..., :0, :] if name.endswith("tokens") else getattr(plan, name)[:0] for name in names
    }
    if modality == "audio":
        empty["audio_mask"] = plan.audio_mask[:, :0]
    with pytest.raises(ValueError, match="a plan of .* it needs some of each"):
        replace(plan, **empty)
    part = plan.slice(0.123, 0.124)
    assert part.video_tokens.shape[1] == part.audio_tokens.shape[1] == 0 and part.to(torch.bfloat16).batch_size == 2
    for use in (part.check_values, lambda: part.save(tmp_path / "plan.safetensors")):
        with pytest.raises(ValueError, match="lies between tokens and holds none: take a longer slice"):
            use()
    with pytest.raises(ValueError, match="it needs some of each"):
        SemanticPlan.concat([part, part])


def test_tokens_that_are_not_finite_are_refused_unless_they_are_masked(plan, tmp_path):
    assert plan.check_values() is plan
    tokens = plan.audio_tokens.clone()
    tokens[:, -1] = NAN  # which is masked
    replace(plan, audio_tokens=tokens).check_values().save(tmp_path / "plan.safetensors")
    tokens[1, 0, 0] = float("inf")
    with pytest.raises(ValueError, match="`audio_tokens` of the plan hold NaN or infinite values"):
        replace(plan, audio_tokens=tokens)


@pytest.mark.parametrize(
    "metadata",
    [
        "null",
        "{}",
        '{"duration":"3"}',
        '{"duration":3,"x":1}',
        '{"duration":3,"video_tokens":1}',
        "not json",
        "[" * 100_000,
        '{"duration":NaN}',
        '{"duration":3.0625,"sheets":["",1]}',
        '{"duration":3.0625,"candidates":"ab"}',
        '{"duration":3.0625,"candidates":[["ab"]]}',
        '{"duration":3.0625,"candidates":[[["", "0.5"]]]}',
        '{"duration":3.0625,"candidates":[[["<|9", null]]]}',
        '{"duration":3.0625,"candidates":[[["", NaN]]]}',
        '{"duration":3.0625,"sheets":["<|9.00|> red ball"]}',
        '{"duration":3.0625,"prompts":["\\ud800"]}',
    ],
    ids=lambda text: text[:20],
)
def test_a_file_that_tells_something_else_is_named(plan, tmp_path, metadata):
    tensors = {name: getattr(plan, name).contiguous() for name in FIELDS if getattr(plan, name) is not None}
    save_file(tensors, tmp_path / "plan.safetensors", metadata={"baton_diffusers.SemanticPlan": metadata})
    with pytest.raises(ValueError, match="plan.safetensors is no plan that can be used"):
        SemanticPlan.load(tmp_path / "plan.safetensors")


SHEET = "red ball left; orange face right <|0.62|> red ball bounces <|1.00|> red ball bounces <|2.75|> orange face says two"


def test_a_plan_is_printed_in_three_lines(plan):
    channels = [tokens.shape[2] for tokens in (plan.video_tokens, plan.audio_tokens)]
    tokens = f"76 video tokens of {channels[0]} channels, 32 audio tokens of {channels[1]} channels (some masked), float32 on cpu"
    assert str(plan).splitlines() == ["SemanticPlan of 3.0625 s for 2 clips", "no cue sheet", tokens]
    told = replace(plan[0], prompts=("A red\nball.",), sheets=(SHEET,))
    assert str(told).splitlines() == [
        r"SemanticPlan of 3.0625 s for 1 clip: 'A red\nball.'",
        f"cues: {SHEET!r}",
        tokens,
    ]


def test_a_plan_tells_who_acts_when_and_for_how_long(plan):
    speech = "He says <S>Good day to you<E>."
    told = replace(plan, prompts=("A ball.", speech), sheets=(SHEET, ""))
    assert [turn.who for turn in told.turns()] == ["red ball", "orange face"]
    assert told.table(0).splitlines()[1].split() == ["red", "ball", "bounces", "2x", "0.62", "s", "0.88", "s"]
    assert [(turn.who, turn.what, turn.start) for turn in told.turns(-1)] == [("He says", '"Good day to you"', None)]
    assert plan.turns() == []
    with pytest.raises(IndexError, match="clip 2 of a plan for 2"):
        told.turns(2)


def test_a_plan_remembers_its_prompts_and_sheets(tmp_path):
    scored = (PlanCandidate("", -0.5),)
    plan = replace(random_plan(2, duration=3.0), prompts=("one", "two"), sheets=("", SHEET), candidates=((), scored))
    assert plan[1].prompts == ("two",) and plan.repeat_interleave(2).prompts == ("one", "one", "two", "two")
    assert plan[1].sheets == (SHEET,) and plan[1].candidates == (scored,)
    moved = plan.trimmed().to(torch.float16)
    assert (moved.prompts, moved.sheets, moved.candidates) == (plan.prompts, plan.sheets, plan.candidates)
    assert SemanticPlan.collate([plan, plan[0]]).prompts == ("one", "two", "one")
    assert SemanticPlan.collate([plan, random_plan(duration=3.0)]).sheets is None
    assert plan.slice(0.0, 0.5).prompts is None  # a part is cut to be used elsewhere
    plan.save(tmp_path / "plan.safetensors")
    loaded = SemanticPlan.load(tmp_path / "plan.safetensors")
    assert (loaded.prompts, loaded.sheets, loaded.candidates) == (plan.prompts, plan.sheets, plan.candidates)
    for name in ("prompts", "sheets"):
        with pytest.raises(ValueError, match=f"`{name}` has 1 entries, but the plan is for 2 clips"):
            replace(plan, **{name: ("one",)})


# Edits of tokens

EDITED_SHEET = "red ball left; blue bell right <|0.50|> red ball bounces <|1.50|> blue bell rings"


@pytest.fixture
def clip_plan():
    return replace(random_plan(duration=3.0), prompts=("a",), sheets=(EDITED_SHEET,))


def test_a_plan_remembers_its_sheet_through_files_batches_and_cuts(clip_plan, tmp_path):
    clip_plan.save(tmp_path / "plan.safetensors")
    assert SemanticPlan.load(tmp_path / "plan.safetensors").sheet == clip_plan.sheet
    assert SemanticPlan.collate([clip_plan, clip_plan])[1].sheets == (EDITED_SHEET,)
    assert clip_plan.slice(1.0, 3.0).sheets == ("red ball left; blue bell right <|0.50|> blue bell rings",)
    assert SemanticPlan.concat([clip_plan.slice(0, 1.5), clip_plan.slice(1.5, 3.0)]).sheets == (EDITED_SHEET,)
    other = replace(clip_plan, sheets=("blue bell left",))
    assert SemanticPlan.concat([clip_plan, other]).sheets is None
    for plan, message in ((random_plan(), "has no cue sheet"), (random_plan(2), "is for 2 clips")):
        with pytest.raises(ValueError, match=message):
            _ = plan.sheet


def test_a_spliced_plan_has_the_span_of_the_other_in_either_modality_or_both(clip_plan):
    other = replace(random_plan(duration=3.0, seed=1), sheets=(EDITED_SHEET.replace("0.50", "0.75"),))
    both = clip_plan.splice(other, 0.5, 2.0)
    assert both.sheet == other.sheet and both.prompts == ("a",)
    for name in ("video", "audio"):
        times = getattr(clip_plan, f"{name}_times")
        inside = (times >= 0.5) & (times < 2.0)
        torch.testing.assert_close(getattr(both, f"{name}_times"), times)
        for plan in (both, clip_plan.splice(other, 0.5, 2.0, only=name)):
            tokens = getattr(plan, f"{name}_tokens")
            assert torch.equal(tokens[:, inside], getattr(other, f"{name}_tokens")[:, inside])
            assert torch.equal(tokens[:, ~inside], getattr(clip_plan, f"{name}_tokens")[:, ~inside])
    sound = clip_plan.splice(other, 0.5, 2.0, only="audio")
    assert torch.equal(sound.video_tokens, clip_plan.video_tokens) and sound.sheets is None
    assert_same(clip_plan.splice(clip_plan, 0.0, 3.0), clip_plan)


def test_a_shifted_plan_shows_the_same_later_or_earlier_and_holds_its_edge(clip_plan):
    later, earlier = clip_plan.shift(0.3), clip_plan.shift(-0.3)
    assert later.duration == earlier.duration == 3.0
    assert later.sheets[0].endswith("<|0.80|> red ball bounces <|1.80|> blue bell rings")
    assert clip_plan.shift(-1.0).sheets == ("red ball left; blue bell right <|0.50|> blue bell rings",)
    for name in ("video", "audio"):
        tokens, times = getattr(clip_plan, f"{name}_tokens"), getattr(clip_plan, f"{name}_times")
        moved, at = getattr(later, f"{name}_tokens"), getattr(later, f"{name}_times")
        count = int((times < 2.7).sum())
        torch.testing.assert_close(at[-count:], times[:count] + 0.3)
        assert torch.equal(moved[:, -count:], tokens[:, :count]) and (at[:-count] < 0.3).all()
        first = tokens[:, :4] if name == "video" else tokens[:, :1]
        assert torch.equal(moved[:, : first.shape[1]], first)
        count = int((times >= 0.3).sum())
        moved, at = getattr(earlier, f"{name}_tokens"), getattr(earlier, f"{name}_times")
        torch.testing.assert_close(at[:count], times[-count:] - 0.3)
        last = tokens[:, -4:] if name == "video" else tokens[:, -1:]
        assert torch.equal(moved[:, :count], tokens[:, -count:]) and torch.equal(moved[:, -last.shape[1] :], last)
    assert clip_plan.shift(0.0) is clip_plan


def test_a_stretched_plan_lasts_longer_in_both_modalities(clip_plan):
    plan = clip_plan.stretch(1.5)
    assert plan.duration == 4.5 and plan.sheets[0].endswith("<|0.75|> red ball bounces <|2.25|> blue bell rings")
    for name in ("video_times", "audio_times"):
        torch.testing.assert_close(getattr(plan, name), getattr(clip_plan.trimmed(), name) * 1.5)
    assert_same(plan.stretch(1 / 1.5), clip_plan.trimmed(), times_atol=1e-6)


def test_a_mirrored_plan_has_left_and_right_exchanged(clip_plan):
    plan = clip_plan.mirror()
    assert torch.equal(plan.video_tokens[:, [1, 0, 3, 2]], clip_plan.video_tokens[:, :4])  # a grid of 2 x 2
    assert torch.equal(plan.audio_tokens, clip_plan.audio_tokens)
    assert plan.sheets[0].startswith("red ball right; blue bell left") and plan.prompts is None
    assert_same(plan.mirror(), clip_plan)


def test_a_transferred_plan_belongs_to_another_prompt(clip_plan):
    plan = clip_plan.transfer("a green bell")
    assert plan.prompts == ("a green bell",) and plan.sheets is None
    assert_same(plan, clip_plan)


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda plan: plan.splice(plan, 1.0, 4.0), r"cannot slice \[1.0, 4.0\) seconds"),
        (lambda plan: plan.splice(random_plan(2, 3.0), 1.0, 2.0), "batch size and width must agree"),
        (lambda plan: plan.splice(plan, 1.0, 2.0, only="sound"), "`only` is 'sound'"),
        (lambda plan: plan.shift(3.0), "nothing of it would stay"),
        (lambda plan: plan.shift(float("nan")), "by nan"),
        (lambda plan: plan.stretch(0), "`factor` is 0"),
        (lambda plan: replace(plan, video_centres=plan.video_centres * 0.9).mirror(), "symmetric grid"),
        (lambda plan: plan.transfer(["a", "b"]), "`prompts` has 2 entries"),
    ],
)
def test_an_edit_that_a_plan_does_not_allow_is_refused(clip_plan, edit, message):
    with pytest.raises(ValueError, match=message):
        edit(clip_plan)
