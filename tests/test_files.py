"""Files appear whole or not at all, and what cannot be written is refused before the work."""

import os
import signal
import subprocess
import sys
import time

import pytest

from baton_diffusers import files


def test_a_written_file_replaces_the_old_one_and_keeps_its_mode(tmp_path):
    path = tmp_path / "value.json"
    assert files.write_json(path, {"name": "Ünïcode"}) == path
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode
    path.chmod(0o640)
    files.write_json(path, [1, 2])
    assert files.read_json(path) == [1, 2] and path.stat().st_mode & 0o777 == 0o640
    assert sorted(os.listdir(tmp_path)) == ["other", "value.json"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = files.write_bytes(tmp_path / "file", b"old")
    with pytest.raises(KeyboardInterrupt), files.replacing(path) as partial:
        partial.write_bytes(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "folder").mkdir()
    target = files.write_bytes(tmp_path / "folder/file", b"old")
    link = tmp_path / "link"
    link.symlink_to(target)
    files.write_bytes(files.check_target(link), b"new")
    assert link.is_symlink() and target.read_bytes() == b"new"


@pytest.mark.parametrize("length", [222, 255])
def test_a_name_may_be_as_long_as_the_folder_allows(tmp_path, length):
    path = tmp_path / ("n" * (length - 4) + ".mp4")
    files.write_bytes(files.check_target(path, (".mp4",)), b"x")
    assert path.read_bytes() == b"x"


@pytest.mark.parametrize(
    "name, message",
    [
        ("clip.gif", r"ends in '.gif': give a name that ends in .mp4 or .wav"),
        ("no/such/clip.mp4", "no/such is not a folder: make it"),
        ("folder.mp4", "is a folder: give the name of a file"),
        ("pipe.mp4", "is a device or a pipe"),
        ("n" * 252 + ".mp4", "cannot be written .*too long"),
        ("/proc/clip.mp4", "/proc/clip.mp4 cannot be written"),
        ("file/clip.mp4", "file is not a folder"),
    ],
)
def test_what_cannot_be_written_is_refused_and_nothing_is_left(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    os.mkdir("folder.mp4")
    os.mkfifo("pipe.mp4")
    open("file", "w").close()
    with pytest.raises(ValueError, match=message):
        files.check_target(name, (".mp4", ".wav"))
    assert sorted(os.listdir()) == ["file", "folder.mp4", "pipe.mp4"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_what_is_read_only_is_refused(tmp_path):
    path = files.write_bytes(tmp_path / "file", b"x")
    path.chmod(0o400)
    with pytest.raises(ValueError, match="file is read-only"):
        files.check_target(path)
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="other cannot be written"):
        files.check_target(tmp_path / "other")


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path):
    assert files.make_folder(tmp_path / "a/b").is_dir() and not os.listdir(tmp_path / "a/b")
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file/b", "/proc/features"):
        with pytest.raises(ValueError, match=f"the folder {path} cannot be written to"):
            files.make_folder(path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000])
def test_damaged_json_is_named(tmp_path, content):
    path = tmp_path / "value.json"
    path.write_bytes(content)
    for broken in (path, tmp_path / "missing.json"):
        with pytest.raises(ValueError, match=f"{broken.name} is missing or damaged"):
            files.read_json(broken)


@pytest.mark.parametrize("writing", ["replacing", "temporary_folder"])
def test_the_next_write_removes_what_a_killed_process_left_and_nothing_of_a_living_one(tmp_path, writing):
    code = (
        "import sys, time; from pathlib import Path; from baton_diffusers import files\n"
        f"with files.{writing}(Path(sys.argv[1])) as partial: print(partial.name, flush=True); time.sleep(60)"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", code, tmp_path / "file"], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    dead, alive = (writer.stdout.readline().strip() for writer in writers)
    writers[0].send_signal(signal.SIGKILL)
    writers[0].wait()
    assert sorted(os.listdir(tmp_path)) == sorted([dead, alive])
    time.sleep(0.05)
    files.write_bytes(tmp_path / "other", b"x")
    assert sorted(os.listdir(tmp_path)) == sorted([alive, "other"])
    writers[1].kill()
    writers[1].wait()


@pytest.mark.parametrize(
    "name, message",
    [
        ("../outside", "is not within"),
        ("/etc/hostname", "is not within"),
        ("link", "is not within"),
        ("folder", "is not a file"),
        ("loop", "is no name of a file .*loop|is not a file"),
        ("a\0b", "is no name of a file"),
        (300 * "a", "is no name of a file .File name too long"),
    ],
)
def test_a_file_that_a_text_names_lies_within_its_folder(tmp_path, name, message):
    folder = tmp_path / "here"
    (folder / "folder").mkdir(parents=True)
    (tmp_path / "outside").touch()
    (folder / "link").symlink_to(tmp_path / "outside")
    (folder / "loop").symlink_to("loop")
    with pytest.raises(ValueError, match=message):
        files.inside(folder, name)


def test_a_text_is_read_with_or_without_its_mark_and_not_without_end(tmp_path):
    for mark in (b"", b"\xef\xbb\xbf"):
        (tmp_path / "text").write_bytes(mark + "ü\n".encode())
        assert files.read_text(tmp_path / "text", 6) == "ü\n"
    for path, message in (
        ("/dev/zero", "has more than 1e-05 MB"),
        (tmp_path, "cannot be read"),
        ("a\0", "cannot be read"),
    ):
        with pytest.raises(ValueError, match=message):
            files.read_text(path, 10)
    (tmp_path / "text").write_bytes(b"a\nb\xff")
    with pytest.raises(ValueError, match="text, line 2: it holds bytes that are not UTF-8"):
        files.read_text(tmp_path / "text", 10)


def test_a_link_to_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "link.mp4").symlink_to(tmp_path / "notes.txt")
    with pytest.raises(ValueError, match="link.mp4 leads to .*notes.txt, which ends in '.txt'"):
        files.check_target(tmp_path / "link.mp4", (".mp4",))
    assert not (tmp_path / "notes.txt").exists()
