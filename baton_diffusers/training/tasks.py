"""The tasks that a transformer learns: the state of either modality of a sample."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """
    What a sample teaches: the state of either modality, from which follows who is supervised and who reads whom.

    A modality is "noisy" (it is to be denoised, and supervised), "absent" (nobody reads it), "clean" (the clip's own, at
    timestep 0) or "still" (in place of the clip's own a motionless picture or silence, at timestep 0). What the noisy
    modality has to become is the clip's own in every case: a still condition says nothing about it, as a dropped one.

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
