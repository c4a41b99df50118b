"""Distillation: the student learns what its teacher does in many guided steps, and the teacher stays as it is."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from baton_diffusers import BatonPipeline
from baton_diffusers.guiders import presets
from baton_diffusers.training.config import DistillationTraining, TrainerConfig
from baton_diffusers.training.distillation import build_loss, build_student, load_shifts, save_student
from baton_diffusers.training.distillation_methods import Crossing
from baton_diffusers.training.trainer import Trainer
from tests import processes, tiny
from tests.training.stages import Features


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    tiny.tiny_pipeline(num_inference_steps=4).save_pretrained(folder)
    return folder


def settings(model, tmp_path, steps=4, gradient_accumulation=1, **changes):
    trainer = TrainerConfig(
        run_dir=str(tmp_path / "run"),
        steps=steps,
        batch_size=4,
        gradient_accumulation=gradient_accumulation,
        learning_rate=1e-2,
        warmup_steps=1,
        ema_decay=0.9,
        log_every=1,
        trackers=(),
    )
    defaults = {
        "student_steps": 2,
        "rank": 2,
        "plan": "encoders",
        "task_weights": {"joint": 1, "a2v": 1, "v2a": 1, "t2v": 1},
        "given_share": 0.5,
        "plan_dropout": 0.3,
    }
    return DistillationTraining(trainer, str(model), "unused", str(tmp_path / "turbo"), **{**defaults, **changes})


def make_trainer(config):
    torch.manual_seed(0)
    student, features = build_student(config), Features(num_clips=8)
    loss, collate = build_loss(config, student, features)
    return Trainer(config.trainer, student, loss, features, collate_fn=collate, save_frozen=False, settings=config)


def trained(trainer):
    return {name: value for name, value in trainer.module.named_parameters() if value.requires_grad}


def test_the_student_becomes_its_teacher_by_heart(model, tmp_path):
    config = settings(
        model, tmp_path, steps=16, student_steps=1, own_share=1.0, rank=12, plan_dropout=0.0, given_share=0.0,
        task_weights={"joint": 1},
    )  # fmt: skip
    trainer = make_trainer(config)
    before = {name: value.clone() for name, value in trainer.module.state_dict().items()}
    batch = next(trainer._batches())
    losses = []
    for step in range(16):
        generator = torch.Generator().manual_seed(0)  # the same noise each time
        loss = trainer.loss_fn(trainer.module, batch, generator, step)["loss"]
        loss.backward()
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    after = trainer.module.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("lora_" in name for name in changed), "the teacher does not move"


@pytest.mark.slow
def test_a_flow_map_comes_nearer_to_its_teacher_in_every_number_of_steps(model, tmp_path):
    config = settings(
        model, tmp_path, method="flow_map", rank=12, own_share=0.5, plan_dropout=0.0, given_share=0.0,
        task_weights={"joint": 1},
    )  # fmt: skip
    trainer = make_trainer(config)
    loss, batch = trainer.loss_fn, next(trainer._batches())
    method = loss.method

    @torch.no_grad()
    def distances():
        """From where the teacher alone goes: in one step, and in each of two."""
        found = []
        for start, end in ((0, 4), (0, 2), (2, 4)):
            loss.method = SimpleNamespace(draw=lambda _, start=start, end=end: Crossing(4, start, end, end, None))
            found.append(loss(trainer.module, batch, torch.Generator().manual_seed(0), 0)["loss"].item())
        loss.method = method
        return found

    before = distances()
    for step in range(80):
        loss(trainer.module, batch, torch.Generator().manual_seed(0), step)["loss"].backward()
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
    assert all(now < 0.7 * then for now, then in zip(distances(), before, strict=True))


@pytest.mark.parametrize("rank", [2, None])
def test_the_target_is_where_the_pipeline_goes(model, tmp_path, rank):
    """With one segment from noise, the target of a fresh student is the pipeline's own clip, whatever the adapter is."""
    config = settings(
        model, tmp_path, student_steps=1, rank=rank, own_share=1.0, plan_dropout=1.0, given_share=0.0,
        task_weights={"joint": 1},
    )  # fmt: skip
    trainer = make_trainer(config)
    loss, walks = trainer.loss_fn, []
    walk = loss._walk

    def recorded(module, clips, grid, state, points, guiders=None):
        walks.append((state, walk(module, clips, grid, state, points, guiders), guiders))
        return walks[-1][1]

    loss._walk = recorded
    for parameter in trained(trainer).values():  # a student that is no longer its teacher
        parameter.data += 0.1
    loss(trainer.module, next(trainer._batches()), torch.Generator().manual_seed(0), 0)
    (noise, target) = next((state, reached) for state, reached, guiders in walks if guiders)
    pipe = BatonPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    output = pipe(
        [Features().clips[0]["prompt"]] * 4,
        latents=noise[0],
        audio_latents=noise[1],
        use_plan=False,
        output_type="latent",
    )
    torch.testing.assert_close(target[0], output.frames, rtol=0, atol=1e-4)
    torch.testing.assert_close(target[1], output.audio, rtol=0, atol=1e-4)


def test_given_parts_stay_and_are_not_supervised(model, tmp_path):
    trainer = make_trainer(settings(model, tmp_path, task_weights={"a2v": 1}, given_share=1.0))
    batch = next(trainer._batches())
    loss, seen = trainer.loss_fn, []
    walk = loss._walk
    loss._walk = lambda module, clips, *arguments: seen.append((clips, walk(module, clips, *arguments))) or seen[-1][1]
    for step in range(4):
        found = loss(trainer.module, batch, torch.Generator().manual_seed(step), step)
        assert found["audio"] == 0 < found["video"]
    for clips, (latents, audio_latents) in seen:
        torch.testing.assert_close(audio_latents, batch["audio_latents"])
        mask = clips.known[0].mask.expand_as(latents)
        assert mask.any() and not mask.all()
        torch.testing.assert_close(latents[mask], batch["latents"][mask])


def test_other_guiders_are_what_is_distilled(model, tmp_path):
    """Guidance by a silent and a still clip needs both autoencoders, and none at all is one pass."""
    pipe = BatonPipeline.from_pretrained(model, **presets()["harmony"])
    pipe.save_pretrained(tmp_path / "harmony")
    losses = []
    for folder in (model, tmp_path / "harmony"):
        trainer = make_trainer(settings(folder, tmp_path, own_share=0.0, task_weights={"joint": 1}, given_share=1.0))
        batch, loss = next(trainer._batches()), trainer.loss_fn
        assert (loss.vae is None) == (folder == model) == (loss.audio_vae is None)
        losses.append(loss(trainer.module, batch, torch.Generator().manual_seed(0), 0)["loss"].item())
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    "changes",
    [{"target_steps": 1}, {"rank": None}, {"method": "flow_map"}],
    ids=["consistency", "full segments", "flow map"],
)
def test_it_resumes_exactly(model, tmp_path, changes):
    whole = make_trainer(settings(model, tmp_path / "whole", **changes))
    whole.fit()
    part = make_trainer(settings(model, tmp_path / "part", **changes))
    batches = part._batches()
    for _ in range(2):
        part._train_step(batches)
    part.save_checkpoint()
    resumed = make_trainer(settings(model, tmp_path / "part", **changes))
    resumed.fit()
    for name, value in trained(whole).items():
        assert torch.equal(value, trained(resumed)[name]), name


@pytest.mark.parametrize("method", ["consistency", "flow_map"])
def test_the_student_is_loaded_with_its_preset_and_unloaded_without_a_trace(model, tmp_path, method):
    config = settings(model, tmp_path, save_dtype="float16", method=method)
    trainer = make_trainer(config)
    save_student(trainer.fit(), config)
    pipe = BatonPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)

    def make():
        return pipe("red circle", generator=torch.Generator().manual_seed(0), output_type="latent").frames

    before = make()
    pipe.load_lora_weights(config.output, adapter_name="turbo")
    pipe.use_preset("turbo")
    assert pipe.config.num_inference_steps == 2 and load_shifts(model) == (3.0, 2.0)
    assert pipe.scheduler.config.shift == 3.0 and not torch.equal(make(), before)
    assert pipe.transformer.config.is_flow_map == (method == "flow_map")
    pipe.unload_lora_weights()
    assert torch.equal(make(), before)


def test_a_flow_map_is_trained_as_it_is_used(model, tmp_path):
    """Where the student crosses from noise to a sample, the pipeline with its adapter gets in one step."""
    config = settings(
        model, tmp_path, method="flow_map", own_share=1.0, plan_dropout=1.0, given_share=0.0, task_weights={"joint": 1}
    )
    trainer = make_trainer(config)
    for name, value in trained(trainer).items():
        value.data = 0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name)))
    loss, walks = trainer.loss_fn, []
    walk = loss._walk
    loss._walk = lambda *arguments: walks.append((arguments, walk(*arguments))) or walks[-1][1]
    for step in range(8):
        loss(trainer.module, next(trainer._batches()), torch.Generator().manual_seed(0), step)
    save_student(trainer.module, config)
    pipe = BatonPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_student(config.output)
    noise, reached = next(
        (state, reached)
        for (_, _, grid, state, points, *_), reached in walks
        if tuple(points) == (0, grid.num_steps) and reached[0].requires_grad
    )
    output = pipe(
        [Features().clips[0]["prompt"]] * 4, latents=noise[0], audio_latents=noise[1], use_plan=False,
        num_inference_steps=1, output_type="latent",
    )  # fmt: skip
    torch.testing.assert_close(reached[0].detach(), output.frames, rtol=0, atol=1e-4)
    torch.testing.assert_close(reached[1].detach(), output.audio, rtol=0, atol=1e-4)


def test_it_starts_from_a_student_of_the_other_method(model, tmp_path):
    first = settings(model, tmp_path / "first")
    student = build_student(first)
    for parameter in student.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1
    save_student(student, first)
    config = settings(model, tmp_path, method="flow_map", initial=first.output, alpha=4)
    started = build_student(config)
    before, after = dict(student.named_parameters()), dict(started.named_parameters())
    for name, value in before.items():
        torch.testing.assert_close(after[name] * (2 if "lora_B" in name else 1), value)
    with pytest.raises(ValueError, match="of rank 2, which this adapter lacks: set `rank` and `targets`"):
        build_student(settings(model, tmp_path, initial=first.output, rank=3))


@pytest.mark.parametrize("method", ["consistency", "flow_map"])
def test_without_an_adapter_it_is_a_pipeline_of_its_own(model, tmp_path, method):
    config = settings(model, tmp_path, rank=None, method=method)
    trainer = make_trainer(config)
    save_student(trainer.fit(), config)
    pipe = BatonPipeline.from_pretrained(config.output)
    assert pipe.config.num_inference_steps == 2 and pipe.guider.guidance_scale == 1.0
    assert not torch.equal(pipe.transformer.proj_out.weight, trainer.module.teacher.proj_out.weight)
    assert pipe.transformer.config.is_flow_map == (method == "flow_map")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"student_steps": 3}, "`teacher_steps` is 4, but must be a multiple of `student_steps`, 3"),
        ({"student_steps": 0}, "`student_steps` must be at least 1, got 0"),
        ({"target_steps": 3}, "`target_steps` is 3, but must divide the 2 steps"),
        ({"method": "dmd"}, "`method` must be one of consistency, flow_map, got 'dmd'"),
        ({"method": "flow_map", "target_steps": 5}, "`target_steps` is 5, but must be from 1 to the teacher's 4"),
        ({"student_steps": 5}, "`student_steps` is 5, but the teacher takes 4 steps"),
        ({"rank": None, "initial": "somewhere"}, "`initial` somewhere is an adapter, but `rank` is null"),
        ({"rank": 0}, "`rank` must be at least 1, or None"),
        ({"save_dtype": "int8"}, "`save_dtype` must be one of"),
        ({"own_share": 2.0}, "`own_share` is a share"),
        ({"huber": 0.0}, "`huber` must be a positive number"),
        ({"task_weights": {"mute": 1.0}}, "`task_weights` names 'mute', an anchor of guidance"),
        ({"cached_text": True, "data_seed": 3}, "`data_seed` 3 paraphrases them"),
        ({"model": "nowhere"}, "'nowhere'.*model_index.json"),
    ],
)
def test_wrong_settings_are_named(model, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        settings(changes.pop("model", model), tmp_path, **changes)


def train(model, tmp_path, method, gradient_accumulation=1):
    make_trainer(settings(model, tmp_path, 6, gradient_accumulation, method=method)).fit()


@pytest.mark.parametrize("method, target_steps", [("consistency", 1), ("consistency", 2), ("flow_map", 1)])
def test_a_step_costs_what_the_benchmark_counts(model, tmp_path, method, target_steps):
    cost = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "training_cost.py"))
    config = settings(
        model, tmp_path, method=method, target_steps=target_steps, given_share=0.0, task_weights={"joint": 1}
    )
    trainer, passes, draws = make_trainer(config), [], 16
    batch = next(trainer._batches())
    trainer.module.register_forward_pre_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    for step in range(draws):
        trainer.loss_fn(trainer.module, batch, torch.Generator().manual_seed(step), step)
    assert sum(passes) == draws
    expected = cost["distillation_forwards"](trainer.loss_fn.method, 2)
    assert (len(passes) - draws) / draws == pytest.approx(expected, rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["consistency", "flow_map"])
def test_two_processes_make_the_losses_of_one(model, tmp_path, method):
    train(model, tmp_path / "one", method, 2)
    processes.run_together(2, train, model, tmp_path / "two", method)
    rows = [(tmp_path / name / "run" / "log.csv").read_text().splitlines() for name in ("one", "two")]
    for one, two in zip(*rows, strict=True):
        one, two = (
            [value for i, value in enumerate(row.split(",")) if i != 2] for row in (one, two)
        )  # but the seconds
        assert one[0] == two[0]
        if one[0] != "step":
            assert [float(value) for value in two] == pytest.approx([float(value) for value in one], rel=1e-4)
