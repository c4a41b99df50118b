"""Every direction of generation, chosen by what is given: what is given stays, the rest is made around it."""

import copy
import logging

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import FirstBlockCacheConfig, FlowMatchHeunDiscreteScheduler, UniPCMultistepScheduler
from diffusers.guiders import AdaptiveProjectedGuidance

from baton_diffusers import BatonPipeline
from baton_diffusers.guiders import ContextGuidance, PlanGuidance, SyncGuidance
from baton_diffusers.media import Clip, write_clip
from baton_diffusers.schedulers import lead_schedulers

from ..tiny import (
    AUDIO_LATENTS,
    FRAME_RATE,
    LATENTS,
    NUM_FRAMES,
    SAMPLING_RATE,
    SIZE,
    random_clip,
    random_plan,
    tiny_cue_parts,
    tiny_pipeline,
    tiny_transformer,
)
from .calls import OTHER, PROMPT, assert_same, differ, forbid, make, quiet, record, seeds
from .test_pipeline_baton import refused


FRAMES, WAVEFORM = random_clip()
OTHER_FRAMES, OTHER_WAVEFORM = random_clip(1)
KEPT = 5  # frames that half a second of continuation keeps: one latent frame and four frames more


def encoded_video(pipe, frames):
    video = torch.from_numpy(frames / np.float32(255)).movedim(-1, 0)[None] * 2 - 1
    return pipe.encode_video(video)


def encoded_audio(pipe, waveform):
    samples = -(-len(waveform) // 128) * 128  # whole latents
    return pipe.encode_audio(torch.from_numpy(np.pad(waveform, (0, samples - len(waveform))))[None])


# What is given whole


@pytest.mark.parametrize("output_type", ["pt", "np", "pil"])
def test_a_given_picture_is_returned_bit_for_bit_and_heard(pipe, output_type):
    output = make(pipe, video=FRAMES, output_type=output_type)
    assert np.array_equal(output.clip()[0], FRAMES) and output.frame_rate == FRAME_RATE
    assert output.audio.shape == (1, 1, 4500) and output.sampling_rate == SAMPLING_RATE
    sounds = [torch.as_tensor(made.audio) for made in (output, make(pipe), make(pipe, video=OTHER_FRAMES))]
    assert not torch.equal(sounds[0], sounds[1]) and not torch.equal(sounds[0], sounds[2])


def test_a_given_sound_is_returned_bit_for_bit_and_seen(pipe):
    output = make(pipe, audio=WAVEFORM)
    assert np.array_equal(output.audio[0, 0].numpy(), WAVEFORM) and output.sampling_rate == SAMPLING_RATE
    assert output.frames.shape == (1, NUM_FRAMES, 3, SIZE, SIZE)
    for other in (make(pipe), make(pipe, audio=OTHER_WAVEFORM)):
        assert not torch.equal(output.frames, other.frames)
    assert make(pipe, audio=WAVEFORM, output_type="np").audio.dtype == np.float32


def test_a_film_keeps_its_own_size_and_rate(pipe, caplog):
    film = np.repeat(np.repeat(FRAMES, 3, axis=1), 4, axis=2)[:, :90].repeat(3, axis=0)  # 27 frames of 90 x 128
    with caplog.at_level(logging.WARNING):
        output = make(pipe, video=film, video_frame_rate=24000 / 1001)
    assert np.array_equal(output.clip()[0], film) and output.frame_rate == 24000 / 1001
    assert output.audio.shape[2] == 4500  # 1.126 seconds, of which the model's nine frames last 1.125
    assert "`video` of 23.976 frames per second is converted to the 8" in caplog.text
    assert "picture of 90 x 128 pixels (height x width) is resized to 32 x 32, which this model takes" in caplog.text


def test_a_sound_keeps_its_own_rate_and_channels(pipe, caplog):
    stereo = np.stack([WAVEFORM, -WAVEFORM / 2]).repeat(2, axis=1)[:, :7000]  # 0.875 seconds are 7 frames
    with caplog.at_level(logging.WARNING):
        output = make(pipe, audio=stereo, audio_sampling_rate=8000)
    assert np.array_equal(output.audio[0].numpy(), stereo) and output.sampling_rate == 8000
    assert output.frames.shape == (1, 7, 3, SIZE, SIZE) and output.plan.duration == NUM_FRAMES / FRAME_RATE
    assert "`audio` of 8000 samples per second is converted to the 4000" in caplog.text


def test_a_given_modality_is_clean_and_costs_no_passes_of_its_own(own_pipe):
    own_pipe.guider, own_pipe.audio_guider = PlanGuidance(1.0, 2.0, 3.0), PlanGuidance(1.0)
    calls = record(own_pipe.transformer)
    make(own_pipe, video=FRAMES, num_inference_steps=2)
    assert len(calls) == 2  # the video guider's three passes are left out
    for call in calls:
        assert torch.equal(call["hidden_states"], encoded_video(own_pipe, FRAMES))
        assert call["timestep"].tolist() == [0.0] and call["audio_timestep"].item() > 0
    calls.clear()
    make(own_pipe, audio=WAVEFORM, num_inference_steps=2)
    assert len(calls) == 6
    for call in calls:
        assert torch.equal(call["audio_hidden_states"], encoded_audio(own_pipe, WAVEFORM))
        assert call["audio_timestep"].tolist() == [0.0] and call["timestep"].item() > 0


@pytest.mark.parametrize("num_context_tokens", [0, 2])
def test_a_clean_stream_reads_context_tokens_alone_where_the_model_has_them(num_context_tokens):
    pipe = tiny_pipeline(transformer=tiny_transformer(num_context_tokens=num_context_tokens))
    calls = record(pipe.transformer)
    for given, reader, clean in (
        ({"video": FRAMES}, "audio_reads_video", "video_reads_audio"),
        ({"audio": WAVEFORM}, "video_reads_audio", "audio_reads_video"),
    ):
        calls.clear()
        make(pipe, **given, num_inference_steps=1)
        assert all(call[reader] is True and call[clean] is (num_context_tokens == 0) for call in calls)


# What is given in part


def test_an_image_is_the_clean_first_latent_frame(own_pipe):
    calls = record(own_pipe.transformer)
    output = make(own_pipe, image=PIL.Image.fromarray(FRAMES[0]), output_type="latent")
    first = encoded_video(own_pipe, FRAMES)[:, :, :1]  # the encoder is causal
    torch.testing.assert_close(output.frames[:, :, :1], first, rtol=0, atol=1e-5)
    for call in calls:
        assert torch.equal(call["hidden_states"][:, :, :1], output.frames[:, :, :1])
        timestep = call["timestep"]
        assert timestep.shape == (1, 3) and not timestep[:, 0].any() and (timestep[:, 1:] == timestep[0, 1]).all()
        assert call["audio_timestep"].shape == (1,)
    plain = make(own_pipe, output_type="latent")
    assert differ(output, plain) and output.frames.shape == (1, *LATENTS) and output.audio.shape == (1, *AUDIO_LATENTS)


def unipc():
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)


@pytest.mark.parametrize("scheduler", [unipc, FlowMatchHeunDiscreteScheduler], ids=lambda make: make.__name__)
def test_a_clip_goes_on_in_both_modalities(own_pipe, scheduler):
    own_pipe.scheduler, own_pipe.audio_scheduler = scheduler(), scheduler()
    own_pipe.audio_guider = AdaptiveProjectedGuidance(3.0, adaptive_projected_guidance_momentum=-0.5)
    kwargs = {"continue_seconds": 0.5, "output_type": "latent", "num_inference_steps": 3}
    output = make(own_pipe, continue_from=(FRAMES, WAVEFORM), **kwargs)
    assert torch.equal(output.frames[:, :, :2], encoded_video(own_pipe, FRAMES[-KEPT:]))
    kept = 2500 // 128  # whole latents in five frames
    assert torch.equal(output.audio[:, :kept], encoded_audio(own_pipe, WAVEFORM[-2500:][: kept * 128]))
    other = make(own_pipe, continue_from=Clip(OTHER_FRAMES, OTHER_WAVEFORM[None], 8.0, 4000), **kwargs)
    assert not torch.equal(output.frames[:, :, 2:], other.frames[:, :, 2:])
    assert not torch.equal(output.audio[:, kept:], other.audio[:, kept:])


def test_a_made_clip_goes_on(pipe):
    first = make(pipe)
    output = make(pipe, continue_from=first, continue_seconds=0.5)
    assert output.frames.shape == first.frames.shape and output.audio.shape == first.audio.shape
    assert_same(make(pipe, continue_from=first.clip(), continue_seconds=0.5), output)


def test_what_a_mask_leaves_out_is_not_read(pipe):
    kwargs = {"video_mask": [0, 0, 0, 0, 0, 1, 1, 0, 0], "audio_mask": [(0.3, 0.7)], "output_type": "latent"}
    output = make(pipe, video=FRAMES, audio=WAVEFORM, **kwargs)
    frames, waveform = FRAMES.copy(), WAVEFORM.copy()
    frames[5:7], waveform[1200:2800] = 0, 0.9
    assert_same(make(pipe, video=frames, audio=waveform, **kwargs), output)
    assert torch.equal(output.frames[:, :, :2], encoded_video(pipe, FRAMES[:5]))
    assert not torch.equal(output.frames[:, :, 2], encoded_video(pipe, FRAMES)[:, :, 2])
    waveform[1200:2800] = 0
    known = [*range(9), *range(22, 36)]  # latent 9 starts before sample 1200, latent 21 ends after 2800
    assert torch.equal(output.audio[:, known], encoded_audio(pipe, waveform)[:, known])


def test_masked_parts_are_made_anew_and_the_clip_keeps_its_length(pipe):
    output = make(pipe, video=FRAMES[:7], video_mask=[(0.5, 0.875)])
    assert output.frames.shape == (1, 7, 3, SIZE, SIZE) and output.audio.shape == (1, 1, 3500)
    other = make(pipe, video=FRAMES[:7], video_mask=[(0.5, 0.875)], seed=1)
    assert torch.equal(output.frames[:, 0], other.frames[:, 0]) and differ(output, other)


def test_a_sound_may_guide_a_picture_that_begins_with_an_image(pipe):
    output = make(pipe, image=FRAMES[0], audio=WAVEFORM)
    assert np.array_equal(output.audio[0, 0].numpy(), WAVEFORM)
    assert not torch.equal(output.frames, make(pipe, audio=WAVEFORM).frames)


# One modality alone


BRANCHES = {"video": ("attn1", "hidden_states"), "audio": ("audio_attn1", "audio_hidden_states")}


@pytest.mark.parametrize("only, other", [("video", "audio"), ("audio", "video")])
def test_one_modality_alone_takes_no_work_for_the_other(own_pipe, only, other):
    block = own_pipe.transformer.blocks[0]
    runs = {modality: record(getattr(block, BRANCHES[modality][0])) for modality in BRANCHES}
    decodes = {"video": record(own_pipe.vae.decoder), "audio": record(own_pipe.vocoder)}
    both = make(own_pipe)
    assert all(map(len, (*runs.values(), *decodes.values())))
    for calls in (*runs.values(), *decodes.values()):
        calls.clear()
    output = make(own_pipe, only=only)
    assert runs[only] and decodes[only] and not runs[other] and not decodes[other]
    made, left_out = (output.frames, output.audio) if only == "video" else (output.audio, output.frames)
    assert left_out is None and made.shape == (both.frames if only == "video" else both.audio).shape
    assert output.plan is not None and output.num_clips == 1
    assert_one_same(make(own_pipe, only=only), output)
    assert not torch.equal(made, make_part(own_pipe, only, seed=1))
    latents = make(own_pipe, only=only, output_type="latent", return_dict=False)
    assert [part is None for part in latents] == [only == "audio", only == "video"]


def make_part(pipe, only, **kwargs):
    output = make(pipe, only=only, **kwargs)
    return output.frames if only == "video" else output.audio


def assert_one_same(output, other, atol=0.0):
    for part, expected in ((output.frames, other.frames), (output.audio, other.audio)):
        assert (part is None) == (expected is None)
        if part is not None:
            torch.testing.assert_close(part, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("num_context_tokens", [0, 2])
@pytest.mark.parametrize("only", ["video", "audio"])
def test_one_modality_alone_reads_context_tokens(only, num_context_tokens):
    """One step without guidance is the velocity of the state that training knows as T2V or T2A, from the noise of both."""
    guiders = {"guider": PlanGuidance(1.0), "audio_guider": PlanGuidance(1.0)}
    pipe = tiny_pipeline(transformer=tiny_transformer(num_context_tokens=num_context_tokens), **guiders)
    made = make_part(pipe, only, output_type="latent", num_inference_steps=1, use_plan=False)
    noise, audio_noise = pipe.prepare_latents(1, SIZE, SIZE, NUM_FRAMES, seeds(0))
    with torch.no_grad():
        velocities = pipe.transformer(
            noise,
            audio_noise,
            torch.full((1,), 1000.0),
            pipe.encode_prompt(PROMPT)[0],
            video_reads_audio=False,
            audio_reads_video=False,
            return_dict=False,
        )
    index = 0 if only == "video" else 1
    torch.testing.assert_close(made, (noise, audio_noise)[index] - velocities[index], rtol=0, atol=1e-5)


def test_guidance_by_the_other_modality_falls_away(own_pipe, caplog):
    own_pipe.guider = SyncGuidance(3.0, guidance_scale=2.0)
    own_pipe.audio_guider = PlanGuidance(2.0)
    calls = record(own_pipe.transformer)
    guided = make(own_pipe, only="video", num_inference_steps=2)
    assert len(calls) == 4 and "without guidance" not in caplog.text
    own_pipe.guider = PlanGuidance(2.0)
    assert_one_same(make(own_pipe, only="video", num_inference_steps=2), guided)

    own_pipe.guider, own_pipe.audio_guider = SyncGuidance(3.0), None  # which is not asked
    calls.clear()
    with caplog.at_level(logging.WARNING):
        make(own_pipe, only="video", num_inference_steps=2)
    assert len(calls) == 2
    assert "`guider` (`SyncGuidance`) guides by the other modality alone, but the clip has video alone" in caplog.text


def test_one_modality_alone_goes_on_from_what_is_given_of_it(pipe, tmp_path):
    begun = make(pipe, only="video", image=FRAMES[0], output_type="latent").frames
    torch.testing.assert_close(begun[:, :, :1], encoded_video(pipe, FRAMES)[:, :, :1], rtol=0, atol=1e-5)
    kwargs = {"continue_seconds": 0.5, "output_type": "latent"}
    picture = make(pipe, only="video", continue_from=(FRAMES, None), **kwargs)
    assert torch.equal(picture.frames[:, :, :2], encoded_video(pipe, FRAMES[-KEPT:]))
    write_clip(tmp_path / "silent.mp4", FRAMES, None, FRAME_RATE)
    silent = make(pipe, only="video", continue_from=tmp_path / "silent.mp4", **kwargs)
    assert (silent.frames[:, :, :2] - picture.frames[:, :, :2]).abs().mean() < 0.1
    sound = make(pipe, only="audio", continue_from=Clip(FRAMES, WAVEFORM[None], FRAME_RATE, SAMPLING_RATE), **kwargs)
    kept = 2500 // 128
    assert torch.equal(sound.audio[:, :kept], encoded_audio(pipe, WAVEFORM[-2500:][: kept * 128]))
    first = make(pipe, only="audio")
    again = make(pipe, only="audio", continue_from=first, continue_seconds=0.5)
    assert again.audio.shape == first.audio.shape and not torch.equal(again.audio, first.audio)
    patched = make(pipe, only="audio", audio=WAVEFORM, audio_mask=[(0.5, 1.0)], reference_audio=OTHER_WAVEFORM)
    assert patched.audio.shape == (1, 1, 4500) and patched.frames is None


@pytest.mark.parametrize("lead", [0.5, -0.5])
@pytest.mark.parametrize("only", ["video", "audio"])
def test_a_lead_over_nothing_changes_no_work(only, lead):
    pipe = tiny_pipeline(transformer=tiny_transformer(num_context_tokens=2), **lead_schedulers(lead))
    block, other = pipe.transformer.blocks[0], "audio" if only == "video" else "video"
    runs = record(getattr(block, BRANCHES[other][0]))
    make(pipe, only=only, num_inference_steps=4)
    assert not runs


def test_a_planner_writes_cues_for_one_modality_alone():
    pipe = quiet(tiny_pipeline(**tiny_cue_parts()))
    assert make(pipe, only="video").cues == make(pipe, only="audio").cues == make(pipe).cues != [""]


# Sizes


@pytest.mark.parametrize(
    "size, sizes, made",
    [
        ((32, 32), {}, (32, 32)),
        ((40, 100), {}, (16, 48)),
        ((40, 100), {"height": 32}, (32, 48)),
        ((7, 7), {}, (32, 32)),
    ],
)
def test_an_image_of_any_size_is_resized_and_that_is_said(pipe, caplog, size, sizes, made):
    image = np.zeros((*size, 3), np.uint8)
    with caplog.at_level(logging.WARNING):
        output = make(pipe, image=image, num_frames=5, num_inference_steps=1, **sizes)
    assert output.frames.shape[3:] == made
    said = f"{size[0]} x {size[1]} pixels (height x width) is resized to {made[0]} x {made[1]}" in caplog.text
    assert said == (size != made)


# Batches


def test_one_for_each_prompt_is_the_prompts_one_by_one(pipe):
    for given in (
        {"video": np.stack([FRAMES, OTHER_FRAMES])},
        {"audio": [WAVEFORM, OTHER_WAVEFORM], "image": [FRAMES[0], OTHER_FRAMES[0]]},
        {"continue_from": [(FRAMES, WAVEFORM), (OTHER_FRAMES, OTHER_WAVEFORM)], "continue_seconds": 0.5},
    ):
        together = make(pipe, [PROMPT, OTHER], **given, num_videos_per_prompt=2, generator=seeds(0, 1, 2, 3))
        for clip in (0, 3):
            one = {name: value if name == "continue_seconds" else value[clip // 2] for name, value in given.items()}
            alone = make(pipe, (PROMPT, OTHER)[clip // 2], **one, seed=clip)
            torch.testing.assert_close(together.frames[clip], alone.frames[0], rtol=0, atol=1e-5)
            torch.testing.assert_close(together.audio[clip], alone.audio[0], rtol=0, atol=1e-5)


def test_one_serves_all_prompts(pipe):
    together = make(pipe, [PROMPT, OTHER], video=FRAMES, generator=seeds(0, 1))
    alone = make(pipe, OTHER, video=FRAMES, seed=1)
    assert torch.equal(together.frames[1], alone.frames[0]) and together.frames.shape[0] == 2
    torch.testing.assert_close(together.audio[1], alone.audio[0], rtol=0, atol=1e-5)


def test_a_call_leaves_what_is_given_as_it_is(pipe):
    given = {"video": FRAMES.copy(), "audio": torch.from_numpy(WAVEFORM.copy()), "audio_mask": [(0.0, 0.5)]}
    before = copy.deepcopy(given)
    first = make(pipe, **given)
    assert np.array_equal(given["video"], before["video"]) and torch.equal(given["audio"], before["audio"])
    assert_same(make(pipe, **given), first)


# Guidance that replaces a modality


def test_synchronising_guidance_is_its_formula(own_pipe):
    own_pipe.guider, own_pipe.audio_guider = SyncGuidance(3.0), SyncGuidance(2.0, modality="audio")
    calls, outputs = record(own_pipe.transformer), []
    own_pipe.transformer.register_forward_hook(lambda *arguments: outputs.append(arguments[-1]))
    guided = make(own_pipe, output_type="latent", num_inference_steps=1)
    noise, audio_noise = own_pipe.prepare_latents(1, SIZE, SIZE, NUM_FRAMES, seeds(0))
    (video, audio), (mute_video, _), (_, static_audio) = outputs
    torch.testing.assert_close(noise - guided.frames, mute_video + 3.0 * (video - mute_video))
    torch.testing.assert_close(audio_noise - guided.audio, static_audio + 2.0 * (audio - static_audio))

    _, mute, static = calls
    assert torch.equal(mute["audio_hidden_states"], encoded_audio(own_pipe, np.zeros(4500, np.float32)))
    assert mute["audio_timestep"].tolist() == [0.0] and mute["timestep"].item() == 1000
    grey = own_pipe.encode_video(torch.zeros(1, 3, NUM_FRAMES, SIZE, SIZE))
    assert torch.equal(static["hidden_states"], grey)
    assert static["timestep"].tolist() == [0.0] and static["audio_timestep"].item() == 1000


def test_the_still_clip_shows_the_image_where_there_is_one(own_pipe):
    own_pipe.audio_guider = SyncGuidance(2.0, modality="audio")
    calls = record(own_pipe.transformer)
    images = [FRAMES[0], OTHER_FRAMES[0]]
    make(own_pipe, [PROMPT, OTHER], image=images, num_inference_steps=1)
    still = torch.cat([encoded_video(own_pipe, image[None].repeat(NUM_FRAMES, axis=0)) for image in images])
    torch.testing.assert_close(calls[-1]["hidden_states"], still, rtol=0, atol=1e-5)


def test_only_what_takes_a_place_is_encoded(own_pipe):
    """A still film is the most expensive encoding of a clip, and silence none of a video autoencoder's affair."""
    pictures, sounds = record(own_pipe.vae.encoder), record(own_pipe.audio_vae.vae.encoder)
    own_pipe.guider = SyncGuidance(3.0)
    make(own_pipe, num_inference_steps=1)
    assert (len(pictures), len(sounds)) == (0, 1)
    own_pipe.guider, own_pipe.audio_guider = PlanGuidance(1.0), SyncGuidance(2.0, modality="audio")
    sounds.clear()
    own_pipe.audio_vae.to(torch.bfloat16)  # in which it can decode, but not encode
    make(own_pipe, num_inference_steps=1)
    assert pictures and not sounds


def test_a_guider_that_replaces_a_modality_is_set_before_the_call(own_pipe):
    def begin(pipe, step, timestep, tensors):
        pipe.guider = SyncGuidance(3.0)
        return {}

    with pytest.raises(ValueError, match="puts silence in a modality's place, and did not when the clip was begun"):
        make(own_pipe, callback_on_step_end=begin)


@pytest.mark.parametrize("clean_reads", [False, True])
@pytest.mark.parametrize("num_context_tokens", [0, 2])
def test_an_untrained_clean_stream_is_told(caplog, clean_reads, num_context_tokens):
    guider = SyncGuidance(3.0, clean_reads=clean_reads)
    pipe = tiny_pipeline(transformer=tiny_transformer(num_context_tokens=num_context_tokens), guider=guider)
    with caplog.at_level(logging.WARNING):
        make(pipe, num_inference_steps=1)
    assert ("set `clean_reads=True`" in caplog.text) == (num_context_tokens == 0 and not clean_reads)


# Constant work, once


@pytest.mark.parametrize(
    "given",
    [{}, {"video": FRAMES}, {"audio": WAVEFORM}, {"image": FRAMES[0]}],
    ids=lambda given: next(iter(given), "none"),
)
def test_a_cache_changes_no_clip(given):
    guiders = {"guider": SyncGuidance(3.0, guidance_scale=2.0), "audio_guider": SyncGuidance(2.0, modality="audio")}
    pipe = tiny_pipeline(transformer=tiny_transformer(num_context_tokens=2), **guiders)
    prompts, generator = [PROMPT, OTHER], lambda: seeds(0, 1)
    expected = make(pipe, prompts, **given, generator=generator())
    assert_same(make(pipe, prompts, **given, generator=generator(), use_cache=True), expected, atol=1e-5)


def test_a_cache_lets_one_modality_run_ahead():
    guiders = {"guider": ContextGuidance(2.0), "audio_guider": ContextGuidance(2.0)}
    pipe = tiny_pipeline(transformer=tiny_transformer(num_context_tokens=2), **guiders, **lead_schedulers(0.5))
    expected = make(pipe, num_inference_steps=3)
    assert_same(make(pipe, num_inference_steps=3, use_cache=True), expected, atol=1e-5)


def test_a_modality_that_has_arrived_is_as_if_it_were_given():
    """Under a lead of 1 the picture is whole before the sound begins: then it is kept, and nothing guides it any more."""
    guiders = {"guider": PlanGuidance(2.0), "audio_guider": PlanGuidance(2.0)}
    pipe = tiny_pipeline(transformer=tiny_transformer(num_context_tokens=2), **guiders, **lead_schedulers(1.0))
    block, steps, passes = pipe.transformer.blocks[0], 4, 2
    video, audio = record(block.attn1), record(block.audio_attn1)
    clips = []

    def keep(pipe, step, timestep, tensors):
        clips.append(tensors["latents"])
        return {}

    made = make(pipe, num_inference_steps=steps, use_cache=True, callback_on_step_end=keep, output_type="latent")
    assert (len(video), len(audio)) == (passes * (steps // 2 + 1), passes * steps)
    assert torch.equal(clips[1], clips[3]) and not torch.equal(clips[0], clips[1])
    torch.testing.assert_close(
        make(pipe, num_inference_steps=steps, output_type="latent").audio, made.audio, rtol=0, atol=1e-5
    )


def test_a_callback_may_change_what_a_kept_stream_was_made_of():
    pipe = tiny_pipeline(transformer=tiny_transformer(num_context_tokens=2))

    def in_place(pipe, step, timestep, tensors):
        tensors["prompt_embeds"].add_(1.0)
        return {}

    def anew(pipe, step, timestep, tensors):
        return {"prompt_embeds": tensors["prompt_embeds"] + 1.0}

    for change in (in_place, anew):
        settings = {"callback_on_step_end": change, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
        kept, expected = (make(pipe, video=FRAMES, use_cache=cached, **settings) for cached in (True, False))
        torch.testing.assert_close(kept.audio, expected.audio, rtol=0, atol=1e-5)


def test_with_a_cache_a_given_modality_is_run_once_for_each_pass():
    pipe = tiny_pipeline(transformer=tiny_transformer(num_context_tokens=2))
    block, steps, passes = pipe.transformer.blocks[0], 4, 2  # guidance by text and plan takes two passes a step
    video, audio = record(block.attn1), record(block.audio_attn1)
    make(pipe, video=FRAMES, num_inference_steps=steps, use_cache=True)
    assert (len(video), len(audio)) == (passes, passes * steps)
    video.clear(), audio.clear()
    make(pipe, audio=WAVEFORM, num_inference_steps=steps, use_cache=True)
    assert (len(video), len(audio)) == (passes * steps, passes)
    video.clear(), audio.clear()
    make(pipe, video=FRAMES, num_inference_steps=steps)
    assert (len(video), len(audio)) == (passes * steps, passes * steps)


# Reference audio


def test_a_reference_is_read_in_every_pass_and_is_no_part_of_the_clip(own_pipe):
    calls = record(own_pipe.transformer)
    output = make(own_pipe, reference_audio=WAVEFORM[:1000])
    expected = encoded_audio(own_pipe, WAVEFORM[:1000])
    assert expected.shape[1] == 8 and all(
        torch.equal(call["reference_audio_hidden_states"], expected) for call in calls
    )
    assert output.audio.shape == (1, 1, 4500) and differ(output, make(own_pipe))
    together = make(own_pipe, [PROMPT, OTHER], reference_audio=[WAVEFORM, OTHER_WAVEFORM], generator=seeds(0, 1))
    alone = make(own_pipe, OTHER, reference_audio=OTHER_WAVEFORM, seed=1)
    torch.testing.assert_close(together.audio[1], alone.audio[0], rtol=0, atol=1e-5)


# Dtypes


def test_a_pipeline_loaded_in_half_precision_takes_sound(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    loaded = quiet(BatonPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16))
    output = make(loaded, audio=WAVEFORM)
    assert np.array_equal(output.audio[0, 0].numpy(), WAVEFORM)
    assert (output.frames - make(pipe, audio=WAVEFORM).frames).abs().mean() < 0.02
    loaded.audio_vae.to(torch.bfloat16)
    refused(loaded, "`audio_vae` is in torch.bfloat16, in which it cannot encode sound", audio=WAVEFORM)


# Refusals


def test_a_cache_beside_one_of_diffusers_is_refused():
    pipe = forbid(tiny_pipeline(transformer=tiny_transformer(num_context_tokens=2)))
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    message = "`use_cache` runs a clean stream once, .*`pipe.transformer.disable_cache"
    refused(pipe, message, audio=WAVEFORM, use_cache=True)


def test_a_sound_for_a_picture_at_rest_beside_a_cache_of_diffusers_is_refused():
    """Which would take a picture that stays for a sound that stays, and leave out every step but the first."""
    pipe = tiny_pipeline(transformer=tiny_transformer(num_context_tokens=2))
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    refused(forbid(pipe), "skips a step if the picture has not changed", video=FRAMES)
    pipe.audio_guider = SyncGuidance(2.0, modality="audio")
    refused(pipe, "skips a step if the picture has not changed")


def test_one_modality_alone_beside_a_cache_of_diffusers_is_refused(own_pipe):
    own_pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    forbid(own_pipe)
    refused(own_pipe, "with `only='audio'` one stream is not run, .*`pipe.transformer.disable_cache", only="audio")


@pytest.mark.parametrize(
    "given, message",
    [
        ({"only": "both"}, r"`only` is 'both', but must be one of \('video', 'audio'\), or None for both"),
        ({"only": "video", "audio": WAVEFORM}, "`audio` was given with `only='video'`, but a clip of video alone"),
        ({"only": "video", "reference_audio": WAVEFORM}, "`reference_audio` was given with `only='video'`"),
        ({"only": "audio", "image": FRAMES[0]}, "`image` was given with `only='audio'`"),
        ({"only": "audio", "video": FRAMES}, "`video` was given with `only='audio'`"),
        ({"only": "video", "video": FRAMES}, "`video` is given whole and `only='video'`, which leaves nothing to"),
        ({"only": "audio", "audio": WAVEFORM}, "`audio` is given whole and `only='audio'`.* with `audio_mask` which"),
        ({"only": "video", "continue_from": (FRAMES, WAVEFORM)}, "fills all 9 frames of the clip"),
        ({"only": "audio", "latents": torch.zeros(1, *LATENTS)}, "`latents` was given with `only='audio'`"),
        ({"only": "video", "audio_latents": torch.zeros(1, *AUDIO_LATENTS)}, "`audio_latents` was given with `only="),
        ({"video": FRAMES, "audio": WAVEFORM}, "both given whole, which leaves nothing to make"),
        (
            {"video": FRAMES, "num_frames": 5},
            r"`video` lasts 1.1250 seconds \(9 frames at 8 per second\), but `num_frames` 5 at 8 per second last 0.6250",
        ),
        (
            {"audio": WAVEFORM, "num_frames": 13},
            r"`audio` lasts 1.1250 .* `num_frames` 13 at 8 per second last 1.6250",
        ),
        (
            {"image": FRAMES[0], "audio": WAVEFORM, "num_frames": 13},
            r"`audio` lasts 1.1250 .* `num_frames` 13 at 8 per second last 1.6250",
        ),
        ({"audio": WAVEFORM, "plan": random_plan(duration=2.0)}, "`plan` lasts 2.0000 seconds, but 9 frames"),
        ({"prompt": ["a"] * 3, "video": [FRAMES] * 2}, "2 clips of video are given for 3 prompts: give one for each"),
        ({"prompt": ["a"] * 3, "audio": [WAVEFORM] * 2}, "2 clips of audio are given for 3 prompts"),
        ({"continue_from": (FRAMES, WAVEFORM)}, "fills all 9 frames of the clip, which leaves nothing to make"),
        (
            {"video": FRAMES, "video_mask": [1, 1, 0, 0, 0, 1, 0, 0, 0]},
            "`video_mask` keeps no latent frame: .* frame 0 alone",
        ),
        (
            {"video": FRAMES, "audio": WAVEFORM, "audio_mask": [(0, 0.5), (0.51, 1.125)]},
            "`audio_mask` keeps no audio latent: one covers 0.0320 seconds",
        ),
        ({"reference_audio": WAVEFORM * 4}, "`reference_audio` peaks at 2"),
        ({"prompt": ["a"] * 3, "reference_audio": [WAVEFORM] * 2}, "2 clips of reference audio are given for 3"),
        ({"image": FRAMES[0], "height": 40}, "`height` is 40, but must be a multiple of 16: use 32"),
        ({"video": "missing.mp4"}, "missing.mp4 is not a file"),
    ],
)
def test_what_cannot_be_made_is_refused_before_any_model_runs(idle_pipe, given, message):
    refused(idle_pipe, message, **given)
