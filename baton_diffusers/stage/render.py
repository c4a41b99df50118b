"""The picture of Stage: large flat sprites, drawn at four times the size, cached, and pasted into the frames."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from .scene import (
    FLOOR,
    FRAME_RATE,
    FRAME_SIZE,
    JOLT,
    JUMP,
    NUM_FRAMES,
    SAMPLING_RATE,
    VOICES,
    Actor,
    Event,
    Scene,
    Slide,
    render_generator,
    slide_frames,
    timeline,
)
from .sound import render_audio
from .words import word_frames


RGB = {
    "red": (225, 45, 45),
    "green": (50, 185, 75),
    "blue": (60, 110, 240),
    "yellow": (245, 215, 45),
    "orange": (245, 140, 50),
    "purple": (165, 80, 205),
}
WHITE = (255, 255, 255)
BLACK = (0, 0, 0)

SCALE = 4  # supersampling; also the fraction of a pixel to which sprites are placed
SPRITE = 32  # pixels; a sprite's canvas, with its foot in the middle of row FOOT
FOOT = 28
MARGIN = 40  # around the frame while it is composed, so that no sprite needs clipping

JUMP_HEIGHT = 26.0
FLASH_FRAMES = 3
JOLT_FRAMES = 3


@dataclass(frozen=True)
class Clip:
    """A rendered scene: `frames` uint8 (49, 64, 64, 3), `waveform` float32 (49000,), and their rates in 1/s."""

    frames: np.ndarray
    waveform: np.ndarray
    frame_rate: int = FRAME_RATE
    sampling_rate: int = SAMPLING_RATE


@dataclass(frozen=True)
class Pose:
    """How an actor looks in one frame: `x` of its centre, height `y` above the floor, both in pixels, and `look`:
    rest, landed (a squashed ball), flash (a white bell) or open (a face's mouth)."""

    x: float
    y: float = 0.0
    look: str = "rest"


def poses(scene: Scene, seed: int) -> list[list[Pose]]:
    """The pose of each actor in each frame: 49 lists with one pose per actor."""
    return perform(scene.actors, timeline(scene, seed), {slide.action: slide for slide in scene.slides}, NUM_FRAMES)


def perform(
    actors: Sequence[Actor], events: Sequence[Event], slides: Mapping[int, Slide], num_frames: int
) -> list[list[Pose]]:
    """
    The pose of each actor in each frame.

    Args:
        actors: The cast, at rest before the first frame.
        events: What happens.
        slides: How a box moves, by the action of its contact.
        num_frames: How many frames.
    """
    num_actors = len(actors)
    x = np.tile([actor.x for actor in actors], (num_frames, 1))
    y = np.zeros((num_frames, num_actors))
    look = [["rest"] * num_actors for _ in range(num_frames)]
    jolt = JOLT * np.arange(JOLT_FRAMES, 0, -1) / JOLT_FRAMES
    shaken = np.zeros_like(x)
    for event in events:
        frame, actor = event.frame, event.actor
        if event.kind == "landing":
            phase = np.arange(JUMP) / JUMP
            y[frame - JUMP : frame, actor] = 4 * JUMP_HEIGHT * phase * (1 - phase)
            look[frame][actor] = "landed"
        elif event.kind == "contact":
            slide = slides[event.action]
            steps = slide_frames(slide.distance)
            x[frame - steps : frame, actor] = np.linspace(slide.start, slide.end, steps, endpoint=False)
            x[frame:, actor] = slide.end
            shaken[frame : frame + JOLT_FRAMES, event.target] = jolt * np.sign(slide.end - slide.start)
        else:
            frames, change = _change(actors[actor], event)
            for i in range(frame, min(frame + frames, num_frames)):
                look[i][actor] = change
    x += shaken
    return [[Pose(*pose) for pose in zip(*row, strict=True)] for row in zip(x.tolist(), y.tolist(), look, strict=True)]


def _change(actor: Actor, event: Event) -> tuple[int, str]:
    """How long, in frames, a flash or a word changes the look of its actor, and the changed look."""
    if event.kind == "flash":
        return FLASH_FRAMES, "flash"
    return word_frames(VOICES[actor.colour], event.word), "open"


@cache
def sprite(kind: str, colour: str, look: str, shift_x: int, shift_y: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a sprite, moved by quarters of a pixel right and down.

    Returns the colours times the opacity, float32 (32, 32, 3), and the transparency, float32 (32, 32, 1).
    """
    image = Image.new("RGBA", (SPRITE * SCALE, SPRITE * SCALE), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    rgb = WHITE if look == "flash" else RGB[colour]
    dark = tuple(round(0.55 * c) for c in rgb)

    def box(left: float, top: float, right: float, bottom: float) -> tuple[int, ...]:
        """A rectangle in pixels from the foot (right, up), in pixels of the canvas."""
        edges = (SPRITE / 2 + left, FOOT - top, SPRITE / 2 + right, FOOT - bottom)
        shifts = (shift_x, shift_y, shift_x - 1, shift_y - 1)  # the last row and column are included by PIL
        return tuple(round(SCALE * edge) + shift for edge, shift in zip(edges, shifts, strict=True))

    if kind == "ball":
        wide, high = (9.5, 14.0) if look == "landed" else (8.5, 17.0)
        draw.ellipse(box(-wide, high, wide, 0), fill=rgb)
        draw.rectangle(box(-wide + 1, high / 2 + 1.25, wide - 1, high / 2 - 1.25), fill=dark)
    elif kind == "box":
        draw.rectangle(box(-7, 15, 7, 0), fill=dark)
        draw.rectangle(box(-5, 13, 5, 2), fill=rgb)
    elif kind == "bell":
        draw.ellipse(box(-2.5, 20, 2.5, 15), fill=dark)
        draw.ellipse(box(-2.5, 5, 2.5, 0), fill=dark)
        draw.ellipse(box(-5.5, 18, 5.5, 7), fill=rgb)
        corners = [box(x, y, x, y)[:2] for x, y in ((-5.5, 12.5), (5.5, 12.5), (6, 7), (8.5, 3), (-8.5, 3), (-6, 7))]
        draw.polygon(corners, fill=rgb)
    else:
        draw.rounded_rectangle(box(-8.5, 22, 8.5, 0), radius=7 * SCALE, fill=rgb)
        for side in (-4, 4):
            draw.ellipse(box(side - 2.5, 18.5, side + 2.5, 13.5), fill=WHITE)
            draw.ellipse(box(side - 1.25, 17.25, side + 1.25, 14.75), fill=BLACK)
        if look == "open":
            draw.ellipse(box(-4.5, 10.5, 4.5, 2.5), fill=BLACK)
        else:
            draw.rectangle(box(-4, 6.75, 4, 5.5), fill=BLACK)
    pixels = np.asarray(image, dtype=np.float32)
    alpha = pixels[..., 3:] / 255
    premultiplied = np.concatenate([pixels[..., :3] * alpha, 1 - alpha], axis=-1)
    small = premultiplied.reshape(SPRITE, SCALE, SPRITE, SCALE, 4).mean(axis=(1, 3))
    small.setflags(write=False)
    return small[..., :3], small[..., 3:]


def background(scene: Scene, seed: int) -> np.ndarray:
    """A plain wall over a darker floor in a shade of its own: float32 (64, 64, 3), 0 to 255."""
    rng = render_generator(scene, seed, purpose=1)
    shade = rng.uniform(55, 105) + rng.uniform(-10, 10, 3)
    frame = np.empty((FRAME_SIZE, FRAME_SIZE, 3), dtype=np.float32)
    frame[:FLOOR] = shade
    frame[FLOOR:] = 0.6 * shade
    return frame


def render_video(scene: Scene, seed: int) -> np.ndarray:
    """The picture of `scene` for one render `seed`: RGB uint8 (49, 64, 64, 3), at 16 frames/s."""
    return draw_frames(scene.actors, poses(scene, seed), background(scene, seed))


def draw_frames(actors: Sequence[Actor], rows: Sequence[Sequence[Pose]], backdrop: np.ndarray) -> np.ndarray:
    """
    The frames that show a cast in its poses: RGB uint8 (frames, 64, 64, 3).

    Args:
        actors: The cast.
        rows: For each frame the pose of each actor.
        backdrop: The empty stage, see [`background`].
    """
    empty = np.pad(backdrop, ((MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)), mode="edge")
    inside = slice(MARGIN, MARGIN + FRAME_SIZE)
    frames = np.empty((len(rows), FRAME_SIZE, FRAME_SIZE, 3), dtype=np.uint8)
    drawn = {}
    for index, row in enumerate(rows):
        key = tuple(row)
        if key not in drawn:
            canvas = empty.copy()
            for actor, pose in zip(actors, row, strict=True):
                right, shift_x = divmod(round(SCALE * pose.x), SCALE)
                down, shift_y = divmod(round(SCALE * (FLOOR - pose.y)), SCALE)
                top, left = MARGIN + down - FOOT, MARGIN + right - SPRITE // 2
                colour, transparency = sprite(actor.kind, actor.colour, pose.look, shift_x, shift_y)
                patch = canvas[top : top + SPRITE, left : left + SPRITE]
                patch *= transparency
                patch += colour
            drawn[key] = index
            frames[index] = canvas[inside, inside] + 0.5
        else:
            frames[index] = frames[drawn[key]]
    return frames


def render_clip(scene: Scene, seed: int) -> Clip:
    """The picture and the sound of `scene` for one render `seed`, see [`render_video`] and [`render_audio`]."""
    return Clip(render_video(scene, seed), render_audio(scene, seed))
