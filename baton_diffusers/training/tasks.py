"""The tasks that a transformer learns: the state of either modality of a sample."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """
    What a sample teaches: the state of each modality. The states decide which modality is supervised and which reads the other.

    A modality is "noisy" (denoised and supervised), "absent" (never read), "clean" (the clip's own, at timestep 0) or "still" (a
    motionless picture or silence, at timestep 0). The target of a noisy modality is always the clip's own: a still condition says
    nothing about it, like a dropped one.

    Args:
        video: The state of the video.
        audio: The state of the audio.
    """

    video: str = "noisy"
    audio: str = "noisy"

    def reads(self, reader: str, other: str, clean_reads_noisy: bool) -> bool:
        """Whether the stream `reader` reads the stream `other` ("video" or "audio")."""
        state, source = getattr(self, reader), getattr(self, other)
        return source != "absent" and (state == "noisy" or (state != "absent" and clean_reads_noisy))


TASKS = {
    "joint": Task(),
    "t2v": Task(audio="absent"),
    "t2a": Task(video="absent"),
    "a2v": Task(audio="clean"),
    "v2a": Task(video="clean"),
    "mute": Task(audio="still"),
    "static": Task(video="still"),
}
