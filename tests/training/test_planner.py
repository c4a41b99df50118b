"""Stage 1: the planner learns the semantic encoders' features."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoTokenizer

from baton_diffusers import default_checkpoint
from baton_diffusers.models.latents import to_video
from baton_diffusers.models.semantic_encoders import AudioSemanticEncoder, VideoSemanticEncoder, read_plan
from baton_diffusers.models.va_planner import VAPlannerModel, add_timestamps, tokenize_cues, tokenize_prompts
from baton_diffusers.plan import SemanticPlan
from baton_diffusers.stage.clips import StageClips
from baton_diffusers.training.config import PlannerTraining, TrainerConfig
from baton_diffusers.training.data.cache import cache_features
from baton_diffusers.training.data.dataset import CachedFeatures
from baton_diffusers.training.planner import (
    CachedPlans,
    PlanCollator,
    PlannedScenes,
    PlannerLoss,
    PlannerSamples,
    build_planner,
    explained_variance,
    faint_change,
    format_explained_variance,
    merge_lora,
)
from baton_diffusers.training.trainer import Trainer
from tests import stage_parts
from tests.tiny import tiny_language_model


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(default_checkpoint() / "tokenizer")


@pytest.fixture(scope="module")
def encoders():
    torch.manual_seed(0)
    vision = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    audio = {"sampling_rate": 16000, "hidden_size": 6, "num_filters": 2, "upsampling_ratios": [20, 50]}
    audio |= {"num_lstm_layers": 1, "codebook_size": 16, "target_bandwidths": [1.0]}
    return (
        VideoSemanticEncoder({**vision, "image_size": 32, "patch_size": 16}, video_grid=(2, 2)),
        AudioSemanticEncoder(audio, tokens_per_chunk=4),
    )


@pytest.fixture(scope="module")
def cue_tokenizer():
    tokenizer = AutoTokenizer.from_pretrained(default_checkpoint() / "tokenizer")
    add_timestamps(tokenizer, 50, 16.0)
    return tokenizer


def make_planner(tokenizer, **config):
    torch.manual_seed(0)
    tokens = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "max_position_embeddings": 512}
    language_model = tiny_language_model(**tokens, num_hidden_layers=1, num_key_value_heads=2)
    return VAPlannerModel(
        language_model,
        video_dim=8,
        audio_dim=6,
        video_grid=(2, 2),
        audio_tokens_per_chunk=4,
        tower_depth=1,
        tower_num_attention_heads=2,
        system_prompt=None,
        **config,
    ).eval()


def test_a_scene_keeps_its_plan_and_changes_its_words(encoders):
    scenes = PlannedScenes(*encoders, num_scenes=3)
    first, again = scenes[1], scenes[4]
    assert torch.equal(first["plan"].video_tokens, again["plan"].video_tokens)
    assert first["prompt"] != again["prompt"]
    assert not torch.equal(first["plan"].video_tokens, scenes[2]["plan"].video_tokens)


def test_the_target_is_the_mean_over_clips_that_differ_in_time(encoders):
    scenes = PlannedScenes(*encoders, num_scenes=3, clips_per_prompt=2)
    clips, mean = scenes.read(1), scenes[1]["plan"]
    assert clips.batch_size == 2 and not torch.equal(clips.video_tokens[0], clips.video_tokens[1])
    torch.testing.assert_close(mean.video_tokens[0].float(), clips.video_tokens.mean(dim=0), atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(
        mean.audio_tokens[0].float(), clips.audio_tokens[:, :12].mean(dim=0), atol=1e-2, rtol=1e-2
    )


def test_the_loss_is_the_plain_l2_of_the_tokens_within_the_clip(tokenizer, encoders):
    planner, scenes = make_planner(tokenizer), PlannedScenes(*encoders, num_scenes=3)
    samples = [scenes[index] for index in range(3)]
    batch = PlanCollator(tokenizer, planner.config)(samples)
    target = batch["plan"]
    assert target.audio_tokens.shape == (3, 12, 6)  # of the 16 in whole chunks
    plan = planner(*tokenize_prompts(tokenizer, [sample["prompt"] for sample in samples]), target.duration)
    video = (plan.video_tokens - target.video_tokens.float()).square().mean(dim=-1)
    audio = (plan.audio_tokens[:, :12] - target.audio_tokens.float()).square().mean(dim=-1)
    losses = PlannerLoss(audio_weight=3.0)(planner, batch, torch.Generator(), 0)
    torch.testing.assert_close(losses["loss"], (video.sum() + 3 * audio.sum()) / (3 * (19 * 4 + 3 * 12)))
    torch.testing.assert_close(losses["audio"], audio.mean())


def test_what_changes_faintly_counts_more(tokenizer, encoders):
    planner, scenes = make_planner(tokenizer), PlannedScenes(*encoders, num_scenes=3)
    batch = PlanCollator(tokenizer, planner.config)([scenes[index] for index in range(3)])
    tokens = batch["plan"].video_tokens.float()
    tokens = tokens[:, :4].repeat(1, 19, 1)  # a still picture
    tokens[0, 20:24] += 0.2  # one faint change, and its end
    tokens[1, 20:24] += 5.0
    batch["plan"] = replace(batch["plan"], video_tokens=tokens)
    faint = faint_change(tokens, 4)
    assert not faint[2].any() and not faint[0, :16].any() and not faint[0, 28:].any()
    assert (faint[0, 16:28] > 0.5).all() and (faint[1, 16:28] < 0.01).all()

    plain, weighted = (
        PlannerLoss(faint_weight=weight, tokens_per_keyframe=4)(planner, batch, torch.Generator(), 0)
        for weight in (0.0, 10.0)
    )
    assert weighted["loss"] > plain["loss"] and torch.equal(weighted["video"], plain["video"])


def test_training_lowers_the_loss(tokenizer, encoders, tmp_path):
    config = TrainerConfig(
        run_dir=str(tmp_path), steps=12, batch_size=2, learning_rate=1e-2, warmup_steps=1, log_every=1, ema_decay=None
    )
    scenes, planner = PlannedScenes(*encoders, num_scenes=6), make_planner(tokenizer)
    Trainer(config, planner, PlannerLoss(), scenes, collate_fn=PlanCollator(tokenizer, planner.config)).fit()
    rows = (tmp_path / "log.csv").read_text().splitlines()
    column = rows[0].split(",").index("loss")
    losses = [float(row.split(",")[column]) for row in rows[1:]]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


def test_a_perfect_planner_explains_as_much_as_can_be(tokenizer, encoders):
    class MeanOfTheClips(torch.nn.Module):
        """Predicts the mean of the very clips that it is scored on, or the mean of all clips."""

        writes_cues = False
        device = torch.device("cpu")
        config = make_planner(tokenizer).config

        def __init__(self, constant):
            super().__init__()
            scenes = PlannedScenes(*encoders, num_scenes=6, clips_per_prompt=2, split="validation")
            plan = SemanticPlan.collate([scenes.read(number) for number in range(6)])
            tokens = {
                name: getattr(plan, name).unflatten(0, (6, 2)).mean(dim=1) for name in ("video_tokens", "audio_tokens")
            }
            if constant:
                tokens = {name: value.mean(dim=0).expand_as(value) for name, value in tokens.items()}
            self.plan = replace(plan, **tokens, audio_mask=plan.audio_mask[:6]).repeat_interleave(2)

        def forward(self, input_ids, attention_mask, duration):
            return self.plan

    report = explained_variance(MeanOfTheClips(constant=False), tokenizer, *encoders, 6)
    for name in ("video", "audio"):
        within = 1 - report[f"{name}_ceiling"]  # two clips deviate from their own mean by half of their variance
        assert report[name] == pytest.approx(1 - within / 2, abs=1e-5)
    assert len(report["video_by_keyframe"]) == 19
    constant = explained_variance(MeanOfTheClips(constant=True), tokenizer, *encoders, 6)
    assert constant["video"] == pytest.approx(0, abs=1e-5) and constant["audio"] == pytest.approx(0, abs=1e-5)
    table = format_explained_variance(report, 6.0)
    assert "video at 3.00 s" in table and len(table.splitlines()) == 22


def test_cached_features_are_targets_too(encoders, tmp_path):
    clips = StageClips("train")
    frames, waveforms = (torch.stack([clips[i][name] for i in range(2)]) for name in ("frames", "waveform"))
    plan = read_plan(*encoders, to_video(frames), 16.0, waveforms[:, None], 16000).trimmed()
    cache_features(tmp_path, clips, 2, *stage_parts.codecs(), *encoders, 16.0, 31.25)
    cached = CachedPlans(CachedFeatures(tmp_path, clips))
    samples = [cached[0], cached[1]]
    half = {"rtol": 2e-3, "atol": 2e-3}  # what is cached is of half precision
    order = [0, 1] if torch.allclose(samples[0]["plan"].video_tokens[0], plan.video_tokens[0], **half) else [1, 0]
    for sample, row in zip(samples, order, strict=True):
        torch.testing.assert_close(sample["plan"].video_tokens[0], plan.video_tokens[row], **half)
        torch.testing.assert_close(sample["plan"].audio_tokens[0], plan.audio_tokens[row], **half)
        assert sample["plan"].duration == plan.duration
        assert all(actor.kind in sample["prompt"] for actor in clips.scene(row)[0].actors)


def planner_config(tmp_path, tokenizer, **changes):
    planner = make_planner(tokenizer).config
    names = "language_model_config video_dim audio_dim video_grid audio_tokens_per_chunk tower_depth system_prompt"
    return PlannerTraining(
        trainer=TrainerConfig(
            run_dir=str(tmp_path), steps=4, batch_size=2, learning_rate=1e-2, ema_decay=None, trackers=()
        ),
        tokenizer="unused",
        video_semantic_encoder="unused",
        audio_semantic_encoder="unused",
        output="unused",
        planner={**{name: planner[name] for name in names.split()}, "tower_num_attention_heads": 2},
        **changes,
    )


def test_a_lora_learns_beside_the_towers_and_merges_into_a_plain_planner(tokenizer, encoders, tmp_path):
    config = planner_config(tmp_path / "run", tokenizer, lora_rank=2)
    torch.manual_seed(0)
    planner = build_planner(config)
    before = {name: value.clone() for name, value in planner.state_dict().items()}
    scenes, collate = PlannedScenes(*encoders, num_scenes=2), PlanCollator(tokenizer, planner.config)
    Trainer(config.trainer, planner, PlannerLoss(), scenes, collate_fn=collate).fit()
    changed = {name for name, value in planner.state_dict().items() if not torch.equal(value, before[name])}
    assert {name for name in changed if name.startswith("language_model.")} == {
        name for name in before if "lora_" in name
    }
    assert {"video_placeholder", "video_queries", "towers.0.ff.net.2.weight"} <= changed

    batch = collate([scenes[0], scenes[1]])
    inputs = batch["input_ids"], batch["attention_mask"], batch["plan"].duration
    with torch.no_grad():
        expected = planner.eval()(*inputs)
        merge_lora(planner).save_pretrained(tmp_path / "planner")
        plan = VAPlannerModel.from_pretrained(tmp_path / "planner").eval()(*inputs)
    torch.testing.assert_close(plan.video_tokens, expected.video_tokens, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(plan.audio_tokens, expected.audio_tokens, atol=1e-4, rtol=1e-4)
    assert set(make_planner(tokenizer).state_dict()) == set(planner.state_dict())


def test_the_language_model_starts_from_weights_that_are_there(tokenizer, tmp_path):
    make_planner(tokenizer).language_model.save_pretrained(tmp_path / "qwen")
    config = planner_config(tmp_path, tokenizer, language_model=str(tmp_path / "qwen"))
    torch.manual_seed(1)
    planner = build_planner(config)
    for a, b in zip(
        planner.language_model.parameters(), make_planner(tokenizer).language_model.parameters(), strict=True
    ):
        assert torch.equal(a, b)
    config.planner["language_model_config"] = {**config.planner["language_model_config"], "intermediate_size": 48}
    with pytest.raises(ValueError, match="gate_proj.*language_model_config"):
        build_planner(config)
    with pytest.raises(ValueError, match="lora_rank.*0"):
        planner_config(tmp_path, tokenizer, lora_rank=0)


@pytest.fixture(scope="module")
def cue_planner(cue_tokenizer):
    return make_planner(cue_tokenizer, first_timestamp_id=len(cue_tokenizer) - 50, num_timestamps=50)


def cue_losses(planner, tokenizer, samples, parts=1):
    """The loss of a batch, or the mean of those of its parts."""
    collate, loss, size = PlanCollator(tokenizer, planner.config), PlannerLoss(cue_weight=0.5), len(samples) // parts
    batches = [collate(samples[start : start + size]) for start in range(0, len(samples), size)]
    losses = [loss(planner, batch, torch.Generator(), 0) for batch in batches]
    return {name: torch.stack([values[name] for values in losses]).mean() for name in losses[0]}


def test_cues_are_learnt_beside_the_plan_and_those_dropped_are_not(cue_planner, cue_tokenizer, encoders):
    scenes = PlannedScenes(*encoders, num_scenes=3)
    samples = [PlannerSamples(scenes, 0)[index] for index in range(3)]
    assert len({sample["cues"] for sample in samples}) == 3
    kept = cue_losses(cue_planner, cue_tokenizer, samples)
    texts = [[sample[name] for sample in samples] for name in ("prompt", "cues")]
    input_ids, attention_mask, labels = tokenize_cues(cue_tokenizer, *texts)
    _, cross_entropy = cue_planner(input_ids, attention_mask, samples[0]["plan"].duration, labels)
    torch.testing.assert_close(kept["cues"], cross_entropy.mean())
    plain = (19 * 4 * kept["video"] + 12 * kept["audio"]) / (19 * 4 + 12)
    torch.testing.assert_close(kept["loss"], plain + 0.5 * kept["cues"])
    dropped = cue_losses(cue_planner, cue_tokenizer, [PlannerSamples(scenes, 0, cue_dropout=1.0)[i] for i in range(3)])
    assert dropped["cues"] == 0 and not torch.equal(dropped["video"], kept["video"])


def test_the_parts_of_a_batch_make_the_loss_of_the_whole(cue_planner, cue_tokenizer, encoders):
    samples = PlannerSamples(PlannedScenes(*encoders, num_scenes=8), 3, texts_per_sample=3, cue_dropout=0.3)
    samples = [samples[index] for index in range(8)]
    assert {bool(sample["cues"]) for sample in samples} == {True, False}
    whole = cue_losses(cue_planner, cue_tokenizer, samples)
    for parts in (2, 8):
        torch.testing.assert_close(cue_losses(cue_planner, cue_tokenizer, samples, parts), whole, rtol=1e-5, atol=1e-6)


def test_a_planner_that_wrote_no_cues_is_trained_on_to_write_them(tokenizer, cue_tokenizer, tmp_path):
    before = make_planner(tokenizer)
    before.save_pretrained(tmp_path / "before")
    config = planner_config(tmp_path, tokenizer, initial=str(tmp_path / "before"))
    config.planner |= {"first_timestamp_id": len(tokenizer), "num_timestamps": 50}
    config.planner["language_model_config"] = config.planner["language_model_config"] | {
        "vocab_size": len(tokenizer) + 50
    }
    after = build_planner(config)
    weights, embeddings = before.state_dict(), "language_model.embed_tokens.weight"
    for name, value in after.state_dict().items():
        if name == embeddings:
            torch.testing.assert_close(value[: len(tokenizer)], weights[name])
            torch.testing.assert_close(value[len(tokenizer) :].std(), weights[name].std())
        elif name != "lm_head.weight":
            assert torch.equal(value, weights[name]), name
    with pytest.raises(ValueError, match="clips_per_prompt.*2.*timestamps"):
        PlannerTraining(**{**vars(config), "clips_per_prompt": 2})
    with pytest.raises(ValueError, match="initial.*language_model"):
        PlannerTraining(**{**vars(config), "language_model": "qwen"})


def test_further_texts_teach_cues_alone_and_are_new_for_each_sample(cue_planner, cue_tokenizer, encoders):
    scenes = PlannedScenes(*encoders, num_scenes=2)
    samples = PlannerSamples(scenes, 0, texts_per_sample=5)
    texts = [samples[index]["texts"] for index in (0, 2)]  # of one scene, in two epochs
    assert all(len(own) == 5 for own in texts) and len({prompt for own in texts for prompt, _ in own}) == 10
    assert samples[0]["texts"] == texts[0]
    without = cue_losses(cue_planner, cue_tokenizer, [PlannerSamples(scenes, 0)[index] for index in range(2)])
    losses = cue_losses(cue_planner, cue_tokenizer, [samples[index] for index in range(2)])
    torch.testing.assert_close(losses["loss"], without["loss"] + 0.5 * losses["texts"])
    assert torch.equal(losses["video"], without["video"]) and losses["texts"] > 0


def test_a_plan_of_other_tokens_than_the_features_is_refused(cue_planner, cue_tokenizer, encoders):
    sample = PlannedScenes(*encoders, num_scenes=1)[0]
    plan = replace(sample["plan"], video_tokens=sample["plan"].video_tokens[..., :6])
    with pytest.raises(ValueError, match="the planner makes .* but the features have .*cache the features"):
        cue_losses(cue_planner, cue_tokenizer, [{**sample, "plan": plan}])


def test_texts_divide_over_the_samples_of_a_batch(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="`cue_texts` is 3, but must be a multiple of `trainer.batch_size`, 2"):
        planner_config(tmp_path, tokenizer, cue_texts=3)
