"""Whether a corrected plan shows its correction and nothing else, and whether a retake leaves no trace at its seams."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from ..cues import Sheet, sheet_turns
from ..plan import SemanticPlan
from ..stage import Action, Actor, Scene
from ..stage.hearing import hear, stray_sounds
from ..stage.prompts import EVENT_VERBS
from ..stage.scene import (
    COLOURS,
    DIGITS,
    EVENTS,
    FRAME_RATE,
    INTERVAL,
    LAST_FRAME,
    NUM_FRAMES,
    SAMPLING_RATE,
    TIERS,
    VOICES,
)
from ..stage.scoring import ClipScore, score_clip
from .bootstrap import Estimate, bootstrap, ratio
from .scores import Example, draw_examples, format_estimate, markdown_table


if TYPE_CHECKING:
    from ..pipelines.pipeline_baton import BatonPipeline
    from ..pipelines.pipeline_output import BatonPipelineOutput


EDITS = ("move", "delete", "reword", "recolour", "swap")
MOVED = 0.25  # seconds
NEAR = 1 / 8  # seconds by which an instant may miss its cue
_VERBS = {deed: verb for verb, event in EVENTS.items() for kind, deed in EVENT_VERBS.items() if kind == event}
_KINDS = {deed: kind for kind, deed in EVENT_VERBS.items()}

Key = tuple[str, Any]


def draw_mixed(number: int, split: str = "validation", seed: int = 0) -> list[Example]:
    """Different scenes of all tiers in turn, for edits that not every scene allows. See [`draw_examples`]."""
    each = -(-number // len(TIERS))
    drawn = draw_examples(each, split, seed)
    return [drawn[tier * each + i] for i in range(each) for tier in range(len(TIERS))][:number]


def scene_of(sheet: Sheet) -> Scene:
    """
    The scene of a cue sheet of Stage.

    Raises:
        ValueError: if the sheet is not one of a scene.
    """
    actors = tuple(Actor(member.name.split()[-1], member.name.split()[0], member.place) for member in sheet.cast)
    names = [actor.name for actor in actors]
    script = []
    for turn in sheet_turns(sheet, 0.0):
        if turn.who not in names:
            raise ValueError(f"{turn.who!r} is nobody of the cast")
        deeds = [deed.split(" ", 1) for deed in turn.deeds]
        verb, number = _VERBS.get(deeds[0][0]), names.index(turn.who)
        if verb is None or any(deed[0] != deeds[0][0] for deed in deeds):
            raise ValueError(f"{turn.what!r} is no action")
        words = tuple(deed[1] for deed in deeds) if verb == "say" else ()
        if verb == "hit" and deeds[0][1] not in names:
            raise ValueError(f"{deeds[0][1]!r} is nobody of the cast")
        script.append(Action(verb, number, len(deeds), words, names.index(deeds[0][1]) if verb == "hit" else None))
    return Scene(actors, tuple(script))


@dataclass(frozen=True)
class Correction:
    """An edit of a sheet: the sheets and scenes before and after, and the keys of the facts that it changes.

    A key is the aspect of a fact and its subject: the name of an actor before the edit, or the number of an action or a cue before
    the edit.
    """

    edit: str
    before: Sheet
    after: Sheet
    changed: frozenset[Key]
    actors: dict[str, str]  # new name to old
    actions: tuple[int, ...]  # number before of each action after
    cues: tuple[int, ...]  # number before of each cue after

    def holds_before(self, frames: np.ndarray, waveform: np.ndarray) -> dict[Key, bool]:
        """Which facts of the sheet before hold in a clip."""
        return facts_of(self.before, frames, waveform)

    def holds_after(self, frames: np.ndarray, waveform: np.ndarray) -> dict[Key, bool]:
        """Which facts of the sheet after hold in a clip, by the keys before."""
        facts = {}
        for (aspect, subject), holds in facts_of(self.after, frames, waveform).items():
            if isinstance(subject, str):
                subject = self.actors.get(subject, subject)
            elif aspect == "time":
                subject = self.cues[subject]
            else:
                subject = self.actions[subject]
            facts[aspect, subject] = holds
        return facts


def facts_of(sheet: Sheet, frames: np.ndarray, waveform: np.ndarray) -> dict[Key, bool]:
    """The scorer's facts of a sheet, and whether each cue is seen and heard at its *time*.

    Args:
        sheet ([`Sheet`]): tells a scene.
        frames: uint8 `(num_frames, 64, 64, 3)`.
        waveform: `(num_channels, num_samples)`.
    """
    score: ClipScore = score_clip(frames, waveform.mean(axis=0), scene_of(sheet))
    facts: dict[Key, bool] = {}
    for fact in score.facts:
        number, dot, _ = fact.subject.partition(". ")
        facts[fact.aspect, int(number) - 1 if dot else fact.subject] = fact.holds
    for number, found in enumerate(cues_in_time(sheet, score)):
        facts["time", number] = all(found)
    return facts


def cues_in_time(sheet: Sheet, score: ClipScore) -> list[tuple[bool, bool]]:
    """Whether each cue of a sheet is seen, and is heard, in a clip within `NEAR` seconds of its time.

    Args:
        sheet ([`Sheet`]): tells a scene.
        score ([`ClipScore`]): of the clip.
    """
    kinds = [_KINDS[cue.text[len(sheet.actor_of(i)) :].split()[0]] for i, cue in enumerate(sheet.cues)]
    return [
        tuple(
            any(instant.kind == kind and abs(instant.time - cue.time) <= NEAR for instant in found)
            for found in (score.sights, score.sounds)
        )
        for kind, cue in zip(kinds, sheet.cues, strict=True)
    ]


def draw_correction(sheet: Sheet, edit: str, rng: np.random.Generator) -> Correction | None:
    """A correction of a sheet, drawn from those that make a scene; `None` if there is none."""
    try:
        before = scene_of(sheet)
    except ValueError:
        return None
    options = list(_corrections(sheet, before, edit))
    for number in rng.permutation(len(options)):
        correction = options[number]
        try:
            after = scene_of(correction.after)
        except ValueError:
            continue
        if len(after.script) == len(correction.actions):
            return correction
    return None


def _corrections(sheet: Sheet, scene: Scene, edit: str) -> Iterator[Correction]:
    names = {actor.name: actor.name for actor in scene.actors}
    actions = tuple(range(len(scene.script)))
    action_of = [number for number, action in enumerate(scene.script) for _ in range(action.count)]
    cues = tuple(range(len(sheet.cues)))
    first_of = [action_of.index(action) for action in actions]
    last_of = [first + scene.script[action].count - 1 for action, first in enumerate(first_of)]
    if edit == "move":
        # An action moves with all its instants, as far as Stage lets it.
        frames = [round(cue.time * FRAME_RATE) for cue in sheet.cues]
        for action, first, last in zip(actions, first_of, last_of, strict=True):
            for seconds in (MOVED, -MOVED):
                steps = round(seconds * FRAME_RATE)
                room = frames[first] + steps - (frames[first - 1] if action else 0)
                rest = (frames[last + 1] if last + 1 < len(frames) else LAST_FRAME) - frames[last] - steps
                if room >= _least_gap(scene, action) and rest >= (
                    _least_gap(scene, action + 1) if action + 1 < len(actions) else 0
                ):
                    changed = frozenset(("time", cue) for cue in range(first, last + 1))
                    yield Correction(edit, sheet, sheet.move(first, seconds, last), changed, names, actions, cues)
    elif edit == "delete":
        for action, event in zip(actions, last_of, strict=True):
            if scene.script[action].count > 1:
                left, changed = actions, {(aspect, action) for aspect in ("seen", "heard", "words")}
            else:
                left = actions[:action] + actions[action + 1 :]
                changed = {("alone", "the picture"), ("quiet", "the sound")}
            rest = cues[:event] + cues[event + 1 :]
            yield Correction(edit, sheet, sheet.delete(event), frozenset(changed), names, left, rest)
    elif edit == "reword":
        for event, cue in enumerate(sheet.cues):
            if scene.script[action_of[event]].verb == "say":
                for word in set(DIGITS) - {cue.text.split()[-1]}:
                    changed = frozenset({("words", action_of[event])})
                    yield Correction(edit, sheet, sheet.reword(event, f"says {word}"), changed, names, actions, cues)
    elif edit == "recolour":
        for number, actor in enumerate(scene.actors):
            for colour in VOICES if actor.kind == "face" else COLOURS:
                name = f"{colour} {actor.kind}"
                if name not in names:
                    own = [action for action in actions if scene.script[action].actor == number]
                    changed = {("present", actor.name)} | {("pitch", action) for action in own}
                    renamed = {**names, name: actor.name}
                    after = sheet.recolour(actor.name, colour)
                    yield Correction(edit, sheet, after, frozenset(changed), renamed, actions, cues)
    else:
        for number, actor in enumerate(scene.actors):
            for other in scene.actors[:number]:
                after = sheet.swap(actor.name, other.name)
                places = {member.name: member.place for member in after.cast}
                after = after._replace(
                    cast=tuple(sorted(after.cast, key=lambda m: [a.spot for a in scene.actors].index(places[m.name])))
                )
                changed = frozenset({("place", actor.name), ("place", other.name)})
                yield Correction(edit, sheet, after, changed, names, actions, cues)


def _least_gap(scene: Scene, action: int) -> int:
    """Frames from the instant before an action to its first one, at least; for the first action from the clip's start."""
    if action == 0:
        return scene.earliest[0]
    before = scene.script[action - 1]
    return scene.earliest[action] - scene.earliest[action - 1] - (before.count - 1) * INTERVAL[before.verb]


@dataclass(frozen=True)
class Outcome:
    """Whether all facts that an edit changes hold afterwards, and of the others that held before whether they still do."""

    edit: str
    scene: int
    changed: bool
    others: tuple[tuple[str, bool], ...]


def measure_editing(
    pipe: BatonPipeline,
    examples: Sequence[Example],
    number: int = 60,
    batch_size: int = 8,
    **call: Any,
) -> list[Outcome]:
    """
    Scores clips whose plans were edited against clips of the plans before the edit.

    Args:
        pipe: The pipeline.
        examples: What the clips are planned from, in order; an example is left out if its sheet does not allow the edit.
        number: How many for each edit.
        batch_size: Clips made together.
        call: Further arguments of the pipeline's call.
    """
    outcomes = []
    left = dict.fromkeys(EDITS, number)
    for start in range(0, len(examples), batch_size):
        if not any(left.values()):
            break
        batch = examples[start : start + batch_size]
        plans = pipe.plan([e.prompt for e in batch], generator=[torch.Generator().manual_seed(e.seed) for e in batch])
        jobs: list[tuple[int, Correction]] = []
        for row, example in enumerate(batch):
            for code, edit in enumerate(EDITS):
                rng = np.random.default_rng([example.seed, code, 0xED17])
                if left[edit] and (correction := draw_correction(plans[row].sheet, edit, rng)) is not None:
                    jobs.append((row, correction))
                    left[edit] -= 1
        edited = [(plans[row], row) for row in dict.fromkeys(row for row, _ in jobs)]
        edited += [(pipe.edit_plan(plans[row], correction.after), row) for row, correction in jobs]
        clips = []
        for first in range(0, len(edited), batch_size):
            some = edited[first : first + batch_size]
            output = pipe(
                [plan.prompts[0] for plan, _ in some],
                plan=SemanticPlan.collate([plan for plan, _ in some]),
                generator=[torch.Generator().manual_seed(batch[row].seed) for _, row in some],
                output_type="pt",
                **call,
            )
            clips += [output.clip(index) for index in range(len(some))]
        whole = dict(zip([row for _, row in edited], clips[: len(edited) - len(jobs)], strict=False))
        for (row, correction), clip in zip(jobs, clips[len(edited) - len(jobs) :], strict=True):
            before, after = correction.holds_before(*whole[row]), correction.holds_after(*clip)
            others = tuple(
                (key[0], after[key])
                for key, holds in before.items()
                if holds and key in after and key not in correction.changed
            )
            changed = all(after[key] for key in correction.changed if key in after)
            outcomes.append(Outcome(correction.edit, batch[row].scene.digest, changed, others))
    return outcomes


def summarise_editing(outcomes: Sequence[Outcome]) -> dict[str, dict[str, Any]]:
    """
    The effect of edits, for each edit and as a whole.

    Returns:
        For each edit: `scenes`, their number. `changed`, the share of clips in which all edited facts hold, and `others`, the share of
        the other facts that held before and still hold, with 95% intervals over scenes. `aspects`, which is `others` by aspect.
    """
    rows = {}
    for edit in ("all", *EDITS):
        some = [outcome for outcome in outcomes if edit in ("all", outcome.edit)]
        if not some:
            continue
        scenes, ones = [outcome.scene for outcome in some], np.ones(len(some))
        kept = np.array([sum(holds for _, holds in outcome.others) for outcome in some], dtype=float)
        of = np.array([len(outcome.others) for outcome in some], dtype=float)
        aspects: dict[str, list[bool]] = {}
        for outcome in some:
            for aspect, holds in outcome.others:
                aspects.setdefault(aspect, []).append(holds)
        rows[edit] = {
            "scenes": len(some),
            "changed": bootstrap(ratio, [np.array([float(o.changed) for o in some]), ones], scenes, share=True),
            "others": bootstrap(ratio, [kept, of], scenes, share=True),
            "aspects": {aspect: float(np.mean(holds)) for aspect, holds in aspects.items()},
        }
    return rows


def format_editing(rows: dict[str, dict[str, Any]]) -> str:
    """[`summarise_editing`]'s result as a Markdown table."""
    lines = [["edit", "clips", "what is edited holds", "what else held still holds"]]
    for edit, row in rows.items():
        lines.append([edit, str(row["scenes"]), format_estimate(row["changed"]), format_estimate(row["others"])])
    return markdown_table(lines)


# Retakes

SPAN = 1.0  # seconds that are rendered again
SEAM = 0.06  # seconds around a seam within which an onset counts as its click


@dataclass(frozen=True)
class Retaken:
    """
    A clip with a span that was rendered again.

    Args:
        scene: Its scene.
        is_kept: Whether all frames and samples outside of the span are equal bit for bit.
        p_acc: Of the clip as it was, and with the new span.
        strays: Sounds at the seams that nothing explains: in Stage's render, in the clip as it was, and in the new one.
        psnr: Of the frames beside one another at the seams, in dB: in the clip as it was, and in the new one.
    """

    scene: int
    is_kept: bool
    p_acc: tuple[float, float]
    strays: tuple[int, int, int]
    psnr: tuple[float, float]


def measure_retake(
    pipe: BatonPipeline, examples: Sequence[Example], batch_size: int = 8, **call: Any
) -> list[Retaken]:
    """
    Clips made from their prompts, and a second take of one second of each under the same plan, from other noise.

    Args:
        pipe: The pipeline.
        examples: Of what.
        batch_size: Clips made together before they are retaken one by one.
        call: Further arguments of the pipeline's calls.
    """
    retaken = []
    for start in tqdm(range(0, len(examples), batch_size), desc="retakes", unit="batch"):
        batch = examples[start : start + batch_size]
        generator = [torch.Generator().manual_seed(example.seed) for example in batch]
        output = pipe([e.prompt for e in batch], generator=generator, output_type="np", **call)
        for row, example in enumerate(batch):
            clip = replace(
                output,
                frames=output.frames[row : row + 1],
                audio=output.audio[row : row + 1],
                plan=output.plan and output.plan[row],
            )
            rng = np.random.default_rng([example.seed, 0x2E7A])
            length = round(SPAN * FRAME_RATE)
            first = int(rng.integers(FRAME_RATE // 2, NUM_FRAMES - length - FRAME_RATE // 2))
            new = pipe.retake(
                clip,
                first / FRAME_RATE,
                (first + length) / FRAME_RATE,
                example.prompt,
                generator=torch.Generator().manual_seed(example.seed + 1),
                output_type="np",
                **call,
            )
            retaken.append(_judge(example, clip, new, (first, first + length)))
    return retaken


def _judge(example: Example, clip: BatonPipelineOutput, new: BatonPipelineOutput, seams: tuple[int, int]) -> Retaken:
    first, last = seams
    step = SAMPLING_RATE // FRAME_RATE
    outside, silent = (
        np.r_[:first, last : clip.frames.shape[1]],
        np.r_[: first * step, last * step : clip.audio.shape[2]],
    )
    is_kept = np.array_equal(clip.frames[:, outside], new.frames[:, outside])
    is_kept &= np.array_equal(clip.audio[:, :, silent], new.audio[:, :, silent])
    times = [frame / FRAME_RATE for frame in seams]
    sounds = [example.clip.waveform, clip.audio[0].mean(axis=0), new.audio[0].mean(axis=0)]
    strays = [[time for time in stray_sounds(sound, hear(sound)) if _near(time, times)] for sound in sounds]
    psnr = [
        np.mean([10 * np.log10(1 / max(np.square(film[frame] - film[frame - 1]).mean(), 1e-6)) for frame in seams])
        for film in (clip.frames[0], new.frames[0])
    ]
    p_acc = [example.score(*output.clip()).p_acc for output in (clip, new)]
    return Retaken(example.scene.digest, bool(is_kept), tuple(p_acc), tuple(map(len, strays)), tuple(map(float, psnr)))


def _near(time: float, instants: Sequence[float]) -> bool:
    return any(abs(time - instant) < SEAM for instant in instants)


def summarise_retakes(retaken: Sequence[Retaken]) -> dict[str, Any]:
    """
    The effect of retakes.

    Returns:
        `clips`, their number. `kept`, the share of clips that stay equal bit for bit outside the span. For `truth`, `before` and
        `after`, where they apply: `p_acc`, `strays` (onsets per seam) and `psnr` (dB between neighbouring frames at the seams), each
        with its 95% interval over scenes.
    """
    scenes, ones = [one.scene for one in retaken], np.ones(len(retaken))

    def mean(values: list[float], share: bool = False) -> Estimate | None:
        return bootstrap(ratio, [np.array(values, dtype=float), ones], scenes, share=share)

    rows: dict[str, Any] = {"clips": len(retaken), "kept": float(np.mean([one.is_kept for one in retaken]))}
    rows["truth"] = {"strays": mean([one.strays[0] / 2 for one in retaken])}
    for number, name in enumerate(("before", "after")):
        rows[name] = {
            "p_acc": mean([one.p_acc[number] for one in retaken], share=True),
            "strays": mean([one.strays[number + 1] / 2 for one in retaken]),
            "psnr": mean([one.psnr[number] for one in retaken]),
        }
    return rows


def format_retakes(rows: dict[str, Any]) -> str:
    """[`summarise_retakes`]'s result as a Markdown table."""
    lines = [["clips", "P-Acc", "stray onsets a seam", "PSNR across a seam (dB)"]]
    names = {"truth": "Stage's render", "before": "as made", "after": "one second retaken"}
    for key, name in names.items():
        row = rows[key]
        lines.append(
            [
                name,
                format_estimate(row.get("p_acc")),
                format_estimate(row["strays"]),
                format_estimate(row.get("psnr"), ".2f"),
            ]
        )
    return markdown_table(lines)
