"""Stage: a procedural theatre of 64x64 pixels with sound, whose prompts can be checked exactly on the output."""

from .prompts import describe_frame, training_prompt, write_cues, write_prompt
from .render import Clip, render_clip, render_video
from .scene import Action, Actor, Event, Scene, sample_scene, timeline
from .sound import render_audio


__all__ = [
    "Action",
    "Actor",
    "Clip",
    "Event",
    "Scene",
    "describe_frame",
    "render_audio",
    "render_clip",
    "render_video",
    "sample_scene",
    "timeline",
    "write_cues",
    "training_prompt",
    "write_prompt",
]
