"""A part of a clip is rendered anew; the rest stays as it is, bit for bit."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from baton_diffusers.media import Clip
from baton_diffusers.pipelines.pipeline_output import BatonPipelineOutput
from baton_diffusers.pipelines.retake import replace_frames, replace_samples, spans_of_actor
from baton_diffusers.plan import SemanticPlan

from ..tiny import (
    DURATION,
    FRAME_RATE,
    NUM_FRAMES,
    SAMPLING_RATE,
    random_clip,
    random_plan,
)
from .calls import PROMPT, make, record, seeds


SHEET = "red circle left; blue square right <|0.25|> red circle moves <|1.00|> blue square jumps"
FIRST, LAST = 3, 7  # frames of the span
START, END = FIRST / FRAME_RATE, LAST / FRAME_RATE
SAMPLES = slice(int(START * SAMPLING_RATE), int(END * SAMPLING_RATE))


@pytest.fixture(scope="module", params=["pt", "pil"])
def clip(request, cue_pipe):
    return make(cue_pipe, cues=SHEET, output_type=request.param)


def retake(pipe, clip, *args, seed=1, output_type="pt", **kwargs):
    return pipe.retake(clip, *args, generator=seeds(seed), output_type=output_type, **kwargs)


def values(output):
    """Frames `(num_frames, height, width, 3)` and samples `(num_samples,)` of an output, not rounded."""
    frames, audio = output.frames[0], output.audio[0]
    if isinstance(frames, list):
        frames = torch.from_numpy(np.stack([np.asarray(frame) for frame in frames]) / np.float32(255)).movedim(-1, 1)
    return np.asarray(frames.movedim(1, -1)), np.asarray(audio).mean(axis=0)


def assert_outside_stays(output, frames, samples, first=FIRST, last=LAST):
    new_frames, new_samples = values(output)
    outside = np.r_[:first, last : len(frames)]
    assert np.array_equal(new_frames[outside], frames[outside])
    assert np.array_equal(new_samples[: SAMPLES.start], samples[: SAMPLES.start])
    assert np.array_equal(new_samples[SAMPLES.stop :], samples[SAMPLES.stop :])
    return new_frames, new_samples


def test_the_span_is_new_and_the_rest_stays_bit_for_bit(cue_pipe, clip):
    frames, samples = values(clip)
    output = retake(cue_pipe, clip, START, END)
    new_frames, new_samples = assert_outside_stays(output, frames, samples)
    assert not np.array_equal(new_frames[FIRST:LAST], frames[FIRST:LAST])
    assert not np.array_equal(new_samples[SAMPLES], samples[SAMPLES])
    assert (output.frame_rate, output.sampling_rate) == (FRAME_RATE, SAMPLING_RATE)
    assert torch.equal(output.plan.video_tokens, clip.plan.video_tokens) and output.plan.prompts == (PROMPT,)
    other = retake(cue_pipe, clip, START, END, seed=2)
    assert not np.array_equal(values(other)[0], new_frames)
    for again in (retake(cue_pipe, clip, START, END), retake(cue_pipe, clip, START, END, output_type="np")):
        assert np.array_equal(again.clip()[0], output.clip()[0]) and np.array_equal(again.clip()[1], output.clip()[1])


def test_a_modality_is_rendered_alone(cue_pipe, clip):
    frames, samples = values(clip)
    voiced = retake(cue_pipe, clip, START, END, modality="audio")
    assert np.array_equal(assert_outside_stays(voiced, frames, samples)[0], frames)
    assert not np.array_equal(values(voiced)[1], samples)
    drawn = retake(cue_pipe, clip, START, END, modality="video")
    assert np.array_equal(assert_outside_stays(drawn, frames, samples)[1], samples)
    assert not np.array_equal(values(drawn)[0], frames)


def test_the_events_of_one_actor_are_rendered_alone(cue_pipe, clip):
    output = retake(cue_pipe, clip, actor="blue square")
    frames, (new_frames, _) = values(clip)[0], values(output)
    assert np.array_equal(new_frames[:4], frames[:4]) and not np.array_equal(new_frames[4:], frames[4:])


def test_what_is_rendered_follows_a_plan_cues_or_a_prompt(cue_pipe, clip):
    plan = cue_pipe.edit_plan(clip.plan, clip.plan.sheet.reword(1, "moves"))
    passes = record(cue_pipe.transformer)
    edited = retake(cue_pipe, clip, START, END, plan=plan)
    assert edited.plan.sheets == plan.sheets and torch.equal(passes[0]["plan"].video_tokens, plan.video_tokens)
    assert retake(cue_pipe, clip, START, END, cues="<|0.50|> red circle").plan.sheets == ("<|0.50|> red circle",)
    fitted = retake(cue_pipe, clip, START, END, "the green star moves", num_cue_candidates=2)
    assert fitted.plan.prompts == ("the green star moves",)


def test_a_clip_of_ones_own_stays_in_its_size_depth_channels_and_rate(pipe):
    frames, waveform = random_clip()
    frames, waveform = frames.repeat(2, axis=1).repeat(2, axis=2), np.stack([waveform, -waveform]).repeat(2, axis=1)
    own = Clip(frames, waveform, FRAME_RATE, 2 * SAMPLING_RATE)
    output = retake(pipe, own, START, END, PROMPT, output_type="np", plan=random_plan())
    new_frames, new_waveform = output.clip()
    outside = np.r_[:FIRST, LAST:NUM_FRAMES]
    assert new_frames.shape == frames.shape and np.array_equal(new_frames[outside], frames[outside])
    assert new_waveform.shape == waveform.shape and output.sampling_rate == 2 * SAMPLING_RATE
    assert np.array_equal(new_waveform[:, 2 * SAMPLES.stop :], waveform[:, 2 * SAMPLES.stop :])
    assert not np.array_equal(new_waveform, waveform) and not np.array_equal(new_frames, frames)


def test_sound_passes_into_the_new_one_inside_the_span_and_not_at_the_clips_ends():
    old, new = np.zeros((1, 1000), dtype=np.float32), np.ones((1, 990), dtype=np.float32)
    joined = replace_samples(old, new, 1000, [(0.1, 0.2), (0.9, 1.0)])[0]
    assert not joined[:100].any() and not joined[200:900].any()
    assert (np.diff(joined[99:111]) <= 0.1 + 1e-6).all() and (joined[110:190] == 1).all() and joined[199] < 0.1
    assert joined[910] == joined[989] == 1 and joined[990] == 0
    short = replace_samples(old, new, 1000, [(0.5, 0.502)])[0]
    assert short[500] == short[501] == 0.5 and np.count_nonzero(short) == 2


def test_frames_of_a_span_are_replaced_in_the_depth_of_the_clip():
    frames, new = np.full((4, 2, 2, 3), 7, dtype=np.uint8), torch.full((5, 3, 4, 4), 0.5)
    replaced = replace_frames(frames, new, 8.0, [(0.125, 0.25), (0.375, 0.5)])
    shown = replaced[:, 0, 0, 0].astype(int)
    assert replaced.dtype == np.uint8 and shown[[0, 2]].tolist() == [7, 7] and (abs(shown[[1, 3]] - 128) <= 32).all()


def test_what_the_autoencoder_changes_fades_and_no_ghost_stays():
    frames = np.full((20, 1, 2, 3), 0.5, dtype=np.float32)
    new = torch.full((20, 3, 1, 2), 0.48)
    new[..., 1] = 1.0  # another picture
    shown = replace_frames(frames, new, 8.0, [(0.5, 2.0)])[:, 0, :, 0]
    assert np.abs(np.diff(shown[:, 0])).max() < 0.005 and shown[9, 0] == np.float32(0.48)
    assert (shown[4:16, 1] >= 0.94).all() and shown[8:12, 1].tolist() == [1.0] * 4
    alone = replace_frames(frames, new, 8.0, [(0.0, 0.25), (2.25, 2.5)])
    assert alone[0, 0, 0, 0] == pytest.approx(0.48 + 0.6 * 0.02) and alone[19, 0, 0, 0] == alone[0, 0, 0, 0]


def test_spans_of_an_actor_join_and_stay_within_the_span():
    sheet = "red ball left; bell right <|0.60|> red ball bounces <|1.00|> red ball bounces <|3.00|> red ball bounces <|4.00|> bell rings"
    assert spans_of_actor("red ball", [sheet], 0.5, 9.0) == [(0.5, 1.5), (2.5, 3.5)]
    assert spans_of_actor("red ball", [sheet, sheet.replace("3.00", "3.20")], 2.0, 9.0) == [(2.5, 3.7)]


NO_PROMPT = Clip(*random_clip()[:1], random_clip()[1][None], FRAME_RATE, SAMPLING_RATE)


@pytest.mark.parametrize(
    "clip, call, error, message",
    [
        (NO_PROMPT, {}, ValueError, "nothing says what happens.*give `prompt`"),
        (NO_PROMPT, {"start": 0.5, "end": 0.5}, ValueError, "from 0.5 to 0.5 seconds does not lie within"),
        (NO_PROMPT, {"end": 2.0}, ValueError, "does not lie within the clip of 1.125"),
        (NO_PROMPT, {"start": float("nan")}, ValueError, "`start` is nan"),
        (NO_PROMPT, {"end": "1"}, ValueError, "`end` is '1', but must be a number"),
        (NO_PROMPT, {"prompt": PROMPT, "start": 0.5, "plan": 5}, ValueError, "`plan` is a int"),
        (NO_PROMPT, {"start": 0.5, "end": 0.52}, ValueError, "shorter than a frame"),
        (NO_PROMPT, {"prompt": PROMPT}, ValueError, "leaves nothing of the clip"),
        (NO_PROMPT, {"prompt": PROMPT, "start": 0.5, "modality": "sound"}, ValueError, "`modality` is 'sound'"),
        (NO_PROMPT, {"prompt": PROMPT, "start": 0.5, "output_type": "latent"}, ValueError, "joins frames and samples"),
        (NO_PROMPT, {"prompt": PROMPT, "actor": "star"}, ValueError, "'star' does nothing from 0 to 1.125 .* None"),
        (NO_PROMPT, {"prompt": PROMPT, "plan": random_plan(), "cues": ""}, ValueError, "leave one of them out"),
        (NO_PROMPT, {"prompt": PROMPT, "start": 0.5, "video": None}, TypeError, "`video` is decided by the clip"),
        (NO_PROMPT, {"prompt": PROMPT, "plan": "nowhere"}, ValueError, "there is no plan at nowhere"),
        (NO_PROMPT._replace(frame_rate=9.0), {"prompt": PROMPT}, ValueError, "`clip` has 9 frames per second"),
        (NO_PROMPT._replace(waveform=None), {"prompt": PROMPT}, ValueError, "`clip` has no audio"),
        ([NO_PROMPT, NO_PROMPT], {"prompt": PROMPT}, ValueError, "`clip` holds 2 clips"),
        (3, {"prompt": PROMPT}, ValueError, "`clip` is a int"),
        ("nowhere.mp4", {"prompt": PROMPT}, ValueError, "nowhere.mp4"),
        (
            BatonPipelineOutput(None, np.zeros((1, 1, 9)), 8.0, 4000),
            {"prompt": PROMPT},
            ValueError,
            "give one clip with frames and sound",
        ),
    ],
)  # fmt: skip
def test_a_retake_that_cannot_be_made_is_refused_before_any_model_runs(idle_pipe, clip, call, error, message):
    with pytest.raises(error, match=message):
        idle_pipe.retake(clip, **call)


def test_a_plan_in_a_file_is_followed(pipe, tmp_path):
    plan = replace(random_plan(), prompts=(PROMPT,))
    plan.save(tmp_path / "plan.safetensors")
    output = retake(pipe, NO_PROMPT, START, END, plan=tmp_path / "plan.safetensors")
    assert (
        output.plan.prompts == (PROMPT,) and isinstance(output.plan, SemanticPlan) and output.plan.duration == DURATION
    )
