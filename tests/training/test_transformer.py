"""The objective of stages 2 and 3: flow matching under dropped conditions."""

import pytest
import torch
from torch import nn

from baton_diffusers.coordinates import audio_plan_times, keyframe_times, patch_centres
from baton_diffusers.plan import SemanticPlan
from baton_diffusers.training.features import collate_features
from baton_diffusers.training.trainer import Trainer, TrainerConfig
from baton_diffusers.training.transformer import (
    FlowMatchingLoss,
    TransformerTraining,
    build_transformer,
    export_transformer,
)
from tests import tiny


class Features:
    """Random clips of the tiny shapes, in the form of `CachedFeatures`."""

    def __init__(self, num_clips=4):
        generator = torch.Generator().manual_seed(0)
        times = keyframe_times(tiny.DURATION, tiny.KEYFRAME_RATE)
        audio_times = audio_plan_times(tiny.DURATION, tiny.TOKENS_PER_CHUNK)
        audio_times = audio_times[audio_times < tiny.DURATION]
        self.plan_layout = {
            "video_times": times.repeat_interleave(4),
            "video_centres": patch_centres(*tiny.VIDEO_GRID).repeat(len(times), 1),
            "audio_times": audio_times,
            "duration": tiny.DURATION,
        }
        shapes = {
            "latents": tiny.LATENTS,
            "audio_latents": tiny.AUDIO_LATENTS,
            "video_tokens": (4 * len(times), tiny.VIDEO_PLAN_DIM),
            "audio_tokens": (len(audio_times), tiny.AUDIO_PLAN_DIM),
        }
        self.clips = [
            {"prompt": "a red circle jumps", **{k: torch.randn(s, generator=generator) for k, s in shapes.items()}}
            for _ in range(num_clips)
        ]

    def __getitem__(self, index):
        return self.clips[index % len(self.clips)]

    def plan(self, video_tokens, audio_tokens):
        return SemanticPlan(video_tokens=video_tokens, audio_tokens=audio_tokens, **self.plan_layout)


def config(tmp_path="unused", **changes):
    model = tiny.tiny_transformer().config
    names = (
        "in_channels out_channels audio_in_channels audio_out_channels num_layers num_attention_heads "
        "attention_head_dim ffn_dim audio_ffn_dim audio_patch_hidden_dim text_dim freq_dim frame_rate audio_latent_rate "
        "video_plan_dim audio_plan_dim"
    ).split()
    text = tiny.tiny_text_encoder().config
    return TransformerTraining(
        trainer=TrainerConfig(
            run_dir=str(tmp_path), steps=120, batch_size=4, learning_rate=1e-2, warmup_steps=5, ema_decay=None
        ),
        features="unused",
        tokenizer="unused",
        max_sequence_length=12,
        transformer={name: model[name] for name in names},
        text_encoder={
            name: getattr(text, name)
            for name in ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads", "dropout_rate")
        },
        **changes,
    )


class Spy(nn.Module):
    """Stands where the model is called, and keeps what it was given."""

    def forward(self, latents, audio_latents, timestep, input_ids, attention_mask, plan):
        self.given = (latents, audio_latents, timestep, input_ids, plan)
        return torch.zeros_like(latents), torch.zeros_like(audio_latents)


def losses_of(settings, **kwargs):
    spy, features = Spy(), Features()
    loss = FlowMatchingLoss(settings, features, tiny.tiny_tokenizer(), **kwargs)
    batch = collate_features([features[index] for index in range(4)])
    return loss(spy, batch, torch.Generator().manual_seed(1), 0), spy.given, batch


def test_the_noised_clip_lies_on_the_line_from_sample_to_noise():
    losses, (latents, audio_latents, timestep, _, _), batch = losses_of(config())
    t = (timestep / 1000).view(-1, 1, 1, 1, 1)
    noise = (latents - (1 - t) * batch["latents"]) / t
    assert torch.allclose(losses["video"], (noise - batch["latents"]).square().mean(), rtol=1e-3)
    audio_t = t[:, :, 0, 0]
    audio_noise = (audio_latents - (1 - audio_t) * batch["audio_latents"]) / audio_t
    assert torch.allclose(losses["audio"], (audio_noise - batch["audio_latents"]).square().mean(), rtol=1e-3)
    assert torch.allclose(losses["loss"], losses["video"] + losses["audio"])


@pytest.mark.parametrize(
    "dropped, keeps_text, keeps_plan",
    [
        ("text_dropout", False, True),
        ("plan_dropout", True, False),
        ("joint_dropout", False, False),
        (None, True, True),
    ],
)
def test_every_anchor_of_guidance_is_a_trained_state(dropped, keeps_text, keeps_plan):
    shares = {"text_dropout": 0.0, "plan_dropout": 0.0, "joint_dropout": 0.0}
    if dropped is not None:
        shares[dropped] = 1.0
    _, (_, _, _, input_ids, plan), _ = losses_of(config(**shares))
    assert (input_ids[:, 1] != 0).all() == keeps_text  # without text there is the end-of-text token alone
    assert plan.video_mask.all() == keeps_plan and plan.video_mask.any() == keeps_plan
    assert plan.audio_mask.any() == keeps_plan


def test_stage_three_trains_on_the_planners_own_plan():
    planner = tiny.tiny_planner()
    settings = config(
        plan="planner", planner="unused", planner_tokenizer="unused", plan_dropout=0.0, joint_dropout=0.0
    )
    tokenizer = tiny.tiny_tokenizer()
    _, (*_, plan), batch = losses_of(settings, planner=planner, planner_tokenizer=tokenizer)
    assert plan.video_tokens.shape == batch["video_tokens"].shape
    assert torch.equal(plan.video_tokens[0], plan.video_tokens[1])  # one prompt, one plan
    assert plan.audio_times.max() < tiny.DURATION


def test_without_a_plan_the_text_arm_sees_none():
    _, (*_, plan), _ = losses_of(config(plan="none"))
    assert plan is None


def test_a_few_steps_lower_the_loss_and_the_export_loads(tmp_path):
    settings = config(tmp_path)
    torch.manual_seed(0)
    module = build_transformer(settings)
    features = Features()
    loss = FlowMatchingLoss(settings, features, tiny.tiny_tokenizer())
    batch = collate_features([features[index] for index in range(4)])
    before = loss(module, batch, torch.Generator().manual_seed(1), 0)["loss"].item()
    trained = Trainer(settings.trainer, module, loss, features, collate_fn=collate_features).fit()
    after = loss(trained.eval(), batch, torch.Generator().manual_seed(1), 0)["loss"].item()
    assert after < 0.9 * before
    export_transformer(trained, tmp_path / "export")
    loaded = type(trained.transformer).from_pretrained(tmp_path / "export" / "transformer")
    for name, value in trained.transformer.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name

    continued = build_transformer(config(tmp_path, initial=str(tmp_path / "export")))
    assert all(torch.equal(a, b) for a, b in zip(continued.parameters(), trained.parameters(), strict=True))
    other = config(tmp_path, initial=str(tmp_path / "export"))
    other.transformer["ffn_dim"] *= 2
    with pytest.raises(ValueError, match="blocks.0.ffn.*same configuration"):
        build_transformer(other)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"plan": "oracle"}, "oracle"),
        ({"plan": "planner"}, "planner_tokenizer"),
        ({"text_dropout": 0.6, "joint_dropout": 0.6}, "exclude one another"),
    ],
)
def test_wrong_settings_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)
