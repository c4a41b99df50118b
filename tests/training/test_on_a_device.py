"""A step of each stage on a device that is not the CPU: forward, backward and optimiser mix no devices, and nothing waits for them."""

import pytest
import torch
from peft import LoraConfig

from baton_diffusers.training.config import ValidationConfig
from baton_diffusers.training.trainer import _to_device
from baton_diffusers.training.transformer import TransformerWithText
from baton_diffusers.training.validation import Validation
from tests import tiny
from tests.pretended import Generator, device, on_device
from tests.training.stages import make_trainer


pytestmark = pytest.mark.apart(fresh=True)


def step(trainer):
    """One step as [`Trainer`] makes it. Returns the parameters that have learnt, and what the host read."""
    module, loss_fn = trainer.module, trainer.loss_fn
    with on_device() as trace:
        module.to(device())
        if hasattr(loss_fn, "to"):
            loss_fn.to(device())
        batch = _to_device(
            trainer.collate_fn([trainer.dataset[i] for i in range(trainer.config.batch_size)]), device()
        )
        losses = loss_fn(module, batch, Generator(), 0)
        losses["loss"].backward()
        learning = [name for name, parameter in module.named_parameters() if parameter.grad is not None]
        torch.optim.AdamW(parameter for parameter in module.parameters() if parameter.grad is not None).step()
    assert {loss.device for loss in losses.values()} == {device()}
    return learning, trace.reads


def with_all_that_a_loss_can_hold(trainer):
    """Both autoencoders, for conditions that are still or silent; pictures that are given are held."""
    loss = trainer.loss_fn
    loss.vae, loss.audio_vae = tiny.tiny_vae().requires_grad_(False), tiny.tiny_audio_vae().requires_grad_(False)
    loss.config.task_weights, loss.config.given_share = {"static": 0.5, "mute": 0.5}, 0.5
    return trainer


def test_no_stage_mixes_devices_or_waits(tmp_path):
    for stage in (1, 2, 3):
        trainer = make_trainer(stage, tmp_path / str(stage), batch_size=2)
        learning, reads = step(trainer if stage < 3 else with_all_that_a_loss_can_hold(trainer))
        assert len(learning) > 20 and not reads, f"stage {stage}"


@pytest.mark.slow
def test_a_lora_learns_there_alone(tmp_path):
    trainer = make_trainer(2, tmp_path)
    trainer.module.requires_grad_(False)
    trainer.module.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"]))
    learning, reads = step(trainer)
    assert learning and all("lora_" in name for name in learning) and not reads


@pytest.mark.slow
def test_validation_makes_its_clips_there(tmp_path):
    tiny.tiny_pipeline().save_pretrained(tmp_path / "model")
    validation = Validation(
        ValidationConfig(str(tmp_path / "model"), ("a red circle",), num_inference_steps=1), tmp_path
    )
    module = TransformerWithText(tiny.tiny_transformer(), tiny.tiny_text_encoder()).eval()
    with torch.no_grad(), on_device() as trace:
        module.to(device())
        trace.counts = lambda: getattr(validation.pipe, "_current_timestep", None) is not None
        assert validation(module, step=1) == {} and not trace.reads
    assert (tmp_path / "step_00000001" / "prompt-0.mp4").is_file()
    assert all(weight.device.type == "cpu" for weight in validation.pipe.vae.parameters())
