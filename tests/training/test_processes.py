"""Training in several processes, and in processes that are killed: the same losses as in one that runs through.

All are long for what they check, since processes have to start: run with `pytest -m slow tests/training/test_processes.py`.
"""

import csv
import random
import time
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import yaml
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from baton_diffusers.models.transformer_dual_branch import DualBranchTransformer
from baton_diffusers.models.va_planner import VAPlannerModel
from baton_diffusers.stage.clips import StageClips
from baton_diffusers.training.average import WeightAverage
from baton_diffusers.training.data.cache import cache_features
from tests import processes, stage_parts
from tests.training.stages import STAGES, make_trainer, train


ACCELERATE = Path(__file__).parents[2] / "examples" / "accelerate"
# as the comments of the configuration files say
PLANNER_LAYERS = "Qwen3DecoderLayer,DualAlignmentBlock"
LAYERS_WITH_TEXT = "DualBranchTransformerBlock,UMT5Block"


def rows(run_dir):
    with open(run_dir / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


def losses(run_dir):
    known = ("step", "samples", "seconds", "learning_rate")
    return {int(row["step"]): [float(v) for k, v in row.items() if k not in known] for row in rows(run_dir)}


def test_the_stages_learn_from_different_plans(tmp_path):
    """Or what holds of one stage would say nothing of another."""
    losses = []
    for stage in (2, 3):
        trainer = make_trainer(stage, tmp_path / str(stage))
        batch = next(trainer._batches())
        losses.append(trainer.loss_fn(trainer.module, batch, torch.Generator().manual_seed(0), 0)["loss"].item())
    assert abs(losses[0] - losses[1]) > 1e-3 * losses[0]  # a hundred times what may differ between processes


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_make_the_losses_of_one(tmp_path, stage):
    train(stage, tmp_path / "one", gradient_accumulation=2)
    processes.run_together(2, train, stage, tmp_path / "two")
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert list(one) == list(two) == list(range(1, 21))
    for step in one:
        assert two[step] == pytest.approx(one[step], rel=1e-5), step


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_five_moments_a_run_makes_the_losses_of_one_that_was_not(tmp_path, stage):
    settings = {"steps": 60, "checkpoint_every": 4, "ema_decay": 0.9}
    train(stage, tmp_path / "whole", **settings)
    rng, run_dir = random.Random(stage), tmp_path / "killed"
    reached = 0
    for _ in range(5):
        process = processes.start(train_slowly, stage, run_dir, settings)
        target = reached + rng.randint(2, 11)
        while process.is_alive() and reached < target:
            time.sleep(0.01)
            reached = len(rows(run_dir)) if (run_dir / "log.csv").exists() else 0
        process.join(rng.uniform(0, 0.1))
        assert process.is_alive(), "it should have been killed before its end"
        process.kill()
        process.join()
    train(stage, run_dir, **settings)

    whole, resumed = losses(tmp_path / "whole"), losses(run_dir)
    assert list(whole) == list(resumed) == list(range(1, 61))
    for step in whole:
        assert resumed[step] == pytest.approx(whole[step], rel=1e-6), step
    states = [make_trainer(stage, folder, **settings) for folder in (tmp_path / "whole", run_dir)]
    assert all(state.resume() and state.step == 60 for state in states)
    for a, b in zip(*(state.trained_module().parameters() for state in states), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    assert not list(run_dir.rglob("*.tmp"))


def train_slowly(stage, run_dir, settings):
    # As fast as it can be, a run would be over before it is killed.
    trainer = make_trainer(stage, run_dir, **settings)
    step = trainer._train_step

    def slow_step(batches):
        time.sleep(0.05)
        return step(batches)

    trainer._train_step = slow_step
    trainer.fit()


@pytest.mark.slow
def test_killed_at_five_moments_a_cache_ends_with_the_same_bytes(tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    cache(whole)
    rng, finished = random.Random(0), {}
    for number in range(5):
        process = processes.start(cache, folder)
        while process.is_alive() and len(list(folder.glob("*.index.json"))) < number:
            time.sleep(0.01)
        process.join(rng.uniform(0.02, 0.15))
        assert process.is_alive(), "it should have been killed before its end"
        process.kill()
        process.join()
        for index in folder.glob("*.index.json"):
            shard = index.with_name(index.name.replace(".index.json", ".tar"))
            finished.setdefault(shard, shard.stat().st_mtime_ns)
    assert finished and not (folder / "manifest.json").exists()
    cache(folder)
    for shard, written in finished.items():
        assert shard.stat().st_mtime_ns == written, "its clips were read twice"
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {p.name: p.read_bytes() for p in whole.iterdir()}


def cache(folder):
    models = (*stage_parts.codecs(), *stage_parts.semantic_encoders())
    cache_features(folder, StageClips("train"), 60, *models, 16.0, 31.25, clips_per_shard=2)


@pytest.mark.slow
@pytest.mark.parametrize("stage", (1, 2))
def test_fsdp_spreads_every_layer_over_two_processes(tmp_path, stage):
    # Given an FSDP plugin on a CPU, accelerate falls back to DDP without a word: so torch's own fully_shard is asked.
    layers = LAYERS_WITH_TEXT if stage == 2 else PLANNER_LAYERS
    processes.run_together(2, shard_and_compare, stage, tmp_path, layers.split(","))


def shard_and_compare(stage, folder, layers):
    trainer = make_trainer(stage, folder)  # joins the processes
    shared = [next(trainer._batches())]
    dist.broadcast_object_list(shared)  # with the same samples in both, their mean gradient is that of one

    def gradients(module):
        module.zero_grad()
        loss = trainer.loss_fn(module, shared[0], torch.Generator().manual_seed(0), 0)["loss"]
        loss.backward()
        return loss.item(), {name: p.grad for name, p in module.named_parameters() if p.grad is not None}

    module = trainer.module
    expected_loss, expected = gradients(module)
    assert len(expected) > 0.9 * len(list(module.parameters()))

    mesh = init_device_mesh("cpu", (2,))
    wrapped = [part for part in module.modules() if type(part).__name__ in layers]
    assert {type(part).__name__ for part in wrapped} == set(layers)
    for part in (*wrapped, module):
        fully_shard(part, mesh=mesh)
    for name, value in module.named_parameters():
        assert isinstance(value, DTensor), name
        assert value.shape[0] == 1 or value.to_local().numel() < value.numel(), name
    loss, found = gradients(module)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert set(found) >= set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name].full_tensor(), value, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_each_process_averages_its_own_shards():
    processes.run_together(2, average_and_compare)


def average_and_compare():
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    whole = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Linear(8, 3))
    shared = deepcopy(whole)
    fully_shard(shared, mesh=init_device_mesh("cpu", (2,)))
    averages = [WeightAverage(module, 0.9) for module in (whole, shared)]
    for step in range(5):
        for module, average in zip((whole, shared), averages, strict=True):
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.mul_(1 + 0.1 * step)
            average.update(step)
    weights = [value.full_tensor() for value in shared.parameters()]
    with averages[0].applied(), averages[1].applied():
        for expected, value in zip(whole.parameters(), shared.parameters(), strict=True):
            assert isinstance(value, DTensor)
            torch.testing.assert_close(value.full_tensor(), expected.detach())
    for before, value in zip(weights, shared.parameters(), strict=True):
        assert torch.equal(value.full_tensor(), before), "the weights are back"


def test_the_wrapped_layers_are_the_models_own():
    for name in ("eight_gpus_fsdp2.yaml", "nodes_fsdp2.yaml"):
        layers = yaml.safe_load((ACCELERATE / name).read_text())["fsdp_config"]["fsdp_transformer_layer_cls_to_wrap"]
        assert layers.split(",") == DualBranchTransformer._no_split_modules
    assert set(VAPlannerModel._no_split_modules) == set(PLANNER_LAYERS.split(","))


@pytest.mark.parametrize("path", sorted(ACCELERATE.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_its_configuration_files(path):
    from accelerate.commands.config.config_args import load_config_from_file

    load_config_from_file(str(path))  # refuses keys that it does not know
