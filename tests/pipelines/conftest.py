import pytest

from ..tiny import tiny_pipeline
from .calls import forbid


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
