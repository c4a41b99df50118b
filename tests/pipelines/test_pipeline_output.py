import base64
import io
import pickle
import re

import numpy as np
import PIL.Image
import pytest
import torch

from baton_diffusers.media import read_audio, read_clip, read_video
from baton_diffusers.pipelines.pipeline_output import BatonPipelineOutput
from baton_diffusers.plan import SemanticPlan

from .calls import make


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
    parts = torch.zeros(1, 12, 3, 8, 8), torch.zeros(1, 96, 16)
    return BatonPipelineOutput(*parts, FRAME_RATE, SAMPLING_RATE, output_type="latent")


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


@pytest.mark.parametrize("kind", ["np", "pt", "pil"])
def test_a_picture_alone_is_an_mp4_without_sound(kind, tmp_path):
    silent = output(kind)
    silent.audio = None
    frames, waveform = silent.clip(1)
    assert waveform is None and np.array_equal(frames, output().clip(1)[0]) and silent.num_clips == 2
    path = silent.save(tmp_path / "clip.mp4", index=1)
    assert np.abs(read_video(path)[0].astype(int) - frames).max() < 8
    with pytest.raises(ValueError, match="has no audio stream"):
        read_audio(path)
    with pytest.raises(ValueError, match="ends in '.wav': give a name that ends in .mp4"):
        silent.save(tmp_path / "clip.wav")
    assert silent._repr_html_().count("<video controls loop") == 2


@pytest.mark.parametrize("kind", ["np", "pt"])
def test_a_sound_alone_is_a_file_of_sound(kind, tmp_path):
    dark = output(kind)
    dark.frames = None
    frames, waveform = dark.clip(1)
    assert frames is None and np.array_equal(waveform, output().clip(1)[1]) and dark.num_clips == 2
    for name in ("clip.wav", "clip.flac", "clip.mp4"):
        heard, rate = read_audio(dark.save(tmp_path / name, index=1))
        assert rate == SAMPLING_RATE and np.abs(heard - waveform).mean() < (0.01 if name == "clip.mp4" else 1e-6)
    with pytest.raises(ValueError, match="has no video stream"):
        read_video(tmp_path / "clip.mp4")
    with pytest.raises(ValueError, match="ends in '.ogg'"):
        dark.save(tmp_path / "clip.ogg")
    html = dark._repr_html_()
    assert html.count('<audio controls src="data:audio/wav;base64,') == html.count("</audio>") == 2


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


def test_a_notebook_plays_what_an_mp4_does_not_take(tmp_path):
    """An odd size and a rate that AAC has not, as a given film and a given sound may have."""
    frames, audio = arrays()
    odd = BatonPipelineOutput(frames[:, :, :31, :27], audio.repeat(12, axis=2), FRAME_RATE, 192_000)
    with pytest.raises(ValueError, match="even height and width"):
        odd.save(tmp_path / "clip.mp4")
    players = re.findall(r'base64,([^"]+)">', odd._repr_html_())
    path = tmp_path / "clip.mp4"
    path.write_bytes(base64.b64decode(players[0]))
    clip = read_clip(path)
    assert len(players) == 2 and clip.frames.shape == (9, 310, 270, 3)
    assert clip.sampling_rate == 48_000 and clip.waveform.shape == (1, 27_000)
    alone = BatonPipelineOutput(None, audio, FRAME_RATE, 192_000)
    assert alone._repr_html_().count("<audio controls") == 2


@pytest.mark.parametrize("rate, saved", [(192_000, 48_000), (44_000, 44_100), (16_000, 16_000)])
def test_a_rate_that_aac_has_not_is_converted_when_saved(tmp_path, rate, saved):
    time = np.arange(rate // 2) / rate
    alone = BatonPipelineOutput(
        None, (0.5 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)[None, None], 16.0, rate
    )
    heard, sampling_rate = read_audio(alone.save(tmp_path / "clip.mp4"))
    assert sampling_rate == saved and heard.shape[1] / saved == pytest.approx(0.5, abs=1e-3)
    assert read_audio(alone.save(tmp_path / "clip.wav"))[1] == rate


@pytest.mark.parametrize("part, value", [("frames", np.nan), ("frames", 2), ("frames", -np.inf), ("audio", np.nan)])
@pytest.mark.parametrize("kind", ["np", "pt"])
def test_a_clip_that_broke_is_not_saved(tmp_path, kind, part, value):
    broken = output(kind)
    getattr(broken, part)[1, 0, 0] = value
    with pytest.raises(ValueError, match=f"{part} h(old NaN or infinite|ave) values"):
        broken.save(tmp_path / "clip.mp4", index=1)
    assert not any(tmp_path.iterdir())
    assert broken.save(tmp_path / "clip.mp4", index=0).is_file()


@pytest.mark.parametrize("made", [output(), output("pil"), latents()])
def test_it_is_printed_in_three_lines(made):
    assert len(str(made).splitlines()) == 3 and len(repr(made)) < 300
    assert "2 clips" in str(made) or "1 clip as latents" in str(made)


def test_latents_are_not_a_clip(tmp_path):
    with pytest.raises(ValueError, match=r"\(1, 12, 3, 8, 8\) are latents.*output_type"):
        latents().save(tmp_path / "clip.mp4")
    assert latents()._repr_html_() is latents()._repr_png_() is None and not any(tmp_path.iterdir())


def test_where_no_html_is_shown_clips_are_a_picture_one_below_another():
    whole = PIL.Image.open(io.BytesIO(output()._repr_png_()))
    assert (
        whole.height == sum(output().figure(index).height for index in range(output().num_clips))
        and whole.format == "PNG"
    )


@pytest.mark.parametrize("only", ["video", "audio"])
def test_latents_in_the_shape_of_a_clip_are_none(only, tmp_path):
    """Three latent frames look like three colours, one audio latent like one channel."""
    frames, audio = (torch.zeros(1, 12, 3, 8, 8), None) if only == "video" else (None, torch.zeros(1, 1, 16))
    output = BatonPipelineOutput(frames, audio, FRAME_RATE, SAMPLING_RATE, output_type="latent")
    with pytest.raises(ValueError, match="are latents: generate with an `output_type`"):
        output.save(tmp_path / "clip.mp4")
    assert output._repr_html_() is None and not any(tmp_path.iterdir())


def test_the_pipeline_says_that_its_latents_are_none(pipe):
    made = make(pipe, only="video", num_frames=9, num_inference_steps=1, output_type="latent")
    assert made.frames.shape[2] == 3 and made._repr_html_() is None
    with pytest.raises(ValueError, match="are latents"):
        made.clip()


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
