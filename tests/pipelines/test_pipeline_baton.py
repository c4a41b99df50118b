"""`BatonPipeline`, whole, with tiny real components: what a call returns, and what it refuses."""

import copy
import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from diffusers import (
    FirstBlockCacheConfig,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    MMAudioVocoder,
    UniPCMultistepScheduler,
)
from diffusers.callbacks import PipelineCallback
from diffusers.guiders import AdaptiveProjectedGuidance, ClassifierFreeGuidance, SkipLayerGuidance
from peft import LoraConfig

from baton_diffusers import BatonPipeline, SemanticPlan
from baton_diffusers.guiders import PlanGuidance, presets
from baton_diffusers.models.semantic_encoders import read_plan
from baton_diffusers.pipelines.components import PLAN_DECODERS
from baton_diffusers.prompt_language import PromptLanguage
from baton_diffusers.schedulers import lead_schedulers

from ..tiny import (
    AUDIO_LATENTS,
    DURATION,
    FRAME_RATE,
    HOP_LENGTH,
    LATENTS,
    MEL_BINS,
    NUM_FRAMES,
    SAMPLING_RATE,
    SIZE,
    TEXT_DIM,
    random_clip,
    random_plan,
    tiny_cue_parts,
    tiny_pipeline,
    tiny_planner,
    tiny_trained_vocoder,
    tiny_transformer,
    tiny_vocoder,
)
from .calls import OTHER, PROMPT, assert_same, differ, forbid, make, quiet, record, seeds


NUM_SAMPLES = 4500  # 9 frames at 8 per second, 4000 samples per second


# What a call returns


def embeds(batch_size=1, length=16, dim=TEXT_DIM):
    return torch.zeros(batch_size, length, dim)


def test_a_prompt_becomes_a_planned_clip(pipe):
    output = make(pipe)
    assert output.frames.shape == (1, NUM_FRAMES, 3, SIZE, SIZE)
    assert output.audio.shape == (1, 1, NUM_SAMPLES)
    assert (output.frame_rate, output.sampling_rate) == (FRAME_RATE, SAMPLING_RATE)
    assert output.plan.duration == DURATION and output.plan.batch_size == 1
    assert 0 <= output.frames.min() < output.frames.max() <= 1
    assert output.audio.abs().max() <= 1 and output.audio.std() > 1e-3
    assert not output.frames.requires_grad and not output.plan.video_tokens.requires_grad


def test_the_same_seed_gives_the_same_clip(pipe):
    first = make(pipe)
    make(pipe, OTHER, seed=5)
    torch.manual_seed(123)
    assert_same(make(pipe), first)
    assert differ(make(pipe, seed=1), first)
    assert differ(make(pipe, OTHER), first)


def test_every_output_type_is_the_same_clip(pipe):
    tensors, arrays, images, latents = (make(pipe, output_type=kind) for kind in ("pt", "np", "pil", "latent"))
    assert isinstance(arrays.frames, np.ndarray) and arrays.frames.dtype == np.float32
    assert np.array_equal(arrays.frames, tensors.frames.permute(0, 1, 3, 4, 2).numpy())
    assert np.array_equal(arrays.audio, tensors.audio.numpy()) and np.array_equal(images.audio, arrays.audio)
    assert [len(clip) for clip in images.frames] == [NUM_FRAMES] and images.frames[0][0].size == (SIZE, SIZE)
    assert np.array_equal(np.stack(images.frames[0]), (arrays.frames[0] * 255).round().astype(np.uint8))
    assert latents.frames.shape == (1, *LATENTS) and latents.audio.shape == (1, *AUDIO_LATENTS)
    frames, audio = pipe.decode_latents(latents.frames, latents.audio, NUM_FRAMES)
    assert torch.equal(frames, tensors.frames) and torch.equal(audio, tensors.audio)


def test_a_tuple_instead_of_an_object(pipe):
    frames, audio = make(pipe, return_dict=False)
    output = make(pipe)
    assert torch.equal(frames, output.frames) and torch.equal(audio, output.audio)


def test_sizes_and_lengths_are_free(pipe):
    output = make(pipe, height=16, width=48, num_frames=5, num_inference_steps=1)
    assert output.frames.shape == (1, 5, 3, 16, 48) and output.audio.shape == (1, 1, 2500)
    assert output.plan.duration == 5 / FRAME_RATE


def test_a_last_audio_latent_that_lies_beyond_the_clip_is_left_out():
    """36 latents cover the 35.16 of the clip; a sound that ends before the clip goes on in silence."""
    pipe = tiny_pipeline(transformer=tiny_transformer(audio_latent_min_coverage=0.5))
    latents = make(pipe, output_type="latent")
    assert latents.frames.shape == (1, *LATENTS) and latents.audio.shape == (1, 35, AUDIO_LATENTS[1])
    output = make(pipe)
    assert output.audio.shape == (1, 1, NUM_SAMPLES)
    assert output.audio[..., : 35 * 128].std() > 1e-3 and not output.audio[..., 35 * 128 :].any()
    continued = make(pipe, continue_from=output, continue_seconds=0.5, output_type="latent")
    assert continued.audio.shape == (1, 35, AUDIO_LATENTS[1])
    assert make(pipe, audio=output.audio[0]).audio.shape == (1, 1, NUM_SAMPLES)


def test_given_noise_is_used(pipe):
    noise, audio_noise = pipe.prepare_latents(1, SIZE, SIZE, NUM_FRAMES, seeds(0))
    assert noise.shape == (1, *LATENTS) and audio_noise.shape == (1, *AUDIO_LATENTS)
    assert_same(make(pipe, seed=9, latents=noise, audio_latents=audio_noise), make(pipe, seed=0))
    assert differ(make(pipe, seed=9, latents=noise), make(pipe, seed=0))


def test_properties_of_a_call(own_pipe):
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append(
            (step, pipe.num_timesteps, bool(pipe.current_timestep == timestep), pipe.attention_kwargs, pipe.interrupt)
        )
        return {}

    make(own_pipe, callback_on_step_end=callback, attention_kwargs={"scale": 1.0})
    assert seen == [(step, 2, True, {"scale": 1.0}, False) for step in range(2)]
    assert own_pipe.current_timestep is None


def test_progress_is_shown(own_pipe, capsys):
    own_pipe.set_progress_bar_config(disable=False, desc="clip")
    make(own_pipe)
    assert "clip: 100%" in capsys.readouterr().err.replace("\r", "\n").splitlines()[-1]


# Batches


def test_a_batch_of_prompts_is_the_prompts_one_by_one(pipe):
    together = make(pipe, [PROMPT, OTHER], generator=seeds(3, 4))
    for index, (prompt, seed) in enumerate([(PROMPT, 3), (OTHER, 4)]):
        alone = make(pipe, prompt, seed=seed)
        torch.testing.assert_close(together.frames[index], alone.frames[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(together.audio[index], alone.audio[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(together.plan.video_tokens[index], alone.plan.video_tokens[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("source", ["planner", "plan", "embeddings"])
def test_videos_of_one_prompt_are_neighbours(pipe, source):
    """The repeat order of noise, embeddings, masks, negative prompts and plans is one and the same."""
    prompts, negatives = [PROMPT, OTHER], ["left", "right and down"]
    kwargs = [{"prompt": text, "negative_prompt": negative} for text, negative in zip(prompts, negatives, strict=True)]
    batch = {"prompt": prompts, "negative_prompt": negatives}
    if source != "planner":
        plan = random_plan(2)
        batch["plan"] = plan
        for index in range(2):
            kwargs[index]["plan"] = plan[index]
    if source == "embeddings":
        names = "prompt_embeds", "negative_prompt_embeds"
        embeddings = pipe.encode_prompt(prompts, negatives)[:2]
        batch = {"plan": batch["plan"], "prompt": None, **dict(zip(names, embeddings, strict=True))}
    together = make(pipe, **batch, num_videos_per_prompt=2, generator=seeds(0, 1, 2, 3))
    assert together.frames.shape[0] == together.audio.shape[0] == together.plan.batch_size == 4
    for clip in range(4):
        alone = make(pipe, **kwargs[clip // 2], seed=clip)
        torch.testing.assert_close(together.frames[clip], alone.frames[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(together.audio[clip], alone.audio[0], rtol=0, atol=1e-5)


def test_one_generator_serves_a_batch(pipe):
    noise = torch.randn(2, *LATENTS, generator=(generator := seeds(7)))
    audio_noise = torch.randn(2, *AUDIO_LATENTS, generator=generator)
    assert_same(make(pipe, [PROMPT] * 2, seed=7), make(pipe, [PROMPT] * 2, latents=noise, audio_latents=audio_noise))


# Text


def test_embeddings_are_padded_with_zeros_and_repeated_in_a_row(pipe):
    embeds, negative_embeds, audio_negative_embeds = pipe.encode_prompt(
        [PROMPT, OTHER], "left", num_videos_per_prompt=2
    )
    assert embeds.shape == negative_embeds.shape == (4, 16, TEXT_DIM) and audio_negative_embeds is None
    for texts, lengths in ((embeds, [5, 5, 13, 13]), (negative_embeds, [2] * 4)):
        assert texts.any(dim=-1).sum(dim=1).tolist() == lengths
        assert all(text[:length].any(dim=-1).all() for text, length in zip(texts, lengths, strict=True))
    assert torch.equal(embeds[0], embeds[1]) and torch.equal(embeds[2], embeds[3])
    assert pipe.encode_prompt(PROMPT, do_classifier_free_guidance=False)[1:] == (None, None)


def test_a_pipeline_of_texts_alone_embeds_prompts(pipe):
    """As where texts are embedded on one machine and clips are made on another."""
    models = {name for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    texts = tiny_pipeline(**dict.fromkeys(models) | {"text_encoder": pipe.text_encoder})
    for found, wanted in zip(texts.encode_prompt(PROMPT, "left"), pipe.encode_prompt(PROMPT, "left"), strict=True):
        assert found is wanted is None or torch.equal(found, wanted)


def test_embeddings_stand_for_their_prompts_bit_for_bit(pipe):
    prompts, negatives = [PROMPT, OTHER], ["left", ""]
    expected = make(pipe, prompts, negative_prompt=negatives)
    embeds, negative_embeds, _ = pipe.encode_prompt(prompts, negatives)
    given = {"prompt_embeds": embeds, "negative_prompt_embeds": negative_embeds}
    given["plan"] = pipe.prepare_plan(prompts, NUM_FRAMES)
    assert_same(make(pipe, None, **given), expected)
    short = {name: value[:, :14] if "prompt" in name else value for name, value in given.items()}  # padding left out
    assert_same(make(pipe, None, **short), expected)
    del given["negative_prompt_embeds"]
    assert_same(make(pipe, None, **given, negative_prompt=negatives), expected)


def test_one_negative_prompt_serves_all(pipe):
    prompts, plan = [PROMPT, OTHER], random_plan(2)
    expected = make(pipe, prompts, plan=plan, negative_prompt=["left", "left"])
    assert_same(make(pipe, prompts, plan=plan, negative_prompt="left"), expected)
    given = {"negative_prompt_embeds": pipe.encode_prompt(PROMPT, "left")[1]}
    assert_same(make(pipe, prompts, plan=plan, **given), expected, atol=1e-5)
    assert differ(make(pipe, prompts, plan=plan), expected)
    assert_same(make(pipe, prompts, plan=plan), make(pipe, prompts, plan=plan, negative_prompt=""))


def test_picture_and_sound_have_a_negative_prompt_each(own_pipe):
    calls = record(own_pipe.transformer)
    apart = make(own_pipe, negative_prompt="left", audio_negative_prompt="right")
    left, right = (own_pipe.encode_prompt(PROMPT, text)[1] for text in ("left", "right"))
    for joint, negative in (calls[:2], calls[2:]):
        assert joint["audio_encoder_hidden_states"] is None  # one prompt for both
        assert torch.equal(negative["encoder_hidden_states"], left)
        assert torch.equal(negative["audio_encoder_hidden_states"], right)
    one = make(own_pipe, negative_prompt="left")
    assert calls[-1]["audio_encoder_hidden_states"] is None
    assert differ(apart, one)
    assert_same(make(own_pipe, negative_prompt="left", audio_negative_prompt="left"), one)
    assert_same(
        make(own_pipe, negative_prompt="left", audio_negative_prompt="right", use_cache=True), apart, atol=1e-5
    )


def test_a_negative_prompt_of_the_sound_for_each_clip(pipe):
    """One for each prompt, one for all, and their embeddings, with two videos of each prompt."""
    texts = {"negative_prompt": ["left", "up"], "audio_negative_prompt": ["right", "down"]}
    noise = dict(
        zip(("latents", "audio_latents"), pipe.prepare_latents(4, SIZE, SIZE, NUM_FRAMES, seeds(0)), strict=True)
    )
    together = make(pipe, [PROMPT, OTHER], num_videos_per_prompt=2, **texts, **noise)
    for index, prompt in enumerate([PROMPT, OTHER]):
        own = {name: value[2 * index : 2 * index + 2] for name, value in noise.items()}
        own |= {name: value[index] for name, value in texts.items()}
        alone = make(pipe, prompt, num_videos_per_prompt=2, **own)
        torch.testing.assert_close(together.frames[2 * index : 2 * index + 2], alone.frames, rtol=0, atol=1e-5)
        torch.testing.assert_close(together.audio[2 * index : 2 * index + 2], alone.audio, rtol=0, atol=1e-5)

    names = "prompt_embeds", "negative_prompt_embeds", "audio_negative_prompt_embeds"
    embeddings = pipe.encode_prompt([PROMPT, OTHER], **texts)
    given = dict(zip(names, embeddings, strict=True))
    output = make(pipe, None, num_videos_per_prompt=2, use_plan=False, **given, **noise)
    assert_same(output, make(pipe, [PROMPT, OTHER], num_videos_per_prompt=2, use_plan=False, **texts, **noise))


def test_negative_prompts_are_the_checkpoints_by_default(tmp_path):
    pipe = tiny_pipeline(negative_prompt="left", audio_negative_prompt="right")
    expected = make(pipe)
    assert_same(make(tiny_pipeline(), negative_prompt="left", audio_negative_prompt="right"), expected)
    pipe.save_pretrained(tmp_path)
    loaded = quiet(BatonPipeline.from_pretrained(tmp_path))
    assert (loaded.config.negative_prompt, loaded.config.audio_negative_prompt) == ("left", "right")
    assert_same(make(loaded), expected)
    # Each is replaced on its own, with an empty one too.
    calls = record(loaded.transformer)
    make(loaded, negative_prompt="up")
    make(loaded, audio_negative_prompt="")
    for call, texts in ((calls[1], ("up", "right")), (calls[5], ("left", ""))):
        embeds = [loaded.encode_prompt(PROMPT, text)[1] for text in texts]
        assert torch.equal(call["encoder_hidden_states"], embeds[0])
        assert torch.equal(call["audio_encoder_hidden_states"], embeds[1])


def test_embeddings_stand_for_the_checkpoints_negative_prompts():
    pipe = tiny_pipeline(negative_prompt="left", audio_negative_prompt="right")
    embeds, negative, audio_negative = pipe.encode_prompt(PROMPT)
    expected = make(pipe, use_plan=False)
    given = {"prompt_embeds": embeds, "negative_prompt_embeds": negative, "use_plan": False}
    pipe.text_encoder = None
    refused(pipe, "which takes `audio_negative_prompt_embeds`", prompt=None, **given)
    given["audio_negative_prompt_embeds"] = audio_negative
    assert_same(make(pipe, None, **given), expected)


def test_a_callback_changes_the_sounds_negative_prompt(own_pipe):
    other = own_pipe.encode_prompt(PROMPT, "right")[1]

    def callback(pipe, step, timestep, tensors):
        assert tensors == {"audio_negative_prompt_embeds": None}
        return {"audio_negative_prompt_embeds": other}

    calls = record(own_pipe.transformer)
    names = ["audio_negative_prompt_embeds"]
    make(own_pipe, num_inference_steps=1, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=names)
    own_pipe(PROMPT, callback_on_step_end=lambda *_: {"audio_negative_prompt_embeds": other}, output_type="latent")
    given = [call["audio_encoder_hidden_states"] for call in calls]
    assert given[:5] == [None] * 5 and torch.equal(given[5], other)


def test_what_is_cut_off_a_prompt_is_told_once(caplog, monkeypatch):
    """By the pipeline alone, not by transformers too, whose tokenizers know a limit of their own."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    pipe = quiet(tiny_pipeline(**tiny_cue_parts()))
    pipe.tokenizer.model_max_length = pipe.planner_tokenizer.model_max_length = 3
    with caplog.at_level(logging.WARNING):
        make(pipe, " ".join(["red"] * 14 + ["star", "jumps"]), cues="<|0.00|> red star <|0.25|> red star")
    assert "reads 16 tokens" in caplog.text and "cut off: 'jumps'" in caplog.text
    assert "Token indices" not in caplog.text


def test_words_that_the_text_encoder_does_not_know_are_told(pipe, caplog):
    with caplog.at_level(logging.WARNING):
        make(pipe, "a Zebra jumps, the zebra and 2 green stars jumps", use_plan=False)
        assert "does not know these words, which are left out: Zebra" in caplog.text
        caplog.clear()
        make(pipe, use_plan=False)
    assert "does not know" not in caplog.text


def test_a_prompt_that_the_checkpoint_cannot_show_is_told_once_with_an_example(pipe, caplog, monkeypatch):
    language = PromptLanguage("a red star jumps", frozenset({"a", "red", "star", "jumps"}), ("star",))
    monkeypatch.setattr(pipe.tokenizer, "init_kwargs", dict(pipe.tokenizer.init_kwargs))
    language.add_to(pipe.tokenizer)
    with caplog.at_level(logging.WARNING):
        make(pipe, "a red red jumps", use_plan=False)
    assert caplog.text.count("names nothing that this checkpoint can show") == 1
    assert caplog.text.count("A prompt that works: 'a red star jumps'") == 1
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        make(pipe, language.example, use_plan=False)
    assert "A prompt that works" not in caplog.text


def test_a_plan_is_given_as_a_file_too(pipe, tmp_path):
    plan = pipe.prepare_plan(PROMPT)
    plan.save(tmp_path / "plan.safetensors")
    assert_same(make(pipe, plan=tmp_path / "plan.safetensors"), make(pipe, plan=plan))
    assert_same(make(pipe, plan=str(tmp_path / "plan.safetensors")), make(pipe, plan=plan))
    with pytest.raises(ValueError, match="there is no plan at"):
        make(pipe, plan=tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="`plan` is a dict, but has to be a `SemanticPlan`"):
        make(pipe, plan={})


# Guidance


def test_guidance_costs_one_pass_more(own_pipe):
    calls, texts = record(own_pipe.transformer), record(own_pipe.text_encoder)
    make(own_pipe)
    assert len(calls) == 2 * 2 and len(texts) == 2
    assert [call["plan"] is None for call in calls] == [False, True] * 2  # text and plan are dropped together

    calls.clear(), texts.clear()
    own_pipe.guider, own_pipe.audio_guider = PlanGuidance(1.0), ClassifierFreeGuidance(1.0)
    unguided = make(own_pipe)
    assert len(calls) == 2 and len(texts) == 1

    calls.clear()
    own_pipe.guider = PlanGuidance(1.0, text_guidance_scale=2.0, plan_guidance_scale=3.0)
    apart = make(own_pipe)
    assert len(calls) == 2 * 3
    assert [call["plan"] is None for call in calls] == [False, False, True] * 2
    assert torch.equal(calls[0]["encoder_hidden_states"], calls[2]["encoder_hidden_states"])
    assert not torch.equal(calls[0]["encoder_hidden_states"], calls[1]["encoder_hidden_states"])
    assert differ(apart, unguided)


def test_guidance_within_a_part_of_the_steps(own_pipe):
    calls = record(own_pipe.transformer)
    own_pipe.guider, own_pipe.audio_guider = PlanGuidance(4.0, stop=0.5), AdaptiveProjectedGuidance(3.0, start=0.75)
    make(own_pipe, num_inference_steps=4)
    assert [call["plan"] is None for call in calls] == [False, True, False, True, False, False, True]


def test_only_the_negative_pass_leaves_out_a_block(own_pipe):
    """Ovi's recipe, as the pipeline runs it: `n + s (c - n)`, where `n` lacks a block, with either cache."""
    plain = make(own_pipe)
    own_pipe.guider, own_pipe.audio_guider = (PlanGuidance(scale, skip_layers=(1,)) for scale in (4.0, 3.0))
    calls, runs = record(own_pipe.transformer), [record(block) for block in own_pipe.transformer.blocks]
    expected = make(own_pipe)
    assert [call["skip_layers"] for call in calls] == [(), (1,), (), (1,)]
    assert [len(run) for run in runs] == [4, 2, 4]
    assert differ(expected, plain)

    assert_same(make(own_pipe, use_cache=True), expected, atol=1e-5)
    own_pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=1e-9))
    assert_same(make(own_pipe), expected, atol=1e-5)


def test_a_block_cache_forgets_a_call_that_was_interrupted(own_pipe):
    def stop(*_):
        raise KeyboardInterrupt

    own_pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.5))
    expected = make(own_pipe, num_inference_steps=4)
    with pytest.raises(KeyboardInterrupt):
        make(own_pipe, num_inference_steps=4, callback_on_step_end=stop)
    assert_same(make(own_pipe, num_inference_steps=4), expected)
    with pytest.raises(KeyboardInterrupt):
        make(own_pipe, callback_on_step_end=stop)
    assert make(own_pipe, num_frames=17).frames.shape[1] == 17  # nothing of the other length is left


def test_guided_latents_are_those_of_ovis_formula_by_hand(own_pipe):
    """One Euler step from noise, written out: the block is taken out of the model itself for the negative pass."""
    own_pipe.guider, own_pipe.audio_guider = (PlanGuidance(scale, skip_layers=(1,)) for scale in (4.0, 3.0))
    noise = own_pipe.prepare_latents(1, SIZE, SIZE, NUM_FRAMES, seeds(0))
    found = make(own_pipe, num_inference_steps=1, use_plan=False, output_type="latent")
    text, negative, _ = own_pipe.encode_prompt(PROMPT)
    inputs = {"timestep": own_pipe.scheduler.timesteps[:1], "audio_timestep": own_pipe.audio_scheduler.timesteps[:1]}
    with torch.no_grad():
        joint = own_pipe.transformer(*noise, encoder_hidden_states=text, **inputs, return_dict=False)
        del own_pipe.transformer.blocks[1]
        weaker = own_pipe.transformer(*noise, encoder_hidden_states=negative, **inputs, return_dict=False)
    for scale, latents, c, n, x, scheduler in zip(
        (4.0, 3.0),
        (found.frames, found.audio),
        joint,
        weaker,
        noise,
        (own_pipe.scheduler, own_pipe.audio_scheduler),
        strict=True,
    ):
        torch.testing.assert_close(latents, x - scheduler.sigmas[0] * (n + scale * (c - n)))


def test_a_pass_has_a_cache_of_its_own(own_pipe, monkeypatch):
    names = []
    context = own_pipe.transformer.cache_context

    def spy(name):
        names.append(name)
        return context(name)

    monkeypatch.setattr(own_pipe.transformer, "cache_context", spy)
    make(own_pipe)
    assert names == ["joint", "no_text_no_plan"] * 2


# Plan


def test_the_planners_own_plan_given_back_is_the_same_clip(own_pipe, tmp_path):
    prompts = [PROMPT, OTHER]
    expected = make(own_pipe, prompts)
    planned = record(own_pipe.planner)
    assert_same(make(own_pipe, prompts, plan=expected.plan), expected)
    expected.plan.save(tmp_path / "plan.safetensors")
    assert_same(make(own_pipe, prompts, plan=SemanticPlan.load(tmp_path / "plan.safetensors")), expected)
    assert_same(
        make(own_pipe, prompts, plan=own_pipe.planner(**tokens(own_pipe, prompts), duration=DURATION)), expected
    )
    assert len(planned) == 1
    other = make(own_pipe, prompts, plan=random_plan(2))
    assert differ(other, expected)


def tokens(pipe, prompts):
    from baton_diffusers.models.va_planner import tokenize_prompts

    return dict(zip(("input_ids", "attention_mask"), tokenize_prompts(pipe.planner_tokenizer, prompts), strict=True))


def test_a_plan_of_another_prompt_is_warned_of(pipe, caplog):
    plan = pipe.prepare_plan([PROMPT, OTHER])
    make(pipe, [PROMPT, OTHER], plan=plan, num_videos_per_prompt=2)
    assert "was made from the prompt" not in caplog.text
    make(pipe, OTHER, plan=plan[0])
    assert f"`plan` was made from the prompt {PROMPT!r}, but the clip is asked for by {OTHER!r}" in caplog.text


def test_one_plan_serves_all_prompts(pipe):
    together = make(pipe, [PROMPT, OTHER], plan=random_plan(), generator=seeds(0, 1))
    assert together.plan.batch_size == 2
    alone = make(pipe, OTHER, plan=random_plan(), seed=1)
    torch.testing.assert_close(together.frames[1], alone.frames[0], rtol=0, atol=1e-5)


def test_a_clip_without_a_plan(own_pipe):
    planned = record(own_pipe.planner)
    unplanned = make(own_pipe, use_plan=False)
    assert not planned and unplanned.plan is None
    assert differ(unplanned, make(own_pipe))
    without = tiny_pipeline(planner=None, planner_tokenizer=None)
    assert_same(make(without), unplanned)
    assert without.prepare_plan(PROMPT) is None
    assert make(without, plan=random_plan()).plan is not None


def test_a_model_without_plan_layers(own_pipe):
    plain = tiny_pipeline(transformer=tiny_transformer(video_plan_dim=None, audio_plan_dim=None), planner=None)
    assert make(plain).plan is None


def test_a_plan_is_read_off_a_clip(pipe):
    frames, waveform = random_clip()
    plan = pipe.extract_plan(frames, waveform, FRAME_RATE, SAMPLING_RATE)
    assert plan.duration == DURATION and plan.batch_size == 1
    expected = read_plan(
        pipe.video_semantic_encoder,
        pipe.audio_semantic_encoder,
        torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1,
        FRAME_RATE,
        torch.from_numpy(waveform)[None, None],
        SAMPLING_RATE,
    )
    torch.testing.assert_close(plan.video_tokens, expected.video_tokens)
    assert torch.equal(plan.audio_tokens, expected.audio_tokens)
    stereo = np.stack([waveform, np.zeros_like(waveform)])
    for again in (
        pipe.extract_plan(frames.astype(np.float64) / 255, waveform, FRAME_RATE, SAMPLING_RATE),
        pipe.extract_plan(frames, stereo * 2, FRAME_RATE, SAMPLING_RATE),
    ):
        torch.testing.assert_close(again.video_tokens, plan.video_tokens)
        torch.testing.assert_close(again.audio_tokens, plan.audio_tokens)
    assert differ(make(pipe, plan=plan), make(pipe))


def test_the_plan_of_a_clip_that_was_made_makes_a_clip(pipe):
    output = make(pipe)
    plan = pipe.extract_plan(*output.clip(), output.frame_rate, output.sampling_rate)
    assert make(pipe, plan=plan).plan.video_tokens.equal(plan.video_tokens)


# Callbacks


def test_a_callback_gets_what_it_asks_for_and_changes_latents(own_pipe):
    def callback(pipe, step, timestep, tensors):
        assert sorted(tensors) == ["audio_latents", "latents"]
        return {name: torch.zeros_like(value) for name, value in tensors.items()} if step == 1 else None

    output = make(own_pipe, callback_on_step_end=callback, output_type="latent")
    assert not output.frames.any() and not output.audio.any()


def test_a_callback_changes_embeddings_under_guidance(own_pipe):
    other, other_negative, _ = own_pipe.encode_prompt(OTHER, "left")

    def callback(pipe, step, timestep, tensors):
        return {"prompt_embeds": other, "negative_prompt_embeds": other_negative}

    calls = record(own_pipe.transformer)
    names = ("prompt_embeds", "negative_prompt_embeds")
    make(own_pipe, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=names)
    embeds, negative, _ = own_pipe.encode_prompt(PROMPT)
    texts = [call["encoder_hidden_states"] for call in calls]
    assert all(torch.equal(*pair) for pair in zip(texts, (embeds, negative, other, other_negative), strict=True))


def test_a_callback_changes_the_guidance(own_pipe):
    def callback(pipe, step, timestep, tensors):
        pipe.guider, pipe.audio_guider = PlanGuidance(1.0), PlanGuidance(1.0)
        return {}

    calls = record(own_pipe.transformer)
    make(own_pipe, callback_on_step_end=callback, num_inference_steps=3)
    assert len(calls) == 2 + 1 + 1


def test_a_callback_that_begins_to_guide_has_to_bring_the_negative_prompt(own_pipe):
    def callback(pipe, step, timestep, tensors):
        pipe.guider = PlanGuidance(4.0)
        return {}

    own_pipe.register_modules(guider=PlanGuidance(1.0), audio_guider=PlanGuidance(1.0))
    with pytest.raises(
        ValueError, match="drops the text, and did not when the clip was begun.*set it before the call"
    ):
        make(own_pipe, callback_on_step_end=callback)


def test_a_callback_interrupts(own_pipe):
    def callback(pipe, step, timestep, tensors):
        pipe._interrupt = step == 1
        return {}

    calls = record(own_pipe.transformer)
    output = make(own_pipe, callback_on_step_end=callback, num_inference_steps=5)
    assert len(calls) == 2 * 2 and output.frames.shape[1] == NUM_FRAMES
    assert len(calls) == 4 and make(own_pipe) and len(calls) == 8  # forgotten by the next call


def test_a_callback_object_names_its_tensors(own_pipe):
    class Halve(PipelineCallback):
        tensor_inputs = ["audio_latents"]

        def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
            return {"audio_latents": callback_kwargs["audio_latents"] / 2}

    output = make(own_pipe, callback_on_step_end=Halve(cutoff_step_ratio=1.0), output_type="latent")
    assert differ(output, make(own_pipe, output_type="latent"))


# Schedulers


def unipc(**config):
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0, **config)


@pytest.mark.parametrize(
    "scheduler, audio_scheduler, evaluations",
    [
        (FlowMatchEulerDiscreteScheduler(shift=5.0), FlowMatchEulerDiscreteScheduler(), 4),
        (FlowMatchHeunDiscreteScheduler(shift=3.0), FlowMatchHeunDiscreteScheduler(), 7),
        (unipc(), unipc(), 4),
        (FlowMatchEulerDiscreteScheduler(), unipc(), 4),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else type(value).__name__,
)
def test_flow_schedulers_denoise(own_pipe, scheduler, audio_scheduler, evaluations):
    euler = make(own_pipe, num_inference_steps=4)
    own_pipe.scheduler, own_pipe.audio_scheduler = scheduler, audio_scheduler
    calls = record(own_pipe.transformer)
    output = make(own_pipe, num_inference_steps=4)
    assert len(calls) == 2 * evaluations == 2 * own_pipe.num_timesteps
    assert output.frames.isfinite().all() and output.audio.isfinite().all() and differ(output, euler)
    assert_same(make(own_pipe, num_inference_steps=4), output)
    assert abs(calls[0]["timestep"].item() - 1000) <= 1 and abs(calls[0]["audio_timestep"].item() - 1000) <= 1


def test_each_modality_has_its_own_timesteps(own_pipe):
    calls = record(own_pipe.transformer)
    make(own_pipe, [PROMPT, OTHER])
    assert [call["timestep"].tolist() for call in calls[::2]] == [[1000.0] * 2, [750.0] * 2]  # shift 3 of 1/2
    for call, expected in zip(calls[::2], (1000.0, 2000 / 3), strict=True):  # shift 2 of 1/2
        torch.testing.assert_close(call["audio_timestep"], torch.full((2,), expected))


# Dtypes and devices


def test_in_half_precision_latents_and_sound_stay_in_float32(own_pipe):
    expected = make(own_pipe)
    own_pipe.to(torch.bfloat16)
    calls = record(own_pipe.transformer)
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.extend(tensors[name].dtype for name in ("latents", "audio_latents"))
        return {}

    output = make(own_pipe, callback_on_step_end=callback)
    assert set(seen) == {torch.float32} and output.frames.dtype == output.audio.dtype == torch.float32
    assert calls[0]["hidden_states"].dtype == calls[0]["encoder_hidden_states"].dtype == torch.bfloat16
    assert calls[0]["plan"].video_tokens.dtype == torch.bfloat16
    assert (output.frames - expected.frames).abs().mean() < 0.02
    assert output.audio.shape == expected.audio.shape and output.audio.isfinite().all()


def test_every_model_has_its_turn_when_offloaded(pipe):
    models = {name for name, component in pipe.components.items() if isinstance(component, torch.nn.Module)}
    assert set(BatonPipeline.model_cpu_offload_seq.split("->")) == models | {"plan_checker", *PLAN_DECODERS}


def test_a_published_vocoder_takes_griffin_lims_place(own_pipe):
    own_pipe.register_modules(vocoder=tiny_trained_vocoder())
    output = make(own_pipe)
    assert output.audio.shape == (1, 1, NUM_SAMPLES) and output.audio.std() > 0


def test_attention_kwargs_scale_an_adapter(own_pipe):
    plain = make(own_pipe)
    config = LoraConfig(r=2, target_modules=["to_q", "to_v", "to_out.0"], init_lora_weights=False)
    own_pipe.transformer.add_adapter(config)
    assert differ(make(own_pipe), plain)
    assert_same(make(own_pipe, attention_kwargs={"scale": 0.0}), plain, atol=1e-5)


# NaN: never a black clip


def spoil(module):
    with torch.no_grad():
        next(module.parameters()).fill_(torch.nan)


@pytest.mark.parametrize(
    "name, kwargs, message",
    [
        ("text_encoder", {}, "the embeddings of the prompts hold NaN .*weights of `text_encoder` are damaged"),
        ("planner", {}, "the planner's plan holds NaN .*weights of `planner` are damaged"),
        ("transformer", {}, "`latents` became NaN or infinite at step 1 of 2, in what the transformer predicts"),
        ("vae", {}, "the decoded frames hold NaN .*weights of `vae`"),
        ("vae", {"video": random_clip()[0], "video_mask": [(0.5, 1.0)]}, "the latents of the given picture hold NaN"),
        ("audio_vae", {}, "the decoded sound holds NaN .*`audio_vae` or `vocoder`"),
        ("audio_vae", {"audio": random_clip()[1]}, "the latents of the given sound hold NaN"),
    ],
)
def test_damaged_weights_are_named_where_nan_appears(own_pipe, name, kwargs, message):
    model = getattr(own_pipe, name)
    for module in model.modules():
        if isinstance(module, (torch.nn.Conv1d, torch.nn.Conv3d, torch.nn.Linear, torch.nn.Embedding)):
            spoil(module)
    refused(own_pipe, message, output_type="pil", use_plan=name == "planner", **kwargs)


def test_a_callback_that_returns_nan_is_named(pipe):
    def callback(pipe, step, timestep, tensors):
        return {"audio_latents": tensors["audio_latents"] * np.nan} if step == 1 else None

    message = "`audio_latents` became NaN or infinite after step 2 of 4, in what the callback returns"
    refused(pipe, message, callback_on_step_end=callback, num_inference_steps=4)


# Threads, settings and precision


def test_threads_take_turns(own_pipe):
    """On one pipeline, and on two that share their weights."""
    twin = quiet(BatonPipeline.from_pipe(own_pipe, scheduler=copy.deepcopy(own_pipe.scheduler)))
    calls = [(own_pipe, PROMPT, 0), (own_pipe, OTHER, 1), (twin, PROMPT, 2), (twin, OTHER, 3)]
    expected = [make(pipe, prompt, seed, num_inference_steps=4) for pipe, prompt, seed in calls]
    with ThreadPoolExecutor(len(calls)) as pool:
        found = list(pool.map(lambda call: make(*call, num_inference_steps=4), calls))
    for output, alone in zip(found, expected, strict=True):
        assert_same(output, alone)


def test_a_call_within_a_call_is_refused(own_pipe):
    with pytest.raises(RuntimeError, match="called within its own call, for example by a callback"):
        make(own_pipe, callback_on_step_end=lambda *_: make(own_pipe))
    make(own_pipe)  # its turn has ended


def test_components_take_their_settings_along(own_pipe):
    own_pipe.register_to_config(negative_prompt="blue")
    other = BatonPipeline(**own_pipe.components)
    for name in ("height", "width", "num_frames", "num_inference_steps", "max_sequence_length", "negative_prompt"):
        assert other.config[name] == own_pipe.config[name], name
    assert BatonPipeline(**other.components, num_frames=5).config.num_frames == 5


def test_sound_stays_in_float32(own_pipe, caplog):
    own_pipe.to(torch.bfloat16)
    assert own_pipe.vae.dtype == own_pipe.transformer.dtype == own_pipe.text_encoder.dtype == torch.bfloat16
    assert own_pipe.audio_vae.dtype == own_pipe.vocoder.dtype == torch.float32
    kept = {p.dtype for name, p in own_pipe.transformer.named_parameters() if "scale_shift_table" in name}
    assert kept == {torch.float32} and "kept in float32" not in caplog.text
    assert make(own_pipe, audio=random_clip()[1]).frames.isfinite().all()
    parts = own_pipe.components
    for name in ("audio_vae", "vocoder"):
        parts[name] = parts[name].to(torch.bfloat16)
    other = BatonPipeline(**parts)
    assert other.audio_vae.dtype == other.vocoder.dtype == torch.float32
    assert "`audio_vae` was loaded in torch.bfloat16 and is put into float32" in caplog.text


@pytest.mark.parametrize("device", ["cuda", "gpu"])
def test_a_device_that_there_is_not_is_named(pipe, device):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ValueError, match=f"device '{device}'"):
        pipe.to(device)


def test_cues_differ_from_call_to_call_without_a_generator():
    pipe = tiny_pipeline(**tiny_cue_parts())
    torch.manual_seed(0)
    sheets = [pipe.prepare_cues(PROMPT, cue_temperature=1.0)[0] for _ in range(4)]
    assert len(set(sheets)) > 1
    torch.manual_seed(0)
    assert [pipe.prepare_cues(PROMPT, cue_temperature=1.0)[0] for _ in range(4)] == sheets


def test_without_a_transformer_texts_plans_and_clips_are_read(pipe, tmp_path):
    whole = tiny_pipeline(**tiny_cue_parts())
    whole.save_pretrained(tmp_path)
    parts = quiet(BatonPipeline.from_pretrained(tmp_path, transformer=None))
    assert torch.equal(parts.encode_prompt(PROMPT)[0], whole.encode_prompt(PROMPT)[0])
    sheets = [p.prepare_cues(PROMPT, generator=seeds(0)) for p in (parts, whole)]
    plans = [p.prepare_plan(PROMPT, cues=sheets[0]) for p in (parts, whole)]
    assert sheets[0] == sheets[1] and torch.equal(plans[0].video_tokens, plans[1].video_tokens)
    latents = make(whole, output_type="latent", plan=plans[0])
    decoded = [p.decode_latents(latents.frames, latents.audio, NUM_FRAMES) for p in (parts, whole)]
    assert torch.equal(decoded[0][0], decoded[1][0]) and torch.equal(decoded[0][1], decoded[1][1])
    with pytest.raises(ValueError, match="the frame rate of the clips is unknown: load the pipeline with its `transf"):
        tiny_pipeline(transformer=None).prepare_plan(PROMPT)


# Refusals: every one names the value and the remedy, and no layer of any model runs


REFUSALS = {
    "no text": ({"prompt": None}, "either `prompt` or `prompt_embeds`; neither"),
    "two texts": ({"prompt_embeds": embeds()}, "either .*; both"),
    "a text that is none": ({"prompt": 3}, "`prompt` is 3, but must be a string or a list"),
    "no texts": ({"prompt": []}, r"`prompt` is \[\]"),
    "a list of other things": ({"prompt": ["a", None]}, r"`prompt` is \['a', None\]"),
    "a tuple": ({"negative_prompt": ("a",)}, r"`negative_prompt` is \('a',\)"),
    "lists of unequal length": (
        {"prompt": ["a", "a", "a"], "negative_prompt": ["left", "right"]},
        "`negative_prompt` lists 2 texts for 3 prompts: give one for each, or one string",
    ),
    "two negative texts": (
        {"negative_prompt": "left", "negative_prompt_embeds": embeds()},
        "either `negative_prompt` or `negative_prompt_embeds`; both",
    ),
    "two negative texts of the sound": (
        {"audio_negative_prompt": "left", "audio_negative_prompt_embeds": embeds()},
        "either `audio_negative_prompt` or `audio_negative_prompt_embeds`; both",
    ),
    "negative texts of the sound of another number": (
        {"prompt": ["a", "a", "a"], "audio_negative_prompt": ["left", "right"]},
        "`audio_negative_prompt` lists 2 texts for 3 prompts",
    ),
    "a sound that has no form": ({"audio_prompt": "one"}, "no form for it .*describe the sound in `prompt`"),
    "embeddings of another width": (
        {"prompt": None, "prompt_embeds": embeds(dim=8)},
        r"`prompt_embeds` has shape \(1, 16, 8\), but this model takes .*16, 16\)",
    ),
    "embeddings that are too long": (
        {"prompt": None, "prompt_embeds": embeds(length=17)},
        r"`prompt_embeds` has shape \(1, 17, 16\).*at most 16",
    ),
    "too few negative embeddings": (
        {"prompt": ["a"] * 3, "negative_prompt_embeds": embeds(2)},
        "`negative_prompt_embeds` holds 2 texts for 3 prompts",
    ),
    "embeddings for a planner": (
        {"prompt": None, "prompt_embeds": embeds()},
        "the planner reads the prompt itself.*give `plan`.*`use_plan=False`",
    ),
    "no steps": ({"num_inference_steps": 0}, "`num_inference_steps` is 0, but must be an integer of at least 1"),
    "steps in words": ({"num_inference_steps": "20"}, "`num_inference_steps` is '20'"),
    "sigmas and timesteps": ({"sigmas": [1.0], "timesteps": [1000]}, "`sigmas` and `timesteps` both set"),
    "sigmas that rise": ({"sigmas": [1.0, 0.2, 0.5]}, r"`sigmas` is \[1.0, 0.2, 0.5\], but must be a list of falling"),
    "sigmas in words": ({"sigmas": "1, 0.5"}, "`sigmas` is '1, 0.5'"),
    "no sigmas": ({"sigmas": []}, r"`sigmas` is \[\]"),
    "sigmas that are none": ({"sigmas": [1.0, float("nan")]}, "`sigmas` is .*nan"),
    "sigmas that begin late": ({"sigmas": [0.5, 0.2]}, "`sigmas` begins at 0.5, but clips begin as noise"),
    "timesteps beyond noise": ({"timesteps": [2000, 500]}, "above 0 and at most 1000"),
    "sigmas for other steps": (
        {"sigmas": [1.0, 0.5], "num_inference_steps": 3},
        "`num_inference_steps` is 3, but `sigmas` has 2 steps",
    ),
    "no videos": ({"num_videos_per_prompt": 0}, "`num_videos_per_prompt` is 0"),
    "an odd height": ({"height": 40}, "`height` is 40, but must be a multiple of 16: use 32"),
    "a broken width": ({"width": 32.5}, "`width` is 32.5, but must be a multiple of 16: use 32"),
    "a width that is none": ({"width": -16}, "`width` is -16, but must be a multiple of 16: use 16"),
    "a frame too few": ({"num_frames": 8}, r"`num_frames` is 8, .*4 \* k \+ 1 frames: use 5 or 9"),
    "a broken frame count": ({"num_frames": 9.0}, "`num_frames` is 9.0, but must be an integer"),
    "too few generators": (
        {"prompt": ["a", "a"], "num_videos_per_prompt": 2, "generator": seeds(0, 1)},
        "`generator` lists 2 generators for 4 clips: give one for each, or a single one",
    ),
    "noise of another size": (
        {"latents": torch.zeros(1, 4, 2, 4, 4)},
        r"`latents` has shape \(1, 4, 2, 4, 4\), but this clip needs \(1, 4, 3, 4, 4\)",
    ),
    "audio noise in the VAE's order": (
        {"audio_latents": torch.zeros(1, 6, 36)},
        r"`audio_latents` has shape \(1, 6, 36\), but this clip needs \(1, 36, 6\)",
    ),
    "a plan of another duration": (
        {"plan": random_plan(duration=2.0)},
        "`plan` lasts 2.0000 seconds, but 9 frames at 8 per second last 1.1250: use `plan.slice`",
    ),
    "a plan of another width": (
        {"plan": SemanticPlan(*(torch.zeros(s) for s in ((1, 1, 5), (1,), (1, 2), (1, 1, 4), (1,))), DURATION)},
        r"`plan` has tokens of width 5 \(video\) and 4 \(audio\), but the transformer takes 6 and 4",
    ),
    "too few plans": (
        {"prompt": ["a"] * 3, "plan": random_plan(2)},
        "`plan` is for 2 clips, but there are 3 prompts with 1 videos each: give one for all, one for",
    ),
    "a seed": ({"generator": 42}, r"`generator` is 42, .*give `torch.Generator\(\).manual_seed\(42\)`"),
    "a seed that torch does not take": ({"generator": 2**64}, "`generator` is 18446744073709551616, .*give one, or a"),
    "a tuple of generators": ({"generator": (seeds(0),)}, "`generator` is .* but must be a `torch.Generator`"),
    "a list of nothing": ({"generator": [None]}, r"`generator` is \[None\]"),
    "noise of numpy": ({"latents": np.zeros((1, *LATENTS))}, "`latents` is ndarray, but must be a floating-point"),
    "noise of integers": ({"audio_latents": torch.zeros(1, *AUDIO_LATENTS).long()}, "`audio_latents` is torch.int64"),
    "noise that is none": ({"latents": torch.full((1, *LATENTS), np.nan)}, "`latents` holds NaN or infinite values"),
    "embeddings of numpy": ({"prompt": None, "prompt_embeds": embeds().numpy()}, "`prompt_embeds` is ndarray"),
    "embeddings of nobody": (
        {"prompt": None, "prompt_embeds": embeds(0)},
        r"`prompt_embeds` has shape \(0, 16, 16\), but this model takes",
    ),
    "embeddings that are none": (
        {"prompt": None, "prompt_embeds": embeds() * np.inf},
        "`prompt_embeds` holds NaN or infinite values",
    ),
    "half a character": ({"prompt": "a \ud800"}, r"`prompt` has the character '\\ud800' at position 2, half of a"),
    "a truth for a number": ({"num_frames": True}, "`num_frames` is True, but must be an integer of at least 1"),
    "a number for a truth": ({"use_cache": 1}, "`use_cache` is 1, but must be True or False"),
    "a height without end": ({"height": np.inf}, "`height` is inf, but must be a multiple of 16: use 16"),
    "a picture for no screen": ({"width": 16 * 10**6}, "`width` is 16000000, but must be at most 16384"),
    "a clip for no memory": (
        {"height": 16384, "width": 16384, "num_frames": 4001, "use_plan": False},
        "1 clips of 4001 frames of 16384 x 16384 pixels take at least 4001 GiB, and the largest memory here has",
    ),
    "a batch for no memory": ({"num_videos_per_prompt": 10**9}, "1000000000 clips of 9 frames .* take at least"),
    "a clip without end": (
        {"num_frames": 10**9 + 1},
        "`num_frames` is 1000000001, which last 125000000 seconds, but a clip lasts at most 600",
    ),
    "steps without end": ({"num_inference_steps": 10**9}, "`num_inference_steps` is 1000000000, but must be at most"),
    "a temperature in words": ({"cue_temperature": "0.5"}, "`cue_temperature` is '0.5', but must be a number"),
    "a callback that is none": ({"callback_on_step_end": 5}, "`callback_on_step_end` is 5, but must be callable"),
    "no tensors for a callback": (
        {"callback_on_step_end_tensor_inputs": None},
        "`callback_on_step_end_tensor_inputs` is None, but must be a list of names",
    ),
    "attention that is none": ({"attention_kwargs": 5}, "`attention_kwargs` is 5, but must be a dictionary"),
    "a plan that is not to be used": ({"plan": random_plan(), "use_plan": False}, "`plan` .* with `use_plan=False`"),
    "an unknown output": ({"output_type": "mp4"}, r"`output_type` is 'mp4', but must be one of \('pil', 'np', 'pt'"),
    "unknown tensors": (
        {"callback_on_step_end_tensor_inputs": ["latents", "mask"]},
        r"`callback_on_step_end_tensor_inputs` names \['mask'\], but must be from \['latents', 'audio_latents'",
    ),
}


def refused(pipe, message, **kwargs):
    with pytest.raises(ValueError, match=message):
        pipe(**{"prompt": PROMPT, **kwargs})


def test_the_idle_pipeline_tells_when_a_model_runs(idle_pipe):
    with pytest.raises(AssertionError, match="UMT5EncoderModel ran"):
        idle_pipe(PROMPT)


@pytest.mark.parametrize("kwargs, message", REFUSALS.values(), ids=REFUSALS.keys())
def test_wrong_input_is_refused_before_any_model_runs(idle_pipe, kwargs, message):
    refused(idle_pipe, message, **kwargs)


@pytest.mark.parametrize(
    "name, message",
    [
        ("guidance_scale", r"is a setting of the guiders: set `pipe.guider = pipe.guider.new\(guidance_scale=7.0\)`"),
        ("image_latents", "the call has no argument `image_latents`: did you mean `.*latents`?"),
        ("xyz", r"the call has no argument `xyz`: `help\(pipe.__call__\)` lists them"),
    ],
)
def test_an_argument_that_there_is_not_is_named(idle_pipe, name, message):
    with pytest.raises(TypeError, match=message):
        idle_pipe(PROMPT, **{name: 7.0})


@pytest.mark.parametrize(
    "returned, message",
    [
        (5, "the callback returned 5, but must return None or a dictionary"),
        ({"latent": None}, r"the callback returned \['latent'\], but must"),
        (
            {"latents": np.zeros(3)},
            r"returned `latents` as ndarray, but must return a tensor of shape \(1, 4, 3, 4, 4\)",
        ),
        ({"latents": torch.zeros(3)}, r"returned `latents` as \(3,\), but must"),
    ],
    ids=str,
)
def test_what_a_callback_may_not_return_is_refused(pipe, returned, message):
    with pytest.raises(ValueError, match=message):
        make(pipe, callback_on_step_end=lambda *_: returned)


@pytest.mark.parametrize("name", ["transformer", "vae", "audio_vae", "vocoder", "scheduler", "audio_scheduler"])
def test_a_missing_component_is_named(name):
    pipe = forbid(tiny_pipeline())
    setattr(pipe, name, None)
    refused(pipe, f"`{name}` is missing: load the pipeline with it, or set `pipe.{name}`")


@pytest.mark.parametrize("name", ["transformer", "vae", "vocoder", "text_encoder", "planner"])
def test_weights_that_were_never_loaded_are_refused(name):
    pipe = forbid(tiny_pipeline())
    getattr(pipe, name).to("meta")
    refused(pipe, rf"weights of `{name}` were never loaded \([0-9]+, the first is .*\): load the pipeline")


@pytest.mark.parametrize(
    "name, kwargs, message",
    [
        ("text_encoder", {}, "`prompt` needs `text_encoder` and `tokenizer`.*give `prompt_embeds`"),
        ("tokenizer", {}, "`prompt` needs `text_encoder` and `tokenizer`"),
        ("planner_tokenizer", {}, "`planner` needs `planner_tokenizer`.*`use_plan=False`"),
        (
            "text_encoder",
            {"prompt": None, "prompt_embeds": embeds(), "plan": random_plan()},
            "the guiders drop the text, which takes `negative_prompt_embeds`.*guiders of scale 1",
        ),
        ("guider", {}, "`guider` is missing"),
        ("audio_guider", {}, "`audio_guider` is missing"),
    ],
)
def test_an_absent_optional_component_is_named_where_it_is_needed(name, kwargs, message):
    pipe = forbid(tiny_pipeline())
    setattr(pipe, name, None)
    refused(pipe, message, **kwargs)


def test_a_clip_too_short_to_plan_is_refused_before_its_text_is_read():
    pipe = forbid(tiny_pipeline(planner=tiny_planner(audio_tokens_per_chunk=2), audio_semantic_encoder=None))
    refused(pipe, "ends at 0.125 seconds, but the planner's first audio token lies at 0.25 seconds", num_frames=1)


def test_guiders_of_scale_one_need_no_negative_text(pipe):
    bare = tiny_pipeline(text_encoder=None, tokenizer=None, guider=PlanGuidance(1.0), audio_guider=PlanGuidance(1.0))
    given = {"prompt_embeds": embeds(), "plan": random_plan()}
    assert make(bare, None, **given).frames.shape[0] == 1


def test_the_negative_text_is_asked_for_by_the_steps_that_are_taken():
    """Three Heun steps are five evaluations: guidance over the first quarter acts once, not never."""
    guider = PlanGuidance(4.0, stop=0.25)
    schedulers = {name: FlowMatchHeunDiscreteScheduler() for name in ("scheduler", "audio_scheduler")}
    pipe = forbid(tiny_pipeline(text_encoder=None, guider=guider, audio_guider=PlanGuidance(1.0), **schedulers))
    given = {"prompt": None, "prompt_embeds": embeds(), "plan": random_plan()}
    refused(pipe, "the guiders drop the text", num_inference_steps=3, **given)


def test_a_guider_of_an_unsupported_kind_is_refused(own_pipe):
    forbid(own_pipe).guider = SkipLayerGuidance(skip_layer_guidance_layers=[0])
    refused(own_pipe, "`guider`.*`SkipLayerGuidance`.*hooks layers.*Accepted")


def test_blocks_that_cannot_be_left_out_are_refused(own_pipe):
    forbid(own_pipe).register_modules(**presets()["ovi"])
    refused(own_pipe, r"`guider` leaves out the blocks \[11\] of the transformer, whose blocks are 0 to 2")
    own_pipe.guider = own_pipe.audio_guider = PlanGuidance(4.0, skip_layers=(2,))
    own_pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    refused(own_pipe, "leave out block 2, at one of the transformer's ends.*`pipe.transformer.disable_cache")


def test_a_modality_that_leads_beside_a_cache_of_diffusers_is_refused(own_pipe):
    forbid(own_pipe).transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    for lead in (0.25, -0.25):
        own_pipe.register_modules(**lead_schedulers(lead))
        refused(own_pipe, "with these schedulers the picture rests while the sound goes on", num_inference_steps=8)


def test_numbers_of_numpy_are_numbers(pipe):
    sizes = {"num_frames": NUM_FRAMES, "height": SIZE, "width": SIZE, "num_inference_steps": 2}
    assert_same(make(pipe, **{name: np.int64(value) for name, value in sizes.items()}), make(pipe, **sizes))


def test_schedulers_that_cannot_work_are_refused(own_pipe):
    forbid(own_pipe).scheduler = FlowMatchHeunDiscreteScheduler()
    refused(own_pipe, "`scheduler` .*evaluates the model 3 times and .* 2 times")


@pytest.mark.parametrize(
    "components, message",
    [
        ({"transformer": tiny_transformer(in_channels=5)}, "transformer's `in_channels` is 5, but `vae` has 4"),
        (
            {"transformer": tiny_transformer(temporal_stride=2)},
            "transformer's `temporal_stride` is 2, but `vae` has 4",
        ),
        ({"transformer": tiny_transformer(audio_in_channels=5)}, "`audio_in_channels` is 5, but `audio_vae` has 6"),
        ({"transformer": tiny_transformer(audio_latent_rate=25.0)}, "`audio_latent_rate` is 25.0, .* has 31.25"),
        ({"transformer": tiny_transformer(text_dim=8)}, "transformer's `text_dim` is 8, but `text_encoder` has 16"),
        ({"planner": tiny_planner(video_dim=8)}, "transformer's `video_plan_dim` is 6, but `planner` has 8"),
        ({"planner": tiny_planner(audio_dim=8)}, "transformer's `audio_plan_dim` is 4, but `planner` has 8"),
        ({"vocoder": type(tiny_vocoder())(16000, 256, HOP_LENGTH, MEL_BINS)}, "`sample_rate` is 4000, .* has 16000"),
        (
            {"vocoder": type(tiny_vocoder())(SAMPLING_RATE, 256, 32, MEL_BINS)},
            "`hop_length` is 64, but `vocoder` has 32",
        ),
        (
            {"vocoder": MMAudioVocoder(8, 16, (8, 8), (16, 16), (3,), ((1,),))},
            "audio VAE's `mel_bins` is 16, but `vocoder` has 8",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_components_that_do_not_fit_are_refused(components, message):
    with pytest.raises(ValueError, match=message):
        tiny_pipeline(**components)


def test_components_are_checked_when_they_are_exchanged(own_pipe):
    transformer = own_pipe.transformer
    with pytest.raises(ValueError, match="transformer's `in_channels` is 5, but `vae` has 4"):
        own_pipe.transformer = tiny_transformer(in_channels=5)
    with pytest.raises(ValueError, match="transformer's `text_dim` is 8, but `text_encoder` has 16"):
        own_pipe.register_modules(transformer=tiny_transformer(text_dim=8))
    assert own_pipe.transformer is transformer
    own_pipe.register_modules(transformer=tiny_transformer(text_dim=8), text_encoder=None, tokenizer=None)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"frames": np.zeros((9, 32, 32))}, r"`frames` has shape \(9, 32, 32\), but must be \(num_frames, height"),
        ({"frames": np.zeros((9, 3, 32, 32))}, r"`frames` has shape \(9, 3, 32, 32\)"),
        ({"waveform": np.zeros((1, 1, 4500))}, r"`waveform` has shape \(1, 1, 4500\)"),
        ({"waveform": np.zeros(2000)}, "`waveform` has 1.125 s of picture and 0.500 s of sound"),
        ({"frames": random_clip()[0] + np.nan}, r"`frames` has values from nan to nan"),
        ({"waveform": np.full(4500, np.inf)}, "`waveform` holds NaN or infinite values"),
        ({"sampling_rate": 4001}, "`sampling_rate` is 4001 Hz, but the encoder takes 4000 Hz: resample"),
        ({"frame_rate": 0.0}, "`frame_rate` is 0.0"),
    ],
    ids=str,
)
def test_clips_that_no_plan_can_be_read_off_are_refused(idle_pipe, change, message):
    frames, waveform = random_clip()
    clip = {"frames": frames, "waveform": waveform, "frame_rate": FRAME_RATE, "sampling_rate": SAMPLING_RATE}
    with pytest.raises(ValueError, match=message):
        idle_pipe.extract_plan(**{**clip, **change})


@pytest.mark.parametrize("name", ["video_semantic_encoder", "audio_semantic_encoder"])
def test_a_plan_is_not_read_without_encoders(name):
    pipe = tiny_pipeline(**{name: None})
    with pytest.raises(ValueError, match=f"`extract_plan` needs `{name}`"):
        pipe.extract_plan(*random_clip(), FRAME_RATE, SAMPLING_RATE)


def test_a_call_leaves_its_arguments_as_they_are(pipe):
    noise, audio_noise = pipe.prepare_latents(1, SIZE, SIZE, NUM_FRAMES, seeds(0))
    plan, kwargs = random_plan(), {"scale": 1.0}
    before = copy.deepcopy((noise, audio_noise, plan.video_tokens, kwargs))
    make(pipe, latents=noise, audio_latents=audio_noise, plan=plan, attention_kwargs=kwargs)
    assert torch.equal(noise, before[0]) and torch.equal(audio_noise, before[1])
    assert torch.equal(plan.video_tokens, before[2]) and kwargs == before[3]


@pytest.mark.parametrize(
    "prompt, message", [(None, "`prompt` is None, but must be"), ([], r"`prompt` is \[\], but must")]
)
def test_parts_of_a_call_refuse_what_is_no_text(idle_pipe, prompt, message):
    for part in (idle_pipe.prepare_plan, tiny_pipeline(**tiny_cue_parts()).prepare_cues):
        with pytest.raises(ValueError, match=message):
            part(prompt)
    with pytest.raises(ValueError, match="give either `prompt` or" if prompt is None else message):
        idle_pipe.encode_prompt(prompt)
    with pytest.raises(ValueError, match="`latents` is ndarray, but must be a floating-point"):
        idle_pipe.decode_latents(np.zeros((1, *LATENTS)), None, NUM_FRAMES)
