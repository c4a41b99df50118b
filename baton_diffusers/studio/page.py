"""The studio's page, by Gradio: it carries what a person does to the session of their tab, and shows what that returns.

Nothing of this machine's disk is served by its path: all paths are blocked, and what a session has made is fetched by its key. Uploads
are bounded while they arrive, and deleted as soon as they are read.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

import fastapi
import gradio as gr
import uvicorn
from gradio.utils import get_upload_folder
from starlette.middleware.trustedhost import TrustedHostMiddleware

from .. import files
from ..pipelines.pipeline_baton import BatonPipeline
from .session import MAX_SESSIONS, Cancelled, Progress, Request, Session, Studio, Version


logger = logging.getLogger(__name__)

MAX_UPLOAD = 64 * 2**20  # bytes
_MAX_PAGE = 200_000  # letters of what the page says of itself
_MAX_WAITING = 64  # actions
_SWEEP_SECONDS = 30
CANCELLED = "Cancelled"
WAITING = "Waiting: a render is under way, and planning comes after it"
_UNREAD = "The page sent something that the studio does not read: reload it."
_LOOPBACK = ("127.0.0.1", "localhost", "::1")

_PAGE_STATE = "(...values) => [...values.slice(0, -1), window.batonStudio.page()]"
_ATTEMPT = "(...values) => window.batonStudio.attempt() ?? [...values.slice(0, -1), window.batonStudio.page()]"
_KEPT = """(prompt, seed, quick, seconds, width, height, plans) => {
  const kept = JSON.parse(sessionStorage.getItem('baton-studio') || '{}')
  const size = [kept.seconds ?? seconds, kept.width ?? width, kept.height ?? height]
  return [kept.prompt || '', kept.seed || 0, quick, ...size, plans, kept.page || '']
}"""
_STATUS = """
<div class="baton-status" role="status" aria-live="polite"><progress hidden max="1" aria-label="Progress of the render"></progress><span></span></div>
<div class="baton-error" role="alert" hidden></div>
"""
_STATUS_JS = """
const bar = element.querySelector('progress'), words = element.querySelector('span'), alert = element.querySelector('.baton-error')
watch('value', () => {
  const now = props.value || {}, board = document.querySelector('#baton-board .baton-top')
  const glimpse = board?.querySelector('.baton-glimpse')
  if (now.draft) return board.dispatchEvent(new CustomEvent('baton-drafted', { detail: now.draft, bubbles: true }))
  if ('attempt' in now) { // it is about a render
    if (now.attempt < window.batonStudio.attempts) return // and the page has begun another one
    bar.hidden = !now.steps
    if (now.steps) { bar.max = now.steps; bar.value = now.step }
    document.body.classList.toggle('baton-busy', Boolean(now.steps))
    if (glimpse) {
      glimpse.hidden = !now.picture
      if (now.picture) glimpse.src = now.picture
    }
  } else if (!bar.hidden && !now.error) return
  alert.hidden = !now.error
  alert.textContent = now.error || ''
  words.textContent = now.words || ''
})
"""
_PAGE_CSS = """
.gradio-container { max-width: 1280px !important; width: 100% !important; margin: 0 auto; }
.gradio-container main { width: 100%; min-width: 0; padding: 0 !important; gap: 12px; }
.gradio-container .app { padding: 12px 16px !important; }
.gradio-container .html-container { padding: 0 !important; }
.gradio-container .column { min-width: 0; gap: 12px; }
footer { display: none !important; }
#baton-title h1 { font-size: 20px; margin: 0; }
#baton-prompt textarea { font-size: 16px; }
@media (max-width: 760px) { #baton-prompt textarea { min-height: 96px; } }
#baton-actions { gap: 8px; flex-wrap: wrap; align-items: center; }
#baton-actions > * { flex: 0 0 auto !important; min-width: 0 !important; width: auto !important; }
#baton-actions button { font-size: 15px; padding: 7px 16px; border-radius: 8px; }
body:not(.baton-busy) #baton-cancel, body.baton-busy #baton-render { display: none; }
body:not(.baton-planned) :is(#baton-another, #baton-undo, #baton-redo) { display: none; }
body:not(.baton-planned) #baton-render, body.baton-planned #baton-plan { background: var(--button-secondary-background-fill); color: var(--button-secondary-text-color); }
#baton-actions #baton-quick { border: 0; padding: 0 6px; background: none; box-shadow: none; flex: 0 0 auto !important; }
#baton-more { border: 0; background: none; padding: 0 !important; }
#baton-more > button { font-size: 14px; color: color-mix(in srgb, var(--body-text-color) 68%, transparent); width: auto; gap: 6px; padding: 2px 0; }
#baton-actions > #baton-status { flex: 1 1 240px !important; padding: 0 !important; min-height: 0 !important; }
#baton-actions > #baton-status:has(.baton-error:not([hidden])) { flex-basis: 100% !important; }
.baton-status { display: flex; gap: 10px; align-items: center; min-height: 22px; font-size: 14px; }
.baton-status progress { appearance: none; flex: 0 1 220px; min-width: 60px; height: 10px; border: 0; border-radius: 5px; overflow: hidden; background: var(--border-color-primary); }
.baton-status progress::-webkit-progress-bar { background: var(--border-color-primary); }
.baton-status progress::-webkit-progress-value { background: var(--color-accent); transition: width .15s; }
.baton-status progress::-moz-progress-bar { background: var(--color-accent); }
.baton-error { padding: 10px 12px; border-left: 4px solid #dc2626; background: var(--background-fill-secondary); border-radius: 6px; font-size: 14px; }
.baton-error[hidden] { display: none; }
@media (max-width: 760px) {
  .gradio-container .app { padding: 8px !important; }
  #baton-actions { gap: 6px; }
  #baton-actions button { padding: 7px 11px; font-size: 14px; }
}
"""


def _sizes(studio: Studio) -> tuple[gr.Number, ...]:
    """Fields of a clip's length, width and height, and of the number of plans."""
    usual = studio.pipe.config
    duration = studio.pipe.clip_duration(usual.num_frames)
    return (
        gr.Number(round(duration, 2), label="Length in seconds", step=0.25, min_width=120),
        gr.Number(usual.width, label="Width in pixels", precision=0, min_width=120),
        gr.Number(usual.height, label="Height in pixels", precision=0, min_width=120),
        gr.Number(studio.num_plans, label="Plans to draw", precision=0, min_width=120, visible=studio.num_plans > 1),
    )


def build(studio: Studio) -> gr.Blocks:
    """The page of a studio."""
    source = resources(__package__)
    with gr.Blocks(title="Baton studio", analytics_enabled=False, delete_cache=(600, 600)) as page:
        gr.Markdown("# Baton studio", elem_id="baton-title")
        with gr.Row(equal_height=True):
            form = {
                "label": "What is to be seen and heard",
                "lines": 2,
                "max_lines": 6,
                "scale": 6,
                "submit_btn": False,
            }
            prompt = gr.Textbox(studio.example, **form, elem_id="baton-prompt")
            seed = gr.Number(0, label="Seed", precision=0, scale=1, min_width=120)
        with gr.Row(elem_id="baton-actions"):
            plan = gr.Button("Plan", variant="primary", elem_id="baton-plan")
            another = gr.Button("Another plan", elem_id="baton-another")
            render = gr.Button("Render", variant="primary", elem_id="baton-render")
            cancel = gr.Button("Cancel", variant="stop", elem_id="baton-cancel")
            undo = gr.Button("Undo", elem_id="baton-undo")
            redo = gr.Button("Redo", elem_id="baton-redo")
            upload = gr.UploadButton("Open a clip", file_types=["video"], elem_id="baton-open")
            quick = gr.Checkbox(
                studio.starts_quick,
                label=f"Quick: {studio.quick_steps} steps instead of {studio.steps}",
                visible=studio.student is not None,
                container=False,
                elem_id="baton-quick",
            )
            status = gr.HTML(None, html_template=_STATUS, js_on_load=_STATUS_JS, elem_id="baton-status")
        with gr.Accordion("Length, size, number of plans", open=False, elem_id="baton-more"), gr.Row():
            seconds, width, height, plans = _sizes(studio)
        board = gr.HTML(
            None,
            html_template=(source / "board.html").read_text(),
            js_on_load=(source / "board.js").read_text(),
            elem_id="baton-board",
            apply_default_css=False,
        )
        sent = gr.Textbox(visible=False)  # what the page says of itself, when a button is pressed

        shown = [board, prompt, seed, seconds, width, height, status]
        names = {prompt: "prompt", seed: "seed", seconds: "seconds", width: "width", height: "height"}
        names |= {plans: "plans", quick: "quick"}
        asked = {"outputs": shown, "api_visibility": "private", "show_progress": "minimal", "show_progress_on": status}
        by_button = asked | {"inputs": {*names, sent}, "js": _PAGE_STATE}
        by_board = asked | {"inputs": {*names}, "show_progress": "hidden"}
        as_render = {"trigger_mode": "multiple", "concurrency_limit": None}  # the studio has its own line of renders

        def request(values: dict, event: gr.EventData | None = None) -> Request:
            page = values[sent] if event is None else _said(event, "page")
            return _request({name: values[field] for field, name in names.items()}, page)

        # Every handler reads what the page says, does one thing in the tab's session, and shows the session.

        def on_plan(values: dict, tab: gr.Request) -> Iterator[tuple]:
            yield from _in_turn(studio, tab, lambda session: session.plan(request(values)))

        def on_another(values: dict, tab: gr.Request) -> Iterator[tuple]:
            yield from _in_turn(studio, tab, lambda session: session.plan(_with_next_seed(request(values))))

        def on_render(values: dict, tab: gr.Request) -> Iterator[tuple]:
            yield from _follow(studio, tab, lambda: request(values), Session.render)

        def on_cancel(sent: str, tab: gr.Request) -> dict:
            try:
                attempt = _request({"prompt": ""}, sent).attempt
            except ValueError as error:
                return _words(error)
            studio.session(tab.session_hash).cancel(attempt)
            return {"attempt": attempt, "words": CANCELLED}

        def on_undo(tab: gr.Request) -> tuple:
            return _answer(studio, tab, Session.undo)

        def on_redo(tab: gr.Request) -> tuple:
            return _answer(studio, tab, Session.redo)

        def on_open(values: dict, tab: gr.Request) -> Iterator[tuple]:
            if not _is_upload(values[upload]):
                yield *_UNCHANGED, _words(ValueError(_UNREAD))
                return
            path = Path(values[upload])
            try:
                yield from _in_turn(studio, tab, lambda session: session.open(path, path.name, request(values)))
            finally:
                path.unlink(missing_ok=True)

        def on_edit(values: dict, tab: gr.Request, event: gr.EventData) -> Iterator[tuple]:
            made = _in_turn(
                studio, tab, lambda session: session.edit(request(values, event), str(_said(event, "what")))
            )
            yield from _edited(made, event)

        def on_redraw(values: dict, tab: gr.Request, event: gr.EventData) -> Iterator[tuple]:
            made = _follow(
                studio,
                tab,
                lambda: request(values, event),
                lambda session, asked: session.redraw(asked, str(_said(event, "what"))),
            )
            yield from _edited(made, event)

        def on_live(values: dict, tab: gr.Request, event: gr.EventData) -> dict:
            try:
                session, draws = studio.session(tab.session_hash), bool(_said(event, "draws"))
                return {"draft": session.live(request(values, event), draws)}
            except Cancelled:
                return gr.skip()
            except Exception as error:
                return _words(error)

        def on_retake(values: dict, tab: gr.Request, event: gr.EventData) -> Iterator[tuple]:
            yield from _follow(studio, tab, lambda: request(values, event), Session.retake)

        def on_choose(values: dict, tab: gr.Request, event: gr.EventData) -> Iterator[tuple]:
            yield from _in_turn(
                studio, tab, lambda session: session.choose(request(values, event), _said(event, "number"))
            )

        def on_go(tab: gr.Request, event: gr.EventData) -> tuple:
            return _answer(studio, tab, lambda session: session.go(_said(event, "number")))

        def on_load(values: dict, tab: gr.Request) -> tuple:
            return _answer(studio, tab, lambda session: session.resume(request(values)) if values[sent] else None)

        def on_leave(tab: gr.Request) -> None:
            studio.leave(tab.session_hash)

        gr.on([plan.click, prompt.submit], on_plan, **by_button)
        another.click(on_another, **by_button)
        render.click(on_render, **by_button | as_render | {"js": _ATTEMPT})
        board.retake(on_retake, **by_board | as_render)
        cancel.click(on_cancel, sent, status, js=_PAGE_STATE, queue=False, api_visibility="private")
        undo.click(on_undo, **asked)
        redo.click(on_redo, **asked)
        upload.upload(on_open, **by_button | {"inputs": {*names, upload, sent}})
        board.edit(on_edit, trigger_mode="multiple", **by_board)
        board.redraw(on_redraw, **by_board | as_render)
        board.live(on_live, trigger_mode="always_last", **by_board | {"outputs": status})
        board.choose(on_choose, **by_board)
        board.go(on_go, **by_board | {"inputs": []})
        page.load(on_load, **by_button | {"js": _KEPT})
        page.unload(on_leave)
    for block in page.blocks.values():  # Gradio checks the paths in requests only of pages that it launches itself
        block.async_move_resource_to_block_cache = _uploaded
    page.max_threads = 2 * MAX_SESSIONS  # each render holds one
    page.queue(default_concurrency_limit=4, max_size=_MAX_WAITING, api_open=False)
    return page


def _request(fields: dict[str, Any], sent: str) -> Request:
    """What the page says, as the session reads it: its fields, and what the board says of itself.

    Raises:
        ValueError: if it is nothing that the page says.
    """
    try:
        if len(sent) > _MAX_PAGE:
            raise TypeError
        page = json.loads(sent)
        about = {name: page[name] for name in ("sheet", "session", "version", "span", "attempt", "modality", "actor")}
        if about["span"] is not None:
            about["span"] = start, end = tuple(map(float, about["span"]))
        kinds = {
            "prompt": str,
            "session": str | None,
            "version": int | None,
            "attempt": int,
            "modality": str | None,
            "actor": str | None,
        }
        said = {**fields, **about}
        if not all(isinstance(said[name], kind) and said[name] is not True for name, kind in kinds.items()):
            raise TypeError
        return Request(**said)
    except (TypeError, KeyError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(_UNREAD) from error


def _is_upload(path: Any) -> bool:
    """Whether it is a file that was uploaded: a request may name any other of this machine, or an address."""
    uploads = Path(get_upload_folder()).resolve()
    return isinstance(path, str) and "\0" not in path and Path(path).resolve().is_relative_to(uploads)


async def _uploaded(path: str) -> str:
    """The file that a request names, where Gradio would copy any file of this machine.

    Raises:
        gradio.Error: if it was not uploaded.
    """
    if not _is_upload(path):
        raise gr.Error(_UNREAD)
    return path


def _said(event: gr.EventData, name: str) -> Any:
    """What the board says with an event.

    Raises:
        ValueError: if it says nothing of that name.
    """
    try:
        return event._data[name]
    except (TypeError, KeyError, IndexError):
        raise ValueError(_UNREAD) from None


def _with_next_seed(request: Request) -> Request:
    """The request for another plan; a seed that is none is refused later."""
    return request._replace(seed=request.seed + 1) if isinstance(request.seed, (int, float)) else request


_UNCHANGED = (gr.skip(),) * 6  # all that is shown, but the status


def _answer(studio: Studio, tab: gr.Request, do: Callable[[Session], Any]) -> tuple:
    """Does one thing in the session of a tab; what the board, the prompt, the seed and the status then show."""
    status: dict[str, Any] = {}
    try:
        session = studio.session(tab.session_hash)
        try:
            do(session)
        except Exception as error:
            status = _words(error)
    except ValueError as error:
        return *_UNCHANGED, _words(error)
    view = session.view()
    return view, *(view.get(name, gr.skip()) for name in ("prompt", "seed", "seconds", "width", "height")), status


def _in_turn(studio: Studio, tab: gr.Request, do: Callable[[Session], Any]) -> Iterator[tuple]:
    """The same for what needs the pipeline. A status says if a render has it."""
    if studio.line.is_taken:
        yield *_UNCHANGED, {"words": WAITING}
    yield _answer(studio, tab, do)


def _edited(answers: Iterable[tuple], event: gr.EventData) -> Iterator[tuple]:
    """Answers whose views tell which edit of the page they follow."""
    edit = event._data.get("edit") if isinstance(event._data, dict) else None
    for view, *rest in answers:
        yield view | {"edit": edit} if "session" in view else view, *rest


def _follow(
    studio: Studio,
    tab: gr.Request,
    ask: Callable[[], Request],
    do: Callable[[Session, Request], Iterator[Progress | Version]],
) -> Iterator[tuple]:
    """The same for a render, with a status for each report."""
    status: dict[str, Any] = {}
    picture, attempt = None, 0
    try:
        request = ask()
        attempt = request.attempt
        for report in do(studio.session(tab.session_hash), request):
            if isinstance(report, Progress):
                picture = report.picture or picture
                told = report._asdict() | {"picture": picture, "words": _progress(report), "attempt": attempt}
                yield *_UNCHANGED, told
    except Exception as error:
        status = _words(error)
    *rest, _ = _answer(studio, tab, lambda session: None)
    yield *rest, status | {"attempt": attempt}


def _progress(report: Progress) -> str:
    """What the status says of a render."""
    if report.before:
        return f"Waiting: {report.before} render{'' if report.before == 1 else 's'} of others before yours"
    return f"Step {report.step} of {report.steps}" if report.step else "Starting"


def _words(error: Exception) -> dict[str, str]:
    """What the status says of an error."""
    if isinstance(error, Cancelled):
        return {"words": CANCELLED}
    if isinstance(error, ValueError):
        return {"error": " ".join(str(error).split())}
    logger.exception("The studio failed", exc_info=error)
    return {"error": "The studio failed at this; the words are in its log. Try again, or restart it."}


@contextmanager
def studio_folder() -> Iterator[Path]:
    """A folder for clips and uploads, which is gone when the studio is; one of a studio that was killed, too."""
    parent = files.make_folder(Path(tempfile.gettempdir()) / f"baton-studio-{os.getuid()}")
    if parent.is_symlink() or parent.stat().st_uid != os.getuid():
        raise ValueError(f"{parent} belongs to somebody else: remove it, or set TMPDIR to another folder")
    parent.chmod(0o700)
    with files.temporary_folder(parent / "studio") as folder:
        yield folder


def application(studio: Studio, host: str) -> fastapi.FastAPI:
    """The web application: the page, and what sessions have made, by key."""
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    if host in _LOOPBACK:  # a foreign name that leads here is another site's trick
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1", "[::1]"])

    @app.get("/clips/{key}")
    def send(key: str) -> fastapi.Response:
        file = studio.files.get(key)
        if file is None or not file.path.is_file():
            return fastapi.responses.PlainTextResponse("This file is gone.", 404)
        headers = {"Cache-Control": "private, no-store", "X-Content-Type-Options": "nosniff"}
        kind = {".mp4": "video/mp4", ".wav": "audio/wav"}.get(file.path.suffix)
        return fastapi.responses.FileResponse(
            file.path,
            headers=headers,
            media_type=kind or "application/octet-stream",
            filename=file.name,
            content_disposition_type="inline" if kind else "attachment",
        )

    return gr.mount_gradio_app(
        app,
        build(studio),
        path="/",
        blocked_paths=["/"],
        max_file_size=MAX_UPLOAD,
        show_error=False,
        enable_monitoring=False,
        run_history=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        footer_links=[],
        theme=gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=_PAGE_CSS + (resources(__package__) / "board.css").read_text(),
    )


def serve(
    pipe: BatonPipeline,
    model: str | None = None,
    student: str | None = None,
    starts_quick: bool = False,
    host: str = "127.0.0.1",
    port: int = 7860,
    started: Callable[[str], None] = print,
) -> None:
    """
    Serves the studio until it is interrupted.

    Args:
        pipe ([`BatonPipeline`]): plans and renders.
        model (`str`, *optional*): the checkpoint's name in the scripts that the page gives.
        student (`str`, *optional*): there, the name of the student that the pipeline has loaded.
        starts_quick (`bool`, defaults to `False`): whether the student renders until somebody switches to its teacher.
        host (`str`, defaults to `"127.0.0.1"`): the address to listen on.
        port (`int`, defaults to 7860): the port; 0 for any.
        started (`Callable`, *optional*): gets the page's address when it can be opened.

    Raises:
        ValueError: if the pipeline has no planner, or nothing can listen there.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=256)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"nothing can listen on {host}, port {port} ({reason}): give another --port or --host"
        ) from None
    with listener, studio_folder() as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(files.make_folder(folder / "uploads"))  # read while the page is built
        studio = Studio(pipe, files.make_folder(folder / "clips"), model, student, starts_quick)
        server = uvicorn.Server(
            uvicorn.Config(application(studio, host), log_level="critical", timeout_graceful_shutdown=2)
        )
        over = threading.Event()

        def sweep() -> None:
            while not over.wait(_SWEEP_SECONDS):
                studio.sweep()

        threading.Thread(target=sweep, name="baton-sweep", daemon=True).start()
        name = f"[{host}]" if ":" in host else host
        started(f"http://{name}:{listener.getsockname()[1]}/")
        try:
            server.run(sockets=[listener])
        finally:
            over.set()
            studio.close_all()
