"""Trains a semantic encoder of nano on Stage and saves it with the statistics of its features.

python examples/train_semantic_encoders.py video examples/configs/nano/video_semantic_encoder.yaml
python examples/train_semantic_encoders.py audio examples/configs/nano/audio_semantic_encoder.yaml [trainer.steps=100 ...]
"""

import argparse

import torch
from transformers import AutoTokenizer

from baton_diffusers.training.config import load_config
from baton_diffusers.training.semantic import (
    AudioSemanticConfig,
    AudioSemanticLoss,
    AudioSemanticTraining,
    FrameCollator,
    FrameDataset,
    SoundDataset,
    VideoSemanticConfig,
    VideoSemanticLoss,
    VideoSemanticTraining,
    export_audio_encoder,
    export_video_encoder,
)
from baton_diffusers.training.trainer import Trainer


def train_video(path: str, overrides: list[str]) -> None:
    config = load_config(path, VideoSemanticConfig, overrides)
    torch.manual_seed(config.trainer.seed)
    dataset = FrameDataset(config.frames_per_scene, config.video_grid)
    tokenizer = AutoTokenizer.from_pretrained(config.tokenizer)
    collator = FrameCollator(tokenizer, config.text_config["max_position_embeddings"])
    module, loss = VideoSemanticTraining(config), VideoSemanticLoss(config)
    trained = Trainer(config.trainer, module, loss, dataset, collate_fn=collator, settings=config).fit()
    export_video_encoder(trained, config).save_pretrained(config.output)


def train_audio(path: str, overrides: list[str]) -> None:
    config = load_config(path, AudioSemanticConfig, overrides)
    torch.manual_seed(config.trainer.seed)
    dataset = SoundDataset(config.tokens_per_chunk, config.chunk_duration)
    module, loss = AudioSemanticTraining(config), AudioSemanticLoss(config)
    trained = Trainer(config.trainer, module, loss, dataset, settings=config).fit()
    export_audio_encoder(trained, config).save_pretrained(config.output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modality", choices=["video", "audio"])
    parser.add_argument("config", help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values that replace the file's")
    args = parser.parse_args()
    {"video": train_video, "audio": train_audio}[args.modality](args.config, args.overrides)


if __name__ == "__main__":
    main()
