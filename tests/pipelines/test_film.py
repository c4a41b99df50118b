"""Films: windows that join, a folder that keeps them, and what is refused before any work."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from baton_diffusers import Shot
from baton_diffusers.cues import format_sheet, parse_sheet
from baton_diffusers.media import read_clip
from baton_diffusers.pipelines.film import WARM_UP_LATENTS, _held_colours
from baton_diffusers.pipelines.film_plan import film_cast, resolve_callbacks, with_cast
from baton_diffusers.pipelines.film_work import fingerprint

from ..tiny import FRAME_RATE, SAMPLING_RATE, random_plan, tiny_cue_parts, tiny_pipeline


# Windows of 17 frames that share 9: one of 49 frames has five of them.
SECONDS = 49 / FRAME_RATE
SHOTS = [
    Shot("a red circle moves right", 2.0),
    Shot("the blue star says one", 2.0),
    Shot("a green square jumps", SECONDS - 4.0),
]


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(num_frames=17, **tiny_cue_parts())


def film(pipe, shots=SHOTS, **settings):
    return pipe.film(shots, overlap_seconds=9 / FRAME_RATE, stream=True, **settings)


def joined(pieces):
    return np.concatenate([p.frames for p in pieces]), np.concatenate([p.waveform for p in pieces], axis=1)


def digests(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*window*"))}


def test_pieces_make_up_the_film(pipe):
    made = film(pipe)
    pieces = list(made)
    assert [window.start for window in made.windows[0]] == [0, 8, 16, 24, 32]
    assert [piece.start * FRAME_RATE for piece in pieces] == pytest.approx([0, 12, 20, 28, 36])
    frames, waveform = joined(pieces)
    assert frames.shape == (49, 32, 32, 3) and frames.dtype == np.uint8
    assert waveform.shape == (1, round(SECONDS * SAMPLING_RATE)) and np.abs(waveform).max() <= 1
    assert made.plan.duration == pytest.approx(SECONDS)


def test_windows_share_their_latents(tmp_path):
    long = tiny_pipeline(num_frames=33)
    made = long.film(SHOTS, overlap_seconds=17 / FRAME_RATE, stream=True, work=tmp_path)
    list(made)
    first, second = (made.work.read_any(0, index) for index in (0, 1))
    again = made._latents_made_anew  # the last latents of a window, which the next one makes anew
    last = 5 - again
    assert again and torch.equal(first.latents[:, :, 4 + WARM_UP_LATENTS : 4 + last], second.shared)
    # In the second window they are moved, so that its background keeps its colours.
    moved = second.latents[:, :, WARM_UP_LATENTS:last] - second.shared
    assert 0 < moved.abs().max() < 0.2 * second.shared.abs().max()
    assert not torch.allclose(first.latents[:, :, 4 + last :], second.latents[:, :, last:5], atol=0.1)
    shift = made.windows[0][1].audio_start
    shared = made._shared(*made.windows[0][:2])[1]
    assert len(shared) > 4
    assert torch.equal(first.audio_latents[:, shared], second.audio_latents[:, [i - shift for i in shared]])


def test_a_background_is_held_unless_it_becomes_another():
    first = torch.tensor([0.5, 0.5, 0.5])
    assert torch.equal(_held_colours(first, first + 0.01), first)
    assert torch.equal(_held_colours(first, first + 0.1), first + 0.1)


def test_an_interrupted_film_goes_on_with_the_same_bytes(pipe, tmp_path):
    whole = joined(film(pipe, work=tmp_path / "whole"))
    for _ in range(5):
        for piece in film(pipe, work=tmp_path / "parts"):
            if piece.number == 1:
                break
    parts = joined(film(pipe, work=tmp_path / "parts"))
    assert all(np.array_equal(a, b) for a, b in zip(whole, parts, strict=True))
    assert digests(tmp_path / "whole") == digests(tmp_path / "parts")


def test_a_changed_shot_renders_its_windows_alone_and_joins_them(pipe, tmp_path):
    shots = [replace(SHOTS[0], seconds=3.0), replace(SHOTS[1], seconds=1.0), *SHOTS[2:]]
    list(film(pipe, shots, work=tmp_path))
    before = digests(tmp_path)
    shots[1] = replace(shots[1], prompt="a blue circle says two")
    made = film(pipe, shots, work=tmp_path)
    list(made)
    after = digests(tmp_path)
    changed = [number for number, name in enumerate(before) if before[name] != after[name]]
    assert changed == [1, 2, 3]  # the windows from frames 8, 16 and 24 on show some of the frames 24 to 31
    assert made.is_rendered  # and joined


@pytest.mark.parametrize("damage", ["cut short", "removed", "other values"])
def test_a_damaged_window_is_made_again_between_its_neighbours(pipe, tmp_path, damage):
    list(film(pipe, work=tmp_path))
    before, path = digests(tmp_path), sorted(tmp_path.glob("*window*"))[2]
    data = path.read_bytes()
    path.unlink()
    if damage == "cut short":
        path.write_bytes(data[:100])
    if damage == "other values":
        path.write_bytes(data[:-2] + bytes([data[-2] ^ 1, data[-1]]))
    made = film(pipe, work=tmp_path)
    list(made)
    assert made.is_rendered
    after = digests(tmp_path)
    assert [name for name in before if before[name] != after[name]] == [path.name]


def test_a_film_does_not_depend_on_the_takes_before(pipe, tmp_path):
    alone = list(film(pipe, [SHOTS[0], replace(SHOTS[1], cut=True)]))
    other = list(film(pipe, [replace(SHOTS[0], prompt="a star"), replace(SHOTS[1], cut=True)]))
    half = round(2 * FRAME_RATE)
    assert not np.array_equal(joined(alone)[0][:half], joined(other)[0][:half])
    assert np.array_equal(joined(alone)[0][half:], joined(other)[0][half:])


def test_given_sound_stays_and_a_given_picture_begins_a_shot(pipe, tmp_path):
    rng = np.random.default_rng(0)
    sound = rng.uniform(-0.5, 0.5, 2 * SAMPLING_RATE).astype(np.float32)
    picture = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    shots = [SHOTS[0], replace(SHOTS[1], audio=sound), replace(SHOTS[2], cut=True, image=picture)]
    made, plain = film(pipe, shots, work=tmp_path / "given"), film(pipe, [*SHOTS[:2], replace(SHOTS[2], cut=True)])
    (frames, waveform), (others, _) = joined(made), joined(plain)
    start, end = 2 * SAMPLING_RATE, 4 * SAMPLING_RATE
    margin = 100
    np.testing.assert_allclose(waveform[0, start + margin : end - margin], sound[margin:-margin], atol=1e-6)
    first = round(4 * FRAME_RATE)
    assert not np.array_equal(frames[: first - 8], others[: first - 8])  # the picture follows the sound
    known = made.work.read_any(1, 0).latents[:, :, :1]
    encoded = pipe.encode_video(torch.from_numpy(picture).permute(2, 0, 1)[None, :, None].float() / 127.5 - 1)
    torch.testing.assert_close(known, encoded)


def test_voices_hold_until_there_are_others(pipe):
    voices = [np.full(SAMPLING_RATE, level, np.float32) for level in (0.1, 0.2)]
    shots = [SHOTS[0], replace(SHOTS[1], voices=voices[0]), replace(SHOTS[2], voices=voices[1])]
    made = film(pipe, shots)
    heard = [made._given_in(window).reference_audio for window in made.windows[0]]
    levels = [None if voice is None else round(float(voice.waveform.max()), 2) for voice in heard]
    assert levels == [None, 0.1, 0.1, 0.2, 0.2]  # by the middle of each window


def test_a_window_reads_the_shots_that_its_text_has_room_for(pipe):
    long = "the red circle moves left and says one two three"  # 11 of the 16 tokens that are read, with the end of the text
    shots = [Shot(f"{long} while it jumps", 2.5), Shot(long, SECONDS - 2.5)]
    texts = [window.prompt for window in film(pipe, shots).windows[0]]
    assert texts == [shots[0].prompt] * 2 + [shots[1].prompt] * 3


def test_a_long_shot_is_split_at_its_sentences(pipe):
    made = film(pipe, "a red circle moves right. the blue star says one.", seconds=SECONDS)
    sections = made.sections[0]
    assert [section.start for section in sections] == [0, *np.cumsum([s.num_frames for s in sections])[:-1]]
    assert sum(section.num_frames for section in sections) == 49
    assert max(section.num_frames for section in sections) <= 17
    assert dict.fromkeys(section.prompt for section in sections).keys() == {
        "a red circle moves right.",
        "the blue star says one.",
    }
    assert all(not parse_sheet(section.sheet).cues for section in sections if section.idle)


def test_the_plan_of_a_film_can_be_given(pipe):
    plan = random_plan(duration=SECONDS)
    first, other = (joined(film(pipe, plan=plan))[0] for plan in (plan, random_plan(duration=SECONDS, seed=1)))
    assert not np.array_equal(first, other)
    assert len(joined(film(pipe, plans="windows"))[0]) == len(joined(film(pipe, plans="none"))[0]) == 49
    wide = replace(plan, video_tokens=plan.video_tokens.repeat(1, 1, 2))
    for shots, settings in ((SHOTS, {"plan": wide}), ([Shot("a star", SECONDS, plan=wide)], {})):
        with pytest.raises(ValueError, match="tokens of width 12"):
            film(pipe, shots, **settings)
    with pytest.raises(ValueError, match="the film lasts 6.1250 seconds"):
        film(pipe, plan=random_plan(duration=3.0))


def test_a_cast_stands_where_it_was_told(pipe):
    sheets = [parse_sheet(text) for text in ("ball left; face right", "bell left; box middle", "face left")]
    cast = film_cast(sheets, [{}, {"bell": "left"}, {}], ["left", "middle", "right"])
    assert cast == {"bell": "left", "ball": "middle", "face": "right"}
    assert (
        format_sheet(with_cast(sheets[2], cast, ["left", "middle", "right"])) == "bell left; ball middle; face right"
    )
    assert format_sheet(with_cast(sheets[1], cast, ["left", "middle", "right"])) == "bell left; box middle; face right"


@pytest.mark.parametrize(
    ("prompt", "resolved"),
    [
        ("The ball that bounced first bounces again.", "The red ball bounces again."),
        ("After the ball that hopped second jumps, a bell rings.", "After the blue ball jumps, a bell rings."),
        ("The face who spoke last says two.", "The old face says two."),
        ("The bell that has not rung yet rings.", "The green bell rings."),
        ("The box that hit something first slides.", "The wide box slides."),
        ("The box that opened first slides.", "The tall box slides."),
        ("The ball that bounced third rests.", "The ball that bounced third rests."),  # there was none
        ("The horse that came first rests.", "The horse that came first rests."),
    ],
)
def test_a_prompt_names_somebody_by_an_earlier_deed(prompt, resolved):
    sheets = [
        parse_sheet("red ball left; blue ball right <|1.00|> red ball bounces <|1.50|> blue ball bounces"),
        parse_sheet("green bell left; grey bell right <|1.00|> grey bell rings <|1.50|> red ball bounces"),
        parse_sheet(
            "old face left; tall box right; wide box middle <|0.50|> tall box opens <|1.00|> wide box hits tall box"
        ),
        parse_sheet("old face left; shy face right <|0.50|> shy face says one <|1.00|> old face says one"),
    ]
    assert resolve_callbacks(prompt, sheets) == resolved


def test_a_take_knows_who_did_what_in_the_takes_before(pipe, tmp_path):
    shots = [
        Shot("a star jumps", 2.0, cues="red star left <|0.50|> red star jumps"),
        Shot("the star that jumped first jumps", 2.0, cut=True),
    ]
    assert film(pipe, shots, work=tmp_path).sections[1][0].prompt == "the red star jumps"
    shots[0] = replace(shots[0], cues="blue star left <|0.50|> blue star jumps")
    assert film(pipe, shots, work=tmp_path).sections[1][0].prompt == "the blue star jumps"


def test_a_film_is_saved_piece_by_piece(pipe, tmp_path):
    made = film(pipe)
    made.save(tmp_path / "film.mp4")
    clip = read_clip(tmp_path / "film.mp4")
    assert len(clip.frames) == 49 and clip.sampling_rate == 7350  # the next rate that AAC has
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]


@pytest.mark.parametrize(
    ("shots", "settings", "message"),
    [
        ([], {}, "at least one `Shot`"),
        ("a star", {}, "give `seconds`"),
        ([SHOTS[0]], {"seconds": 3}, "say their own length"),
        ([{"prompt": "a star", "second": 3}], {}, "no argument 'second'"),
        ([Shot("a star", 0.01)], {}, "shot 1: .*no whole frame"),
        ([SHOTS[0], Shot("a star", 1, image=np.zeros((32, 32, 3), np.uint8))], {}, "shot 2: `image` needs a hard cut"),
        ([Shot("a star", 1, image="missing.png")], {}, "shot 1: missing.png"),
        ([Shot("a star", 1, audio=np.zeros(90000, np.float32))], {}, "shot 1: .*lasts 22.50 seconds"),
        ([Shot("a star", 1, plan="missing.safetensors")], {}, "shot 1: there is no plan"),
        ([Shot("a star", 1, plan=5)], {}, "shot 1: `plan` is a int"),
        (SHOTS, {"height": 33}, "`height` is 33"),
        (SHOTS, {"height": 0}, "`height` is 0"),
        (SHOTS, {"overlap_seconds": 9}, "`overlap_seconds` is 9"),
        (SHOTS, {"overlap_seconds": "1"}, "`overlap_seconds` is '1'"),
        (SHOTS, {"work": 5}, "`work` is 5, but must be the path"),
        (SHOTS, {"num_inference_steps": 0}, "`num_inference_steps` is 0"),
        (SHOTS, {"plans": "each"}, "`plans` is 'each'"),
        (SHOTS, {"seed": -1}, "`seed` is -1"),
    ],
)
def test_refused_before_any_work(pipe, monkeypatch, shots, settings, message):
    monkeypatch.setattr(type(pipe.planner), "forward", None)
    monkeypatch.setattr(type(pipe.transformer), "forward", None)
    with pytest.raises(ValueError, match=message):
        pipe.film(shots, **settings)


def test_processes_agree_on_what_a_pipeline_is():
    own, found = tiny_pipeline(), []
    for step in (1, -1):  # diffusers notes which settings are defaults, in an order of the process
        scheduler = FlowMatchEulerDiscreteScheduler.from_config({"shift": 3.0})
        noted = sorted(scheduler.config["_use_default_values"])[::step]
        scheduler.register_to_config(_use_default_values=noted)
        own.register_modules(scheduler=scheduler)
        found.append(fingerprint(own))
    own.register_modules(scheduler=FlowMatchEulerDiscreteScheduler.from_config({"shift": 2.0}))
    assert found[0] == found[1] != fingerprint(own)
