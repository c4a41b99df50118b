import pytest

from ..tiny import tiny_cue_parts, tiny_pipeline
from .calls import forbid, quiet


@pytest.fixture(scope="package")
def pipe():
    """For tests that leave the pipeline as it is."""
    return tiny_pipeline()


@pytest.fixture
def own_pipe():
    """For tests that change the pipeline."""
    return tiny_pipeline()


@pytest.fixture(scope="package")
def idle_pipe():
    """No layer of any of its models may run."""
    return forbid(tiny_pipeline())


@pytest.fixture(scope="module")
def cue_pipe():
    """Its planner writes cues."""
    return quiet(tiny_pipeline(**tiny_cue_parts()))
