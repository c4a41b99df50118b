"""Films of Stage, made by a checkpoint: with one plan, and in simpler ways to compare with."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from .. import coordinates
from ..media import Clip
from ..shots import Shot
from ..stage.film_scoring import ASPECTS_ACROSS, FilmScore, FilmScorer, Level, Seam
from ..stage.films import SHOT_SECONDS, FilmScene, film_prompts, render_film, sample_film, shot_seed
from ..stage.prompts import Prompt
from ..stage.scoring import Fact, score_clip
from .arms import row_of, score_from
from .bootstrap import Estimate, bootstrap, ratio
from .kept import KeptScores
from .scores import format_estimate, markdown_table, reconstruct


if TYPE_CHECKING:
    from ..pipelines.film import Film
    from ..pipelines.pipeline_baton import BatonPipeline

# How a film is made: by Stage ("render"); by Stage, then both autoencoders ("codecs"); each shot as a clip ("clips"); under one plan
# ("film"); in the film's windows, each planned by itself ("window plans"); or in these windows by `continue_from`, without shared latents
# and without the film's plan.
WAYS = ("render", "codecs", "clips", "film", "window plans", "continue_from")
STRIDE = 2.0  # seconds from seam to seam of a render, which has no seams: as for clips that share a second
LEVELS = {"shade": "shade (grey levels)", "grain": "grain (grey levels)", "noise": "noise (dB)", "gain": "gain (dB)"}
SEAM_FAULTS = ("click", "jump", "step")

Piece = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class FilmExample:
    """A film to be made from its shots. `seed` seeds its prompts, its render and its noise; `style` is the style of its prompts, see
    [`film_prompts`]."""

    film: FilmScene
    seed: int
    style: str = "whole"

    @cached_property
    def told(self) -> tuple[Prompt, ...]:
        """What is said of each shot."""
        return film_prompts(self.film, self.seed, self.style)

    @property
    def shots(self) -> list[Shot]:
        """The shots that the pipeline is asked for."""
        return [
            Shot(prompt.text, SHOT_SECONDS, cut=number in self.film.cuts) for number, prompt in enumerate(self.told)
        ]


def draw_films(
    number: int, seconds: float, split: str = "validation", seed: int = 0, style: str = "whole"
) -> list[FilmExample]:
    """
    Films of Stage.

    Args:
        number: How many.
        seconds: How long each is, a multiple of 3.
        split: The split of every shot's scene: "validation", "test" or "test-combinations".
        seed: Another seed draws other films.
        style: How they are told, see [`film_prompts`].

    Raises:
        ValueError: as [`sample_film`] and [`film_prompts`].
    """
    seeds = [seed * 1_000_003 + draw for draw in range(number)]
    examples = [FilmExample(sample_film(draw, seconds, split), draw, style) for draw in seeds]
    for example in examples:
        _ = example.told
    return examples


def score_way(
    pipe: BatonPipeline | None, example: FilmExample, way: str, num_inference_steps: int | None = None, **film: Any
) -> FilmScore:
    """
    Make a film in one way, and score it while it is made.

    Args:
        pipe: The pipeline; a render needs none.
        example: The film.
        way: One of `WAYS`.
        num_inference_steps: Denoising steps; by default the pipeline's.
        film: Further arguments of `pipe.film`, which settle the windows.

    Raises:
        ValueError: an unknown `way`.
    """
    if way not in WAYS:
        raise ValueError(f"`way` is {way!r}: choose one of {WAYS}.")
    if way == "clips":
        return _score_clips(pipe, example, num_inference_steps)
    seams: Sequence[float] = ()
    if way == "render":
        pieces: Iterator[Piece] = ((clip.frames, clip.waveform) for clip in render_film(example.film, example.seed))
        seams = [
            take.start * SHOT_SECONDS + seam
            for take in example.film.takes
            for seam in np.arange(1, len(take) * SHOT_SECONDS / STRIDE) * STRIDE + 0.5
        ]
    elif way == "codecs":
        pieces = _reconstructed(pipe, example)
    else:
        plans = {"film": "film", "window plans": "windows", "continue_from": "none"}[way]
        made = pipe.film(
            example.shots, seed=example.seed, stream=True, plans=plans, num_inference_steps=num_inference_steps, **film
        )
        if way == "continue_from":
            pieces, seams = _continued(pipe, made, example, num_inference_steps), _continued_seams(made)
        else:
            pieces, seams = ((piece.frames, piece.waveform) for piece in made), film_seams(made)
    ends = np.arange(1, len(example.film.shots) + 1) * SHOT_SECONDS
    between = [seam + STRIDE / 2 for seam in seams if np.abs(ends - seam - STRIDE / 2).min() > 1 / 8]
    scorer = FilmScorer(example.film, example.told, seams, between)
    for frames, waveform in pieces:
        scorer.add(frames, waveform)
    return scorer.finish()


def film_seams(film: Film) -> list[float]:
    """Times in seconds at which pieces of a take meet."""
    seams = []
    for take, windows in zip(film.takes, film.windows, strict=True):
        for before, window in zip(windows, windows[1:], strict=False):
            middle = (window.start + before.start + before.num_frames) // 2
            seams.append((take.first + middle) / film.frame_rate)
    return seams


def _continued_seams(film: Film) -> list[float]:
    return [
        (take.first + before.start + before.num_frames) / film.frame_rate
        for take, windows in zip(film.takes, film.windows, strict=True)
        for before in windows[:-1]
    ]


def _continued(pipe: BatonPipeline, film: Film, example: FilmExample, steps: int | None) -> Iterator[Piece]:
    """The windows of a film, each made by `continue_from` from the clip before it. Yields the new part of each."""
    rate, sampling_rate = pipe.frame_rate, pipe.sampling_rate
    for take, windows in zip(film.takes, film.windows, strict=True):
        before: Clip | None = None
        reached = 0
        for window in windows:
            given, kept = {}, reached - window.start if before is not None else 0
            if kept:
                given = {"continue_from": before, "continue_seconds": coordinates.clip_duration(kept, rate)}
            output = pipe(
                film.prompt_of(take, window.start + kept, window.num_frames - kept),
                num_frames=window.num_frames,
                num_inference_steps=steps,
                generator=torch.Generator().manual_seed(shot_seed(example.seed, 1000 * take.number + window.index)),
                output_type="pt",
                use_cache=True,
                **given,
            )
            frames, waveform = output.clip(0)
            before = Clip(frames, waveform, rate, sampling_rate)
            end = min(window.num_frames, take.num_frames - window.start)
            border = [coordinates.num_samples(frame / rate, sampling_rate) for frame in (kept, end)]
            yield frames[kept:end], waveform[:, slice(*border)]
            reached = window.start + window.num_frames


def _reconstructed(pipe: BatonPipeline, example: FilmExample) -> Iterator[Piece]:
    """The render after both autoencoders, shot by shot, each encoded with the frame that follows it."""
    clips = list(render_film(example.film, example.seed))
    for number, (clip, after) in enumerate(zip(clips, [*clips[1:], None], strict=True)):
        frames, sound = clip.frames, clip.waveform
        if after is not None:
            next_frame = frames[-1:] if number + 1 in example.film.cuts else after.frames[:1]
            frames, sound = np.concatenate([frames, next_frame]), np.concatenate([sound, after.waveform[:1000]])
        ((picture, waveform),) = reconstruct(pipe, [(frames, sound[None])])
        yield picture[: len(clip.frames)], waveform[:, : len(clip.waveform)]


def _score_clips(pipe: BatonPipeline, example: FilmExample, steps: int | None) -> FilmScore:
    """Each shot as a clip of its own."""
    scores = []
    for number, (scene, told) in enumerate(zip(example.film.shots, example.told, strict=True)):
        output = pipe(
            told.text,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(shot_seed(example.seed, number)),
            output_type="pt",
            use_cache=True,
        )
        frames, waveform = output.clip(0)
        scores.append(score_clip(frames, waveform.mean(axis=0), scene, told.places, told.colours))
    return FilmScore(tuple(scores), (), (), ())


# Scores that are kept


class FilmScoreFile(KeptScores):
    """
    Scores of films in a file of JSON lines, one for each film and way, see [`KeptScores`]. The key is all that determines a film, as in
    [`~evaluation.arms.ScoreFile`].
    """

    columns = ("settings", "way", "seconds", "seed", "style")

    def read(self, row: dict[str, Any]) -> FilmScore:
        """The score of a row."""
        return film_score_from(row)

    def get(self, settings: str, way: str, example: FilmExample) -> FilmScore | None:
        """The score of a film under these settings, or `None`."""
        return self.find(self._key(settings, way, example))

    def add(self, settings: str, way: str, example: FilmExample, score: FilmScore) -> None:
        """Keeps a score."""
        self.keep(self._key(settings, way, example), score, film_row_of(score))

    @staticmethod
    def _key(settings: str, way: str, example: FilmExample) -> tuple:
        return settings, way, example.film.seconds, example.seed, example.style


def film_row_of(score: FilmScore) -> dict[str, Any]:
    """All of a film's score but what was found in it."""
    return {
        "shots": [row_of(shot) for shot in score.shots],
        "across": [[fact.aspect, fact.subject, bool(fact.holds)] for fact in score.across],
        "seams": [asdict(seam) for seam in score.seams],
        "levels": [asdict(level) for level in score.levels],
        "elsewhere": [asdict(seam) for seam in score.elsewhere],
    }


def film_score_from(row: dict[str, Any]) -> FilmScore:
    """The score of [`film_row_of`]."""
    return FilmScore(
        tuple(score_from(shot) for shot in row["shots"]),
        tuple(Fact(*fact) for fact in row["across"]),
        tuple(Seam(**seam) for seam in row["seams"]),
        tuple(Level(**level) for level in row["levels"]),
        tuple(Seam(**seam) for seam in row["elsewhere"]),
    )


def run_films(
    load_pipeline: Callable[[], BatonPipeline],
    examples: Sequence[FilmExample],
    ways: Sequence[str],
    settings: str = "",
    num_inference_steps: int | None = None,
    kept: FilmScoreFile | None = None,
    **film: Any,
) -> dict[str, list[FilmScore]]:
    """
    The scores of all films in all ways, film by film, so that scores can be compared if the work ends early.

    Args:
        load_pipeline: Gives the pipeline, if anything is to be made.
        examples: From [`draw_films`].
        ways: Some of `WAYS`.
        settings: A key of everything that determines the clips of the checkpoint, see [`~evaluation.arms.settings_of`].
        num_inference_steps: Denoising steps; by default the pipeline's.
        kept: Earlier scores, which are not measured again; new ones are added to it.
        film: Further arguments of `pipe.film`.
    """
    kept = FilmScoreFile() if kept is None else kept
    pipe: BatonPipeline | None = None
    todo = [(example, way) for example in examples for way in ways]
    for example, way in tqdm(todo, desc="films", unit="film"):
        if kept.get(settings, way, example) is None:
            if way != "render" and pipe is None:
                pipe = load_pipeline()
            kept.add(settings, way, example, score_way(pipe, example, way, num_inference_steps, **film))
    return {way: [kept.get(settings, way, example) for example in examples] for way in ways}


# Figures


def summarise_films(scores: dict[str, Sequence[FilmScore]]) -> dict[str, dict[str, Any]]:
    """
    The figures of films, way by way. Intervals are 95% bootstrap intervals over shots, over the shots' borders for facts across them, over
    seams, and over films for drift.

    Args:
        scores: By way, a score for each film; all ways have the same films.

    Returns:
        For each way, with `None` where nothing was scored:

        - `films`, `shots`, and the `seconds` of each film;
        - `p_acc`, `strict` (over shots), `m_wer` and `desync`, as for clips;
        - `against_clips`: P-Acc minus the P-Acc of the way "clips", drawn over pairs of shots;
        - `across`: the share of the facts across shots that hold, and `aspects`, by aspect;
        - `seams`: the share of seams with each fault, `elsewhere`, the same at instants between seams, and `number_of_seams`;
        - `quarters`: P-Acc of each quarter of the films, and `last_quarter`, the last one minus the first;
        - `drift`: the change of each level per minute.
    """
    return {way: _summarise(own, scores.get("clips")) for way, own in scores.items()}


def _summarise(scores: Sequence[FilmScore], clips: Sequence[FilmScore] | None) -> dict[str, Any]:
    shots = [shot for score in scores for shot in score.shots]
    places = [(place, len(score.shots)) for score in scores for place in range(len(score.shots))]
    accuracy, one = np.array([shot.p_acc for shot in shots]), np.ones(len(shots))
    errors, words = np.array([shot.word_errors for shot in shots], dtype=float).T
    across = [fact for score in scores for fact in score.across]
    borders = [(number, fact.subject.split(":")[0]) for number, score in enumerate(scores) for fact in score.across]
    quarters = [np.array([4 * place // number == quarter for place, number in places], float) for quarter in range(4)]
    long = min(number for _, number in places) >= 4
    summary: dict[str, Any] = {
        "films": len(scores),
        "shots": len(shots),
        "seconds": len(scores[0].shots) * SHOT_SECONDS,
        "p_acc": _mean(accuracy),
        "strict": _mean([shot.strict for shot in shots]),
        "m_wer": bootstrap(ratio, [errors, words], range(len(shots))),
        "desync": bootstrap(ratio, [np.array([shot.desync for shot in shots]), one], range(len(shots))),
        "quarters": [
            bootstrap(ratio, [accuracy * quarter, quarter], range(len(shots)), share=True) for quarter in quarters
        ]
        if long
        else None,
        "last_quarter": bootstrap(
            _difference,
            [accuracy * quarters[3], quarters[3], accuracy * quarters[0], quarters[0]],
            range(len(shots)),
        )
        if long
        else None,
        "against_clips": None,
        "across": _mean([fact.holds for fact in across], borders),
        "aspects": {
            aspect: float(np.mean([fact.holds for fact in across if fact.aspect == aspect]))
            for aspect in ASPECTS_ACROSS
            if any(fact.aspect == aspect for fact in across)
        },
        "number_of_seams": sum(len(score.seams) for score in scores),
        **{
            of: {
                fault: _mean([getattr(seam, fault) for score in scores for seam in getattr(score, of)])
                for fault in SEAM_FAULTS
            }
            for of in ("seams", "elsewhere")
        },
        "drift": {},
    }
    if clips is not None and clips is not scores:
        alone = np.array([shot.p_acc for score in clips for shot in score.shots])
        summary["against_clips"] = bootstrap(_difference, [accuracy, one, alone, one], range(len(shots)))
    for level in LEVELS:
        slopes = [slope for score in scores if (slope := _slope(score.levels, level)) is not None]
        if slopes:
            parts = [np.array(slopes), np.ones(len(slopes))]
            summary["drift"][level] = bootstrap(ratio, parts, range(len(slopes)))
    return summary


def _mean(holds: Sequence[float], units: Sequence[Hashable] | None = None) -> Estimate | None:
    """A share with its interval over units, or None where there is nothing."""
    if not len(holds):
        return None
    units = range(len(holds)) if units is None else units
    return bootstrap(ratio, [np.asarray(holds, dtype=float), np.ones(len(holds))], units, share=True)


def _difference(own: np.ndarray, number: np.ndarray, other: np.ndarray, other_number: np.ndarray) -> np.ndarray:
    return ratio(own, number) - ratio(other, other_number)


def _slope(levels: Sequence[Level], name: str) -> float | None:
    """How much a level rises in a minute, by least squares."""
    known = [(level.time / 60, getattr(level, name)) for level in levels if getattr(level, name) is not None]
    if len(known) < 2:
        return None
    times, values = np.array(known).T
    return float(np.polyfit(times, values, 1)[0])


def format_films(summary: dict[str, dict[str, Any]]) -> str:
    """[`summarise_films`]'s result as three Markdown tables, with 95% intervals in brackets: facts, seams, and drift."""
    aspects = [aspect for aspect in ASPECTS_ACROSS if any(aspect in values["aspects"] for values in summary.values())]
    facts = [
        ["way", "films", "P-Acc", "against clips", "strict shots", "across shots", *aspects, "M-WER", "DeSync (s)"]
    ]
    seams = [["way", "seams", *(f"{fault}{of}" for fault in SEAM_FAULTS for of in ("", " elsewhere"))]]
    drift = [
        [
            "way",
            *(f"quarter {number}" for number in range(1, 5)),
            "last - first",
            *(f"{name} / min" for name in LEVELS.values()),
        ]
    ]
    for way, values in summary.items():
        shares = [f"{values['aspects'][aspect]:.2f}" if aspect in values["aspects"] else "-" for aspect in aspects]
        facts.append(
            [
                way,
                f"{values['films']} of {values['seconds']:g} s",
                format_estimate(values["p_acc"]),
                format_estimate(values["against_clips"], "+.3f"),
                format_estimate(values["strict"]),
                format_estimate(values["across"]),
                *shares,
                format_estimate(values["m_wer"]),
                format_estimate(values["desync"]),
            ]
        )
        if values["number_of_seams"]:
            rates = [format_estimate(values[of][fault]) for fault in SEAM_FAULTS for of in ("seams", "elsewhere")]
            seams.append([way, str(values["number_of_seams"]), *rates])
        if values["drift"]:
            slopes = [format_estimate(values["drift"].get(level), "+.2f") for level in LEVELS]
            quarters = values["quarters"] or [None] * 4
            drift.append(
                [way, *map(format_estimate, quarters), format_estimate(values["last_quarter"], "+.3f"), *slopes]
            )
    return "\n\n".join(markdown_table(table) for table in (facts, seams, drift) if len(table) > 1)
