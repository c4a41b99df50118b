"""The studio without its page, on tiny real components."""

import json
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from baton_diffusers.cues import PlanCandidate
from baton_diffusers.media import read_audio, read_clip, write_clip
from baton_diffusers.pipelines.lora import save_adapter
from baton_diffusers.pipelines.students import StudentPreset
from baton_diffusers.studio import session as module
from baton_diffusers.studio.session import Cancelled, Progress, Request, Run, Studio

from ..models.test_lora_conversion import VIDEO, random_lora
from ..pipelines.test_previews import audio_decoder, video_decoder
from ..tiny import DURATION, FRAME_RATE, NUM_FRAMES, random_clip, tiny_cue_parts, tiny_pipeline, tiny_plan_checker


PROMPT = "the red circle moves left and says two"
SHEET = {
    "cast": [{"name": "red circle", "place": "left"}],
    "cues": [{"time": 0.25, "text": "red circle moves"}, {"time": 0.75, "text": "red circle says two"}],
}
ASKED = Request(PROMPT, 3)


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(**tiny_cue_parts())


@pytest.fixture
def studio(pipe, tmp_path):
    return Studio(pipe, tmp_path)


@pytest.fixture
def session(studio):
    return studio.session("a tab")


def rendered(session, request=ASKED):
    *reports, version = session.render(request)
    assert all(isinstance(report, Progress) for report in reports)
    return version


def on_page(session, **changes):
    """What the page says when it shows the session's current version."""
    view = session.view()
    asked = Request(view["prompt"], view["seed"], view["sheet"], view["session"], view["version"])
    return asked._replace(**changes)


def data(session, version, kind):
    return session.studio.files[version.files[kind]].path.read_bytes()


def with_sheet(session):
    """A version that follows `SHEET`."""
    return session.edit(Request(PROMPT, 3, SHEET, "of before the restart"))


@pytest.fixture
def own_clip(tmp_path):
    frames, waveform = random_clip()
    path = tmp_path / "own.mp4"
    return write_clip(
        path, np.repeat(frames, 3, axis=0), np.tile(np.resize(waveform, 4 * 1125), 6)[: 3 * 9000], 8.0, 8000
    )


# Plans


def test_a_plan_is_shown_as_json_with_its_sheet(session):
    assert session.view()["version"] is None
    version = session.plan(ASKED)
    view = json.loads(json.dumps(session.view()))
    assert (view["version"], view["prompt"], view["seed"], view["duration"]) == (1, PROMPT, 3, DURATION)
    assert view["sheet"]["cues"] and view["timestamp_rate"] == FRAME_RATE
    assert set(view["files"]) == {"plan", "script"} and not view["can_undo"]
    assert b"pipe.plan" in data(session, version, "script")


def test_a_planner_without_cues_gives_a_plan_without_a_timeline(tmp_path):
    session = Studio(tiny_pipeline(), tmp_path).session("a tab")
    session.plan(ASKED)
    assert session.view()["sheet"] is None and session.view()["timestamp_rate"] is None
    assert rendered(session, on_page(session)).clip.num_clips == 1


def test_an_edit_plans_the_timeline_and_undo_takes_it_back(session):
    before = with_sheet(session)
    sheet = session.view()["sheet"]
    sheet["cues"][0]["time"] = 0.5
    after = session.edit(on_page(session, sheet=sheet), "moved")
    assert after.sheet == before.sheet.replace("<|0.25|>", "<|0.50|>")
    assert session.view()["can_undo"]
    assert session.undo() is before and session.view()["can_redo"]
    assert session.redo() is after and not session.view()["can_redo"]
    assert session.go(before.number) is before
    assert session.edit(on_page(session)) is before  # nothing changed


def test_edits_that_overtake_each_other_start_from_what_their_page_showed(session):
    with_sheet(session)
    asked = on_page(session)
    first, second = (json.loads(json.dumps(asked.sheet)) for _ in range(2))
    first["cues"][0]["time"] = 0.5
    second["cues"][0]["time"], second["cues"][1]["time"] = 0.5, 1.0
    session.edit(asked._replace(sheet=first))
    assert "<|0.50|>" in session.edit(asked._replace(sheet=second)).sheet
    assert "<|1.00|>" in session.current.sheet


def test_what_the_pipeline_warns_of_is_said_on_the_page(session):
    session.plan(Request("the dragon moves"))
    rendered(session, on_page(session))
    assert "dragon" in session.view()["note"]
    session.plan(ASKED)
    assert session.view()["note"] is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": "  "}, "prompt is empty"),
        ({"prompt": None}, "prompt is empty"),
        ({"prompt": "a" * 2001}, "2001 letters"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 0.5}, "seed is 0.5"),
        ({"seed": None}, "seed is None"),
        ({"seed": float("nan")}, "seed is nan"),
        ({"sheet": "red circle left"}, "no cue sheet"),
        ({"sheet": {"cast": [], "cues": [{"time": "0", "text": "red moves"}]}}, "no cue sheet"),
        ({"sheet": {"cast": [], "cues": [{"time": float("nan"), "text": "red moves"}]}}, "nan seconds"),
        ({"sheet": {"cast": [{"name": " ", "place": "left"}], "cues": []}}, "0 letters"),
        ({"sheet": {"cast": [], "cues": [{"time": 0.5, "text": "red " * 51}]}}, "203 letters"),
        ({"sheet": {"cast": [], "cues": [{"time": 0.5, "text": "red moves"}] * 201}}, "201 events"),
        ({"sheet": {"cast": [], "cues": [{"time": 0.5, "text": "a dragon sings"}]}}, "dragon, sings"),
        ({"sheet": {"cast": [], "cues": [{"time": 9, "text": "red moves"}]}}, "9.0 seconds"),
        ({"sheet": {"cast": [{"name": "red; blue", "place": "left"}], "cues": []}}, "needs a name and a place"),
    ],
)
def test_what_is_refused(session, change, words):
    with_sheet(session)
    with pytest.raises(ValueError, match=words):
        session.edit(on_page(session, **{"sheet": SHEET | {"cues": []}, **change}))
    assert len(session.versions) == 1


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (lambda session: session.undo(), "nothing to undo"),
        (lambda session: session.redo(), "nothing to redo"),
        (lambda session: session.go(7), "Version 7 is gone"),
        (lambda session: session.go("../1"), "is gone"),
    ],
)
def test_versions_that_are_not_there(session, action, words):
    with pytest.raises(ValueError, match=words):
        action(session)


# Clips


def test_a_render_reports_its_steps_and_leaves_a_clip(session):
    session.plan(ASKED)
    reports = list(session.render(on_page(session)))
    assert [(report.step, report.steps) for report in reports[:-1]] == [(0, 2), (1, 2), (2, 2)]
    clip = read_clip(session.studio.files[reports[-1].files["clip"]].path)
    assert len(clip.frames) == NUM_FRAMES and max(clip.frames.shape[1:3]) == module.LEAST_SIDE
    view = session.view()
    assert (
        view["files"]["clip"] and view["pictures"][0]["src"].startswith("data:image/png") and max(view["peaks"]) <= 1
    )


def test_the_script_repeats_the_clip_byte_for_byte(tmp_path, monkeypatch):
    pipe = tiny_pipeline(**tiny_cue_parts())
    pipe.save_pretrained(tmp_path / "checkpoint")
    session = Studio(pipe, tmp_path, str(tmp_path / "checkpoint")).session("a tab")
    with_sheet(session)
    sheet = session.view()["sheet"]
    sheet["cues"][0]["time"] = 0.5
    session.edit(on_page(session, sheet=sheet))
    version = rendered(session, on_page(session, seed=5))
    monkeypatch.chdir(tmp_path)
    exec(data(session, version, "script").decode(), {})
    assert (tmp_path / "clip.mp4").read_bytes() == data(session, version, "clip")


@pytest.fixture
def with_student(tmp_path):
    """A session of a checkpoint that has a student of three steps."""
    pipe = tiny_pipeline(**tiny_cue_parts())
    pipe.save_pretrained(tmp_path / "checkpoint")
    layers = {}
    for name, (down, up, _) in random_lora(pipe.transformer, VIDEO).items():
        layers |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    save_adapter(tmp_path / "turbo", layers, {"r": 2, "lora_alpha": 2}, StudentPreset(3, 1.5, 2.5))
    pipe = tiny_pipeline(**tiny_cue_parts())
    pipe.load_student(tmp_path / "turbo")
    return Studio(pipe, tmp_path, str(tmp_path / "checkpoint"), str(tmp_path / "turbo")).session("a tab")


def test_a_student_and_its_teacher_take_turns_and_the_script_has_both(with_student, pipe, tmp_path, monkeypatch):
    session = with_student
    session.plan(ASKED)
    by_teacher = Studio(pipe, tmp_path).session("a tab")
    by_teacher.plan(ASKED)
    for quick, steps in ((True, 3), (False, 2), (True, 3)):
        *reports, version = session.render(on_page(session, quick=quick))
        assert [report.step for report in reports] == list(range(steps + 1))
    session.undo()
    assert data(session, session.current, "clip") == data(by_teacher, rendered(by_teacher), "clip")
    *_, version = session.retake(on_page(session, span=(0.5, 0.75), seed=8, quick=True))
    monkeypatch.chdir(tmp_path)
    exec(data(session, version, "script").decode(), {})
    assert (tmp_path / "clip.mp4").read_bytes() == data(session, version, "clip")


def test_a_live_edit_is_one_version_with_a_clip_by_the_student(with_student):
    session = with_student
    with_sheet(session)
    asked = on_page(session)
    asked.sheet["cues"][0]["time"] = 0.5
    assert len(session.live(asked, draws=True)) == NUM_FRAMES and len(session.versions) == 1
    first = session.redraw(asked, "moved")
    assert next(first).steps == 3
    later = json.loads(json.dumps(asked.sheet))
    later["cues"][1]["time"] = 1.0
    *_, version = session.redraw(
        asked._replace(sheet=later), "moved again"
    )  # the edit before need not be rendered any more
    with pytest.raises(Cancelled):
        list(first)
    assert version.what == "moved again" and version.clip is not None and version.changed == (0.0, DURATION)
    assert "<|0.50|>" in version.sheet and "<|1.00|>" in version.sheet and len(session.versions) == 2


# Size and choice


def test_a_clip_has_the_length_and_the_size_that_are_asked_for_and_its_script_too(tmp_path, monkeypatch):
    pipe = tiny_pipeline(**tiny_cue_parts())
    pipe.save_pretrained(tmp_path / "checkpoint")
    session = Studio(pipe, tmp_path, str(tmp_path / "checkpoint")).session("a tab")
    height, width = pipe.config.height, 2 * pipe.config.width
    session.plan(ASKED._replace(seconds=0.6, width=width))
    assert session.view()["seconds"] == 0.62 and session.view()["width"] == width
    version = rendered(session, on_page(session, seconds=0.62))
    assert version.clip.clip()[0].shape[:3] == (5, height, width) and session.note is None
    monkeypatch.chdir(tmp_path)
    exec(data(session, version, "script").decode(), {})
    assert (tmp_path / "clip.mp4").read_bytes() == data(session, version, "clip")
    rendered(session, on_page(session, seconds=DURATION))
    assert "size had changed" in session.note


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seconds": 0}, "0 seconds cannot be made"),
        ({"seconds": float("inf")}, "inf seconds cannot be made"),
        ({"seconds": "long"}, "'long' seconds cannot be made"),
        ({"seconds": 60}, "times what this checkpoint makes .* shorter or smaller"),
        ({"width": 33}, "`width` is 33, but must be a multiple"),
        ({"height": 0}, "`height` is 0"),
        ({"height": 3.5}, "`height` is 3.5"),
        ({"width": 16384}, "shorter or smaller"),
        ({"plans": 0}, "best of 0 plans"),
        ({"plans": 33}, "best of 33 plans .* 1 to 32"),
        ({"plans": 2.5}, "best of 2.5 plans"),
    ],
)
def test_a_size_or_a_choice_that_is_refused(session, change, words):
    with pytest.raises(ValueError, match=words):
        session.plan(ASKED._replace(**change))
    assert not session.versions


def test_another_one_of_the_plans_that_were_drawn_is_taken(tmp_path):
    pipe = tiny_pipeline(**tiny_cue_parts(), plan_checker=tiny_plan_checker())
    session = Studio(pipe, tmp_path).session("a tab")
    session.plan(ASKED._replace(plans=3))
    drawn = session.view()["drawn"]
    assert [plan["is_taken"] for plan in drawn][0] and len(drawn) == 3
    assert drawn[0]["score"] == max(plan["score"] for plan in drawn)
    assert "num_plan_candidates=3" in data(session, session.current, "script").decode()
    version = session.choose(on_page(session), 2)
    assert session.view()["sheet"] == drawn[2]["sheet"] and version.what == "took plan 3 of 3"
    assert [plan["sheet"] for plan in session.view()["drawn"] if plan["is_taken"]] == [drawn[2]["sheet"]]
    with pytest.raises(ValueError, match="no plan 3 among the [23]"):
        session.choose(on_page(session), 3)


def test_a_plan_with_words_that_the_planner_does_not_know_is_not_offered(session):
    plan = session.plan(ASKED).plan
    sheets = ("red circle left", "purpel circle left", "blue circle left")
    candidates = [PlanCandidate(sheet, 0.0) for sheet in sheets]
    offered = session.studio.drawn(replace(plan, candidates=[candidates]))
    assert [candidate.sheet for candidate in offered] == ["red circle left", "blue circle left"]


@pytest.mark.parametrize("prompt", [None, 5])
def test_a_prompt_that_is_no_text_is_refused_before_a_render(session, prompt):
    session.plan(ASKED)
    with pytest.raises(ValueError, match="The prompt is empty"):
        rendered(session, on_page(session, prompt=prompt))


def test_a_prompt_that_has_changed_is_planned_before_it_is_rendered(session):
    session.plan(ASKED)
    version = rendered(session, on_page(session, prompt="the blue square jumps"))
    assert version.prompt == "the blue square jumps" and "planned anew" in session.note


def test_a_cancelled_render_leaves_nothing_and_the_next_one_is_the_same(session):
    session.plan(ASKED)
    whole = rendered(session, on_page(session))
    session.undo()
    reports = session.render(on_page(session))
    next(reports)
    session.cancel()
    with pytest.raises(Cancelled):
        list(reports)
    assert len(session.versions) == 2
    assert data(session, rendered(session, on_page(session)), "clip") == data(session, whole, "clip")


def test_a_render_that_is_cancelled_before_it_is_asked_for_does_not_begin(session):
    session.plan(ASKED)
    session.cancel(3)
    for attempt in (2, 3):
        with pytest.raises(Cancelled):
            list(session.render(on_page(session, attempt=attempt)))
    assert rendered(session, on_page(session, attempt=4)).clip is not None


def test_renders_of_tabs_stand_in_line_and_one_that_waits_can_be_cancelled(studio):
    first, second, third = (studio.session(name) for name in "abc")
    for tab in (first, second, third):
        tab.plan(ASKED)
    busy = Run(1)
    with studio.line.turn(busy):
        runs = [tab.render(on_page(tab)) for tab in (first, second, third)]
        for before, reports in enumerate(runs, 1):
            assert next(reports).before == 0 and next(reports).before == before
        second.cancel()
        with pytest.raises(Cancelled):
            list(runs[1])
        assert next(runs[2]).before == 2
        third.cancel()
        third.cancel()
        with pytest.raises(Cancelled):
            list(runs[2])
        again = third.render(on_page(third))  # at once, while the others still stand there
        assert next(again).before == 0 and next(again).before == 2
    assert list(runs[0])[-1].clip is not None and list(again)[-1].clip is not None


def test_a_tab_renders_one_clip_at_a_time(session):
    session.plan(ASKED)
    reports = session.render(on_page(session))
    next(reports)
    next(reports)
    with pytest.raises(ValueError, match="rendering already"):
        list(session.render(on_page(session)))
    reports.close()  # as when the page is gone
    rendered(session, on_page(session))


def test_tabs_at_once_get_what_each_would_get_alone(studio):
    clips, alone = {}, {}

    def work(number):
        session = studio.session(f"tab {number}")
        session.plan(Request(PROMPT, number))
        clips[number] = data(session, rendered(session, on_page(session)), "clip")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    session = studio.session("alone")
    for number in (0, 3):
        session.plan(Request(PROMPT, number))
        alone[number] = data(session, rendered(session, on_page(session)), "clip")
    assert len(clips) == 4 and alone == {number: clips[number] for number in alone}


def test_a_clip_of_ones_own_is_read_and_rendered_anew(session, own_clip):
    version = session.open(own_clip, "my clip.mp4", Request(""))
    assert version.what == "opened my clip.mp4" and version.sheet is None
    assert version.plan.duration == DURATION and "first 1.12 s" in session.note
    assert len(read_clip(session.studio.files[version.files["clip"]].path).frames) == NUM_FRAMES
    version = session.open(own_clip, "my clip.mp4", ASKED)
    assert version.sheet is not None
    assert rendered(session, on_page(session)).plan is version.plan


@pytest.mark.parametrize(
    "content", [b"", b"no film", b"#EXTM3U\nfile:///etc/passwd\n", b"ffconcat version 1.0\nfile /etc/passwd\n"]
)
def test_an_upload_that_is_no_film_is_refused_by_its_name(session, tmp_path, content):
    path = tmp_path / "secret folder" / "upload.mp4"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(ValueError, match="my clip.mp4") as refused:
        session.open(path, "my clip.mp4", ASKED)
    assert "secret folder" not in str(refused.value)


def test_an_upload_that_is_too_long_is_refused(session, tmp_path):
    frames = np.zeros((31, 32, 32, 3), np.uint8)
    path = write_clip(tmp_path / "long.mp4", frames, np.zeros(31 * 8000, np.float32), 1.0, 8000)
    with pytest.raises(ValueError, match="30.00 s are the most"):
        session.open(path, "long.mp4", ASKED)


def test_a_pipeline_that_reads_no_plans_says_so(pipe, tmp_path, own_clip):
    parts = {**tiny_cue_parts(), "video_semantic_encoder": None}
    session = Studio(tiny_pipeline(**parts), tmp_path).session("a tab")
    with pytest.raises(ValueError, match="reads no plans off clips"):
        session.open(own_clip, "own.mp4", ASKED)


def test_a_retake_changes_the_marked_span_alone_and_its_script_repeats_it(tmp_path, monkeypatch):
    pipe = tiny_pipeline(**tiny_cue_parts())
    pipe.save_pretrained(tmp_path / "checkpoint")
    session = Studio(pipe, tmp_path, str(tmp_path / "checkpoint")).session("a tab")
    with_sheet(session)
    before = rendered(session, on_page(session))
    sheet = session.view()["sheet"]
    sheet["cues"][0]["time"] = 0.5
    edited = session.edit(on_page(session, sheet=sheet))
    assert edited.changed == (0.0, 1.0) and session.view()["can_retake"] and edited.clip is None
    *_, after = session.retake(on_page(session, span=(0.5, 0.75), seed=8))
    frames = [version.clip.clip()[0] for version in (before, after)]
    assert (frames[0] == frames[1]).all(axis=(1, 2, 3)).tolist() == [True] * 4 + [False] * 2 + [True] * 3
    monkeypatch.chdir(tmp_path)
    exec(data(session, after, "script").decode(), {})
    assert (tmp_path / "clip.mp4").read_bytes() == data(session, after, "clip")


def test_a_part_of_a_clip_of_ones_own_is_made_anew(tmp_path, own_clip, monkeypatch):
    pipe = tiny_pipeline(**tiny_cue_parts())
    pipe.save_pretrained(tmp_path / "checkpoint")
    session = Studio(pipe, tmp_path, str(tmp_path / "checkpoint")).session("a tab")
    opened = session.open(own_clip, "own.mp4", ASKED)
    *_, after = session.retake(on_page(session, span=(0.5, 1.0)))
    assert (after.clip.clip()[0][0] == opened.clip.frames[0]).all()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "opened.mp4").write_bytes(data(session, opened, "opened"))
    exec(data(session, after, "script").decode(), {})
    assert (tmp_path / "clip.mp4").read_bytes() == data(session, after, "clip")


def test_the_sound_of_one_actor_is_retaken_alone(session):
    with_sheet(session)
    before = rendered(session, on_page(session))
    asked = on_page(session, span=(0.5, 1.0), seed=8, modality="audio", actor="red circle")
    *_, after = session.retake(asked)
    assert (before.clip.clip()[0] == after.clip.clip()[0]).all()
    assert (
        before.clip.clip()[1] != after.clip.clip()[1]
    ).any() and after.what == "retook sound of red circle, 0.50 to 1.00 s"
    assert "modality='audio', actor='red circle'" in data(session, after, "script").decode()
    for change in ({"modality": "smell"}, {"actor": "a dragon"}):
        with pytest.raises(ValueError, match="smell|dragon"):
            list(session.retake(asked._replace(**change)))


@pytest.mark.parametrize(
    ("span", "words"),
    [
        (None, "Mark a span"),
        ((0.5, 0.5), "does not lie"),
        ((0, 99), "does not lie"),
        ((0, DURATION), "leaves nothing"),
    ],
)
def test_a_span_that_cannot_be_retaken(session, span, words):
    session.plan(ASKED)
    with pytest.raises(ValueError, match="no clip to retake"):
        list(session.retake(on_page(session, span=span)))
    rendered(session, on_page(session))
    with pytest.raises(ValueError, match=words):
        list(session.retake(on_page(session, span=span)))


def test_a_plan_decoder_gives_a_storyboard_and_a_scratch_track(tmp_path):
    decoders = {"video_plan_decoder": video_decoder(), "audio_plan_decoder": audio_decoder()}
    session = Studio(tiny_pipeline(**tiny_cue_parts(), **decoders), tmp_path).session("a tab")
    with_sheet(session)
    view = session.view()
    assert view["has_decoder"] and len(view["pictures"]) == NUM_FRAMES and view["peaks"]
    waveform, rate = read_audio(session.studio.files[view["files"]["sound"]].path)
    assert waveform.shape[1] == round(DURATION * rate)
    assert session.live(on_page(session))[0]["src"] == view["pictures"][0]["src"]


# Sessions


def test_a_restart_takes_up_what_is_on_the_page(studio):
    session = studio.session("a tab")
    version = rendered(session, Request(PROMPT, 3, SHEET, "of before the restart", 12))
    assert version.sheet.startswith("red circle left <|0.25|>") and session.view()["note"] == module.FORGOTTEN


def test_sessions_do_not_see_one_another(studio):
    mine, other = studio.session("mine"), studio.session("other")
    version = rendered(mine)
    assert other.view()["versions"] == [] and mine.id != other.id
    with pytest.raises(ValueError, match="gone"):
        other.go(version.number)
    names = [file.path.stem for file in studio.files.values()]
    assert all(len(name) == 32 for name in names) and min(map(len, studio.files)) >= 24


def test_a_tab_that_is_gone_loses_its_clips_after_a_while(studio, monkeypatch, tmp_path):
    session = studio.session("a tab")
    rendered(session)
    studio.leave("a tab")
    assert studio.session("a tab") is session  # it came back in time
    monkeypatch.setattr(module, "GRACE_SECONDS", 0)
    studio.leave("a tab")
    studio.sweep()
    assert not studio.files and not list(tmp_path.glob("*.mp4"))
    assert studio.session("a tab") is not session


def test_a_tab_that_goes_in_mid_render_leaves_no_file(studio, tmp_path):
    session = studio.session("a tab")
    session.plan(ASKED)
    reports = session.render(on_page(session))
    next(reports)
    session.keep(0)
    studio.sweep()
    with pytest.raises(Cancelled):
        list(reports)
    assert not studio.files and not list(tmp_path.glob("*.*"))


def test_old_versions_make_room(studio, session, monkeypatch):
    monkeypatch.setattr(module, "MAX_VERSIONS", 3)
    for seed in range(5):
        session.plan(Request(PROMPT, seed))
    assert list(session.versions) == [3, 4, 5] and len(studio.files) == 6
    monkeypatch.setattr(module, "MAX_CLIP_BYTES", 1)
    rendered(session, on_page(session))
    assert list(session.versions) == [6] and not session.view()["can_undo"]


def test_a_full_studio_says_so(studio, monkeypatch):
    monkeypatch.setattr(module, "MAX_SESSIONS", 1)
    studio.session("a tab")
    with pytest.raises(ValueError, match="1 people use this studio"):
        studio.session("another")


def test_a_checkpoint_without_a_planner_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no planner"):
        Studio(tiny_pipeline(planner=None, planner_tokenizer=None), tmp_path)


def test_a_glimpse_follows_the_step_to_its_end(pipe):
    pipe.scheduler.set_timesteps(4)
    sigmas = pipe.scheduler.sigmas
    noise, clip = (torch.randn(1, 4, 3, 4, 4, generator=torch.Generator().manual_seed(i)) for i in range(2))
    at = [(1 - sigma) * clip + sigma * noise for sigma in sigmas[1:3]]
    glimpse = module.Glimpse(pipe)
    assert glimpse.look(0, at[0]) is None
    seen = glimpse.look(1, at[1])
    pixels, _ = pipe.decode_latents(clip, None, NUM_FRAMES, "np")
    middle = (pixels[0][NUM_FRAMES // 2].clip(0, 1) * 255).round().astype(np.uint8)
    assert seen == module.shown.picture(middle)
