import base64
import pickle
import re

import numpy as np
import PIL.Image
import pytest
import torch

from baton_diffusers.media import read_clip
from baton_diffusers.pipelines.pipeline_output import BatonPipelineOutput
from baton_diffusers.plan import SemanticPlan


FRAME_RATE, SAMPLING_RATE = 16.0, 16000


def arrays(batch_size=2, num_frames=9, size=32):
    ramp = np.linspace(0, 1, num_frames)[None, :, None, None, None]
    frames = np.broadcast_to(ramp, (batch_size, num_frames, size, size, 3)).copy()
    frames[1] = 1 - frames[1]
    audio = 0.5 * np.sin(np.arange(num_frames * 1000) * 0.2)[None, None].repeat(batch_size, 0)
    return frames, audio.astype(np.float32)


def output(kind="np"):
    frames, audio = arrays()
    if kind == "pt":
        frames, audio = torch.from_numpy(frames).permute(0, 1, 4, 2, 3), torch.from_numpy(audio)
    if kind == "pil":
        frames = [[PIL.Image.fromarray((frame * 255).round().astype(np.uint8)) for frame in clip] for clip in frames]
    return BatonPipelineOutput(frames, audio, FRAME_RATE, SAMPLING_RATE)


def latents():
    return BatonPipelineOutput(torch.zeros(1, 12, 3, 8, 8), torch.zeros(1, 96, 16), FRAME_RATE, SAMPLING_RATE)


@pytest.mark.parametrize("kind", ["np", "pt", "pil"])
def test_every_output_type_is_the_same_clip(kind, tmp_path):
    expected_frames, expected_audio = output().clip(1)
    frames, audio = output(kind).clip(1)
    assert frames.dtype == np.uint8 and audio.dtype == np.float32
    assert np.array_equal(frames, expected_frames) and np.array_equal(audio, expected_audio)
    clip = read_clip(output(kind).save(tmp_path / "clip.mp4", index=1, scale=2))
    assert clip.frames.shape == (9, 64, 64, 3) and clip.waveform.shape == (1, 9000)
    assert np.abs(clip.frames[:, ::2, ::2].astype(int) - frames).max() < 8
    assert (clip.frame_rate, clip.sampling_rate) == (FRAME_RATE, SAMPLING_RATE)


def test_half_precision_is_saved():
    half = output("pt")
    half = BatonPipelineOutput(half.frames.bfloat16(), half.audio.half(), FRAME_RATE, SAMPLING_RATE)
    frames, audio = half.clip()
    assert np.abs(frames.astype(int) - output().clip()[0]).max() <= 1 and audio.dtype == np.float32


def test_a_notebook_plays_every_clip(tmp_path):
    players = re.findall(r'<video controls loop src="data:video/mp4;base64,([^"]+)">', output()._repr_html_())
    assert len(players) == 2
    path = tmp_path / "clip.mp4"
    path.write_bytes(base64.b64decode(players[0]))
    assert read_clip(path).frames.shape == (9, 256, 256, 3)


def test_latents_are_not_a_clip(tmp_path):
    with pytest.raises(ValueError, match=r"\(1, 12, 3, 8, 8\) are latents.*output_type"):
        latents().save(tmp_path / "clip.mp4")
    assert latents()._repr_html_() is None and not any(tmp_path.iterdir())


def test_a_clip_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="index 2 of 2 clips"):
        output().clip(2)


def test_it_behaves_as_a_diffusers_output():
    plain = output()
    assert len(plain.to_tuple()) == 4 and plain[3] == SAMPLING_RATE and plain["frame_rate"] == FRAME_RATE
    plan = SemanticPlan(
        torch.zeros(2, 4, 8), torch.zeros(4), torch.zeros(4, 2), torch.zeros(2, 3, 8), torch.zeros(3), 0.5625
    )
    planned = BatonPipelineOutput(*plain.to_tuple(), plan)
    assert planned.plan is plan and planned.to_tuple()[-1] is plan
    again = pickle.loads(pickle.dumps(planned))
    assert np.array_equal(again.frames, planned.frames) and torch.equal(again.plan.audio_times, plan.audio_times)
