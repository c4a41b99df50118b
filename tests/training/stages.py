"""Tiny real trainings of the three stages, on random features: for tests of what is the same in all of them."""

import torch

from baton_diffusers.training.config import TrainerConfig, TransformerTraining
from baton_diffusers.training.flow_matching import FeatureCollator, FlowMatchingLoss
from baton_diffusers.training.planner import CachedPlans, PlanCollator, PlannerLoss
from baton_diffusers.training.trainer import Trainer
from baton_diffusers.training.transformer import build_transformer
from tests import tiny


STAGES = (1, 2, 3)


class RandomFeatures:
    """Stands for `CachedFeatures`: sample `i` has features drawn from seed `i % num_clips`."""

    def __init__(self, num_clips: int = 64):
        plan = tiny.random_plan().trimmed()
        names = ("video_times", "video_centres", "audio_times", "duration")
        self.plan_layout = {name: getattr(plan, name) for name in names}
        self.num_clips = num_clips

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index % self.num_clips)
        plan = tiny.random_plan(seed=index % self.num_clips).trimmed()
        words = [tiny.WORDS[i] for i in torch.randint(len(tiny.WORDS), (6,), generator=generator).tolist()]
        return {
            "prompt": " ".join(words),
            "cues": "",
            "latents": torch.randn(tiny.LATENTS, generator=generator),
            "audio_latents": torch.randn(tiny.AUDIO_LATENTS, generator=generator),
            "video_tokens": plan.video_tokens[0],
            "audio_tokens": plan.audio_tokens[0],
        }

    def plan(self, video_tokens, audio_tokens):
        return tiny.SemanticPlan(video_tokens=video_tokens, audio_tokens=audio_tokens, **self.plan_layout)


def make_trainer(stage: int, run_dir, num_clips: int = 64, **settings) -> Trainer:
    """A training of one stage, of 20 steps of 4 samples."""
    defaults = {"steps": 20, "batch_size": 4, "log_every": 1, "warmup_steps": 5, "ema_decay": None, "trackers": ()}
    config = TrainerConfig(run_dir=str(run_dir), **{**defaults, **settings})
    features, tokenizer = RandomFeatures(num_clips), tiny.tiny_tokenizer()
    torch.manual_seed(0)
    if stage == 1:
        planner = tiny.tiny_planner()
        collate = PlanCollator(tokenizer, planner.config)
        return Trainer(config, planner, PlannerLoss(), CachedPlans(features), collate_fn=collate)
    training = TransformerTraining(
        trainer=config,
        features="unused",
        tokenizer="unused",
        max_sequence_length=12,
        transformer={
            name: value for name, value in tiny.tiny_transformer().config.items() if not name.startswith("_")
        },
        text_encoder=tiny.tiny_text_encoder().config.to_dict(),
        **({"plan": "planner", "planner": "unused", "planner_tokenizer": "unused"} if stage == 3 else {}),
    )
    planner = tiny.tiny_planner().requires_grad_(False) if stage == 3 else None
    loss = FlowMatchingLoss(training, features, planner)
    collate = FeatureCollator(12, tokenizer, *((tokenizer, planner.config) if stage == 3 else ()))
    return Trainer(config, build_transformer(training), loss, features, collate_fn=collate)


def train(stage: int, run_dir, **settings) -> None:
    """Runs it to its end."""
    make_trainer(stage, run_dir, **settings).fit()
