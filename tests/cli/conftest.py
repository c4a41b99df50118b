import pytest

from baton_diffusers.cli import loading


@pytest.fixture(scope="module")
def loaded():
    return loading.load_pipeline(None)


@pytest.fixture
def nano(loaded, monkeypatch):
    """baton-nano, loaded once for all tests instead of once for each command."""
    guiders = loaded.guider, loaded.audio_guider
    monkeypatch.setattr(loading, "load_pipeline", lambda *_: loaded)
    yield loaded
    loaded.guider, loaded.audio_guider = guiders
