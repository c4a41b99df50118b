import numpy as np
import torch

from baton_diffusers import BatonPipeline
from baton_diffusers.evaluation.measures import (
    KEPT_FRAMES,
    Trip,
    bell_examples,
    draw_chains,
    format_bells,
    format_chains,
    format_trips,
    measure_bells,
    round_trips,
    score_chains,
    summarise_chains,
    summarise_trips,
    tones,
)
from baton_diffusers.evaluation.scores import draw_examples, rendered_clips
from baton_diffusers.pipelines.pipeline_output import BatonPipelineOutput
from baton_diffusers.shipped import default_checkpoint
from baton_diffusers.stage import render_clip, timeline
from baton_diffusers.stage.scene import COLOURS, JUMP
from baton_diffusers.stage.scoring import ASPECTS
from baton_diffusers.stage.sound import event_sound


class Continuer:
    """A pipeline that knows its chains by heart: where a beginning is given, it renders the scene after the kept second."""

    frame_rate, sampling_rate = 16, 16000

    def __init__(self, chains):
        examples = [chain.example(link) for chain in chains for link in range(len(chain.scenes))]
        self.scenes = {example.prompt: example.scene for example in examples}
        self.given = []

    def __call__(self, prompt, continue_from=None, **settings):
        self.given.append(continue_from)
        clips = []
        for text in prompt:
            first = 0 if continue_from is None else KEPT_FRAMES + JUMP
            late = (s for s in range(10000) if timeline(self.scenes[text], s)[0].frame >= first)
            clips.append(render_clip(self.scenes[text], next(late)))
        frames = torch.stack([torch.from_numpy(clip.frames) for clip in clips]).permute(0, 1, 4, 2, 3) / 255
        audio = torch.stack([torch.from_numpy(clip.waveform) for clip in clips])[:, None]
        return BatonPipelineOutput(frames, audio, 16, 16000)


def test_a_chain_goes_on_with_its_cast_and_is_scored_after_what_is_kept():
    chains = draw_chains(3, 2)
    assert chains == draw_chains(3, 2) != draw_chains(3, 2, seed=1)
    for chain in chains:
        assert len({scene.actors for scene in chain.scenes}) == 1 and len(set(chain.scenes)) == 3
        assert {scene.split for scene in chain.scenes} == {"validation"}
        told = chain.example(0).told  # else a later prompt may tell another place or colour than is seen
        assert all(told.places) and all(told.colours)
    pipe = Continuer(chains)
    scores = score_chains(pipe, chains, batch_size=2)
    assert [len(of_link) for of_link in scores] == [3, 3, 3]
    assert all(score.strict for of_link in scores for score in of_link)
    assert [given is None for given in pipe.given] == [True, False, False] * 2
    assert all(clip.frames.shape == (49, 64, 64, 3) for given in pipe.given if given for clip in given)
    table = format_chains(summarise_chains(scores)).splitlines()
    assert len(table) == 5 and table[2].startswith("| 0 | 3 | 1.000 [")


def test_what_survives_a_round_trip_is_a_share_of_what_held():
    examples = draw_examples(2)
    trips = []
    for example, (frames, waveform) in zip(examples, rendered_clips(examples), strict=True):
        trips.append(Trip(example.score(frames, waveform), example.score(frames, 0 * waveform)))
    summary = summarise_trips(trips, examples)
    assert summary["aspects"]["present"]["value"] == summary["aspects"]["seen"]["value"] == 1
    assert summary["aspects"]["heard"]["value"] == summary["aspects"]["quiet"]["value"] == 0
    assert 0 < summary["all"]["low"] < summary["all"]["value"] < summary["all"]["high"] < 1
    table = format_trips(summary).splitlines()
    assert len(table) == 3 + len(ASPECTS) + 2 * len(COLOURS) and {line.count("|") for line in table} == {3}
    lost = [Trip(trip.after, trip.after) for trip in trips]
    assert summarise_trips(lost, examples)["aspects"]["heard"] is None  # nothing was there to be lost


def test_a_clip_makes_a_round_trip_through_a_file_and_the_autoencoders():
    pipe = BatonPipeline.from_pretrained(default_checkpoint())
    examples = draw_examples(1)
    summary = summarise_trips(round_trips(pipe, rendered_clips, examples), examples)
    assert summary["aspects"]["present"]["value"] == summary["aspects"]["seen"]["value"] == 1


def test_tones_are_measured_wherever_the_ding_begins():
    for colour in COLOURS:
        sound = event_sound("flash", colour)
        there, late = (np.pad(sound, (start, 8000)) for start in (0, 4170))
        np.testing.assert_allclose(tones(late, 4000, colour), tones(there, 0, colour), atol=0.5)


def test_a_flat_and_weak_partial_is_measured():
    time = np.arange(5440) / 16000
    decay = np.exp(-time / 0.09) * np.minimum(1, time / 0.002)

    def ding(level, shift):
        return 0.3 * (np.sin(2 * np.pi * 1000 * time) + level * np.sin(2 * np.pi * (2760 + shift) * time)) * decay

    change = tones(np.pad(ding(0.2, -40), (0, 8000)), 0, "red") - tones(np.pad(ding(0.4, 0), (0, 8000)), 0, "red")
    np.testing.assert_allclose(change, [[0, 0], [-6, -40]], atol=0.6)


def test_stages_own_bells_are_as_they_should_be():
    bells = measure_bells(rendered_clips, bell_examples(4))
    assert list(bells) == list(COLOURS)
    for bell in bells.values():
        assert bell["dings"] == bell["asked"] == 5
        assert all(abs(bell[name]) <= 0.2 for name in ("pitch_db", "pitch_hz", "partial_db", "partial_hz"))
    mute = measure_bells(lambda batch: [(f, 0 * w) for f, w in rendered_clips(batch)], bell_examples(1))
    assert mute["red"] == {"dings": 0, "asked": 1} | dict.fromkeys(
        ("pitch_db", "pitch_hz", "partial_db", "partial_hz")
    )
    assert "| blue | 0 of 1 | - | - | - | - |" in format_bells(mute)
