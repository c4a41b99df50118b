"""
Judge Stage's scorer: how it scores damaged renders, and clips that a checkpoint made once.

    python benchmarks/judge_scorer.py damage
    python benchmarks/judge_scorer.py make CLIPS --model model_cards/baton-nano --scenes-per-tier 24
    python benchmarks/judge_scorer.py score CLIPS

It needs no more of the package than scenes, renders and `score_clip`, so that it also runs on the commits before a change of the
scorer: with `PYTHONPATH` set to another checkout, on the same clips.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from baton_diffusers.stage import Action, Actor, Scene, render_clip, render_video, sample_scene, timeline, write_prompt
from baton_diffusers.stage.scene import COLOURS, DIGITS, SPOTS, TIERS
from baton_diffusers.stage.scoring import score_clip
from baton_diffusers.stage.sound import event_sound


Clip = tuple[np.ndarray, np.ndarray]
DAMAGES: dict[str, Callable[[np.ndarray, np.ndarray, Scene, int], Clip | None]] = {}


def damage(name: str) -> Callable:
    """Register a damage: of frames (float), waveform, scene and render seed it gives a clip, or None where it does not apply."""
    return lambda function: DAMAGES.setdefault(name, function)


def columns(actor: Actor) -> slice:
    return slice(int(actor.x) - 10, int(actor.x) + 11)


def free_spots(scene: Scene) -> list[str]:
    return [spot for spot in SPOTS if spot not in {actor.spot for actor in scene.actors}]


def idle(scene: Scene) -> list[Actor]:
    busy = {action.actor for action in scene.script} | {action.target for action in scene.script}
    return [actor for i, actor in enumerate(scene.actors) if i not in busy]


def clear(frames: np.ndarray, place: slice) -> None:
    frames[:, :56, place], frames[:, 56:, place] = frames[:, :1, :1], frames[:, 63:, :1]


def replace_sound(waveform: np.ndarray, frame: int, old: tuple, new: tuple) -> None:
    for sound, sign in ((event_sound(*old), -1), (event_sound(*new), 1)):
        waveform[frame * 1000 : frame * 1000 + len(sound)] += sign * sound[: len(waveform) - frame * 1000]


@damage("none")
def _(frames, waveform, scene, seed):
    return frames, waveform


@damage("a bell on every free spot")
def _(frames, waveform, scene, seed):
    for spot in free_spots(scene):
        colour = next(c for c in COLOURS if f"{c} bell" not in {actor.name for actor in scene.actors})
        bell = Actor("bell", colour, spot)
        picture = render_video(Scene((bell,), (Action("ring", 0, 1),)), 0)[0].astype(float)
        there = np.abs(picture - picture[:1, :1]).max(axis=-1)[:56, columns(bell)] > 2
        frames[:, :56, columns(bell)][:, there] = picture[:56, columns(bell)][there]
    return (frames, waveform) if free_spots(scene) else None


@damage("loud chirps in the pauses")
def _(frames, waveform, scene, seed):
    time = np.arange(1600) / 16000
    chirp = 0.3 * np.sin(2 * np.pi * (800 * time + 9000 * time**2)) * np.hanning(1600)
    onsets = [1000 * event.frame for event in timeline(scene, seed)]
    pauses = [k for k in range(0, 47000, 1000) if all(k + 1600 < onset or k > onset + 6000 for onset in onsets)]
    for k in pauses:
        waveform[k : k + 1600] += chirp
    return (frames, waveform) if pauses else None


@damage("the upper eighth flickers")
def _(frames, waveform, scene, seed):
    frames[::2, :8] += 40
    return frames, waveform


@damage("an object flies through")
def _(frames, waveform, scene, seed):
    for i in range(16):
        frames[20 + i, 4:10, 4 * i : 4 * i + 6] = (250, 60, 250)
    return frames, waveform


@damage("picture noise of sigma 60")
def _(frames, waveform, scene, seed):
    return frames + np.random.default_rng(seed).normal(0, 60, frames.shape), waveform


@damage("flashes and mouths at 30 %")
def _(frames, waveform, scene, seed):
    busy = [scene.actors[action.actor] for action in scene.script if action.verb in ("ring", "say")]
    for actor in busy:
        still = frames[0, :, columns(actor)]
        frames[:, :, columns(actor)] = still + 0.3 * (frames[:, :, columns(actor)] - still)
    return (frames, waveform) if busy else None


@damage("all words wrong, in the right voice")
def _(frames, waveform, scene, seed):
    words = [event for event in timeline(scene, seed) if event.word]
    for event in words:
        colour, wrong = scene.actors[event.actor].colour, DIGITS[(DIGITS.index(event.word) + 1) % 10]
        replace_sound(waveform, event.frame, ("word", colour, event.word), ("word", colour, wrong))
    return (frames, waveform) if words else None


@damage("idle actors vanish after the second frame")
def _(frames, waveform, scene, seed):
    for actor in idle(scene):
        clear(frames[2:], columns(actor))
    return (frames, waveform) if idle(scene) else None


@damage("an actor doubled")
def _(frames, waveform, scene, seed):
    if not free_spots(scene):
        return None
    frames[24:, :, columns(Actor("ball", "red", free_spots(scene)[0]))] = frames[0, :, columns(scene.actors[0])]
    return frames, waveform


@damage("an idle box slides over its neighbour")
def _(frames, waveform, scene, seed):
    boxes, others = [[a for a in scene.actors if (a.kind == "box") is kind] for kind in (True, False)]
    if not boxes or not others or boxes[0] not in idle(scene):
        return None
    box = frames[0, 40:56, columns(boxes[0])][:, 2:19].copy()
    clear(frames[30:], columns(boxes[0]))
    frames[30:, 40:56, columns(others[0])][:, :, 2:19] = box
    return frames, waveform


@damage("one wrong bell")
def _(frames, waveform, scene, seed):
    rings = [event for event in timeline(scene, seed) if event.kind == "flash"]
    if not rings:
        return None
    event, colour = rings[len(rings) // 2], scene.actors[rings[len(rings) // 2].actor].colour
    wrong = COLOURS[(COLOURS.index(colour) + 2) % 4]
    replace_sound(waveform, event.frame, ("flash", colour), ("flash", wrong))
    return frames, waveform


@damage("one hit unseen")
def _(frames, waveform, scene, seed):
    hits = [action for action in scene.script if action.verb == "hit"]
    involved = {hits[0].actor, hits[0].target} if hits else set()
    if len(hits) != 1 or len(scene.script) < 2 or any(a.actor in involved for a in scene.script if a is not hits[0]):
        return None
    left, right = sorted(involved)
    place = slice(columns(scene.actors[left]).start, columns(scene.actors[right]).stop)
    frames[:, :, place] = frames[0, :, place]
    return frames, waveform


@damage("a hum of 440 Hz")
def _(frames, waveform, scene, seed):
    return frames, waveform + 0.03 * np.sin(2 * np.pi * 440 * np.arange(len(waveform)) / 16000)


@damage("white noise of 1e-3")
def _(frames, waveform, scene, seed):
    return frames, waveform + 1e-3 * np.random.default_rng(seed).standard_normal(len(waveform))


def judge_damages(number: int) -> None:
    """Print the table of all damages over this many scenes."""
    print("| damage | clips | P-Acc | strict | faults a clip |\n|---|---|---|---|---|")
    for name, change in DAMAGES.items():
        scores = []
        for seed in range(number):
            scene = sample_scene(40_000 + seed, TIERS[seed % 3])
            clip = render_clip(scene, seed)
            changed = change(clip.frames.astype(float), clip.waveform.copy(), scene, seed)
            if changed is not None:
                frames, waveform = changed
                scores.append(score_clip(frames.clip(0, 255).astype(np.uint8), waveform.astype(np.float32), scene))
        faults = np.mean([sum(not fact.holds for fact in score.facts) for score in scores])
        p_acc, strict = np.mean([(score.p_acc, score.strict) for score in scores], axis=0)
        print(f"| {name} | {len(scores)} | {p_acc:.3f} | {strict:.2f} | {faults:.1f} |", flush=True)


def make_clips(folder: Path, model: str, scenes_per_tier: int) -> None:
    """Keep a checkpoint's clips of validation scenes; those that are there are not made again."""
    import torch

    from baton_diffusers import BatonPipeline

    pipe = BatonPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    folder.mkdir(parents=True, exist_ok=True)
    for seed, tier in tqdm([(seed, tier) for seed in range(scenes_per_tier) for tier in TIERS]):
        path = folder / f"{tier}-{seed:03d}.npz"
        if path.exists():
            continue
        scene = sample_scene(seed, tier, "validation")
        output = pipe(write_prompt(scene, seed), generator=torch.Generator().manual_seed(seed), output_type="pt")
        frames, waveform = output.clip()
        np.savez_compressed(path, frames=frames, waveform=waveform, scene=json.dumps(scene.to_dict()))


def score_clips(folder: Path) -> None:
    """Print the scores of the clips that `make_clips` keeps, and which facts do not hold how often."""
    scores, failing = [], Counter()
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as clip:
            scene = Scene.from_dict(json.loads(str(clip["scene"])))
            scores.append(score_clip(clip["frames"], clip["waveform"].mean(axis=0), scene))
        failing.update(fact.aspect for fact in scores[-1].facts if not fact.holds)
    print("| tier | clips | P-Acc | strict | M-WER | DeSync (s) |\n|---|---|---|---|---|---|")
    for tier in ("all", *TIERS):
        chosen = [score for score in scores if tier in ("all", score.tier)]
        errors, words = np.sum([score.word_errors for score in chosen], axis=0)
        p_acc, strict, desync = np.mean([(score.p_acc, score.strict, score.desync) for score in chosen], axis=0)
        print(f"| {tier} | {len(chosen)} | {p_acc:.3f} | {strict:.3f} | {errors / words:.3f} | {desync:.3f} |")
    print(f"facts that do not hold: {dict(failing)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    damage_parser = commands.add_parser("damage", help="score damaged truths")
    damage_parser.add_argument("--scenes", type=int, default=60)
    make_parser, score_parser = commands.add_parser("make", help="keep clips"), commands.add_parser("score")
    for sub in (make_parser, score_parser):
        sub.add_argument("folder", type=Path)
    make_parser.add_argument("--model", default="model_cards/baton-nano")
    make_parser.add_argument("--scenes-per-tier", type=int, default=24)
    arguments = parser.parse_args()
    if arguments.command == "damage":
        judge_damages(arguments.scenes)
    elif arguments.command == "make":
        make_clips(arguments.folder, arguments.model, arguments.scenes_per_tier)
    else:
        score_clips(arguments.folder)


if __name__ == "__main__":
    main()
