import re

import pytest

from tests.scripts import load_script


def growth(capsys, *arguments):
    """What the benchmark prints: growth within windows and globally, of the layers and of their attention alone."""
    module = load_script("benchmarks/windowed_attention.py")
    module.main(list(arguments))
    lines = re.findall(
        r"4x the duration: ([\d.]+)x the time within windows, ([\d.]+)x globally", capsys.readouterr().out
    )
    assert len(lines) == 2
    return [tuple(map(float, line)) for line in lines]


def test_growth_is_printed_for_layers_and_for_attention_alone(capsys):
    small = ("--frames", "3", "--tokens-per-frame", "4", "--heads", "2", "--head-dim", "12", "--repeats", "1")
    assert all(value > 0 for line in growth(capsys, *small) for value in line)


@pytest.mark.slow
def test_windows_cost_at_most_four_and_a_half_times_at_four_times_the_duration(capsys):
    layers, attention = growth(capsys)
    assert attention[0] <= 4.5 and attention[1] > 2 * attention[0]
    assert layers[0] < layers[1]
