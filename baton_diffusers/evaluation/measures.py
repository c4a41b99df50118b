"""Further measures of a pipeline on Stage: round trips through files and autoencoders, chains of continuations, and the tones
of bells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..media import Clip as MediaClip
from ..pipelines.given import KEPT_SECONDS
from ..stage import Action, Actor, Scene, sample_scene
from ..stage.hearing import hear
from ..stage.scene import COLOURS, DIGITS, FRAME_RATE, MAX_COUNT, SAMPLING_RATE, SPOTS, TIERS, VERBS
from ..stage.scoring import ASPECTS, ClipScore
from ..stage.sound import PARTIAL, event_sound, pitch
from .bootstrap import bootstrap, ratio
from .scores import Example, MakeClips, format_estimate, markdown_table, reconstruct, through_mp4


if TYPE_CHECKING:
    from ..pipelines.pipeline_baton import BatonPipeline


# Round trip


@dataclass(frozen=True)
class Trip:
    """The scores of a clip as it was made, and after an mp4 file and both autoencoders."""

    before: ClipScore
    after: ClipScore

    def survivors(self) -> Iterator[tuple[str, str, bool]]:
        """The aspect and the subject of each fact that held, and whether it still holds."""
        for fact, later in zip(self.before.facts, self.after.facts, strict=True):
            if fact.holds:
                yield fact.aspect, fact.subject, later.holds


def round_trips(
    pipe: BatonPipeline, make_clips: MakeClips, examples: Sequence[Example], batch_size: int = 8
) -> list[Trip]:
    """
    Clips saved as mp4 files, read again, encoded and decoded.

    Args:
        pipe: The pipeline whose autoencoders are used.
        make_clips: Makes the clips, see [`generated_clips`].
        examples: Of what.
        batch_size: Clips made together.
    """
    trips = []
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        clips = make_clips(batch)
        read = [through_mp4(*clip, pipe) for clip in clips]
        returned = reconstruct(pipe, [(clip.frames, clip.waveform.mean(axis=0, keepdims=True)) for clip in read])
        for example, clip, other in zip(batch, clips, returned, strict=True):
            trips.append(Trip(example.score(*clip), example.score(*other)))
    return trips


def summarise_trips(trips: Sequence[Trip], examples: Sequence[Example]) -> dict[str, Any]:
    """
    The facts that still hold after the round trip.

    Returns:
        Of the facts that held before, the share that still hold: `all`, with its 95% interval over scenes; by aspect; and by bell
        and ball of each colour (the facts of their actions). None where no fact held before.
    """
    scenes = [example.scene.digest for example in examples]

    def share(names: str = "", aspect: str | None = None) -> dict[str, float] | None:
        kept = [
            [alive for a, subject, alive in trip.survivors() if names in subject and aspect in (None, a)]
            for trip in trips
        ]
        return bootstrap(
            ratio, [np.array([sum(of) for of in kept]), np.array([len(of) for of in kept])], scenes, share=True
        )

    sounding = [f"{colour} {kind}" for kind in ("bell", "ball") for colour in COLOURS]
    return {
        "all": share(),
        "aspects": {aspect: share(aspect=aspect) for aspect in ASPECTS},
        "actors": {name: share(f". {name} ") for name in sounding},
    }


def format_trips(summary: dict[str, Any]) -> str:
    """[`summarise_trips`]'s result as a Markdown table."""
    rows = {"all facts": summary["all"], **summary["aspects"], **summary["actors"]}
    return markdown_table([["of what held", "still holds"], *([name, format_estimate(e)] for name, e in rows.items())])


# Chains

KEPT_FRAMES = round(KEPT_SECONDS * FRAME_RATE)


@dataclass(frozen=True)
class Chain:
    """Scenes of one cast. Each continues the one before. `seed` seeds the prompts and the noise."""

    scenes: tuple[Scene, ...]
    seed: int

    def example(self, link: int) -> Example:
        """The scene of a link, to be generated. The first prompt tells the whole cast, so that no later one contradicts what is seen."""
        seeds = (self.seed * 101 + link + 1_000_003 * draw for draw in range(1000))
        examples = (Example(self.scenes[link], seed) for seed in seeds)
        return next(one for one in examples if link or (all(one.told.places) and all(one.told.colours)))


def draw_chains(number: int, links: int, split: str = "validation", seed: int = 0) -> list[Chain]:
    """
    Chains of scenes for continuations.

    Nobody hits anybody, since after a hit the box stands between two spots. Every script fits into the time after the kept second.

    Args:
        number: How many chains.
        links: How many scenes follow the first one of each.
        split: Of all scenes: "validation" or "test".
        seed: Another seed draws other chains.
    """
    chains: list[Chain] = []
    for draw in range(seed * 1_000_003, (seed + 1) * 1_000_003):
        rng = np.random.default_rng([draw, 0xC4A1])
        first = sample_scene(draw, TIERS[draw % 2], split)
        acting = [i for i, actor in enumerate(first.actors) if actor.kind != "box"]
        if len(acting) < 2 or any(action.verb == "hit" for action in first.script):
            continue
        scenes = [first]
        for _ in range(200):
            if len(scenes) == links + 1:
                break
            scene = _go_on(first.actors, acting, rng)
            if scene is not None and scene.split == split and scene not in scenes:
                scenes.append(scene)
        if len(scenes) == links + 1:
            chains.append(Chain(tuple(scenes), draw))
        if len(chains) == number:
            return chains
    raise AssertionError("there are always more chains")


def _go_on(actors: tuple[Actor, ...], acting: Sequence[int], rng: np.random.Generator) -> Scene | None:
    """A scene of one or two actions of these actors that may begin after the kept second, or None if the draw makes none."""
    script = []
    for i in rng.permutation(acting)[: rng.integers(1, 3)]:
        verb, count = VERBS[actors[i].kind], int(rng.integers(1, MAX_COUNT + 1))
        words = tuple(DIGITS[d] for d in rng.integers(10, size=count)) if verb == "say" else ()
        script.append(Action(verb, int(i), count, words))
    try:
        scene = Scene(actors, tuple(script))
    except ValueError:
        return None
    return scene if scene.slack >= KEPT_FRAMES else None


def score_chains(
    pipe: BatonPipeline, chains: Sequence[Chain], batch_size: int = 8, **call: Any
) -> list[list[ClipScore]]:
    """
    Make the first clip of each chain from its prompt, and each further one from the mp4 of the one before.

    Of a further clip, what follows the kept second is scored.

    Args:
        pipe: The pipeline.
        chains: From [`draw_chains`].
        batch_size: Clips made together.
        call: Further arguments of the pipeline's call.

    Returns:
        For each link, the first one first, the scores of all chains.
    """
    scores: list[list[ClipScore]] = [[] for _ in chains[0].scenes]
    for start in range(0, len(chains), batch_size):
        batch = chains[start : start + batch_size]
        before: list[MediaClip] = []
        for link, of_link in enumerate(scores):
            examples = [chain.example(link) for chain in batch]
            given = {"continue_from": before, "continue_seconds": KEPT_SECONDS} if before else {}
            output = pipe(
                prompt=[example.prompt for example in examples],
                generator=[torch.Generator().manual_seed(example.seed) for example in examples],
                output_type="pt",
                **given,
                **call,
            )
            clips = [output.clip(index) for index in range(len(batch))]
            skipped = KEPT_FRAMES if before else 0
            for example, (frames, waveform) in zip(examples, clips, strict=True):
                of_link.append(example.score(frames[skipped:], waveform[:, skipped * SAMPLING_RATE // FRAME_RATE :]))
            before = [through_mp4(*clip, pipe) for clip in clips]
    return scores


def summarise_chains(scores: Sequence[Sequence[ClipScore]]) -> list[dict[str, Any]]:
    """P-Acc, strict and the clips of each link, with 95% intervals over chains."""
    rows = []
    for of_link in scores:
        ones, chains = np.ones(len(of_link)), range(len(of_link))
        rows.append(
            {
                "clips": len(of_link),
                "p_acc": bootstrap(ratio, [np.array([score.p_acc for score in of_link]), ones], chains, share=True),
                "strict": bootstrap(ratio, [np.array([score.strict for score in of_link]), ones], chains, share=True),
            }
        )
    return rows


def format_chains(rows: Sequence[dict[str, Any]]) -> str:
    """[`summarise_chains`]'s result as a Markdown table; link 0 is the single clip."""
    lines = [["link", "clips", "P-Acc", "strict"]]
    for link, row in enumerate(rows):
        lines.append([str(link), str(row["clips"]), format_estimate(row["p_acc"]), format_estimate(row["strict"])])
    return markdown_table(lines)


# Bells

BAND = 0.08  # of a frequency, to both sides, within which a tone is looked for
SPAN = 3200  # samples of a ding that are looked at
SHIFTS = range(-500, 501, 50)  # samples by which its onset may be off


def bell_examples(number: int = 9, seed: int = 0) -> list[Example]:
    """Scenes of one bell of each colour, which rings: `number` of each (9 at most)."""
    rings = [(spot, count) for count in range(1, MAX_COUNT + 1) for spot in SPOTS][:number]
    return [
        Example(Scene((Actor("bell", colour, spot),), (Action("ring", 0, count),)), seed)
        for colour in COLOURS
        for spot, count in rings
    ]


def tones(waveform: np.ndarray, onset: int, colour: str) -> np.ndarray:
    """
    The pitch of a ding and its partial: level in dB and frequency in Hz of each, `(2, 2)`.

    Args:
        waveform: Mono, `(num_samples,)`, at 16 kHz.
        onset: Sample at which the ding begins, to within 500.
        colour: Colour of the bell.
    """
    padded = np.pad(waveform, (-SHIFTS[0], SHIFTS[-1] + SPAN))
    starts = onset - SHIFTS[0] + np.array(SHIFTS)
    pieces = np.stack([padded[start : start + SPAN] for start in starts]) * np.hanning(SPAN)
    spectra = np.abs(np.fft.rfft(pieces, 1 << 15, axis=1))
    frequencies = np.fft.rfftfreq(1 << 15, 1 / SAMPLING_RATE)
    found = []
    for tone in (pitch("flash", colour), PARTIAL * pitch("flash", colour)):
        band = np.flatnonzero(np.abs(frequencies / tone - 1) < BAND)
        spectrum = spectra[:, band].max(axis=0)
        found.append((20 * np.log10(spectrum.max() + 1e-9), frequencies[band[spectrum.argmax()]]))
    return np.array(found)


def measure_bells(
    make_clips: MakeClips, examples: Sequence[Example], batch_size: int = 8
) -> dict[str, dict[str, Any]]:
    """
    How the bells of a pipeline sound, compared with Stage's.

    Returns:
        By colour: `dings`, how many were heard in that colour, and of how many (`asked`); the median difference from Stage's own
        ding of the pitch and of the partial, in `pitch_db`, `pitch_hz`, `partial_db` and `partial_hz` (None without a ding).
    """
    found: dict[str, list[np.ndarray]] = {colour: [] for colour in COLOURS}
    asked = dict.fromkeys(COLOURS, 0)
    truth = {colour: tones(np.pad(event_sound("flash", colour), (0, SPAN)), 0, colour) for colour in COLOURS}
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        for example, (_, waveform) in zip(batch, make_clips(batch), strict=True):
            colour, sound = example.scene.actors[0].colour, waveform.mean(axis=0)
            asked[colour] += example.scene.script[0].count
            for ding in hear(sound):
                if (ding.kind, ding.colour) == ("flash", colour):
                    found[colour].append(tones(sound, round(ding.time * SAMPLING_RATE), colour) - truth[colour])
    bells = {}
    for colour in COLOURS:
        middle = np.median(found[colour], axis=0).round(1) if found[colour] else np.full((2, 2), None)
        names = (("pitch_db", "pitch_hz"), ("partial_db", "partial_hz"))
        bells[colour] = {"dings": len(found[colour]), "asked": asked[colour]}
        bells[colour] |= {name: middle[i, j] for i, row in enumerate(names) for j, name in enumerate(row)}
    return bells


def format_bells(bells: dict[str, dict[str, Any]]) -> str:
    """[`measure_bells`]'s result as a Markdown table."""
    lines = [["bell", "dings", "pitch (dB)", "pitch (Hz)", "partial (dB)", "partial (Hz)"]]
    for colour, bell in bells.items():
        figures = [bell[name] for name in ("pitch_db", "pitch_hz", "partial_db", "partial_hz")]
        lines.append(
            [colour, f"{bell['dings']} of {bell['asked']}", *("-" if f is None else f"{f:+.1f}" for f in figures)]
        )
    return markdown_table(lines)
