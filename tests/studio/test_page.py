"""The studio's page as a web server: what it gives away, and what it takes. No browser is needed."""

import json
import types
from pathlib import Path

import numpy as np
import pytest

from baton_diffusers.media import read_clip, write_clip
from baton_diffusers.studio.session import Request, Run, Studio

from ..tiny import tiny_cue_parts, tiny_pipeline


pytest.importorskip("gradio", reason="the extra `app` is not installed")

from starlette.testclient import TestClient  # noqa: E402 (it comes with gradio)

from baton_diffusers.studio import page  # noqa: E402


PROMPT = "the red circle moves left and says two"
SENT = dict.fromkeys(("sheet", "session", "version", "span", "modality", "actor"), None) | {
    "attempt": 0
}  # of a new page


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("studio")
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "uploads"))
        yield folder


@pytest.fixture(scope="module")
def studio(folder):
    return Studio(tiny_pipeline(**tiny_cue_parts()), folder)


@pytest.fixture(scope="module")
def client(studio):
    with TestClient(page.application(studio, "127.0.0.1"), base_url="http://127.0.0.1:7860") as client:
        yield client


@pytest.fixture
def session(studio):
    yield studio.session("mine")
    studio.session("mine").keep(0)
    studio.sweep()


def test_the_page_is_there_and_a_clip_is_fetched_by_its_key(client, studio, session, tmp_path):
    assert "Baton studio" in client.get("/").text
    session.plan(Request(PROMPT))
    *_, version = session.render(Request(PROMPT, session=session.id, version=1))
    answer = client.get(f"/clips/{version.files['clip']}")
    assert answer.headers["content-type"] == "video/mp4" and "no-store" in answer.headers["cache-control"]
    assert 'filename="clip.mp4"' in answer.headers["content-disposition"]
    (tmp_path / "clip.mp4").write_bytes(answer.content)
    assert read_clip(tmp_path / "clip.mp4").frames.shape[0] == 9
    script = client.get(f"/clips/{version.files['script']}")
    assert script.headers["content-disposition"].startswith("attachment") and "pipe.plan" in script.text
    part = client.get(f"/clips/{version.files['clip']}", headers={"Range": "bytes=0-9"})
    assert part.status_code == 206 and len(part.content) == 10


@pytest.mark.parametrize("key", ["nothing", "..%2f..%2fetc%2fpasswd", "%2fetc%2fpasswd", ""])
def test_what_has_no_key_is_not_there(client, key):
    assert client.get(f"/clips/{key}").status_code == 404


def test_no_file_is_served_by_its_path(client, studio, session, folder):
    session.plan(Request(PROMPT))
    kept = next(iter(studio.files.values())).path
    upload = folder / "uploads" / "someone" / "else.mp4"
    upload.parent.mkdir(parents=True, exist_ok=True)
    upload.write_bytes(b"private")
    for path in ("/etc/passwd", kept, upload, __file__, "README.md", "../../etc/passwd"):
        for route in ("/gradio_api/file=", "/file="):
            assert client.get(f"{route}{path}").status_code in (403, 404), path


def test_other_names_that_lead_here_are_refused(client):
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 400


def test_an_upload_beyond_the_limit_is_refused_and_leaves_nothing(client, folder, monkeypatch):
    monkeypatch.setattr(client.app.routes[-1].app.get_blocks(), "max_file_size", 1000)
    answer = client.post("/gradio_api/upload", files={"files": ("big.mp4", b"0" * 5000, "video/mp4")})
    assert answer.status_code == 413
    assert not [
        path for path in folder.rglob("*") if path.is_file() and path.stat().st_size >= 1000 and path.suffix == ".mp4"
    ]


@pytest.mark.parametrize(
    "sent",
    ["", "null", "[]", "{", '{"sheet": null}', "[" * 100_000, "9" * 300_000]
    + [
        json.dumps(SENT | {name: value})
        for name, value in (
            ("version", []),
            ("span", "ab"),
            ("span", [1]),
            ("span", [1, 2, 3]),
            ("attempt", True),
            ("actor", 3),
            ("session", {}),
        )
    ],
)
def test_a_page_that_says_nonsense_is_told_to_reload(sent):
    with pytest.raises(ValueError, match="reload it"):
        page._request({"prompt": PROMPT}, sent)


def test_what_waits_for_a_render_says_so(studio):
    tab = types.SimpleNamespace(session_hash="waits")
    *skipped, view = (
        [*answer] for answer in page._in_turn(studio, tab, lambda session: session.plan(Request(PROMPT)))
    )
    assert not skipped and "session" in view[0]
    with studio.line.turn(Run(1)):
        waiting, view = page._in_turn(studio, tab, lambda session: session.plan(Request(PROMPT)))
    assert waiting[-1] == {"words": page.WAITING} and "session" in view[0]


@pytest.mark.parametrize("prompt", [None, 5, ["a"]])
def test_a_prompt_that_is_no_text_is_told_to_reload(prompt):
    with pytest.raises(ValueError, match="reload it"):
        page._request({"prompt": prompt}, json.dumps(SENT))


def two_seconds():
    return np.zeros((16, 32, 32, 3), np.uint8), np.zeros(16_000, np.float32)


def answers(client, trigger, values=None, event=None, label=None):
    """All that the page is answered by the handler of a trigger, as text. `values` are of fields by type or label."""
    config = client.get("/config").json()
    parts = {part["id"]: part for part in config["components"]}
    (handler,) = [
        found
        for found in config["dependencies"]
        for part, name in found["targets"]
        if name == trigger and (label is None or parts[part]["props"].get("value") == label)
    ]
    fields = [parts[number] for number in handler["inputs"]]
    default = {"textbox": json.dumps(SENT)}
    data = [
        {**default, **(values or {})}.get(
            field["props"].get("label") or field["type"], default.get(field["type"], field["props"].get("value"))
        )
        for field in fields
    ]
    join = {"data": data, "fn_index": handler["id"], "session_hash": "mine", "event_data": event}
    assert client.post("/gradio_api/queue/join", json=join).status_code == 200
    with client.stream("GET", "/gradio_api/queue/data?session_hash=mine") as stream:
        return "\n".join(line for line in stream.iter_lines() if "process_" in line)


@pytest.mark.parametrize("trigger", ["edit", "redraw", "retake", "live", "choose", "go"])
@pytest.mark.parametrize("event", [None, {}, 5])
def test_an_event_that_says_nonsense_is_told_to_reload(client, session, caplog, trigger, event):
    assert "reload it" in answers(client, trigger, event=event)
    assert "The studio failed" not in caplog.text


def test_a_request_opens_no_file_of_this_machine_and_removes_none(client, session, folder, tmp_path):
    assert "reload it" in answers(client, "upload")
    private = write_clip(folder.parent / "private.mp4", *two_seconds(), 8, 8000)
    kept = private.read_bytes()
    for path in (private, folder / "uploads" / ".." / ".." / "private.mp4", "http://127.0.0.1:9/private.mp4"):
        for is_stream in (False, True):
            file = {"path": str(path), "is_stream": is_stream, "meta": {"_type": "gradio.FileData"}}
            answer = answers(client, "upload", {"Open a clip": file})
            assert "reload it" in answer or '"success":false' in answer.replace(" ", "")
    assert not session.versions and private.read_bytes() == kept
    assert not [path for path in folder.rglob("*") if path.is_file() and path.read_bytes() == kept]


def test_an_upload_is_opened_and_deleted(client, session, folder):
    upload = write_clip(folder / "clip.mp4", *two_seconds(), 8, 8000)
    posted = client.post("/gradio_api/upload", files={"files": ("mine.mp4", upload.read_bytes(), "video/mp4")})
    upload.unlink()
    (path,) = posted.json()
    answers(client, "upload", {"Open a clip": {"path": path, "meta": {"_type": "gradio.FileData"}}})
    assert session.current.what == "opened mine.mp4" and not Path(path).exists()


def test_a_cleared_seed_is_said(client, session):
    answer = answers(client, "click", {"Seed": None, "textbox": json.dumps(SENT)}, label="Another plan")
    assert "The seed is None" in answer or "The prompt is empty" in answer


def test_a_taken_port_is_said(studio):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"port {port} .*another --port"):
            page.serve(studio.pipe, port=port)


@pytest.mark.parametrize("host", ["256.0.0.1", "no such host"])
def test_an_address_that_is_not_ours_is_said(studio, host):
    with pytest.raises(ValueError, match="nothing can listen"):
        page.serve(studio.pipe, host=host)


def test_the_folder_is_gone_when_the_studio_is(tmp_path, monkeypatch):
    monkeypatch.setattr(page.tempfile, "gettempdir", lambda: str(tmp_path))
    with page.studio_folder() as folder:
        (folder / "clip.mp4").touch()
        assert folder.is_relative_to(tmp_path) and folder.parent.stat().st_mode & 0o77 == 0
    assert not folder.exists()


def test_a_folder_that_somebody_else_has_laid_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(page.tempfile, "gettempdir", lambda: str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"baton-studio-{page.os.getuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="belongs to somebody else"), page.studio_folder():
        pass
