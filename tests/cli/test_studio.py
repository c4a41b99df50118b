"""`baton studio`: what is refused before anything is loaded; the page itself is tried in tests/studio."""

import sys

import pytest

from baton_diffusers.cli import loading

from .commands import loaded_in_vain, run


@pytest.fixture(autouse=True)
def unloaded(monkeypatch):
    monkeypatch.setattr(loading, "load_pipeline", loaded_in_vain)


def test_without_gradio_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert run("studio") == 2
    assert "pip install -e '.[app]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "70000"], "65535"),
        (["--turbo", "--student", "x"], "both name a student"),
        (["--student", "nowhere"], "nowhere"),
    ],
)
def test_what_is_refused(capsys, arguments, words):
    pytest.importorskip("gradio", reason="the extra `app` is not installed")
    assert run("studio", *arguments) == 2
    assert words in capsys.readouterr().err
