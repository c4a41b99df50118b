r"""Trains nano's transformer with its text encoder: stage 2 on real plan features, stage 3 on the planner's.

python examples/train_transformer.py examples/configs/nano/transformer.yaml [trainer.steps=100 ...]
python examples/train_transformer.py examples/configs/nano/transformer_stage3.yaml

Interrupted, the same command goes on from the last checkpoint. The result is in RUN_DIR/export. To train the shipped checkpoint
on, add `initial=model_cards/baton-nano trainer.run_dir=runs/longer`. `initial_text_encoder=runs/export/text_encoder` takes a
text encoder that has learnt to read (`nano/reading.py`); without it, after a short training the text encoder is still a bag of
words.

Any value of the file can be overridden. `fresh_layers='[fusion, context_tokens]'` learns anew how the modalities read each other, on
trained towers: examples/configs/nano/arms.toml has the overrides of each arm in nano's card.

Harmony's loss as published is `task_weights='{joint: 1}' synergy_weights='{a2v: 0.1, v2a: 0.3}'`: three terms on every sample, at
three times the cost of a step. Tasks drawn in these proportions have the same gradient on average, up to a factor, at the cost
of one step.

`given_share=0.2` also trains first pictures, beginnings and masks that are given; `noise_bins=4` also logs the losses by noise level.

To see and score clips while it trains, name a pipeline whose other parts make them: `trainer.validate_every=1000
validation.model=model_cards/baton-nano validation.scenes_per_tier=2`, or instead of Stage's scenes, whose clips are scored,
`validation.prompts='[A red ball bounces twice.]'`. They are in RUN_DIR/samples, the scores in RUN_DIR/validation.csv.

If the text encoder is frozen, like a large model's: cache with `--text`, and train with `text_encoder=null data_seed=null`. It is
then not loaded.
"""

import baton_diffusers.interrupts  # noqa: F401


# isort: split
from baton_diffusers.training.config import TransformerTraining
from baton_diffusers.training.script import run


def main(config: TransformerTraining, build=None, build_loss=None) -> None:
    """Trains what `build` makes of the configuration, exports to RUN_DIR/export, and prints the mean losses at the end."""
    from pathlib import Path

    from diffusers import AutoencoderKLWan, MMAudioVAE
    from transformers import AutoTokenizer

    from baton_diffusers import VAPlannerModel
    from baton_diffusers.models.component_files import load_component
    from baton_diffusers.stage.clips import StageClips
    from baton_diffusers.training.data.dataset import CachedFeatures
    from baton_diffusers.training.flow_matching import FeatureCollator, FlowMatchingLoss, mean_losses
    from baton_diffusers.training.trainer import Trainer
    from baton_diffusers.training.transformer import build_transformer, export_transformer, parameter_groups
    from baton_diffusers.training.validation import Validation

    module = (build or build_transformer)(config)
    clips = None if config.data_seed is None else StageClips("train", config.data_seed, verb_shares=config.verb_shares)
    features = CachedFeatures(
        config.features, clips, config.trainer.seed, config.trainer.batch_size, include_flagged=config.uses_flagged
    )
    tokenizer = None if config.text_encoder is None else AutoTokenizer.from_pretrained(config.tokenizer)
    collate, planner = FeatureCollator(config.max_sequence_length, tokenizer), None
    if config.plan == "planner":
        planner = load_component(config.planner, VAPlannerModel).eval().requires_grad_(False)
        planner_tokenizer = AutoTokenizer.from_pretrained(config.planner_tokenizer)
        collate = FeatureCollator(config.max_sequence_length, tokenizer, planner_tokenizer, planner.config)
    vae = load_component(config.vae, AutoencoderKLWan).eval() if "static" in config.tasks else None
    audio_vae = load_component(config.audio_vae, MMAudioVAE).eval() if "mute" in config.tasks else None
    loss = (build_loss or FlowMatchingLoss)(config, features, planner, vae, audio_vae)
    run_dir = Path(config.trainer.run_dir)
    validation = None if config.validation is None else Validation(config.validation, run_dir / "samples")
    groups = parameter_groups(module, config)
    trainer = Trainer(config.trainer, module, loss, features, groups, collate, validate=validation, settings=config)
    module = trainer.fit()
    if trainer.accelerator.is_main_process:
        export_transformer(module, run_dir / "export")
        for name, value in mean_losses(run_dir / "log.csv")[-1].items():
            print(f"{name:16} {value:.4g}")


if __name__ == "__main__":
    run(main, TransformerTraining, __doc__)
