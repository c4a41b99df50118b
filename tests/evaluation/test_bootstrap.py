"""The one bootstrap: that its intervals hold the truth as often as they say."""

import numpy as np
import pytest

from baton_diffusers.evaluation.bootstrap import bootstrap, ratio


def share(holds, scenes=None):
    return bootstrap(ratio, (np.array(holds, float), np.ones(len(holds))), scenes or range(len(holds)), share=True)


@pytest.mark.parametrize("truth, number", [(0.5, 60), (0.9, 60), (0.97, 100), (0.99, 30)])
def test_an_interval_holds_the_truth(truth, number):
    rng = np.random.default_rng(0)
    drawn = [share(rng.random(number) < truth) for _ in range(120)]
    assert np.mean([estimate["low"] <= truth <= estimate["high"] for estimate in drawn]) > 0.91


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_an_interval_at_a_bound_is_no_point(value):
    estimate = share([value] * 40)
    assert estimate["value"] == value and 0.02 < estimate["high"] - estimate["low"] < 0.12
    assert value in (estimate["low"], estimate["high"]) and 0 <= estimate["low"] and estimate["high"] <= 1


def test_scenes_are_drawn_and_not_clips():
    rng = np.random.default_rng(0)
    once = rng.random(50)
    parts = [(np.tile(once, number), np.ones(50 * number)) for number in (1, 8)]
    alone, repeated = (bootstrap(ratio, part, [*range(50)] * (len(part[0]) // 50)) for part in parts)
    assert repeated == pytest.approx(alone), "eight clips of each scene say no more of scenes than one"
    as_if = bootstrap(ratio, parts[1], range(400))
    assert as_if["high"] - as_if["low"] < 0.5 * (alone["high"] - alone["low"])


def test_a_mean_has_the_interval_of_its_standard_error():
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    estimate = bootstrap(ratio, (values, np.ones(400)), range(400))
    assert estimate["value"] == pytest.approx(values.mean())
    assert (estimate["high"] - estimate["low"]) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)
    assert estimate == bootstrap(ratio, (values, np.ones(400)), range(400))


def test_what_nobody_did_has_no_figure():
    assert bootstrap(ratio, (np.zeros(3), np.zeros(3)), range(3)) is None


@pytest.mark.parametrize("scenes", [(), (1, 2)])
def test_a_scene_is_needed_for_each_clip(scenes):
    with pytest.raises(ValueError, match="one of each for every clip"):
        bootstrap(ratio, (np.ones(3), np.ones(3)), scenes)
