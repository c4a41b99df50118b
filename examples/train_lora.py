"""Trains a LoRA on one's own clips, on one GPU (or on a CPU, for nano).

baton cache my_clips --output runs/my_features
python examples/train_lora.py examples/configs/nano/lora.yaml features=runs/my_features output=runs/my_lora

Then `pipe.load_lora_weights("runs/my_lora")`. Interrupted, the same command goes on from the last checkpoint.

To see what it makes while it learns, in RUN_DIR/samples: `trainer.validate_every=50 validation.prompts='[A red ball bounces
twice.]'`. Where the text encoder is large: cache with `--text`, and train with `cached_text=true`. It is not loaded then.
"""

import baton_diffusers.interrupts  # noqa: F401


# isort: split
from baton_diffusers.training.config import LoraTraining
from baton_diffusers.training.script import run


def main(config: LoraTraining) -> None:
    """Trains, and saves the LoRA."""
    from dataclasses import replace
    from pathlib import Path

    from transformers import AutoTokenizer

    from baton_diffusers import VAPlannerModel
    from baton_diffusers.models.component_files import load_component
    from baton_diffusers.training.data.dataset import CachedFeatures
    from baton_diffusers.training.flow_matching import FeatureCollator, FlowMatchingLoss
    from baton_diffusers.training.lora import build_lora, save_lora
    from baton_diffusers.training.trainer import Trainer
    from baton_diffusers.training.validation import Validation

    training = config.transformer_training()
    features = CachedFeatures(config.features, seed=config.trainer.seed, batch_size=config.trainer.batch_size)
    tokenizer = None if config.cached_text else AutoTokenizer.from_pretrained(training.tokenizer)
    collate, planner = FeatureCollator(training.max_sequence_length, tokenizer), None
    if training.plan == "planner":
        planner = load_component(training.planner, VAPlannerModel).eval().requires_grad_(False)
        planner_tokenizer = AutoTokenizer.from_pretrained(training.planner_tokenizer)
        collate = FeatureCollator(training.max_sequence_length, tokenizer, planner_tokenizer, planner.config)
    module = build_lora(config)
    loss = FlowMatchingLoss(training, features, planner)
    validation = None
    if config.validation is not None:
        settings = replace(config.validation, model=config.validation.model or config.model)
        validation = Validation(settings, Path(config.trainer.run_dir) / "samples")
    trainer = Trainer(config.trainer, module, loss, features, None, collate, False, validation, config)
    trained = trainer.fit()
    if trainer.accelerator.is_main_process:
        save_lora(trained, config.output)
        print(f"{config.output}: load it with pipe.load_lora_weights({config.output!r})")


if __name__ == "__main__":
    run(main, LoraTraining, __doc__)
