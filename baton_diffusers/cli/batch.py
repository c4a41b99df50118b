"""`baton generate --prompts FILE`: many clips, with the model loaded once."""

import hashlib
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import inside, make_folder, read_text
from .workers import Worker


# Arguments of a call that a row may have, besides `seed` and the `name` of its mp4. Those in the second line are paths in the folder
# of the file.
_ARGUMENTS = {
    *(
        "prompt",
        "negative_prompt",
        "audio_prompt",
        "audio_negative_prompt",
        "height",
        "width",
        "num_frames",
        "num_inference_steps",
        "sigmas",
        "timesteps",
    ),
    *("use_plan", "cues", "cue_temperature", "num_cue_candidates", "num_plan_candidates", "use_cache"),
    *("continue_seconds", "video_mask", "audio_mask", "only"),
}
_PATHS = {"plan", "image", "video", "audio", "reference_audio", "continue_from"}
_MAX_FILE_BYTES = 64_000_000
_MAX_NAME_BYTES = 200


@dataclass(frozen=True)
class Row:
    """A clip to be made.

    Args:
        line (`int`): where the file asks for it.
        name (`str`, *optional*): the stem of its mp4; by default words of the prompt, and a hash of all that it is made of: the arguments,
            the files that they name, and the model.
        seed (`int`, *optional*): its seed; by default the command's.
        arguments (`dict`): of the call.
    """

    line: int
    name: str | None
    seed: int | None
    arguments: dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """Reads a file of prompts: one a line, or, if it ends in `.jsonl`, a JSON object a line. Empty lines are left out, and in plain
    text those that begin with `#`.

    Raises:
        ValueError: naming the line, if one of them is malformed, names a file that is not there, or a name is there twice.
    """
    lines = read_text(path, _MAX_FILE_BYTES).split("\n")
    rows: list[Row] = []
    names: set[str] = set()
    is_json = path.suffix.lower() == ".jsonl"
    for number, line in enumerate(lines, start=1):
        if not line.strip() or (not is_json and line.lstrip().startswith("#")):
            continue
        try:
            row = _read_row(path, number, _object(line) if is_json else {"prompt": line.strip()})
            if row.name in names:
                raise ValueError(f"the name {row.name!r} is there twice: give another one")
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        rows.append(row)
        names |= {row.name} - {None}
    if not rows:
        raise ValueError(f"{path} holds no prompt: write one a line")
    return rows


def _object(line: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            keys = sorted(key for key, _ in pairs)
            again = next(key for key, other in zip(keys, keys[1:], strict=False) if key == other)
            raise ValueError(f"the key {again!r} is there twice")
        return values

    try:
        value = json.loads(line, object_pairs_hook=unique)
    except ValueError as error:
        raise ValueError(f'it is no JSON ({error}): write an object such as {{"prompt": "...", "seed": 1}}') from error
    if not isinstance(value, dict):
        raise ValueError(f'it is {value!r}, but must be an object such as {{"prompt": "...", "seed": 1}}')
    return value


def _read_row(path: Path, line: int, values: dict[str, Any]) -> Row:
    name, seed = values.pop("name", None), values.pop("seed", None)
    known = sorted(_ARGUMENTS | _PATHS | {"name", "seed"})
    for key, value in values.items():
        if key not in known:
            raise ValueError(f"the key {key!r} is unknown: use {', '.join(known)}")
        if key in _PATHS:
            if not isinstance(value, str):
                raise ValueError(f"`{key}` is {value!r}, but must be the name of a file")
            values[key] = inside(path.parent, value)
    prompt = values.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"`prompt` is {prompt!r}, but must be a text")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**64):
        raise ValueError(f"`seed` is {seed!r}, but must be a whole number from 0 to 2**64 - 1")
    is_name = isinstance(name, str) and re.fullmatch(r"\w[\w .-]*", name) and len(name.encode()) <= _MAX_NAME_BYTES
    if name is not None and not is_name:
        raise ValueError(
            f"`name` is {name!r}, but must be at most {_MAX_NAME_BYTES} bytes of letters, digits, '_', '-', '.' and spaces"
        )
    return Row(line, name, seed, values)


def generate_all(pipe: Any, rows: list[Row], folder: Path, seed: int, scale: int, worker: Worker, **call: Any) -> None:
    """Makes the clips of a worker's share that are not there yet, each under its own name.

    Args:
        pipe: A pipeline.
        rows: What is asked for.
        folder: Where the mp4 files go.
        seed: Of rows without one.
        scale: Every pixel becomes `scale` x `scale` pixels.
        worker: Which share is made.
        call: Arguments of rows that have none of that name.

    Raises:
        RuntimeError: if some failed, when the others are made.
    """
    import torch

    from ..pipelines.film_work import digest_of, fingerprint

    make_folder(folder)
    weights = fingerprint(pipe)
    mine = [rows[number] for number in sorted(worker.share([1.0] * len(rows)))]
    made, failures = 0, []
    for row in mine:
        arguments, own_seed = {**call, **row.arguments}, seed if row.seed is None else row.seed
        try:
            made_of = {name: _content(value) for name, value in arguments.items()}
            digest = digest_of([weights, made_of, own_seed, scale])
            path = folder / f"{row.name or _name_of(arguments['prompt'], digest)}.mp4"
            if path.is_file():
                continue
            generator = torch.Generator().manual_seed(own_seed)
            result = pipe(**arguments, generator=generator, output_type="pil")
            result.save(path, scale=scale)
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            failures.append(row)
            print(f"line {row.line}: {' '.join(str(error).split())}", file=sys.stderr)
            continue
        made += 1
        print(path, flush=True)
    there = len(mine) - made - len(failures)
    print(f"{made} clips made, {there} were there, {len(failures)} failed")
    if failures:
        lines = ", ".join(str(row.line) for row in failures)
        raise RuntimeError(
            f"{len(failures)} of {len(mine)} clips failed, of the lines {lines}; the same command goes on with them"
        )


def _content(value: Any) -> Any:
    """The value of an argument; for a file, the hash of its content."""
    if isinstance(value, Path):
        with value.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return value


def _name_of(prompt: str, digest: str) -> str:
    """A name that no clip of other inputs has."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40].strip("-")
    return f"{words}-{digest[:8]}".strip("-")
