import pytest
import torch

from baton_diffusers.guiders import JOINT, NO_PLAN, NO_TEXT, UNCONDITIONAL


@pytest.fixture
def predict():
    """Random predictions of one modality, by anchor, alike for equal seeds."""

    def predict(shape, seed=0):
        generator = torch.Generator().manual_seed(seed)
        joint = torch.randn(shape, generator=generator)
        anchors = (UNCONDITIONAL, NO_TEXT, NO_PLAN)
        return {JOINT: joint} | {a: 0.8 * joint + torch.randn(shape, generator=generator) for a in anchors}

    return predict
