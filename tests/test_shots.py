"""Shots, and film files that say them."""

import json

import pytest

from baton_diffusers.shots import Shot, read_film


TOML = """# a film
seed = 3

[[shots]]
prompt = "a red ball"
seconds = 3

[[shots]]
prompt = '''a face
seconds = no key, but a part of this text
'''
seconds = 2.5
cut = true
image = "first.png"
"""
YAML = """# a film
seed: 3
shots:
  - prompt: a red ball
    seconds: 3
  - prompt: |
      a face
      seconds = no key, but a part of this text
    seconds: 2.5
    cut: true
    image: first.png
"""


def write(folder, name, text):
    (folder / "first.png").write_bytes(b"x")
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("suffix", [".toml", ".yaml", ".json"])
def test_files_of_all_kinds_say_the_same(tmp_path, suffix):
    text = "a face\nseconds = no key, but a part of this text\n"
    shots = [
        {"prompt": "a red ball", "seconds": 3},
        {"prompt": text, "seconds": 2.5, "cut": True, "image": "first.png"},
    ]
    texts = {".toml": TOML, ".yaml": YAML, ".json": json.dumps({"seed": 3, "shots": shots}, indent="\t")}
    film = read_film(write(tmp_path, f"film{suffix}", texts[suffix]))
    image = (tmp_path / "first.png").resolve()
    assert film.settings == {"seed": 3}
    assert film.shots == (Shot("a red ball", 3.0), Shot(text, 2.5, cut=True, image=image))


@pytest.mark.parametrize(
    ("name", "text", "line", "message"),
    [
        ("film.toml", TOML.replace("cut", "cuts"), 13, "no key 'cuts'"),
        ("film.toml", TOML.replace("seed", "seeds"), 2, "key 'seeds' is unknown"),
        ("film.toml", TOML.replace("2.5", "0"), 12, "`seconds` is 0.0"),
        ("film.toml", TOML.replace("2.5", "2400"), 12, "`seconds` is 2400, but a shot lasts at most 600"),
        ("film.toml", TOML.replace("2.5", "'long'"), 12, "`seconds` is 'long', but must be a number"),
        ("film.toml", TOML.replace("first.png", "second.png"), 14, "second.png is not a file"),
        ("film.toml", TOML.replace("first.png", "../first.png"), 14, "is not within"),
        ("film.toml", TOML.replace('prompt = "a red ball"\n', ""), 4, "shot 1 has no `prompt`"),
        ("film.toml", TOML.replace("seed = 3", "seed = "), 2, "Invalid value"),
        ("film.yaml", YAML.replace("cut:", "cuts:"), 10, "no key 'cuts'"),
        ("film.yaml", YAML.replace("cut: true", "seconds: 3"), 10, "twice"),
        ("film.yaml", YAML.replace("cut: true", "cut: *seed"), 10, "alias"),
        ("film.yaml", YAML.replace("seed: 3", "seed: &n 3").replace("2.5", "*n"), 2, "alias"),
        ("film.yaml", YAML.replace("2.5", "[2.5"), 10, "expected"),
        ("film.json", '{\n"shots": [\n{"prompt": "a", "seconds": 3, "cut": 1}]}', 3, "`cut` is 1, but must be true"),
        ("film.json", "[]", 1, "no keys"),
    ],
)
def test_errors_name_the_line(tmp_path, name, text, line, message):
    with pytest.raises(ValueError, match=rf"{name}, line {line}: .*{message}"):
        read_film(write(tmp_path, name, text))


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="a film file ends in"):
        read_film(tmp_path / "film.txt")
    with pytest.raises(ValueError, match="cannot be read"):
        read_film(tmp_path / "film.toml")
