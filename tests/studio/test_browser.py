"""The studio as a person uses it, in a headless browser: `pytest -m slow tests/studio/test_browser.py`, some minutes.

Playwright drives its own Chromium, or the one that the system has.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from baton_diffusers import SemanticPlan
from baton_diffusers.media import read_clip, write_clip

from ..pipelines.test_previews import audio_decoder, video_decoder
from ..tiny import tiny_cue_parts, tiny_pipeline


pytestmark = pytest.mark.slow
pytest.importorskip("gradio", reason="the extra `app` is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

PATIENCE = 90_000  # milliseconds: other work may hold the processor
ROOT = Path(__file__).parents[2]
BELL = "A green bell in the middle rings three times."


@contextmanager
def served(folder, *arguments, port=0):
    """A studio as a process, whose temporary files lie in `folder`: the process, and its address."""
    environment = os.environ | {"TMPDIR": str(folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "baton_diffusers.cli", "studio", "--port", str(port), *map(str, arguments)]
    log = (folder / "log.txt").open("a+")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment, cwd=folder, text=True)
    try:
        first = process.stdout.readline()
        assert "studio: http" in first, (folder / "log.txt").read_text()[-2000:]
        yield process, re.search(r"http\S+", first)[0]
    finally:
        process.terminate()
        process.wait(60)
        log.close()


@pytest.fixture(scope="module")
def browser():
    system = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with playwright.sync_playwright() as play:
        try:
            browser = play.chromium.launch(executable_path=system, args=["--no-sandbox", "--disable-gpu"])
        except playwright.Error as error:
            pytest.skip(f"there is no browser that Playwright can drive: {str(error).splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    with served(tmp_path_factory.mktemp("nano")) as (_, address):
        yield address


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    decoders = {"video_plan_decoder": video_decoder(), "audio_plan_decoder": audio_decoder()}
    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    tiny_pipeline(**tiny_cue_parts(), **decoders, num_inference_steps=20).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny(checkpoint, tmp_path_factory):
    with served(tmp_path_factory.mktemp("tiny-studio"), "--model", checkpoint) as (_, address):
        yield address


@pytest.fixture
def opened(browser):
    """Opens a studio in a tab of its own, 1280 pixels wide. The page may ask nobody else for anything, and fail at nothing."""
    troubles, contexts = [], []

    def open_tab(address, width=1280, height=900):
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
        page.on(
            "request",
            lambda request: request.url.startswith((address, "data:", "blob:")) or troubles.append(request.url),
        )
        page.goto(address)
        page.locator("#baton-board .baton-timeline").wait_for()
        return page

    yield open_tab
    for context in contexts:
        context.close()
    assert not troubles


def button(page, name):
    return page.get_by_role("button", name=name, exact=True)


def event(page, name, number=0):
    return page.get_by_role("slider", name=name, exact=True).nth(number)


def seconds(page, name, number=0):
    return float(event(page, name, number).get_attribute("aria-valuenow"))


def wait_for_version(page, number):
    page.locator(f'.baton-timeline[data-version="{number}"]').wait_for()


def plan(page, prompt="the red circle moves"):
    page.get_by_label("What is to be seen and heard").fill(prompt)
    button(page, "Plan").click()
    wait_for_version(page, 1)


def download(page, kind):
    with page.expect_download() as loading:
        page.locator(f'.baton-files [data-kind="{kind}"]').click()
    return Path(loading.value.path()), loading.value.suggested_filename


def render(page, version):
    button(page, "Render").click()
    wait_for_version(page, version)
    page.locator('.baton-files [data-kind="clip"]').wait_for()


# A person's way


def test_from_a_prompt_to_a_film_that_its_script_repeats(nano, opened, tmp_path):
    page = opened(nano)
    plan(page, "A red ball on the left bounces twice, then a purple face on the right says three nine.")
    assert seconds(page, "red ball bounces") < seconds(page, "red ball bounces", 1)
    assert page.locator(".baton-strip img").count() > 3 or page.get_by_text("has no plan decoder").is_visible()

    before, box = seconds(page, "red ball bounces"), event(page, "red ball bounces").bounding_box()
    page.mouse.move(box["x"] + 12, box["y"] + 12)
    page.mouse.down()
    page.mouse.move(box["x"] - 120, box["y"] + 12, steps=10)
    page.mouse.up()
    wait_for_version(page, 2)
    assert seconds(page, "red ball bounces") < before - 0.2

    for moment in ("progress:not([hidden])", "#baton-cancel"):  # a render takes a second on a quiet machine
        button(page, "Render").click()
        page.locator(moment).wait_for()
        button(page, "Cancel").click()
        page.get_by_text("Cancelled").wait_for()
        assert page.locator(".baton-versions li").count() == 2
    button(page, "Render").click()
    page.get_by_text("Step 1 of 16").wait_for()
    wait_for_version(page, 3)

    event(page, "purple face says nine").focus()
    page.keyboard.press("Shift+ArrowLeft")
    wait_for_version(page, 4)
    button(page, "Retake the span").click()
    wait_for_version(page, 5)
    button(page, "Compare with version 3").click()
    page.get_by_role("button", name="Play").click()
    page.wait_for_function("document.querySelector('#baton-board video').currentTime > 0.8")
    times = page.evaluate("[...document.querySelectorAll('#baton-board video')].map((video) => video.currentTime)")
    assert abs(times[0] - times[1]) < 0.3

    clip, name = download(page, "clip")
    script, _ = download(page, "script")
    saved, _ = download(page, "plan")
    assert name == "clip.mp4" and SemanticPlan.load(saved).sheets is not None
    shutil.copy(script, tmp_path / "clip.py")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "clip.py"], cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert (tmp_path / "clip.mp4").read_bytes() == clip.read_bytes()


def test_by_keyboard_alone(nano, opened):
    page = opened(nano)
    page.get_by_label("What is to be seen and heard").focus()
    page.keyboard.press("Control+A")
    page.keyboard.type(BELL)
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "baton-plan":
            break
    page.keyboard.press("Enter")
    wait_for_version(page, 1)
    chip = page.locator(".baton-cue").first
    chip.focus()
    name, before = chip.get_attribute("aria-label"), float(chip.get_attribute("aria-valuenow"))
    page.keyboard.press("Home")
    wait_for_version(page, 2)
    assert page.evaluate("document.activeElement.getAttribute('aria-valuenow')") == "0.00" and before >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.className") == "baton-words"
    page.keyboard.press("Shift+Tab")
    event(page, name).first.focus()
    page.keyboard.press("Control+d")
    wait_for_version(page, 3)
    event(page, name).focus()
    number = page.locator(".baton-cue").count()
    page.keyboard.press("Delete")
    wait_for_version(page, 4)
    assert page.locator(".baton-cue").count() == number - 1
    button(page, "Undo").press("Enter")
    wait_for_version(page, 3)
    assert name and page.get_by_role("status").filter(has_text="deleted").count() == 1


def test_whatever_can_be_used_has_a_name(nano, opened):
    page = opened(nano)
    plan(page, BELL)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, input, select, textarea, a, [tabindex="0"]')]
            .filter((node) => node.offsetParent && !node.disabled)
            .filter((node) => !(node.getAttribute('aria-label') || node.textContent.trim() || node.labels?.[0]?.textContent.trim()))
            .map((node) => node.outerHTML.slice(0, 200))"""
    )
    assert nameless == []


def test_a_telephone_shows_all_of_it(nano, opened):
    page = opened(nano, 390, 844)
    plan(page, BELL)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for locator in (button(page, "Render"), page.locator(".baton-strip"), page.locator(".baton-cue").first):
        box = locator.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 391


def test_a_storyboard_plays_with_its_scratch_track(tiny, opened):
    page = opened(tiny)
    plan(page)
    assert page.locator(".baton-strip img").count() >= 3
    still = page.locator('.baton-pane[data-side="a"] .baton-screen > img').first
    before = still.get_attribute("src")
    button(page, "Play").click()
    page.wait_for_function("document.querySelector('#baton-board audio').currentTime > 0.3")
    changed = "(before) => document.querySelector('.baton-screen > img').src !== before"
    page.wait_for_function(changed, arg=before)


def test_live_draws_an_event_while_it_is_dragged_and_renders_it_when_it_is_dropped(nano, opened):
    page = opened(nano)
    plan(page, BELL)
    page.get_by_label("Live").check()
    strip = page.locator(".baton-strip")
    before, box = strip.inner_html(), page.locator(".baton-cue").first.bounding_box()
    page.mouse.move(box["x"] + 8, box["y"] + 8)
    page.mouse.down()
    page.mouse.move(box["x"] - 200, box["y"] + 8, steps=4)
    page.mouse.move(box["x"] + 90, box["y"] + 8, steps=4)
    page.wait_for_function("(before) => document.querySelector('.baton-strip').innerHTML !== before", arg=before)
    assert page.locator(".baton-timeline").get_attribute("data-version") == "1"
    page.mouse.up()
    wait_for_version(page, 2)
    page.locator('.baton-files [data-kind="clip"]').wait_for()
    page.wait_for_function("document.querySelector('#baton-board video').currentTime > 0.5")  # it plays by itself


def test_another_plan_of_those_drawn_at_another_length_by_the_student(nano, opened):
    page = opened(nano)
    page.get_by_text("Length, size, number").click()
    page.get_by_label("Length in seconds").fill("2")
    page.get_by_label("Plans to draw").fill("12")
    plan(page, BELL)
    drawn = page.get_by_role("region", name="Plans that were drawn").get_by_role("button")
    assert drawn.first.get_attribute("aria-pressed") == "true" and drawn.count() > 2
    drawn.nth(1).click()
    wait_for_version(page, 2)
    assert [plan.get_attribute("aria-pressed") for plan in drawn.all()[:3]] == ["false", "true", "false"]
    page.get_by_label(re.compile("Quick")).check()
    button(page, "Render").click()
    page.get_by_text("Step 1 of 4").wait_for()
    wait_for_version(page, 3)
    path, _ = download(page, "clip")
    assert len(read_clip(path).frames) == 33
    page.get_by_label("Length in seconds").fill("60")
    button(page, "Plan").click()
    page.get_by_role("alert").filter(has_text="make it shorter or smaller").wait_for()


# Clips of one's own


def clip_file(path, seconds=2):
    frames = np.random.default_rng(0).integers(0, 255, (8 * seconds, 32, 32, 3), dtype=np.uint8)
    return write_clip(path, frames, np.zeros(8000 * seconds, np.float32), 8.0, 8000)


def test_a_clip_of_ones_own_is_opened(tiny, opened, tmp_path):
    page = opened(tiny)
    page.locator("#baton-open + input, #baton-open input, input[type=file]").first.set_input_files(
        clip_file(tmp_path / "own clip.mp4")
    )
    wait_for_version(page, 1)
    assert page.get_by_text("opened own clip.mp4").count()
    path, _ = download(page, "clip")
    assert len(read_clip(path).frames) == 9
    page.get_by_label("What is to be seen and heard").fill("the red circle moves")
    render(page, 3)  # planned anew, then rendered


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("notes.mp4", lambda path: path.write_text("no film"), "notes.mp4"),
        ("long.mp4", lambda path: clip_file(path, 40), "30.00 s are the most"),
        ("empty.mp4", lambda path: path.touch(), "empty"),
    ],
)
def test_an_upload_that_is_refused_is_explained(nano, opened, tmp_path, name, make, words):
    make(tmp_path / name)
    page = opened(nano)
    page.locator("input[type=file]").first.set_input_files(tmp_path / name)
    page.get_by_role("alert").filter(has_text=words).first.wait_for()
    plan(page, BELL)  # goes on


def test_two_gigabytes_are_refused_in_words(nano, opened, tmp_path):
    path = tmp_path / "huge.mp4"
    with path.open("wb") as file:
        file.truncate(2 * 2**30)
    page = opened(nano)
    start = time.monotonic()
    page.locator("input[type=file]").first.set_input_files(path)
    page.get_by_text(re.compile("exceed|too large|maximum", re.IGNORECASE)).first.wait_for()
    assert time.monotonic() - start < 60
    plan(page, BELL)


# Many people, and what goes wrong


def test_ten_people_at_once(tiny, opened):
    pages = [opened(tiny) for _ in range(10)]
    for number, page in enumerate(pages):
        page.get_by_label("What is to be seen and heard").fill("the red circle moves")
        page.get_by_label("Seed").fill(str(number))
        page.get_by_label("Seed").blur()
    for page in pages:
        button(page, "Plan").click()
    for page in pages:
        wait_for_version(page, 1)
        button(page, "Render").click()
    clips = []
    for page in pages:
        wait_for_version(page, 2)
        assert page.locator(".baton-versions li").count() == 2
        clips.append(page.locator('.baton-files [data-kind="clip"]').get_attribute("href"))
    assert len(set(clips)) == 10


def test_a_tab_that_dies_in_mid_render_holds_nobody_up(nano, opened):
    page = opened(nano)
    plan(page, BELL)
    button(page, "Render").click()
    page.get_by_text(re.compile("Step [1-9]")).first.wait_for()
    page.context.close()
    other = opened(nano)
    plan(other, BELL)
    render(other, 2)


def test_a_restart_in_mid_render_loses_clips_and_not_the_plan(checkpoint, opened, tmp_path):
    with served(tmp_path, "--model", checkpoint) as (process, address):
        page = opened(address)
        plan(page, "the red circle moves")
        first = page.locator(".baton-cue").first
        first.focus()
        page.keyboard.press("Home")
        wait_for_version(page, 2)
        render(page, 3)
        button(page, "Render").click()
        process.send_signal(signal.SIGKILL)
        process.wait()
    sheet = page.evaluate("JSON.parse(window.batonStudio.page()).sheet")
    with served(tmp_path, "--model", checkpoint, port=int(address.rsplit(":")[-1].strip("/"))):
        (kept,) = (path for path in tmp_path.glob("baton-studio-*/*") if path.is_dir())
        assert not list(kept.rglob("*.mp4"))  # those of the killed one are gone
        page.get_by_text("does not know this tab any more").wait_for()
        assert page.evaluate("JSON.parse(window.batonStudio.page()).sheet") == sheet
        assert page.get_by_label("What is to be seen and heard").input_value() == "the red circle moves"
        render(page, 2)


def test_a_path_typed_as_an_upload_is_refused(tiny, opened):
    page = opened(tiny)
    config = page.evaluate("window.gradio_config")
    upload = next(one for one in config["components"] if one["type"] == "uploadbutton")
    (number,) = (one["id"] for one in config["dependencies"] if [upload["id"], "upload"] in one["targets"])
    for path in ("/etc/passwd", "../../../../etc/passwd", "file:///etc/passwd", str(ROOT / "README.md")):
        file = {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": "clip.mp4"}
        said = page.evaluate(
            """async ([number, file]) => {
                const session_hash = Math.random().toString(36).slice(2)
                const body = JSON.stringify({ data: [file, "a prompt", 0, "{}"], fn_index: number, session_hash })
                const headers = { "Content-Type": "application/json" }
                await fetch("gradio_api/queue/join", { method: "POST", headers, body })
                const answers = await fetch(`gradio_api/queue/data?session_hash=${session_hash}`)
                return await answers.text()
            }""",
            [number, file],
        )
        assert "root:" not in said and '"success":false' in said.replace(" ", ""), said[-500:]


def test_tabs_see_only_their_own(tiny, opened):
    mine, other = opened(tiny), opened(tiny)
    plan(mine)
    render(mine, 2)
    assert other.locator(".baton-versions li").count() == 0
    other.reload()
    other.locator("#baton-board .baton-timeline").wait_for()
    assert other.locator(".baton-versions li").count() == 0


def test_requests_from_other_hosts_are_refused(tiny):
    import httpx

    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(
            lambda host: httpx.get(tiny, headers={"Host": host}).status_code, ("evil.example", "10.0.0.1")
        )
    assert list(answers) == [400, 400]
