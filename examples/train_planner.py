"""Trains nano's planner on Stage (Baton's stage 1), saves it, and reports the share of variance that it explains.

python examples/train_planner.py examples/configs/nano/planner.yaml [trainer.steps=100 ...]
python examples/train_planner.py examples/configs/nano/planner.yaml --export   # the newest checkpoint, beside the training

With `trainer.validate_every=500` that share is also taken while it trains, on `evaluation_scenes` scenes, into RUN_DIR/validation.csv.
"""

import baton_diffusers.interrupts  # noqa: F401


# isort: split
from baton_diffusers.training.config import PlannerTraining
from baton_diffusers.training.script import run


def main(config: PlannerTraining, export: bool = False, build=None) -> None:
    """Trains what `build` makes of the configuration, or takes the newest checkpoint; saves it and prints what it explains."""
    import math

    from transformers import AutoTokenizer

    from baton_diffusers import VAPlannerModel
    from baton_diffusers.models.component_files import load_component
    from baton_diffusers.models.semantic_encoders import AudioSemanticEncoder, VideoSemanticEncoder
    from baton_diffusers.stage.clips import StageClips
    from baton_diffusers.training.checkpoint import load_checkpoint
    from baton_diffusers.training.data.dataset import CachedFeatures
    from baton_diffusers.training.planner import (
        CachedPlans,
        PlanCollator,
        PlannedScenes,
        PlannerLoss,
        PlannerSamples,
        build_planner,
        explained_variance,
        format_explained_variance,
        merge_lora,
    )
    from baton_diffusers.training.trainer import Trainer

    tokenizer = AutoTokenizer.from_pretrained(config.tokenizer)
    encoders = (
        load_component(config.video_semantic_encoder, VideoSemanticEncoder),
        load_component(config.audio_semantic_encoder, AudioSemanticEncoder),
    )
    if config.planner.get("cast_separator_id") is not None:
        # a tokenizer that was trained anew has a number of its own
        (config.planner["cast_separator_id"],) = tokenizer(";", add_special_tokens=False).input_ids
    planner = (build or build_planner)(config)
    if export:
        step = load_checkpoint(config.trainer.run_dir, planner)
        print(f"step {step}: {step * config.trainer.batch_size} prompts seen")
    else:
        if config.features is None:
            plans = PlannedScenes(*encoders, config.num_scenes, config.clips_per_prompt)
        else:
            clips = None
            if config.data_seed is not None:
                clips = StageClips("train", config.data_seed, verb_shares=config.verb_shares)
            plans = CachedPlans(CachedFeatures(config.features, clips, config.trainer.seed, config.trainer.batch_size))
        texts_per_sample = config.cue_texts // config.trainer.batch_size
        samples = PlannerSamples(
            plans, config.trainer.seed, texts_per_sample, config.cue_dropout, config.cue_tier_weights
        )

        def validate(module: VAPlannerModel, step: int) -> dict[str, float]:
            report = explained_variance(module, tokenizer, *encoders, config.evaluation_scenes)
            return {name: report[name] for name in ("video", "audio")}

        validates = config.trainer.validate_every is not None and config.evaluation_scenes > 0
        trainer = Trainer(
            config.trainer,
            planner,
            PlannerLoss(
                config.audio_weight, config.cue_weight, config.faint_weight, math.prod(planner.config.video_grid)
            ),
            samples,
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
    run(main, PlannerTraining, __doc__, export="do not train: save and score the newest checkpoint")
