"""LoRA: trained on a few clips, loaded into the pipeline, taken out again without a trace."""

import numpy as np
import pytest
import torch

from baton_diffusers.training.config import LoraTraining, TrainerConfig
from baton_diffusers.training.flow_matching import FeatureCollator, FlowMatchingLoss
from baton_diffusers.training.lora import build_lora, save_lora
from baton_diffusers.training.trainer import Trainer
from tests import tiny
from tests.training.stages import Features


@pytest.fixture(scope="module")
def pipe():
    return tiny.tiny_pipeline()


@pytest.fixture(scope="module")
def model(tmp_path_factory, pipe):
    folder = tmp_path_factory.mktemp("pipeline")
    pipe.save_pretrained(folder)
    return folder


def settings(model, tmp_path, **changes):
    trainer = {
        "steps": 6,
        "batch_size": 5,
        "learning_rate": 1e-2,
        "warmup_steps": 1,
        "ema_decay": None,
        "trackers": (),
    }
    defaults = {
        "model": str(model),
        "features": "unused",
        "output": str(tmp_path / "lora"),
        "rank": 2,
        "plan": "encoders",
    }
    return LoraTraining(TrainerConfig(run_dir=str(tmp_path / "run"), **trainer), **{**defaults, **changes})


def train(config, steps=6):
    config.trainer.steps = steps
    torch.manual_seed(0)
    module = build_lora(config)
    features = Features(num_clips=10)
    collate = FeatureCollator(config.transformer_training().max_sequence_length, tiny.tiny_tokenizer())
    loss = FlowMatchingLoss(config.transformer_training(), features)
    return Trainer(config.trainer, module, loss, features, collate_fn=collate, save_frozen=False)


@pytest.fixture(scope="module")
def lora(model, tmp_path_factory):
    config = settings(model, tmp_path_factory.mktemp("training"))
    trainer = train(config)
    before = {name: value.clone() for name, value in trainer.module.state_dict().items()}
    save_lora(trainer.fit(), config.output)
    after = trainer.module.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("lora_" in name for name in changed), "nothing but the adapters learns"
    return config.output


def run(pipe):
    result = pipe("red circle", generator=torch.Generator().manual_seed(0), output_type="np")
    return result.clip()


def test_a_lora_changes_the_output_and_unloading_restores_it(pipe, lora):
    weights = {name: value.clone() for name, value in pipe.transformer.state_dict().items()}
    frames, waveform = run(pipe)

    pipe.load_lora_weights(lora, adapter_name="mine")
    assert pipe.get_list_adapters() == {"transformer": ["mine"]}
    changed_frames, changed_waveform = run(pipe)
    assert not np.array_equal(changed_frames, frames) and not np.array_equal(changed_waveform, waveform)

    pipe.set_adapters("mine", 0.0)
    for a, b in zip(run(pipe), (frames, waveform), strict=True):
        np.testing.assert_array_equal(a, b)
    pipe.set_adapters("mine", 1.0)
    pipe.fuse_lora()
    for a, b in zip(run(pipe), (changed_frames, changed_waveform), strict=True):
        np.testing.assert_allclose(a.astype(float), b.astype(float), atol=2)
    pipe.unfuse_lora()

    pipe.unload_lora_weights()
    pipe.transformer.load_state_dict(weights)  # what fusing and unfusing rounded
    for a, b in zip(run(pipe), (frames, waveform), strict=True):
        np.testing.assert_array_equal(a, b)
    pipe.load_lora_weights(lora)
    pipe.unload_lora_weights()
    for name, value in pipe.transformer.state_dict().items():
        assert torch.equal(value, weights[name]), name
    for a, b in zip(run(pipe), (frames, waveform), strict=True):
        np.testing.assert_array_equal(a, b)

    with pytest.raises(ValueError, match="no layer of this LoRA is one of the transformer's: the file has 'unet.x'"):
        pipe.load_lora_weights({"unet.x.lora_A.weight": torch.zeros(1, 1)})


def test_checkpoints_hold_the_adapters_alone_and_resume(model, tmp_path):
    whole = train(settings(model, tmp_path / "whole"))
    whole.fit()
    config = settings(model, tmp_path / "part")
    part = train(config)
    for _ in range(2):
        part._train_step(part._batches())
    state = torch.load(part.save_checkpoint())
    trained = {name for name, value in part.module.named_parameters() if value.requires_grad}
    assert trained and set(state["module"]) & {name for name, _ in part.module.named_parameters()} == trained
    resumed = train(config)
    assert resumed.resume() and resumed.step == 2
    resumed.fit()
    for a, b in zip(whole.module.parameters(), resumed.module.parameters(), strict=True):
        assert torch.equal(a, b)


def test_with_cached_text_the_text_encoder_is_not_loaded(model, tmp_path):
    config = settings(model, tmp_path, cached_text=True)
    assert build_lora(config).text_encoder is None and build_lora(settings(model, tmp_path)).text_encoder is not None
    training = config.transformer_training()
    assert training.text_encoder is None and training.tokenizer is None and training.data_seed is None


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"rank": 0}, "`rank`"),
        ({"dtype": "int8"}, "`dtype` is 'int8'"),
        ({"model": "nowhere"}, "'nowhere'.*model_index.json"),
        ({"loss": {"rank": 3}}, "`loss` has rank"),
        ({"targets": ("to_nowhere",)}, "to_nowhere"),
    ],
)
def test_wrong_settings_are_named(model, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        config = settings(changes.pop("model", model), tmp_path, **changes)
        config.transformer_training()
        build_lora(config)


def test_a_lora_is_not_overwritten(model, lora, tmp_path):
    with pytest.raises(ValueError, match="holds a LoRA already"):
        settings(model, tmp_path, output=lora)
