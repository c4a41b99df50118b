import pytest

from tests.scripts import load_script


@pytest.fixture(scope="module")
def benchmark():
    return load_script("benchmarks/guidance_cost.py")


def test_what_is_counted_is_what_is_promised(benchmark, capsys):
    benchmark.measure(benchmark.Clip(), num_steps=2, repeats=1)  # raises otherwise
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    runs = {row[0].removeprefix("| "): tuple(map(int, row[1:4])) for row in rows}
    # calls, runs of the video and of the audio branch
    assert runs["no guidance"] == (2, 2, 2)
    assert runs["text"] == (4, 4, 4)
    assert runs["SyncCFG, context tokens"] == (6, 5, 5)
    assert runs["V2A, no guidance"] == (2, 1, 2)
