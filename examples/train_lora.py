"""Trains a LoRA on one's own clips, on one GPU (or on a CPU, for nano).

baton cache my_clips --output runs/my_features
python examples/train_lora.py examples/configs/nano/lora.yaml features=runs/my_features output=runs/my_lora

Then `pipe.load_lora_weights("runs/my_lora")`. Interrupted, the same command goes on from the last checkpoint.
"""

import argparse

import torch
from transformers import AutoTokenizer

from baton_diffusers import VAPlannerModel
from baton_diffusers.training.features import CachedFeatures, collate_features
from baton_diffusers.training.lora import LoraTraining, build_lora, save_lora
from baton_diffusers.training.trainer import Trainer, load_config
from baton_diffusers.training.transformer import FlowMatchingLoss


def main(path: str, overrides: list[str]) -> None:
    config = load_config(path, LoraTraining, overrides)
    training = config.transformer_training()
    features = CachedFeatures(config.features, seed=config.trainer.seed, batch_size=config.trainer.batch_size)
    tokenizer = AutoTokenizer.from_pretrained(training.tokenizer)
    planner = planner_tokenizer = None
    if training.plan == "planner":
        planner = VAPlannerModel.from_pretrained(training.planner).eval().requires_grad_(False)
        planner_tokenizer = AutoTokenizer.from_pretrained(training.planner_tokenizer)
    torch.manual_seed(config.trainer.seed)
    module = build_lora(config)
    loss = FlowMatchingLoss(training, features, tokenizer, planner, planner_tokenizer)
    trainer = Trainer(config.trainer, module, loss, features, collate_fn=collate_features, save_frozen=False)
    if planner is not None:
        planner.to(trainer.device)
    trained = trainer.fit()
    if trainer.accelerator.is_main_process:
        save_lora(trained, config.output)
        print(f"{config.output}: load it with pipe.load_lora_weights({config.output!r})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML file of LoraTraining")
    parser.add_argument("overrides", nargs="*", help="key=value, keys dotted: trainer.steps=100")
    arguments = parser.parse_args()
    main(arguments.config, arguments.overrides)
