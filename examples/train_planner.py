"""Trains nano's planner on Stage (Baton's stage 1), saves it, and reports the share of variance that it explains.

python examples/train_planner.py examples/configs/nano/planner.yaml [trainer.steps=100 ...]
python examples/train_planner.py examples/configs/nano/planner.yaml --export   # the newest checkpoint, beside the training

With `trainer.validate_every=500` that share is also taken while it trains, on `evaluation_scenes` scenes, into RUN_DIR/validation.csv.
"""

import argparse

import torch
from transformers import AutoTokenizer

from baton_diffusers import VAPlannerModel
from baton_diffusers.models.semantic_encoders import AudioSemanticEncoder, VideoSemanticEncoder
from baton_diffusers.stage.clips import StageClips
from baton_diffusers.training.checkpoint import load_checkpoint
from baton_diffusers.training.config import load_config
from baton_diffusers.training.data.dataset import CachedFeatures
from baton_diffusers.training.planner import (
    CachedPlans,
    PlanCollator,
    PlannedScenes,
    PlannerConfig,
    PlannerLoss,
    PlannerSamples,
    build_planner,
    explained_variance,
    format_explained_variance,
    merge_lora,
)
from baton_diffusers.training.trainer import Trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values that replace the file's")
    parser.add_argument("--export", action="store_true", help="do not train: save and score the newest checkpoint")
    args = parser.parse_intermixed_args()

    config = load_config(args.config, PlannerConfig, args.overrides)
    tokenizer = AutoTokenizer.from_pretrained(config.tokenizer)
    encoders = (
        VideoSemanticEncoder.from_pretrained(config.video_semantic_encoder),
        AudioSemanticEncoder.from_pretrained(config.audio_semantic_encoder),
    )
    torch.manual_seed(config.trainer.seed)
    planner = build_planner(config)
    if args.export:
        step = load_checkpoint(config.trainer.run_dir, planner)
        print(f"step {step}: {step * config.trainer.batch_size} prompts seen")
    else:
        loss = PlannerLoss(config.audio_weight, config.cue_weight)
        if config.features is None:
            dataset = PlannedScenes(*encoders, config.num_scenes, config.clips_per_prompt)
        else:
            clips = (
                None
                if config.data_seed is None
                else StageClips("train", config.data_seed, verb_shares=config.verb_shares)
            )
            features = CachedFeatures(config.features, clips, config.trainer.seed, config.trainer.batch_size)
            dataset = CachedPlans(features)
        texts_per_sample = config.cue_texts // config.trainer.batch_size
        dataset = PlannerSamples(
            dataset, config.trainer.seed, texts_per_sample, config.cue_dropout, config.cue_tier_weights
        )

        def validate(module: VAPlannerModel, step: int) -> dict[str, float]:
            report = explained_variance(module, tokenizer, *encoders, config.evaluation_scenes)
            return {name: report[name] for name in ("video", "audio")}

        validates = config.trainer.validate_every is not None and config.evaluation_scenes > 0
        trainer = Trainer(
            config.trainer,
            planner,
            loss,
            dataset,
            collate_fn=PlanCollator(tokenizer, planner.config),
            validate=validate if validates else None,
            settings=config,
        )
        planner = trainer.fit()
        if not trainer.accelerator.is_main_process:
            return
    planner = merge_lora(planner).eval()
    planner.save_pretrained(config.output)
    if config.evaluation_scenes:
        report = explained_variance(planner, tokenizer, *encoders, config.evaluation_scenes)
        print(format_explained_variance(report, planner.config.keyframe_rate))


if __name__ == "__main__":
    main()
