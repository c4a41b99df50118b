"""What is seen in a clip: Stage's actors and their poses, found by drawing them and comparing.

Every pose of every actor is a hypothesis about a frame. The backdrop is the frame without that actor. The score of a pose is
the squared error that drawing it removes. Nothing here needs the scene or a threshold on a colour.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
from scipy.ndimage import uniform_filter

from .render import FOOT, SCALE, SPRITE, Pose, sprite
from .scene import COLOURS, FIRST_FRAME, FLOOR, FRAME_RATE, FRAME_SIZE, HALF_WIDTH, KINDS, SPOTS, VOICES, Actor


WALL_ROWS = slice(0, 30)
GROUND_ROWS = slice(58, FRAME_SIZE)
TOP, BOTTOM = FLOOR - 24, FLOOR + 2  # rows that an actor on the floor can cover
HIGHEST = TOP  # pixels above the floor at which a ball is still looked for
REACH = 10  # pixels to the left and to the right that belong to a spot
PRESENT = 0.4  # least share of the squared error of an empty spot that an actor has to explain
LEAST_GAIN = 2e5  # squared error in grey levels; an actor removes about ten times as much
VISIBLE = 0.5  # least strength, of 1, at which an actor counts as present
OVERLAP = 2.5  # pixels by which two actors may cover each other, lest they count as merged
ASTRAY = 2.0  # pixels by which an actor that nobody hits may stray from its place

# What the cast does not explain, in grey levels. What autoencoders and codecs blur stays below three quarters of these bounds.
PATCHES = {(9, 9): 45.0, (15, 15): 38.0, (9, 41): 35.0}  # length of the mean RGB difference over a patch of pixels
LASTING = (
    9,
    9,
)  # the patch whose difference counts only if it lasts: a motion of two pixels within a frame also makes one
GRAIN = 30.0  # root mean square over a frame

ON, OFF = (
    0.55,
    0.45,
)  # how much of the full change of look, from rest to white or to an open mouth, starts and ends one
LEAST_FRAMES = 2  # that a flash or an open mouth lasts
UP, DOWN = 8.0, 5.0  # pixels above the floor at which a ball is in the air, and has landed
LEAST_SLIDE = 3.5  # pixels
SETTLED = 0.75  # pixels within which a box no longer moves
TOUCH = 2.0  # pixels by which a box may miss its target
LEAST_JOLT = 1.0  # pixels


@dataclass(frozen=True)
class Sight:
    """An instant that was seen: its `kind` (landing, flash, contact, word; slide, of a box that hits nobody), the index of
    the `actor` in the cast that was found, its `time` in seconds, and, for a contact, the index of the `target`."""

    kind: str
    actor: int
    time: float
    target: int | None = None


@dataclass(frozen=True)
class Picture:
    """What was seen in a clip.

    Args:
        cast: The actors that stand there as it begins, from left to right.
        whole: Whether each actor of the cast is there in every frame, once, and apart from the others.
        sights: The instants, in order of time.
        strays: Times in seconds at which something is seen that the cast does not explain: another actor or object, a
            flicker, noise, or an actor that moves as none can.
    """

    cast: tuple[Actor, ...]
    whole: tuple[bool, ...]
    sights: tuple[Sight, ...]
    strays: tuple[float, ...]


@dataclass(frozen=True)
class Track:
    """Where an actor is in each frame, `x` and height `y` in pixels; the `strength` (of 1) of its picture there; and how far
    its look has `change`d from rest (0) to a flash or an open mouth (1; 0 for a box or a ball); each (frames,)."""

    x: np.ndarray
    y: np.ndarray
    strength: np.ndarray
    change: np.ndarray


@dataclass(frozen=True)
class _Library:
    """Hypotheses about what stands somewhere: `poses`, which begin with `num_looks` times `num_x` that differ in x alone,
    and their pictures within `rows` and `columns` of the frame: colours times opacity (poses, pixels * 3) and opacity
    (poses, pixels)."""

    poses: tuple[Pose, ...]
    num_x: int
    num_looks: int
    rows: slice
    columns: slice
    paint: np.ndarray
    alpha: np.ndarray

    @cached_property
    def faded(self) -> np.ndarray:
        """Colours times opacity twice, (poses, pixels * 3)."""
        return self.paint * np.repeat(self.alpha, 3, axis=1)

    @cached_property
    def squares(self) -> tuple[np.ndarray, np.ndarray]:
        """The sum of the squares of `paint`, (poses,), and the squares of `alpha`, (poses, pixels)."""
        return np.square(self.paint).sum(axis=1), np.square(self.alpha)


def _draw(kind: str, colour: str, pose: Pose) -> tuple[np.ndarray, np.ndarray]:
    """Colours times opacity and opacity of a pose in an otherwise empty frame."""
    right, shift_x = divmod(round(SCALE * pose.x), SCALE)
    down, shift_y = divmod(round(SCALE * (FLOOR - pose.y)), SCALE)
    paint, transparency = sprite(kind, colour, pose.look, shift_x, shift_y)
    picture = np.zeros((FRAME_SIZE + 2 * SPRITE, FRAME_SIZE + 2 * SPRITE, 4), dtype=np.float32)
    top, left = SPRITE + down - FOOT, SPRITE + right - SPRITE // 2
    picture[top : top + SPRITE, left : left + SPRITE] = np.concatenate([paint, 1 - transparency], axis=-1)
    picture = picture[SPRITE:-SPRITE, SPRITE:-SPRITE]
    return picture[..., :3], picture[..., 3]


@lru_cache(maxsize=64)
def _library(actor: Actor) -> _Library:
    """All poses that are searched, one pixel apart."""
    looks = {"bell": ("rest", "flash"), "face": ("rest", "open")}.get(actor.kind, ("rest",))
    columns = slice(max(round(actor.x) - 14, 0), round(actor.x) + 14)
    x = np.arange(actor.x - 4, actor.x + 5)
    if actor.kind == "box":
        columns, x = slice(0, FRAME_SIZE), np.arange(HALF_WIDTH["box"], FRAME_SIZE - HALF_WIDTH["box"] + 1)
    poses = [Pose(float(at), 0.0, look) for look in looks for at in x]
    if actor.kind == "ball":
        poses += [Pose(actor.x, 0.0, "landed")] + [Pose(actor.x, float(y)) for y in range(1, HIGHEST)]
    rows = slice(TOP - (HIGHEST if actor.kind == "ball" else 0), BOTTOM)
    drawn = [_draw(actor.kind, actor.colour, pose) for pose in poses]
    paint = np.stack([p[rows, columns].reshape(-1) for p, _ in drawn])
    alpha = np.stack([a[rows, columns].reshape(-1) for _, a in drawn])
    return _Library(tuple(poses), len(x), len(looks), rows, columns, paint, alpha)


@lru_cache(maxsize=len(SPOTS))
def _entrances(spot: str) -> tuple[list[Actor], _Library]:
    """Every actor that may stand at a spot, a pixel to the left or right of it, or just there."""
    x = SPOTS[spot]
    rows, columns = slice(TOP, BOTTOM), slice(max(x - REACH, 0), x + REACH + 1)
    actors = [Actor(k, c, spot) for k in KINDS for c in (VOICES if k == "face" else COLOURS) for _ in range(3)]
    poses = tuple(Pose(x + shift) for _ in actors[::3] for shift in (-1.0, 0.0, 1.0))
    drawn = [_draw(actor.kind, actor.colour, pose) for actor, pose in zip(actors, poses, strict=True)]
    paint = np.stack([p[rows, columns].reshape(-1) for p, _ in drawn])
    alpha = np.stack([a[rows, columns].reshape(-1) for _, a in drawn])
    return actors, _Library(poses, len(poses), 1, rows, columns, paint, alpha)


def _empty_stage(frames: np.ndarray) -> np.ndarray:
    """The empty stage of these frames: (64, 64, 3)."""
    empty = np.empty((FRAME_SIZE, FRAME_SIZE, 3), dtype=np.float32)
    empty[:FLOOR] = np.median(frames[:, WALL_ROWS], axis=(0, 1, 2))
    empty[FLOOR:] = np.median(frames[:, GROUND_ROWS], axis=(0, 1, 2))
    return empty


def _gains(frames: np.ndarray, backdrops: np.ndarray, library: _Library) -> tuple[np.ndarray, np.ndarray]:
    """How much of the squared error against the backdrop each pose removes in each frame, and how much it would remove if the
    frame showed exactly this pose; both (frames, poses).

    Drawing a pose over a backdrop b changes it by e = a (c - b), for opacity a and colour c. With d = frame - b, this
    removes |d|^2 - |d - e|^2 = 2 d.e - |e|^2.
    """
    view = (slice(None), library.rows, library.columns)
    b = backdrops[view].reshape(len(backdrops), -1, 3)
    d = frames[view].reshape(len(frames), -1, 3) - b
    paint_squares, alpha_squares = library.squares
    drawn = paint_squares - 2 * b.reshape(len(b), -1) @ library.faded.T
    drawn += np.einsum("tpc,tpc->tp", b, b) @ alpha_squares.T
    shade = np.einsum("tpc,tpc->tp", d, np.broadcast_to(b, d.shape))
    agreement = d.reshape(len(d), -1) @ library.paint.T - shade @ library.alpha.T
    return 2 * agreement - drawn, np.broadcast_to(drawn, agreement.shape)


def find_cast(frames: np.ndarray) -> tuple[Actor, ...]:
    """The actors that stand on the spots as the clip begins, before anything moves, from left to right.

    Args:
        frames: RGB uint8 or float 0 to 255, (frames, 64, 64, 3).
    """
    still = frames[:FIRST_FRAME].astype(np.float32)
    empty, picture = _empty_stage(still), still.mean(axis=0)
    cast = []
    for spot in SPOTS:
        actors, library = _entrances(spot)
        gains = _gains(picture[None], empty[None], library)[0][0]
        window = (library.rows, library.columns)
        if gains.max() > PRESENT * np.square(picture[window] - empty[window]).sum() and gains.max() > LEAST_GAIN:
            cast.append(actors[gains.argmax()])
    return tuple(cast)


def _fit(frames: np.ndarray, backdrops: np.ndarray, library: _Library) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The best pose of an actor in each frame, as an index into the library, its x to a fraction of a pixel, and its
    strength: the share of the pose's change of the backdrop that the frame shows. If the frame shows hardly anything of the
    actor, it is lost, and keeps its last pose.
    """
    gains, drawn = _gains(frames, backdrops, library)
    best = gains.argmax(axis=1)
    every = np.arange(len(frames))
    strength = 0.5 * (gains[every, best] / drawn[every, best] + 1)
    seen = strength > VISIBLE
    last = np.maximum.accumulate(np.where(seen, every, -1))
    last[last < 0] = seen.argmax()
    x = np.array([library.poses[k].x for k in best])
    inner = (best % library.num_x > 0) & (best % library.num_x < library.num_x - 1)
    inner &= best < library.num_x * library.num_looks
    left, centre, right = (gains[every, np.where(inner, best + i, best)] for i in (-1, 0, 1))
    x += 0.5 * (right - left) / np.maximum(2 * centre - left - right, 1e-6)  # the top of a parabola through the three
    return best[last], x[last], strength


def _paint_over(backdrops: np.ndarray, library: _Library, best: np.ndarray, share: np.ndarray | None = None) -> None:
    """Draw an actor, in its best pose for each frame, over the backdrops; with `share`, by so much of 1."""
    view = backdrops[:, library.rows, library.columns]
    weight = 1.0 if share is None else share[:, None, None, None]
    view *= 1 - weight * library.alpha[best].reshape(*view.shape[:3], 1)
    view += weight * library.paint[best].reshape(view.shape)


def follow(frames: np.ndarray, cast: tuple[Actor, ...]) -> tuple[list[Track], np.ndarray]:
    """Follow each actor of the cast through the clip.

    Args:
        frames: RGB uint8 or float 0 to 255, (frames, 64, 64, 3).
        cast: The actors at the start of the clip, see [`find_cast`].

    Returns:
        The track of each actor, and the frames as the cast alone would make them, (frames, 64, 64, 3).
    """
    frames = frames.astype(np.float32)
    empty = _empty_stage(frames)
    libraries = [_library(actor) for actor in cast]
    rest = [
        np.array([min(range(lib.num_x), key=lambda k: abs(lib.poses[k].x - actor.x))])
        for lib, actor in zip(libraries, cast, strict=True)
    ]

    def fit(i: int, others: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        backdrops = np.repeat(empty[None], max(len(best) for best in others), axis=0)
        for j, library in enumerate(libraries):
            if j != i:
                _paint_over(backdrops, library, others[j])
        return _fit(frames, backdrops, libraries[i])

    fits = [fit(i, rest) for i in range(len(cast))]
    if any(actor.kind == "box" and np.ptp(x) > LEAST_SLIDE for actor, (_, x, _) in zip(cast, fits, strict=True)):
        fits = [fit(i, [best for best, *_ in fits]) for i in range(len(cast))]
    tracks, explained = [], np.repeat(empty[None], len(frames), axis=0)
    for library, (best, x, strength) in zip(libraries, fits, strict=True):
        y = np.array([library.poses[k].y for k in best])
        change = _change(frames, empty, library, best)
        tracks.append(Track(x, y, strength, change))
        there = (strength > VISIBLE).astype(np.float32)
        if library.num_looks == 1:
            _paint_over(explained, library, best, there)
        else:
            changed, at = change.clip(0, 1).astype(np.float32), best % library.num_x
            # Both looks cover the same pixels, so that a part of one and the rest of the other add up.
            before = explained.copy()
            _paint_over(explained, library, at, there)
            _paint_over(before, library, at + library.num_x, there)
            explained += changed[:, None, None, None] * (before - explained)
    return tracks, explained


def _change(frames: np.ndarray, empty: np.ndarray, library: _Library, best: np.ndarray) -> np.ndarray:
    """The projection of each frame onto the way from the resting look to the changed one."""
    n = library.num_x
    if library.num_looks == 1:
        return np.zeros(len(frames))
    view = (library.rows, library.columns)
    rest = library.paint[:n] + empty[view].reshape(-1) * (1 - np.repeat(library.alpha[:n], 3, axis=1))
    way = library.paint[n:] - library.paint[:n]
    change = frames[:, *view].reshape(len(frames), -1) @ way.T - (rest * way).sum(axis=1)
    return (change / np.square(way).sum(axis=1))[np.arange(len(frames)), best % n]


def watch(frames: np.ndarray) -> Picture:
    """Find the cast and the instants in the frames of a clip, and everything that they do not explain.

    Args:
        frames: RGB uint8, (frames, 64, 64, 3), at 16 frames/s.
    """
    if frames.ndim != 4 or frames.shape[1:] != (FRAME_SIZE, FRAME_SIZE, 3) or frames.dtype != np.uint8:
        raise ValueError(f"`frames` is {frames.dtype} {frames.shape}, but has to be uint8 (frames, 64, 64, 3).")
    cast = find_cast(frames)
    return interpret(frames, cast, *follow(frames, cast))


def interpret(
    frames: np.ndarray,
    cast: tuple[Actor, ...],
    tracks: Sequence[Track],
    explained: np.ndarray,
    start: int = 0,
    end: int | None = None,
    early: tuple[int, int] = (0, 0),
) -> Picture:
    """What the tracks of a cast say.

    Args:
        frames: RGB uint8, (frames, 64, 64, 3).
        cast: See [`find_cast`].
        tracks, explained: See [`follow`].
        start, end: The frames to interpret; the others help to see events at their ends completely. Times count from `start`.
        early: By how many frames the span of returned instants begins before `start`, and ends before `end`.
    """
    asked = slice(start, len(frames) if end is None else end)
    sights = []
    for i, actor in enumerate(cast):
        if actor.kind == "ball":
            found = [("landing", frame, None) for frame in _landings(tracks[i].y)]
        elif actor.kind == "box":
            found = [
                ("slide" if j is None else "contact", frame, j)
                for frame, j in _halts(i, cast, [track.x for track in tracks])
            ]
        else:
            kind = "flash" if actor.kind == "bell" else "word"
            found = [(kind, frame, None) for frame in _starts(tracks[i].change)]
        sights += [Sight(kind, i, frame / FRAME_RATE, target) for kind, frame, target in found]
    strays = (_strays(frames, explained) | _astray(cast, tracks, sights))[asked]
    kept = [
        replace(sight, time=sight.time - start / FRAME_RATE)
        for sight in sights
        if asked.start - early[0] <= round(sight.time * FRAME_RATE) < asked.stop - early[1]
    ]
    return Picture(
        cast,
        _whole(cast, tracks, asked),
        tuple(sorted(kept, key=lambda sight: sight.time)),
        tuple(float(frame) / FRAME_RATE for frame in np.flatnonzero(strays)),
    )


def _whole(cast: tuple[Actor, ...], tracks: Sequence[Track], asked: slice) -> tuple[bool, ...]:
    """Whether each actor is visible in every `asked` frame, and not covered by another."""
    whole = [bool((track.strength[asked] > VISIBLE).all()) for track in tracks]
    for i, one in enumerate(tracks):
        for j, other in enumerate(tracks[:i]):
            reach = HALF_WIDTH[cast[i].kind] + HALF_WIDTH[cast[j].kind]
            if (np.abs(one.x - other.x)[asked] < reach - OVERLAP).any():
                whole[i] = whole[j] = False
    return tuple(whole)


def _strays(frames: np.ndarray, explained: np.ndarray) -> np.ndarray:
    """In which frames something is visible that is not `explained`, (frames,)."""
    rest = frames - explained
    strays = np.sqrt(np.square(rest).mean(axis=(1, 2, 3))) > GRAIN
    for patch, bound in PATCHES.items():
        largest = np.linalg.norm(uniform_filter(rest, (1, *patch, 1)), axis=-1).max(axis=(1, 2))
        if patch == LASTING:
            beside = np.pad(largest, 1)
            largest = np.minimum(largest, np.maximum(beside[:-2], beside[2:]))
        strays |= largest > bound
    return strays


def _astray(cast: tuple[Actor, ...], tracks: Sequence[Track], sights: Sequence[Sight]) -> np.ndarray:
    """In which frames an actor is not at its place although it cannot move and nobody hits it, (frames,)."""
    astray = np.zeros(len(tracks[0].x) if tracks else 1, dtype=bool)
    for i, (actor, track) in enumerate(zip(cast, tracks, strict=True)):
        if actor.kind == "box":
            continue
        beside = np.abs(track.x - np.median(track.x)) > ASTRAY
        for sight in sights:
            if sight.target == i:
                frame = round(sight.time * FRAME_RATE)
                beside[max(frame - 1, 0) : frame + 4] = False
        astray |= beside
    return astray


def _starts(change: np.ndarray) -> list[int]:
    """The frames at which a change of look sets in and lasts."""
    starts, start = [], None
    for frame, value in enumerate([*change, 0.0]):
        if start is None and value > ON:
            start = frame
        elif start is not None and value < OFF:
            if frame - start >= LEAST_FRAMES:
                starts.append(start)
            start = None
    return starts


def _landings(heights: np.ndarray) -> list[int]:
    """The frames at which a ball comes down."""
    landings, flying = [], False
    for frame, height in enumerate(heights):
        if flying and height < DOWN:
            lowest = min(heights[frame : frame + 2])
            landings.append(frame if height <= lowest + 1 else frame + 1)
        flying = height > UP or (flying and height >= DOWN)
    return landings


def _halts(box: int, cast: tuple[Actor, ...], places: list[np.ndarray]) -> list[tuple[int, int | None]]:
    """The frames at which a box comes to a halt, and the index of the actor that it reaches and that jolts, if any."""
    x = places[box]
    halts, anchor, moving, start = [], x[0], False, 0
    for frame in range(len(x)):
        if not moving and abs(x[frame] - anchor) > LEAST_SLIDE:
            moving, start = True, frame
        if not moving or np.abs(x[frame : frame + 3] - x[frame]).max() > SETTLED:
            continue
        moving = False
        if abs(x[frame] - anchor) > LEAST_SLIDE:
            side = np.sign(x[frame] - anchor)
            arrival = frame  # a box that went too far and comes back has arrived before it comes to rest
            while arrival > start and side * (x[arrival - 1] - x[frame]) >= -SETTLED:
                arrival -= 1
            hit = None
            for target in range(len(cast)):
                if target == box:
                    continue
                stood = np.median(places[target][max(arrival - 6, 0) : max(arrival - 1, 1)])
                gap = side * (stood - x[frame]) - HALF_WIDTH["box"] - HALF_WIDTH[cast[target].kind]
                jolt = (side * (places[target][max(arrival - 1, 0) : arrival + 4] - stood)).max()
                if abs(gap) <= TOUCH and jolt >= LEAST_JOLT:
                    hit = target
            halts.append((arrival, hit))
        anchor = x[frame]
    return halts
