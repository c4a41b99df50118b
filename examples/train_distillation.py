"""Distils a student that makes clips in a few steps without guidance, from a pipeline's own transformer under its own guiders.

baton cache my_clips --output runs/my_features
python examples/train_distillation.py examples/configs/nano/distillation.yaml features=runs/my_features

Interrupted, the same command goes on from the last checkpoint. Then

    pipe.load_student("runs/turbo")      # or: baton generate --student runs/turbo

`method=flow_map` trains a student for any number of steps, which receives the end of each step; `initial=FOLDER` starts from
another student's adapter. `target_steps=1` makes it consistency distillation along the teacher's path: two passes of the
teacher per step instead of eight, but more steps in all. `rank=null` trains a copy of all weights, and saves a pipeline of its
own.
"""

import baton_diffusers.interrupts  # noqa: F401


# isort: split
from baton_diffusers.training.config import DistillationTraining
from baton_diffusers.training.script import run


def main(config: DistillationTraining) -> None:
    """Trains, and saves the student."""
    from baton_diffusers.stage.clips import StageClips
    from baton_diffusers.training.data.dataset import CachedFeatures
    from baton_diffusers.training.distillation import build_loss, build_student, build_validation, save_student
    from baton_diffusers.training.trainer import Trainer

    clips = None if config.data_seed is None else StageClips("train", config.data_seed, verb_shares=config.verb_shares)
    features = CachedFeatures(config.features, clips, config.trainer.seed, config.trainer.batch_size)
    module = build_student(config)
    loss, collate = build_loss(config, module, features)
    validation = build_validation(config)
    trainer = Trainer(config.trainer, module, loss, features, None, collate, False, validation, config)
    trained = trainer.fit()
    if trainer.accelerator.is_main_process:
        save_student(trained, config)
        print(f"{config.output}: make clips with it by `baton generate --student {config.output}`")


if __name__ == "__main__":
    run(main, DistillationTraining, __doc__)
