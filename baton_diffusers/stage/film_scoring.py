"""Score films against their scenes while they are made: each shot as a clip, what holds from shot to shot, the seams, and what drifts.

A [`FilmScorer`] takes frames and samples as they come. It keeps only one shot and a second around it.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import uniform_filter

from .films import SHOT_FRAMES, SHOT_SECONDS, FilmScene, callbacks
from .hearing import HOP, Sound, hear, stray_sounds
from .prompts import Prompt
from .scene import EVENTS, FLOOR, FRAME_RATE, HOLD, SAMPLING_RATE, VERBS, Actor
from .scene import JUMP as JUMP_FRAMES
from .scoring import ClipScore, Fact, judge, recognise, runs_of
from .sight import WALL_ROWS, Sight, find_cast, follow, interpret
from .sound import event_sound


ASPECTS_ACROSS = ("colour", "stands", "number", "voice", "sequence", "callback")

EARLY = 1  # frames before a shot that already belong to it: between its earliest instant and the latest one before it
FRAMES_AROUND = 8  # that are watched before and after a shot
SAMPLES_AROUND = 64 * HOP  # that are heard before and after a shot
SAMPLES_A_FRAME = SAMPLING_RATE // FRAME_RATE

# Seams. Between two frames, Stage and its codecs stay below these bounds, unless an event falls on the seam.
NEAR = 256  # samples to both sides of a seam in which a click is looked for
BESIDE = 800  # samples beyond these, to both sides, that a click is compared with
LEAST_CLICK = 0.01  # of a full scale of 1: second difference of the waveform
CLICK = 4.0  # times the largest second difference beside it
JUMP_PATCH, JUMP = (
    9,
    24.0,
)  # pixels; change of the mean over a patch, in grey levels, that the cast does not explain
REACH = 14  # pixels to both sides of an actor that acts, in which a change belongs to its act: half its width and half a patch
LEAP = 1.5  # pixels: the motion within a frame of an actor that nobody hits
QUIET_PART = 160  # samples over which loudness is measured
QUIET_SPAN = 16000  # samples to both sides of a seam whose background is compared
TAIL = 800  # samples after a sound that may still be its own
UNKNOWN = 40  # pieces; longer than any sound
TOGETHER = 0.15  # seconds within which a word belongs to a mouth that opens
QUIETEST = -70.0  # dB that count as silence
STEP = 6.0  # dB


@dataclass(frozen=True)
class Seam:
    """Where one window of a film ends and the next begins, at `time` in seconds: whether a `click` is heard, the picture makes a `jump`,
    or the background's loudness a `step`."""

    time: float
    click: bool
    jump: bool
    step: bool


@dataclass(frozen=True)
class Level:
    """
    The quantities of one shot that may drift over a film.

    Args:
        time: The middle of the shot in seconds.
        shade: The wall's brightness minus its brightness in the first shot of the take, in grey levels.
        grain: Root mean square in grey levels of the picture without the cast and the wall.
        noise: Loudness of the background in dB of a full scale; None where sounds cover it.
        gain: Loudness of the sounds minus the loudness of Stage's own, in dB; None if no sound was heard.
    """

    time: float
    shade: float
    grain: float
    noise: float | None
    gain: float | None


@dataclass(frozen=True)
class FilmScore:
    """
    The scores of a film.

    Args:
        shots: The score of each shot, as of a clip.
        across: The facts across shots, see [`FilmScorer`].
        seams: What is seen and heard at each seam.
        elsewhere: The same at instants that are no seams, for comparison: some events of a film look or sound like a seam.
        levels: What drifts, for each shot.
    """

    shots: tuple[ClipScore, ...]
    across: tuple[Fact, ...]
    seams: tuple[Seam, ...]
    levels: tuple[Level, ...]
    elsewhere: tuple[Seam, ...] = ()

    @property
    def p_acc(self) -> float:
        """The mean P-Acc of the shots."""
        return float(np.mean([shot.p_acc for shot in self.shots]))

    @property
    def across_acc(self) -> float:
        """The share of the facts across shots that hold."""
        return sum(fact.holds for fact in self.across) / max(len(self.across), 1)

    @property
    def strict(self) -> bool:
        """Whether all facts hold, of the shots and across them."""
        return all(shot.strict for shot in self.shots) and all(fact.holds for fact in self.across)


@dataclass(frozen=True)
class _Shot:
    """What was found in a shot: which actor plays which member of the cast (by name, as it looks), and the runs of instants in
    film time."""

    looks: dict[str, Actor | None]
    number: int
    sights: tuple[Sight, ...]
    sounds: tuple[Sound, ...]


class FilmScorer:
    """
    Scores a film that comes in parts.

    A shot has all the facts of a clip. A place that an earlier prompt of the take named is a fact too, even if the shot's own prompt
    leaves it open; so is a colour that an earlier prompt of the film named. The facts across shots have these aspects:

    - *colour*, for each actor of each shot but the first: it is there as in the shot before, in the same colour;
    - *stands*, likewise: it stands where it stood before (no fact after a hard cut);
    - *number*, for each shot but the first: there are as many actors as the cast has, nobody is lost or doubled;
    - *voice*, for each face that speaks and has spoken before: it has the voice of its colour, here and where it spoke last;
    - *sequence*, for each action: picture and sound of the whole film show it in its place in the script;
    - *callback*, for each action: if the prompt calls the actor by an earlier deed, this actor does it.

    Args:
        film: The film that was asked for.
        prompts: What each shot's prompt says; by default everything.
        seams: Times in seconds at which a window ends and the next begins.
        elsewhere: Times in seconds that are compared with seams.

    A part is frames, uint8 `(frames, 64, 64, 3)`, at 16 frames/s, and samples, `(samples,)` or `(channels, samples)`, at 16 kHz; a part may
    have any length. Parts beyond the film's length are not scored.
    """

    def __init__(
        self,
        film: FilmScene,
        prompts: Sequence[Prompt] | None = None,
        seams: Sequence[float] = (),
        elsewhere: Sequence[float] = (),
    ) -> None:
        self.film = film
        self.prompts = prompts
        self.seams, self.elsewhere = tuple(seams), tuple(elsewhere)
        self._frames = np.empty((0, 64, 64, 3), dtype=np.uint8)  # from frame `_first` on
        self._samples = np.empty(0, dtype=np.float32)  # from sample `_first * SAMPLES_A_FRAME` on
        self._first = 0
        self._shots: list[_Shot] = []
        self._scores: list[ClipScore] = []
        self._seams: list[Seam] = []
        self._elsewhere: list[Seam] = []
        self._levels: list[Level] = []
        self._wall = np.zeros(3)  # of the first shot of the take

    @property
    def held(self) -> int:
        """How many frames are kept."""
        return len(self._frames)

    def add(self, frames: np.ndarray, waveform: np.ndarray) -> None:
        """Take the next part, and score the shots that are complete."""
        self._frames = np.concatenate([self._frames, frames])
        mono = waveform if waveform.ndim == 1 else waveform.mean(axis=0)
        self._samples = np.concatenate([self._samples, mono.astype(np.float32)])
        while len(self._shots) < len(self.film.shots) - 1 and self._has(self._end(len(self._shots)) + FRAME_RATE):
            self._score()

    def finish(self) -> FilmScore:
        """The score of the whole film.

        Raises:
            ValueError: If picture or sound end before the film does.
        """
        if not self._has(self.film.num_frames - 1):
            end = self._first + min(len(self._frames), len(self._samples) // SAMPLES_A_FRAME)
            raise ValueError(
                f"the film lasts {self.film.seconds} seconds, but picture and sound end at {end / FRAME_RATE}: add the rest."
            )
        while len(self._shots) < len(self.film.shots):
            self._score()
        return FilmScore(
            tuple(self._scores), tuple(self._across()), tuple(self._seams), tuple(self._levels), tuple(self._elsewhere)
        )

    def _has(self, frame: int) -> bool:
        """Whether picture and sound reach to a frame."""
        return self._first + min(len(self._frames), len(self._samples) // SAMPLES_A_FRAME) >= frame

    def _end(self, shot: int) -> int:
        return (shot + 1) * SHOT_FRAMES

    # One shot

    def _score(self) -> None:
        """Score the next shot, and forget frames and samples that the shot after it does not need."""
        film, shot = self.film, len(self._shots)
        scene, take, start, end = film.shots[shot], film.take(shot), shot * SHOT_FRAMES, self._end(shot)
        last = shot == len(film.shots) - 1

        # What is seen: the cast at the start of the shot, followed to both sides as far as the take goes.
        low = max(start - FRAMES_AROUND, take.start * SHOT_FRAMES, 0)
        high = end + 1 if last else min(end + FRAMES_AROUND, take.stop * SHOT_FRAMES)
        frames = self._frames[low - self._first : high - self._first]
        still = start - low
        cast = find_cast(frames[still:])
        tracks, explained = follow(frames, cast)
        early = (EARLY if shot > take.start else 0, EARLY if shot < take.stop - 1 else 0)
        picture = interpret(frames, cast, tracks, explained, still, still + SHOT_FRAMES + last, early)

        # What is heard: with a second to both sides, across cuts too.
        sound_start = start * SAMPLES_A_FRAME
        low_sample = max(sound_start - SAMPLES_AROUND, self._first * SAMPLES_A_FRAME)
        high_sample = sound_start + (SHOT_FRAMES + last) * SAMPLES_A_FRAME + (0 if last else SAMPLES_AROUND)
        first = self._first * SAMPLES_A_FRAME
        samples = self._samples[low_sample - first : high_sample - first]
        heard = hear(samples)
        strays = stray_sounds(samples, heard)
        offset = (low_sample - sound_start) / SAMPLING_RATE
        from_time = -EARLY / FRAME_RATE if shot else -1.0
        to_time = np.inf if last else SHOT_SECONDS - EARLY / FRAME_RATE
        sounds = tuple(
            replace(sound, time=sound.time + offset) for sound in heard if from_time <= sound.time + offset < to_time
        )
        stray = tuple(time + offset for time in strays if from_time <= time + offset < to_time)

        places, colours = self._told(shot)
        self._scores.append(judge(scene, picture, sounds, stray, places, colours))
        players = recognise(scene.actors, cast, places, colours)
        looks = {actor.name: cast[players[i]] if i in players else None for i, actor in enumerate(scene.actors)}
        in_film = shot * SHOT_SECONDS
        names = {j: scene.actors[i].name for i, j in players.items()}
        sights = tuple(replace(s, time=s.time + in_film, actor=names.get(s.actor, -1)) for s in picture.sights)
        self._shots.append(_Shot(looks, len(cast), sights, tuple(replace(s, time=s.time + in_film) for s in sounds)))
        within = slice(still, still + SHOT_FRAMES)
        loudness = _background(samples, heard)
        if low_sample:
            loudness[:UNKNOWN] = np.nan  # a sound from before may end here
        spoken = round(-offset * FRAME_RATE) * SAMPLES_A_FRAME
        noise = _middle(loudness[spoken // QUIET_PART : (spoken + SHOT_FRAMES * SAMPLES_A_FRAME) // QUIET_PART])
        gain = _gain(samples, [replace(sound, time=sound.time - offset) for sound in sounds])
        self._measure(shot, frames[within], explained[within], noise, gain)
        acts = interpret(frames, cast, tracks, explained).sights
        leaps = _leaps(cast, tracks, [act for act in acts if act.target is not None])
        idle = _idle(tracks, acts, frames.shape)
        rest = frames - explained
        for times, found in ((self.seams, self._seams), (self.elsewhere, self._elsewhere)):
            for time in times:
                if start <= time * FRAME_RATE < end:
                    at = time * FRAME_RATE - low, time - in_film - offset
                    found.append(_seam(time, rest, idle, leaps, at[0], samples, at[1], loudness))
        keep = max(end - FRAME_RATE, 0)
        self._frames = self._frames[keep - self._first :]
        self._samples = self._samples[(keep - self._first) * SAMPLES_A_FRAME :]
        self._first = keep

    def _told(self, shot: int) -> tuple[list[bool], list[bool]]:
        """Whether the shot's prompt, or one before, names the places and the colours of its actors."""
        actors = self.film.shots[shot].actors
        if self.prompts is None:
            return [True] * len(actors), [True] * len(actors)
        take = self.film.take(shot)
        places = [any(self.prompts[k].places[i] for k in range(take.start, shot + 1)) for i in range(len(actors))]
        coloured = {
            actor.name
            for k in range(shot + 1)
            for actor, told in zip(self.film.shots[k].actors, self.prompts[k].colours, strict=True)
            if told
        }
        return places, [actor.name in coloured for actor in actors]

    def _measure(
        self, shot: int, frames: np.ndarray, explained: np.ndarray, noise: float | None, gain: float | None
    ) -> None:
        """Keep the quantities that may drift."""
        wall = np.median(frames[:, WALL_ROWS], axis=(0, 1, 2))
        if shot == self.film.take(shot).start:
            self._wall = wall
        shade = float(np.abs(wall - self._wall).max())
        grain = float(np.sqrt(np.square(frames - explained).mean()))
        self._levels.append(Level((shot + 0.5) * SHOT_SECONDS, shade, grain, noise, gain))

    # The whole

    def _across(self) -> list[Fact]:
        facts: list[Fact] = []
        film = self.film
        for number in range(1, len(film.shots)):
            before, now = self._shots[number - 1], self._shots[number]
            for name, look in now.looks.items():
                was = before.looks[name]
                both = look is not None and was is not None
                facts.append(Fact("colour", f"shot {number}: {name}", both and look.colour == was.colour))
                if number not in film.cuts:
                    facts.append(Fact("stands", f"shot {number}: {name}", both and look.spot == was.spot))
            facts.append(Fact("number", f"shot {number}", now.number == len(film.shots[number].actors)))
        facts += self._voices()
        steps = [(number, step) for number, scene in enumerate(film.shots) for step in range(len(scene.script))]
        kept = [held_seen and held_heard for held_seen, held_heard in zip(*self._sequence(), strict=True)]
        facts += [Fact("sequence", self._subject(*step), held) for step, held in zip(steps, kept, strict=True)]
        if self.prompts is not None:
            facts += self._callbacks()
        return facts

    def _subject(self, number: int, step: int) -> str:
        scene = self.film.shots[number]
        action = scene.script[step]
        return f"shot {number}: {step + 1}. {scene.actors[action.actor].name} {action.verb}"

    def _holds(self, number: int, step: int, aspects: Sequence[str]) -> bool:
        """Whether these facts of an action hold."""
        scene = self.film.shots[number]
        action = scene.script[step]
        subject = f"{step + 1}. {scene.actors[action.actor].name} {action.verb}"
        return all(f.holds for f in self._scores[number].facts if f.subject == subject and f.aspect in aspects)

    def _voices(self) -> list[Fact]:
        facts, spoke = [], {}
        for number, scene in enumerate(self.film.shots):
            steps: dict[str, int] = {}
            for step, action in enumerate(scene.script):
                if action.verb == "say":
                    steps.setdefault(scene.actors[action.actor].name, step)
            for name, step in steps.items():
                own = self._in_own_voice(number, step)
                if name in spoke:
                    facts.append(Fact("voice", self._subject(number, step), own and spoke[name]))
                spoke[name] = own
        return facts

    def _in_own_voice(self, number: int, step: int) -> bool:
        """Whether the sounds that are heard while a mouth is open in a shot have the voice of its face. If the mouth stays
        shut, the words that count as its own are compared."""
        scene, shot = self.film.shots[number], self._shots[number]
        actor = scene.actors[scene.script[step].actor]
        look = shot.looks[actor.name]
        words = [sound for sound in shot.sounds if sound.kind == "word"]
        voices = [
            sound.colour
            for sight in shot.sights
            if sight.actor == actor.name and sight.kind == "word"
            for sound in words
            if abs(sound.time - sight.time) < TOGETHER
        ]
        if not voices:
            return self._holds(number, step, ("pitch",))
        return all(voice == (actor if look is None else look).colour for voice in voices)

    def _sequence(self) -> tuple[list[bool], list[bool]]:
        """Whether each action of the film was seen in its place of the script, and heard in it."""
        doers = [scene.actors[action.actor] for scene in self.film.shots for action in scene.script]
        seen = [sight for shot in self._shots for sight in shot.sights]
        heard = [sound for shot in self._shots for sound in shot.sounds]
        return (
            _in_sequence([actor.name for actor in doers], _doers(seen, lambda sight: sight.actor)),
            _in_sequence(
                [(EVENTS[VERBS[actor.kind]], actor.colour) for actor in doers],
                _doers(heard, lambda sound: (sound.kind, sound.colour)),
            ),
        )

    def _callbacks(self) -> list[Fact]:
        facts = []
        for number, scene in enumerate(self.film.shots):
            called = callbacks(self.film, number)
            for step, action in enumerate(scene.script):
                if action.actor in called and called[action.actor] in self.prompts[number].text.lower():
                    holds = self._holds(number, step, ("seen", "heard", "pitch"))
                    facts.append(Fact("callback", self._subject(number, step), holds))
        return facts


def score_film(
    parts: Sequence[tuple[np.ndarray, np.ndarray]],
    film: FilmScene,
    prompts: Sequence[Prompt] | None = None,
    seams: Sequence[float] = (),
) -> FilmScore:
    """Score a film whose parts are at hand, see [`FilmScorer`]; `parts` may be a generator."""
    scorer = FilmScorer(film, prompts, seams)
    for frames, waveform in parts:
        scorer.add(frames, waveform)
    return scorer.finish()


def _doers(instants: Sequence, doer) -> list[Hashable]:
    """Who did something, in the order of the first instants."""
    return [run.doer for run in sorted(runs_of(instants, doer), key=lambda run: run.start)]


def _in_sequence(script: Sequence[Hashable], found: Sequence[Hashable]) -> list[bool]:
    """Which steps of a script lie in the longest part of it that was found in its order."""
    longest = np.zeros((len(script) + 1, len(found) + 1), dtype=int)  # of script[i:] and found[j:]
    for i in reversed(range(len(script))):
        for j in reversed(range(len(found))):
            same = longest[i + 1, j + 1] + 1 if script[i] == found[j] else 0
            longest[i, j] = max(same, longest[i + 1, j], longest[i, j + 1])
    holds, i, j = [False] * len(script), 0, 0
    while i < len(script) and j < len(found):
        if script[i] == found[j] and longest[i, j] == longest[i + 1, j + 1] + 1:
            holds[i] = True
            i, j = i + 1, j + 1
        elif longest[i + 1, j] >= longest[i, j + 1]:
            i += 1
        else:
            j += 1
    return holds


def _leaps(cast: Sequence[Actor], tracks: Sequence, hits: Sequence[Sight]) -> np.ndarray:
    """The largest distance that an actor that should stand still has moved since the frame before, for each frame,
    (frames,)."""
    leaps = np.zeros(len(tracks[0].x) if tracks else 1)
    for i, (actor, track) in enumerate(zip(cast, tracks, strict=True)):
        moved = np.abs(np.diff(track.x, prepend=track.x[:1]))
        for hit in hits:
            if hit.target == i:
                frame = round(hit.time * FRAME_RATE)
                moved[max(frame - 1, 0) : frame + 5] = 0
        if actor.kind != "box":
            leaps = np.maximum(leaps, moved)
    return leaps


def _idle(tracks: Sequence, acts: Sequence[Sight], shape: tuple[int, ...]) -> np.ndarray:
    """Where nobody acts, by column, `(frames, width)`: a model draws a jump or a flash less sharply than Stage, so that a piece of it is
    left over from frame to frame. What becomes of the act itself are facts."""
    idle, column = np.ones((shape[0], shape[2]), dtype=bool), np.arange(shape[2])
    for act in acts:
        verb = next((verb for verb, kind in EVENTS.items() if kind == act.kind), "hit")  # or a box slides
        instant = round(act.time * FRAME_RATE)
        first = instant - (1 if verb in ("ring", "say") else JUMP_FRAMES + 1)
        for frame in range(max(first, 0), min(instant + HOLD[verb] + 2, shape[0])):
            for number in {act.actor, act.actor if act.target is None else act.target}:
                idle[frame] &= np.abs(column - tracks[number].x[frame]) > REACH
    return idle


def _seam(
    time: float,
    rest: np.ndarray,
    idle: np.ndarray,
    leaps: np.ndarray,
    frame: float,
    samples: np.ndarray,
    sound_time: float,
    loudness: np.ndarray,
) -> Seam:
    """What is seen and heard at a seam: `frame` of the picture's `rest`, where nobody acts (`idle`), and `sound_time` of the samples,
    whose background has this `loudness`."""
    at = round(frame)
    jump = False
    for index in range(max(at - 1, 1), min(at + 2, len(rest))):
        change = uniform_filter(rest[index] - rest[index - 1], (JUMP_PATCH, JUMP_PATCH, 0))
        change = np.linalg.norm(change[: FLOOR + 4], axis=-1) * idle[index]
        jump |= bool(change.max() > JUMP) or bool(leaps[index] > LEAP)
    middle = round(sound_time * SAMPLING_RATE)
    bend = np.abs(np.diff(samples[max(middle - NEAR - BESIDE, 0) : middle + NEAR + BESIDE], n=2))
    near = slice(min(middle - NEAR, BESIDE), min(middle - NEAR, BESIDE) + 2 * NEAR)
    beside = np.concatenate([bend[: near.start], bend[near.stop :]]).max(initial=0.0)
    peak = bend[near].max(initial=0.0)
    piece, span = middle // QUIET_PART, QUIET_SPAN // QUIET_PART
    before, after = _middle(loudness[max(piece - span, 0) : piece]), _middle(loudness[piece + 1 : piece + 1 + span])
    step = before is not None and after is not None and abs(after - before) > STEP
    return Seam(time, bool(peak > max(LEAST_CLICK, CLICK * beside)), jump, step)


def _background(samples: np.ndarray, sounds: Sequence[Sound]) -> np.ndarray:
    """Loudness in dB of each piece of 10 ms; NaN where a sound covers it."""
    pieces = samples[: len(samples) // QUIET_PART * QUIET_PART].reshape(-1, QUIET_PART)
    loudness = np.maximum(10 * np.log10(np.square(pieces).mean(axis=1) + 1e-12), QUIETEST)
    for sound in sounds:
        onset = round(sound.time * SAMPLING_RATE)
        end = onset + len(event_sound(sound.kind, sound.colour, sound.word)) + TAIL
        loudness[max(onset - TAIL, 0) // QUIET_PART : end // QUIET_PART + 1] = np.nan
    return loudness


def _middle(loudness: np.ndarray) -> float | None:
    """The median, if there are values."""
    known = loudness[~np.isnan(loudness)]
    return float(np.median(known)) if len(known) else None


def _gain(samples: np.ndarray, sounds: Sequence[Sound]) -> float | None:
    """By how many dB sounds are louder than Stage's own, in the middle."""
    gains = []
    for sound in sounds:
        own, onset = event_sound(sound.kind, sound.colour, sound.word), max(round(sound.time * SAMPLING_RATE), 0)
        heard = samples[onset : onset + len(own)]
        gains.append(10 * np.log10((np.square(heard).mean() + 1e-12) / np.square(own[: len(heard)]).mean()))
    return float(np.median(gains)) if gains else None
