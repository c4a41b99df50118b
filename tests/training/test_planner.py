"""Stage 1: the planner learns the semantic encoders' features."""

import pytest
import torch

from baton_diffusers.models.semantic_encoders import AudioSemanticEncoder, VideoSemanticEncoder
from baton_diffusers.models.va_planner import VAPlannerModel
from baton_diffusers.training.planner import (
    PlannerLoss,
    PlanReader,
    PromptCollator,
    PromptedClips,
    average_clips,
    explained_variance,
    format_explained_variance,
    plan_distance,
)
from baton_diffusers.training.tokenizer import stage_texts, train_tokenizer
from baton_diffusers.training.trainer import Trainer, TrainerConfig


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(stage_texts(100), max_length=80)


@pytest.fixture(scope="module")
def read():
    torch.manual_seed(0)
    vision = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    audio = {"sampling_rate": 16000, "hidden_size": 6, "num_filters": 2, "upsampling_ratios": [20, 50]}
    audio |= {"num_lstm_layers": 1, "codebook_size": 16, "target_bandwidths": [1.0]}
    return PlanReader(
        VideoSemanticEncoder({**vision, "image_size": 32, "patch_size": 16}, video_grid=(2, 2)),
        AudioSemanticEncoder(audio, tokens_per_chunk=4),
    )


def make_planner(tokenizer):
    torch.manual_seed(0)
    language_model = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
    }
    return VAPlannerModel(
        language_model,
        video_dim=8,
        audio_dim=6,
        video_grid=(2, 2),
        audio_tokens_per_chunk=4,
        tower_depth=1,
        tower_num_attention_heads=2,
        system_prompt=None,
    ).eval()


@pytest.fixture(scope="module")
def batch(tokenizer):
    dataset = PromptedClips(clips_per_prompt=2)
    return PromptCollator(tokenizer, None)([dataset[index] for index in range(3)])


def test_a_scene_has_one_prompt_and_clips_that_differ_in_time():
    sample, again = PromptedClips(2)[4], PromptedClips(2)[4]
    assert sample["prompt"] == again["prompt"] and torch.equal(sample["frames"], again["frames"])
    assert sample["frames"].shape == (2, 49, 64, 64, 3) and sample["waveform"].shape == (2, 1, 49000)
    assert not torch.equal(sample["frames"][0], sample["frames"][1])


def test_the_mean_of_the_clips_has_the_gradient_of_all_of_them(tokenizer, read, batch):
    planner, target = make_planner(tokenizer), read(batch)
    mean = average_clips(target, 3)
    gradients = []
    for reference, repeats in ((mean, 1), (target, 2)):
        plan = planner(batch["input_ids"], batch["attention_mask"], target.duration).repeat_interleave(repeats)
        video, audio = plan_distance(plan, reference)
        loss = (video.sum() + audio.sum()) / repeats
        gradients.append(torch.autograd.grad(loss, list(planner.parameters())))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_masked_tokens_do_not_count(tokenizer, read, batch):
    loss = PlannerLoss(read)
    planner = make_planner(tokenizer)
    target = average_clips(read(batch), 3)
    assert target.audio_mask.sum(dim=1).tolist() == [12, 12, 12] and target.audio_mask.shape == (3, 16)
    plan = planner(batch["input_ids"], batch["attention_mask"], target.duration)
    video, audio = (
        p - t for p, t in ((plan.video_tokens, target.video_tokens), (plan.audio_tokens, target.audio_tokens))
    )
    expected = (video.square().mean(dim=-1).sum() + audio[:, :12].square().mean(dim=-1).sum()) / (3 * (19 * 4 + 12))
    torch.testing.assert_close(loss(planner, batch, torch.Generator(), 0)["loss"], expected)


def test_training_lowers_the_loss(tokenizer, read, tmp_path):
    config = TrainerConfig(
        run_dir=str(tmp_path), steps=12, batch_size=2, learning_rate=1e-2, warmup_steps=1, log_every=1, ema_decay=None
    )
    collate = PromptCollator(tokenizer, None)
    Trainer(config, make_planner(tokenizer), PlannerLoss(read), PromptedClips(1), collate_fn=collate).fit()
    rows = (tmp_path / "log.csv").read_text().splitlines()
    column = rows[0].split(",").index("loss")
    losses = [float(row.split(",")[column]) for row in rows[1:]]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


def test_a_perfect_planner_explains_as_much_as_can_be(tokenizer, read):
    class MeanOfTheClips(torch.nn.Module):
        """Predicts the mean of the very clips that it is scored on, or the mean of all clips."""

        device = torch.device("cpu")
        config = make_planner(tokenizer).config

        def __init__(self, constant):
            super().__init__()
            batch = PromptCollator(tokenizer, None)([PromptedClips(2, "validation")[index] for index in range(6)])
            self.plan = average_clips(read(batch), 6)
            if constant:
                self.plan.video_tokens[:] = self.plan.video_tokens.mean(dim=0)
                self.plan.audio_tokens[:] = self.plan.audio_tokens.mean(dim=0)

        def forward(self, input_ids, attention_mask, duration):
            return self.plan

    report = explained_variance(MeanOfTheClips(constant=False), tokenizer, read, 6)
    for name in ("video", "audio"):
        within = 1 - report[f"{name}_ceiling"]  # two clips deviate from their own mean by half of their variance
        assert report[name] == pytest.approx(1 - within / 2, abs=1e-5)
    assert len(report["video_by_keyframe"]) == 19
    constant = explained_variance(MeanOfTheClips(constant=True), tokenizer, read, 6)
    assert constant["video"] == pytest.approx(0, abs=1e-5) and constant["audio"] == pytest.approx(0, abs=1e-5)
    table = format_explained_variance(report, 6.0)
    assert "video at 3.00 s" in table and len(table.splitlines()) == 22
