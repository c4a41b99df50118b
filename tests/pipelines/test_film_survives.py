"""A film goes on where a process was killed, or a disk was full, and comes to the same bytes."""

import random
import resource
import signal
import time
from pathlib import Path

import pytest

from baton_diffusers import Shot

from ..processes import start
from ..tiny import FRAME_RATE, tiny_cue_parts, tiny_pipeline


SHOTS = [
    Shot("a red circle moves right", 4),
    Shot("the blue star says one", 3),
    Shot("a green square jumps", 4, cut=True),
]


def make(folder: Path, most: int | None = None) -> None:
    """Makes a film in a process of its own; no file may have more than `most` bytes."""
    pipe = tiny_pipeline(num_frames=17, num_inference_steps=6, **tiny_cue_parts())
    if most is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
    (folder / "started").touch()
    try:
        made = pipe.film(SHOTS, work=folder / "work", overlap_seconds=9 / FRAME_RATE, stream=True)
        made.save(folder / "film.mp4")
    except OSError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        (folder / "error").write_text(str(error))


def begin(folder: Path, most: int | None = None):
    folder.mkdir(exist_ok=True)
    (folder / "started").unlink(missing_ok=True)
    process = start(make, folder, most)
    while not (folder / "started").exists():
        assert process.is_alive()
        time.sleep(0.01)
    return process


def finish(folder: Path) -> float:
    """The seconds that the film takes."""
    process = begin(folder)
    begun = time.perf_counter()
    process.join()
    assert process.exitcode == 0 and (folder / "film.mp4").exists()
    return time.perf_counter() - begun


def kept(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.glob("work/take-*"))}


@pytest.mark.slow
@pytest.mark.parametrize(("most", "file"), [(2_000, "work/take-"), (20_000, "film.mp4")])
def test_a_full_disk_leaves_everything_kept(tmp_path, most, file):
    begin(tmp_path, most).join()
    error = (tmp_path / "error").read_text()
    assert f"{tmp_path}/{file}" in error and "make room" in error
    before = kept(tmp_path)
    assert not (tmp_path / "film.mp4").exists()
    finish(tmp_path)
    assert before.items() <= kept(tmp_path).items()


@pytest.mark.slow
def test_ten_kills_at_random_moments_change_no_byte(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    seconds, rng, numbers = finish(whole), random.Random(0), []
    for _ in range(10):
        enough, process = len(kept(parts)) + rng.randrange(2), begin(parts)
        while len(kept(parts)) < enough:
            time.sleep(0.01)
        process.join(rng.uniform(0, seconds / 20))
        assert process.is_alive()
        process.kill()
        process.join()
        numbers.append(len(kept(parts)))
        assert not (parts / "film.mp4").exists()
    finish(parts)
    assert numbers[0] < numbers[-1]  # they fell into the work, not before it
    assert kept(whole) == kept(parts) and (whole / "film.mp4").read_bytes() == (parts / "film.mp4").read_bytes()
    assert sorted(path.name for path in parts.iterdir()) == ["film.mp4", "started", "work"]
