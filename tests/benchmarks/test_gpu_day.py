import json
import time

import pytest

from tests.scripts import load_script


@pytest.fixture
def day(monkeypatch):
    day = load_script("benchmarks/gpu_day.py")
    monkeypatch.setattr(day, "expected", lambda day: day.note(of="memory"))
    return day


def test_a_part_that_fails_or_takes_too_long_leaves_what_it_found_and_the_next_goes_on(
    day, tmp_path, monkeypatch, capfd
):
    def failing(day):
        day.note(first=1)
        raise RuntimeError("no such kernel")

    def endless(day):
        day.note(first=2)
        time.sleep(60)

    def counting(day):
        counter.write_text(counter.read_text() + "x")
        day.note(first=3)

    counter, output = tmp_path / "counter", tmp_path / "results.json"
    counter.write_text("")
    monkeypatch.setattr(day, "PARTS", {"failing": (failing, 9), "endless": (endless, 1), "counting": (counting, 9)})
    for _ in range(2):
        day.main(["--output", str(output), "--size", "tiny", "--budget", "30"])
    results = json.loads(output.read_text())
    assert results["failing"]["first"] == 1 and "no such kernel" in results["failing"]["error"]
    assert results["endless"]["first"] == 2 and results["endless"]["status"] == "stopped after 1 s"
    assert (
        results["counting"]["status"] == "done" == results["expected"]["status"] and results["counting"]["first"] == 3
    )
    assert counter.read_text() == "x"  # what is done is not done again


def test_no_part_begins_without_time_for_it(day, tmp_path, capfd):
    day.main(["--output", str(tmp_path / "results.json"), "--size", "tiny", "--budget", "1", "--parts", "machine"])
    assert "machine: no time is left for it" in capfd.readouterr().out


@pytest.mark.slow
def test_the_rehearsal_ends_well(tmp_path):
    output, parts = tmp_path / "results.json", ["machine", "denoise", "stages", "card-24", "card-8", "clip"]
    day = load_script("benchmarks/gpu_day.py")
    day.main(["--output", str(output), "--size", "tiny", "--parts", *parts])
    results = json.loads(output.read_text())
    assert {name: found["status"] for name, found in results.items()} == dict.fromkeys([*parts, "expected"], "done")
    assert results["denoise"]["v2a"]["ms"] > 0 and results["card-8"]["frames"] == [1, 49, 64, 64, 3]
