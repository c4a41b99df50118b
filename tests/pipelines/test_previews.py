"""A plan seen and heard before it is rendered: `pipe.preview`, and what a notebook shows of it."""

import gc
import io
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch

from baton_diffusers.models.plan_decoder import AudioPlanDecoder, VideoPlanDecoder
from baton_diffusers.pipelines.pipeline_baton import BatonPipeline

from ..tiny import (
    AUDIO_PLAN_DIM,
    DURATION,
    FRAME_RATE,
    HOP_LENGTH,
    KEYFRAME_RATE,
    MEL_BINS,
    NUM_FRAMES,
    SAMPLING_RATE,
    TOKENS_PER_CHUNK,
    VIDEO_GRID,
    VIDEO_PLAN_DIM,
    random_plan,
    seeded,
    tiny_cue_parts,
    tiny_pipeline,
)
from .calls import PROMPT, forbid, seeds


def video_decoder(**config):
    config = {"video_dim": VIDEO_PLAN_DIM, "video_grid": VIDEO_GRID, "keyframe_rate": KEYFRAME_RATE, **config}
    return seeded(VideoPlanDecoder, height=16, width=16, hidden_dim=8, channels=(8, 8, 8), **config)


def audio_decoder(**config):
    config = {"audio_dim": AUDIO_PLAN_DIM, "audio_rate": TOKENS_PER_CHUNK, "mel_bins": MEL_BINS, **config}
    decoder = seeded(AudioPlanDecoder, sampling_rate=SAMPLING_RATE, hop_length=HOP_LENGTH, hidden_dim=8, **config)
    decoder.mel_mean -= 4
    return decoder


@pytest.fixture(scope="module")
def pipe():
    decoders = {"video_plan_decoder": video_decoder(), "audio_plan_decoder": audio_decoder()}
    return tiny_pipeline(**tiny_cue_parts(), **decoders)


def test_a_preview_is_a_small_clip_of_the_plan(pipe, tmp_path):
    plan = pipe.plan(PROMPT, generator=seeds(0))
    preview = pipe.preview(plan)
    frames, waveform = preview.clip()
    assert frames.shape == (NUM_FRAMES, 16, 16, 3) and waveform.shape == (1, round(DURATION * SAMPLING_RATE))
    assert (preview.frame_rate, preview.sampling_rate) == (FRAME_RATE, SAMPLING_RATE)
    assert frames.std() > 1 and waveform.std() > 1e-4
    assert preview.cues == list(plan.sheets)
    assert preview.save(tmp_path / "preview.mp4").is_file()
    assert np.asarray(preview.figure()).std() > 1
    plan.save(tmp_path / "plan.safetensors")
    assert np.array_equal(pipe.preview(tmp_path / "plan.safetensors").frames, preview.frames)


def test_each_plan_of_a_batch_is_seen_as_it_is_alone(pipe):
    plan = random_plan(2)
    both, second = pipe.preview(plan), pipe.preview(plan[1])
    np.testing.assert_allclose(both.frames[1:], second.frames, atol=1e-5)
    np.testing.assert_allclose(both.audio[1:], second.audio, atol=1e-4)
    assert np.abs(both.frames[0] - both.frames[1]).max() > 1e-3


def test_the_seconds_that_are_edited_are_the_ones_that_change(pipe):
    plan = random_plan()
    tokens = plan.video_tokens.clone()
    tokens[:, plan.video_times > 0.8] += 1
    before, after = (pipe.preview(one).frames[0] for one in (plan, replace(plan, video_tokens=tokens)))
    changed = np.abs(after - before).max(axis=(1, 2, 3)) > 1e-6
    assert changed[-1] and not changed[:4].any()
    hidden = pipe.preview(plan.masked(torch.tensor([False])))
    assert np.abs(hidden.frames - pipe.preview(replace(plan, video_tokens=0 * tokens)).frames).max() < 1e-6


def test_one_decoder_alone_gives_one_modality():
    dark = tiny_pipeline(audio_plan_decoder=audio_decoder()).preview(random_plan())
    assert dark.frames is None and dark.audio.shape[0] == 1 and np.asarray(dark.figure()).size
    silent = tiny_pipeline(video_plan_decoder=video_decoder()).preview(random_plan())
    assert silent.audio is None and len(silent.frames[0]) == NUM_FRAMES


def test_pictures_have_the_shape_of_the_clips():
    pipe = tiny_pipeline(video_plan_decoder=video_decoder(), width=64)
    assert pipe.preview(random_plan()).frames.shape[2:4] == (16, 32)


@pytest.mark.parametrize(
    "parts, plan, message",
    [
        ({}, random_plan(), "`preview` needs .*, and this pipeline has neither: load a checkpoint that has, such as"),
        ({"video_plan_decoder": video_decoder}, 3, "`plan` is a int"),
        ({"video_plan_decoder": video_decoder}, "none.safetensors", "there is no plan at none.safetensors"),
        (
            {"audio_plan_decoder": audio_decoder},
            replace(random_plan(), audio_tokens=torch.zeros(1, 16, 9)),
            "`plan` has audio tokens of width 9, but `audio_plan_decoder` takes 4",
        ),
    ],
)
def test_what_cannot_be_previewed_is_refused(parts, plan, message):
    pipe = forbid(tiny_pipeline(**{name: make() for name, make in parts.items()}))
    with pytest.raises(ValueError, match=message):
        pipe.preview(plan)


@pytest.mark.parametrize(
    "name, make, message",
    [
        ("video_plan_decoder", lambda: video_decoder(video_dim=7), "`video_dim` is 6, but `video_plan_decoder` has 7"),
        ("video_plan_decoder", lambda: video_decoder(video_grid=(1, 2)), r"`video_grid` is \(2, 2\)"),
        ("audio_plan_decoder", lambda: audio_decoder(audio_dim=7), "`audio_dim` is 4, but `audio_plan_decoder` has 7"),
        ("audio_plan_decoder", lambda: audio_decoder(audio_rate=4.0), "rate of audio tokens` is 8.0"),
        ("audio_plan_decoder", lambda: audio_decoder(mel_bins=8), "`mel_bins` is 16, but `audio_plan_decoder` has 8"),
    ],
)
def test_a_decoder_of_another_checkpoint_is_refused(pipe, name, make, message):
    with pytest.raises(ValueError, match=message):
        setattr(pipe, name, make())


def test_decoders_that_return_no_numbers_are_named(pipe):
    broken = tiny_pipeline(video_plan_decoder=video_decoder())
    broken.video_plan_decoder.to_pixels.bias.data.fill_(float("nan"))
    with pytest.raises(
        ValueError, match="the pictures hold NaN or infinite values: usually the weights of `video_plan_decoder`"
    ):
        broken.preview(random_plan())


def test_decoders_are_saved_and_loaded_with_the_pipeline(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    loaded = BatonPipeline.from_pretrained(tmp_path)
    plan = random_plan()
    np.testing.assert_allclose(loaded.preview(plan).frames, pipe.preview(plan).frames, atol=1e-6)
    bare = BatonPipeline.from_pretrained(tmp_path, video_plan_decoder=None, audio_plan_decoder=None)
    with pytest.raises(ValueError, match="has neither"):
        bare.preview(plan)


def test_a_notebook_shows_a_plan_with_its_pictures_while_the_pipeline_is_there(pipe):
    plan = pipe.plan(PROMPT, generator=seeds(0))
    assert plan._repr_html_().count("<img") == 1 and "<video" in plan._repr_html_()
    assert "<video" not in replace(plan)._repr_html_() and "<img" in replace(plan)._repr_html_()
    heights = [PIL.Image.open(io.BytesIO(shown._repr_png_())).height for shown in (plan, replace(plan))]
    assert heights[0] > heights[1]  # the pictures and the sound
    other = tiny_pipeline(**pipe.components)
    plan = other.plan(PROMPT, generator=seeds(0))
    del other
    gc.collect()
    assert "<video" not in plan._repr_html_()
    assert "<video" not in tiny_pipeline().plan(PROMPT)._repr_html_()
