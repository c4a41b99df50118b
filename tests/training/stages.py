"""Tiny real trainings of the three stages, on random features: for tests of what is the same in all of them."""

import torch

from baton_diffusers.coordinates import audio_plan_times, keyframe_times, patch_centres
from baton_diffusers.cues import format_cues
from baton_diffusers.plan import SemanticPlan
from baton_diffusers.training.config import TrainerConfig, TransformerTraining
from baton_diffusers.training.flow_matching import FeatureCollator, FlowMatchingLoss
from baton_diffusers.training.planner import CachedPlans, PlanCollator, PlannerLoss
from baton_diffusers.training.trainer import Trainer
from baton_diffusers.training.transformer import build_transformer
from tests import tiny


STAGES = (1, 2, 3)
COLLATE = FeatureCollator(12, tiny.tiny_tokenizer())


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
            {
                "prompt": "a red circle jumps",
                "cues": format_cues([(i / tiny.FRAME_RATE, "red circle")]),
                **{k: torch.randn(s, generator=generator) for k, s in shapes.items()},
            }
            for i in range(num_clips)
        ]

    def __getitem__(self, index):
        return self.clips[index % len(self.clips)]

    def plan(self, video_tokens, audio_tokens):
        return SemanticPlan(video_tokens=video_tokens, audio_tokens=audio_tokens, **self.plan_layout)


def transformer_training(tmp_path="unused", transformer=None, trainer=None, **changes):
    """A configuration of the tiny models, whose `transformer` may be changed."""
    model = tiny.tiny_transformer().config
    names = (
        "in_channels out_channels audio_in_channels audio_out_channels num_layers num_attention_heads "
        "attention_head_dim ffn_dim audio_ffn_dim audio_patch_hidden_dim text_dim freq_dim frame_rate audio_latent_rate "
        "video_plan_dim audio_plan_dim"
    ).split()
    text = tiny.tiny_text_encoder().config
    return TransformerTraining(
        trainer=trainer
        or TrainerConfig(
            run_dir=str(tmp_path), steps=50, batch_size=4, learning_rate=1e-2, warmup_steps=5, ema_decay=None
        ),
        features="unused",
        tokenizer="unused",
        max_sequence_length=12,
        transformer={**{name: model[name] for name in names}, **(transformer or {})},
        text_encoder={
            name: getattr(text, name)
            for name in ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads", "dropout_rate")
        },
        **changes,
    )


def make_trainer(stage: int, run_dir, num_clips: int = 64, **settings) -> Trainer:
    """A training of one stage, of 20 steps of 4 samples."""
    defaults = {"steps": 20, "batch_size": 4, "log_every": 1, "warmup_steps": 5, "ema_decay": None, "trackers": ()}
    config = TrainerConfig(run_dir=str(run_dir), **{**defaults, **settings})
    features, tokenizer = Features(num_clips), tiny.tiny_tokenizer()
    torch.manual_seed(0)
    if stage == 1:
        planner = tiny.tiny_planner()
        collate = PlanCollator(tokenizer, planner.config)
        return Trainer(config, planner, PlannerLoss(), CachedPlans(features), collate_fn=collate)
    sources = {"plan": "planner", "planner": "unused", "planner_tokenizer": "unused"} if stage == 3 else {}
    training = transformer_training(trainer=config, **sources)
    planner = tiny.tiny_planner().requires_grad_(False) if stage == 3 else None
    loss = FlowMatchingLoss(training, features, planner)
    collate = FeatureCollator(12, tokenizer, *((tokenizer, planner.config) if stage == 3 else ()))
    module = build_transformer(training)
    module.transformer.load_state_dict(tiny.tiny_transformer().state_dict())  # whose heads are not zero: plans count
    return Trainer(config, module, loss, features, collate_fn=collate)


def train(stage: int, run_dir, **settings) -> None:
    """Runs it to its end."""
    make_trainer(stage, run_dir, **settings).fit()
