"""A small cache of Stage, which tests read and leave as it was."""

import pytest

from baton_diffusers.stage.clips import StageClips
from baton_diffusers.training.data.cache import cache_features
from tests import stage_parts


def cache(folder, num_clips=4, clips=None, **options):
    options = {"clips_per_shard": 2, **options}
    clips = StageClips("train") if clips is None else clips
    return cache_features(
        folder, clips, num_clips, *stage_parts.codecs(), *stage_parts.semantic_encoders(), 16.0, 31.25, **options
    )


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    assert cache(folder)
    return folder
