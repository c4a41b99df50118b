"""Trains a semantic encoder of nano on Stage and saves it with the statistics of its features.

python examples/nano/train_semantic_encoders.py video examples/configs/nano/video_semantic_encoder.yaml
python examples/nano/train_semantic_encoders.py audio examples/configs/nano/audio_semantic_encoder.yaml [trainer.steps=100 ...]
"""

import baton_diffusers.interrupts  # noqa: F401


# isort: split
from nano_configs import AudioSemanticConfig, VideoSemanticConfig
from semantic_encoders import (
    AudioSemanticLoss,
    AudioSemanticTraining,
    FrameCollator,
    FrameDataset,
    SoundDataset,
    VideoSemanticLoss,
    VideoSemanticTraining,
    export_audio_encoder,
    export_video_encoder,
)
from transformers import AutoTokenizer

from baton_diffusers.training.script import run_one_of
from baton_diffusers.training.trainer import Trainer


def train_video(config: VideoSemanticConfig) -> None:
    dataset = FrameDataset(config.frames_per_scene, config.video_grid)
    tokenizer = AutoTokenizer.from_pretrained(config.tokenizer)
    collator = FrameCollator(tokenizer, config.text_config["max_position_embeddings"])
    module, loss = VideoSemanticTraining(config), VideoSemanticLoss(config)
    trainer = Trainer(config.trainer, module, loss, dataset, collate_fn=collator, settings=config)
    trained = trainer.fit()
    if trainer.accelerator.is_main_process:
        export_video_encoder(trained, config).save_pretrained(config.output)


def train_audio(config: AudioSemanticConfig) -> None:
    dataset = SoundDataset(config.tokens_per_chunk, config.chunk_duration)
    module, loss = AudioSemanticTraining(config), AudioSemanticLoss(config)
    trainer = Trainer(config.trainer, module, loss, dataset, settings=config)
    trained = trainer.fit()
    if trainer.accelerator.is_main_process:
        export_audio_encoder(trained, config).save_pretrained(config.output)


if __name__ == "__main__":
    run_one_of({"video": (train_video, VideoSemanticConfig), "audio": (train_audio, AudioSemanticConfig)}, __doc__)
