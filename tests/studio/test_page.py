"""The studio's page as a web server: what it gives away, and what it takes. No browser is needed."""

import json
import types

import pytest

from baton_diffusers.media import read_clip
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
