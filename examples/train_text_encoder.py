"""Trains nano's text encoder to read prompts of Stage, and reports how well it understands those of validation scenes.

python examples/train_text_encoder.py examples/configs/nano/text_encoder.yaml [trainer.steps=100 ...]

`train_transformer.py ... initial_text_encoder=runs/export/text_encoder` starts from it, and trains it on with the transformer.
"""

import argparse

import torch
from transformers import AutoTokenizer

from baton_diffusers.training.config import load_config
from baton_diffusers.training.text import (
    QuestionedScenes,
    ReadingLoss,
    TextEncoderTraining,
    build_reader,
    parameter_groups,
    share_understood,
)
from baton_diffusers.training.trainer import Trainer


def main(path: str, overrides: list[str]) -> None:
    config = load_config(path, TextEncoderTraining, overrides)
    torch.manual_seed(config.trainer.seed)
    tokenizer = AutoTokenizer.from_pretrained(config.tokenizer)
    scenes = QuestionedScenes(config.num_scenes)
    reader = build_reader(config)
    groups = parameter_groups(reader, config)
    trainer = Trainer(config.trainer, reader, ReadingLoss(tokenizer), scenes, groups, settings=config)
    reader = trainer.fit().eval()
    if not trainer.accelerator.is_main_process:
        return
    reader.text_encoder.save_pretrained(config.output)
    if config.evaluation_scenes:
        for name, share in share_understood(reader, tokenizer, config.evaluation_scenes).items():
            print(f"{name:8} {share:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML file of TextEncoderTraining")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values that replace the file's")
    arguments = parser.parse_args()
    main(arguments.config, arguments.overrides)
