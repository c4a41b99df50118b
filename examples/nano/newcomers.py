"""Makes clips from prompts that newcomers may type, and scores them by the facts that each prompt states. Needs the extra
`eval`.

python examples/nano/newcomers.py --model model_cards/baton-nano --output runs/newcomers
python examples/nano/newcomers.py --model model_cards/baton-nano --sheets   # what its planner writes, without making clips
"""

import baton_diffusers.interrupts  # noqa: F401


# isort: split
import argparse
import json
import re
import tomllib
from dataclasses import dataclass
from itertools import permutations, product
from pathlib import Path
from typing import Any

import torch

from baton_diffusers import BatonPipeline
from baton_diffusers.cues import parse_sheet
from baton_diffusers.stage import Action, Actor, Scene
from baton_diffusers.stage.prompts import EVENT_VERBS
from baton_diffusers.stage.scene import COLOURS, EVENTS, SPOTS, VOICES
from baton_diffusers.stage.scoring import ClipScore, score_clip


PROMPTS = Path(__file__).with_suffix(".toml")
VERBS = {EVENT_VERBS[event]: verb for verb, event in EVENTS.items()}


@dataclass(frozen=True)
class Right:
    """A scene that a prompt may mean; `places` and `colours` list the actors whose place and colour the prompt says."""

    scene: Scene
    places: tuple[bool, ...]
    colours: tuple[bool, ...]


def read_prompts(path: Path = PROMPTS) -> list[tuple[str, list[Right]]]:
    """Each prompt with the scenes that it may mean, which differ in their counts alone.

    Raises:
        ValueError: If no scene of Stage is as a prompt's entry says.
    """
    entries = tomllib.loads(path.read_text())["prompt"]
    return [(entry["text"], _right(entry)) for entry in entries]


def _right(entry: dict[str, Any]) -> list[Right]:
    members = [_member(text) for text in entry["cast"]]
    names = [" ".join(filter(None, member[:2])) for member in members]
    choices = [_choices(step, names) for step in entry["steps"]]
    rights = []
    for steps in product(*choices):
        right = _arrange(members, steps)
        if right is not None:
            rights.append(right)
    if not rights:
        raise ValueError(f"no scene of Stage is as the entry of {entry['text']!r} says.")
    return rights


def _member(text: str) -> tuple[str | None, str, str | None]:
    """Colour, kind and place."""
    words = text.split()
    place = words.pop() if words[-1] in SPOTS else None
    kind = words.pop()
    return (words[0] if words else None), kind, place


def _choices(step: str, names: list[str]) -> list[dict[str, Any]]:
    """What a step may be, as arguments of an `Action`."""
    actor, deed, rest = re.fullmatch(rf"(.+?) ({'|'.join(VERBS)}) (.+)", step).groups()
    action = {"verb": VERBS[deed], "actor": names.index(actor)}
    if deed == "hits":
        return [action | {"target": names.index(rest)}]
    if deed == "says":
        return [action | {"words": tuple(rest.split()), "count": len(rest.split())}]
    least, _, most = rest.partition("-")
    return [action | {"count": count} for count in range(int(least), int(most or least) + 1)]


def _arrange(members: list[tuple[str | None, str, str | None]], steps: tuple[dict[str, Any], ...]) -> Right | None:
    """The first arrangement of the actors in which the steps can be done, in colours that tell them apart."""
    for spots in permutations(SPOTS, len(members)):
        if any(place not in (None, spot) for (_, _, place), spot in zip(members, spots, strict=True)):
            continue
        actors = []
        for (colour, kind, _), spot in zip(members, spots, strict=True):
            taken = {actor.colour for actor in actors} | {other[0] for other in members}
            free = [other for other in (VOICES if kind == "face" else COLOURS) if other not in taken]
            actors.append(Actor(kind, colour or free[0], spot))
        order = sorted(range(len(members)), key=lambda i: SPOTS[spots[i]])
        where = {old: new for new, old in enumerate(order)}
        script = []
        for step in steps:
            moved = {name: where[step[name]] for name in ("actor", "target") if name in step}
            script.append(Action(**(step | moved)))
        try:
            scene = Scene(tuple(actors[i] for i in order), tuple(script))
        except ValueError:  # no room for a hit, for example
            continue
        places, colours = (tuple(members[i][part] is not None for i in order) for part in (2, 0))
        return Right(scene, places, colours)
    return None


def best_score(clip: tuple, rights: list[Right]) -> ClipScore:
    """The best score of a clip over the scenes that would be right."""
    frames, waveform = clip
    scores = [score_clip(frames, waveform.mean(axis=0), right.scene, right.places, right.colours) for right in rights]
    return max(scores, key=lambda score: score.p_acc)


def is_right(text: str, right: Right) -> bool:
    """Whether a cue sheet tells what a scene shows: its cast, and each cue in its order."""
    sheet, scene = parse_sheet(text), right.scene
    for members in permutations(sheet.cast):
        if len(members) == len(scene.actors) and all(
            member.name.split()[-1:] == [actor.kind]
            and (member.place == actor.spot or not place)
            and (member.name == actor.name or not colour)
            for member, actor, place, colour in zip(members, scene.actors, right.places, right.colours, strict=True)
        ):
            names = [member.name for member in members]
            if [cue.text for cue in sheet.cues] == _cues(scene, names):
                return True
    return False


def _cues(scene: Scene, names: list[str]) -> list[str]:
    cues = []
    for action in scene.script:
        deed = f"{names[action.actor]} {EVENT_VERBS[EVENTS[action.verb]]}"
        rests = action.words or ([names[action.target]] if action.verb == "hit" else [""] * action.count)
        cues += [f"{deed} {rest}".rstrip() for rest in rests]
    return cues


def judge_sheets(pipe: BatonPipeline, prompts: list[tuple[str, list[Right]]], seeds: list[int]) -> None:
    """Prints which prompts' sheets are right."""
    right, number = 0, 0
    for text, rights in prompts:
        for seed in seeds:
            (sheet,) = pipe.prepare_cues(text, generator=torch.Generator().manual_seed(seed))
            holds = any(is_right(sheet, one) for one in rights)
            right, number = right + holds, number + 1
            print(f"{'right' if holds else 'WRONG'}  {text}  [{seed}]\n       {sheet}")
    print(f"{right} of {number} sheets are right")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="checkpoint to judge")
    parser.add_argument("--prompts", type=Path, default=PROMPTS, help="TOML file in the form of %(default)s")
    parser.add_argument("--output", type=Path, help="folder for the clips and the figures")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, help="denoising steps, by default the checkpoint's")
    parser.add_argument("--sheets", action="store_true", help="judge the planner's cue sheets alone")
    args = parser.parse_args()

    pipe = BatonPipeline.from_pretrained(args.model)
    pipe.set_progress_bar_config(disable=True)
    if args.sheets:
        judge_sheets(pipe, read_prompts(args.prompts), args.seeds)
        return
    rows, right = [], 0
    for number, (text, rights) in enumerate(read_prompts(args.prompts)):
        for seed in args.seeds:
            generator = torch.Generator().manual_seed(seed)
            output = pipe(text, num_inference_steps=args.steps, generator=generator, output_type="pt")
            score = best_score(output.clip(0), rights)
            missed = [f"{fact.subject} ({fact.aspect})" for fact in score.facts if not fact.holds]
            right += score.strict
            sheet = output.cues[0] if output.cues else None
            rows.append({"prompt": text, "seed": seed, "p_acc": score.p_acc, "missed": missed, "cues": sheet})
            print(f"{'right' if score.strict else 'WRONG'}  {text}  [{seed}]")
            if missed:
                print(f"       missed: {', '.join(missed)}\n       sheet: {sheet}")
            if args.output:
                args.output.mkdir(parents=True, exist_ok=True)
                output.save(args.output / f"{number:02d}_{seed}.mp4")
    print(f"{right} of {len(rows)} clips are wholly right")
    if args.output:
        (args.output / "newcomers.json").write_text(json.dumps({"right": right, "clips": rows}, indent=1))


if __name__ == "__main__":
    main()
