"""What a training of the transformer starts from, and what it exports."""

from dataclasses import replace

import pytest
import torch

from baton_diffusers.training.flow_matching import FlowMatchingLoss
from baton_diffusers.training.trainer import Trainer
from baton_diffusers.training.transformer import build_transformer, export_transformer, parameter_groups
from tests.training.stages import COLLATE, Features, transformer_training


def test_a_few_steps_lower_the_loss_and_the_export_loads(tmp_path):
    settings = transformer_training(tmp_path)
    torch.manual_seed(0)
    module = build_transformer(settings)
    features = Features()
    loss = FlowMatchingLoss(settings, features)
    batch = COLLATE([features[index] for index in range(4)])

    def mean_loss():
        seeds = range(8)
        return sum(loss(module, batch, torch.Generator().manual_seed(seed), 0)["loss"].item() for seed in seeds) / 8

    with torch.no_grad():
        before = mean_loss()
    trained = Trainer(settings.trainer, module, loss, features, collate_fn=COLLATE).fit()
    with torch.no_grad():
        assert mean_loss() < 0.97 * before
    export_transformer(trained, tmp_path / "export")
    loaded = type(trained.transformer).from_pretrained(tmp_path / "export" / "transformer")
    for name, value in trained.transformer.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name

    continued = build_transformer(transformer_training(tmp_path, initial=str(tmp_path / "export")))
    assert all(torch.equal(a, b) for a, b in zip(continued.parameters(), trained.parameters(), strict=True))
    other = transformer_training(tmp_path, initial=str(tmp_path / "export"))
    other.transformer["ffn_dim"] *= 2
    with pytest.raises(ValueError, match="blocks.0.ffn.*same configuration"):
        build_transformer(other)


@pytest.mark.parametrize(
    "older_changes, changes, new_layers",
    [
        ({"video_plan_dim": None, "audio_plan_dim": None}, {}, ["plan"]),  # as Ovi's weights, without plan layers
        ({}, {"num_context_tokens": 2}, ["context_tokens"]),
    ],
)
def test_an_older_checkpoint_may_lack_the_new_layers_and_nothing_else(tmp_path, older_changes, changes, new_layers):
    torch.manual_seed(0)
    older = build_transformer(transformer_training(transformer=older_changes))
    export_transformer(older, tmp_path)

    torch.manual_seed(1)
    arguments = {"initial": str(tmp_path), "transformer": changes, "new_layers": new_layers}
    settings = transformer_training(**arguments, new_layers_learning_rate=1e-1)
    newer = build_transformer(settings)
    old_weights, weights = older.state_dict(), newer.state_dict()
    fresh = weights.keys() - old_weights.keys()
    assert fresh and all(any(part in name for part in new_layers) for name in fresh)
    assert all(torch.equal(weights[name], value) for name, value in old_weights.items())
    torch.manual_seed(1)
    initialised = build_transformer(transformer_training(transformer=changes)).state_dict()
    assert all(torch.equal(weights[name], initialised[name]) for name in fresh)

    groups = parameter_groups(newer, settings)
    rates = {id(p): group.get("lr", settings.trainer.learning_rate) for group in groups for p in group["params"]}
    assert len(rates) == len(list(newer.parameters()))
    for name, parameter in newer.named_parameters():
        assert rates[id(parameter)] == (1e-1 if name in fresh else 1e-2), name
    assert parameter_groups(newer, transformer_training()) is None

    with pytest.raises(ValueError, match=f"{new_layers[0]}.*same configuration"):
        build_transformer(transformer_training(**{**arguments, "new_layers": ()}))
    with pytest.raises(ValueError, match="'adapter'"):
        parameter_groups(newer, transformer_training(new_layers=["adapter"], new_layers_learning_rate=1e-3))

    export_transformer(newer, tmp_path / "newer")
    with pytest.raises(ValueError, match=f"{new_layers[0]}.*same configuration"):
        build_transformer(
            transformer_training(initial=str(tmp_path / "newer"), transformer=older_changes, new_layers=new_layers)
        )


def test_fresh_layers_start_anew_on_towers_that_are_kept(tmp_path):
    torch.manual_seed(0)
    older = build_transformer(transformer_training(transformer={"num_context_tokens": 2}))
    export_transformer(older, tmp_path)
    old_weights = older.state_dict()

    torch.manual_seed(1)
    parts = ["fusion", "context_tokens"]
    arguments = {"initial": str(tmp_path), "fresh_layers": parts, "new_layers": ()}
    newer = build_transformer(
        transformer_training(**arguments, transformer={"num_context_tokens": 0})
    )  # and context tokens may go
    torch.manual_seed(1)
    initialised = build_transformer(transformer_training(transformer={"num_context_tokens": 0})).state_dict()
    for name, value in newer.state_dict().items():
        source = initialised if any(part in name for part in parts) else old_weights
        assert torch.equal(value, source[name]), name
    assert any("fusion" in name for name in initialised)

    with pytest.raises(ValueError, match="context_tokens.*same configuration"):
        build_transformer(
            transformer_training(**{**arguments, "fresh_layers": ["fusion"]}, transformer={"num_context_tokens": 0})
        )
    with pytest.raises(ValueError, match="`fresh_layers` names 'adapter'"):
        build_transformer(
            transformer_training(**{**arguments, "fresh_layers": ["adapter"]}, transformer={"num_context_tokens": 2})
        )


def test_a_text_encoder_that_reads_already_takes_the_place_of_the_first(tmp_path):
    torch.manual_seed(0)
    older, reader = build_transformer(transformer_training()), build_transformer(transformer_training()).text_encoder
    export_transformer(older, tmp_path)
    reader.save_pretrained(tmp_path / "reader")
    settings = {"initial": str(tmp_path), "initial_text_encoder": str(tmp_path / "reader")}
    for initial, transformer in ((str(tmp_path), older.transformer), (None, None)):
        built = build_transformer(transformer_training(**{**settings, "initial": initial}))
        for name, value in reader.state_dict().items():
            assert torch.equal(built.text_encoder.state_dict()[name], value), name
        for name, value in ({} if transformer is None else transformer.state_dict()).items():
            assert torch.equal(built.transformer.state_dict()[name], value), name
    with pytest.raises(ValueError, match="`initial_text_encoder` is .*leave it out"):
        replace(transformer_training(**settings), text_encoder=None, tokenizer=None, data_seed=None)
