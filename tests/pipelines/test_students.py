"""Few steps: grids of one's own, and students whose presets set steps, schedulers and guiders."""

import pytest
import torch
from diffusers import FlowMapEulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from baton_diffusers import BatonPipeline
from baton_diffusers.pipelines.lora import save_adapter
from baton_diffusers.pipelines.students import StudentPreset

from ..models.test_lora_conversion import VIDEO, random_lora
from .calls import assert_same, differ, make, record


SCHEDULERS = "scheduler", "audio_scheduler"


@pytest.fixture
def turbo(tmp_path, own_pipe):
    """The folder of a student of 3 steps."""
    layers = {}
    for name, (down, up, _) in random_lora(own_pipe.transformer, VIDEO).items():
        layers |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    save_adapter(tmp_path / "turbo", layers, {"r": 2, "lora_alpha": 2}, StudentPreset(3, 1.5, 2.5))
    return tmp_path / "turbo"


@pytest.fixture
def flow_map(tmp_path, own_pipe):
    """The folder of a student of any number of steps, which is given the end of each."""
    layers, generator = {}, torch.Generator().manual_seed(3)
    for name, (down, up, _) in random_lora(own_pipe.transformer, VIDEO).items():
        layers |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    size = own_pipe.transformer.condition_embedder.time_embedder.linear_1.weight.shape
    for embedder in ("condition_embedder", "audio_condition_embedder"):
        layers[f"{embedder}.step_embedder.lora_A.weight"] = torch.randn(2, size[1], generator=generator)
        layers[f"{embedder}.step_embedder.lora_B.weight"] = torch.randn(size[0], 2, generator=generator)
    save_adapter(tmp_path / "flow_map", layers, {"r": 2, "lora_alpha": 2}, StudentPreset(3, 1.5, 2.5))
    return tmp_path / "flow_map"


def warnings(caplog):
    """What this package warned of; diffusers says of every guider that it is an experiment."""
    return [record.message for record in caplog.records if record.name.startswith("baton_diffusers")]


def test_every_number_of_steps_makes_a_clip_and_its_own_grid_makes_the_same(pipe):
    for steps in range(1, 17):
        output = make(pipe, num_inference_steps=steps, output_type="latent")
        assert output.frames.isfinite().all() and output.audio.isfinite().all()
        if steps in (3, 4):
            grid = [1 - i / steps for i in range(steps)]
            assert_same(make(pipe, sigmas=grid, output_type="latent"), output, atol=1e-4)
    uneven = make(pipe, sigmas=[1.0, 0.9, 0.1], output_type="latent")
    assert differ(uneven, make(pipe, num_inference_steps=3, output_type="latent"))


def test_timesteps_are_those_of_both_modalities(own_pipe):
    calls = record(own_pipe.transformer)
    make(own_pipe, timesteps=[1000, 400], output_type="latent")
    for name in ("timestep", "audio_timestep"):
        assert [round(call[name][0].item()) for call in calls[::2]] == [1000, 400]


def test_a_preset_sets_what_belongs_to_its_student_and_is_taken_back(own_pipe, turbo, caplog):
    before, guider = make(own_pipe, output_type="latent"), own_pipe.guider
    own_pipe.load_lora_weights(turbo, adapter_name="turbo")
    own_pipe.use_preset("turbo")
    assert own_pipe.config.num_inference_steps == 3
    assert (own_pipe.scheduler.config.shift, own_pipe.audio_scheduler.config.shift) == (1.5, 2.5)
    calls = record(own_pipe.transformer)
    student = make(own_pipe, output_type="latent")
    assert len(calls) == 3 and differ(student, before) and not warnings(caplog)
    assert_same(make(own_pipe, output_type="latent"), student)
    own_pipe.use_preset("turbo")  # twice changes nothing
    assert_same(make(own_pipe, output_type="latent"), student)

    own_pipe.use_preset(None)
    assert own_pipe.guider is guider and own_pipe.config.num_inference_steps == 2
    for remove in (own_pipe.unload_lora_weights, lambda: own_pipe.delete_adapters("turbo")):
        if not own_pipe.get_list_adapters():
            own_pipe.load_lora_weights(turbo, adapter_name="turbo")
        own_pipe.use_preset("turbo")
        remove()
        assert own_pipe.guider is guider
        assert_same(make(own_pipe, output_type="latent"), before)
        with pytest.raises(ValueError, match="no adapter 'turbo' with a preset is loaded, only none"):
            own_pipe.use_preset("turbo")


def test_a_student_is_loaded_with_its_preset_or_not_at_all(own_pipe, turbo, tmp_path):
    own_pipe.load_student(turbo)
    assert own_pipe.config.num_inference_steps == 3 and own_pipe.get_list_adapters() == {"transformer": ["turbo"]}
    own_pipe.unload_lora_weights()
    before = make(own_pipe, output_type="latent")
    down, up, _ = random_lora(own_pipe.transformer, VIDEO[:1])[VIDEO[0]]
    layers = {f"{VIDEO[0]}.lora_A.weight": down, f"{VIDEO[0]}.lora_B.weight": up}
    save_adapter(tmp_path / "plain", layers, {"r": 2, "lora_alpha": 2})
    with pytest.raises(ValueError, match="plain is an adapter without a preset"):
        own_pipe.load_student(tmp_path / "plain")
    assert_same(make(own_pipe, output_type="latent"), before)
    for nowhere in ("nowhere", "/a/b/c", "a/b/c/d"):
        with pytest.raises(ValueError, match=f"the student '{nowhere}' is neither a folder nor a Hub id"):
            own_pipe.load_student(nowhere)


def test_a_fused_student_is_the_pipeline_itself(own_pipe, turbo, tmp_path):
    own_pipe.load_student(turbo)
    student = make(own_pipe, output_type="latent")
    own_pipe.unload_lora_weights()
    own_pipe.load_student(turbo, fuse=True)
    assert not own_pipe.get_list_adapters()
    assert_same(make(own_pipe, output_type="latent"), student, atol=1e-4)
    own_pipe.save_pretrained(tmp_path / "saved")
    saved = BatonPipeline.from_pretrained(tmp_path / "saved")
    saved.set_progress_bar_config(disable=True)
    assert_same(make(saved, output_type="latent"), student, atol=1e-4)


def test_a_flow_map_is_given_the_end_of_each_step(own_pipe, flow_map):
    own_pipe.load_student(flow_map)
    calls = record(own_pipe.transformer)
    for steps in (1, 2, 5):
        make(own_pipe, num_inference_steps=steps, output_type="latent")
    make(own_pipe, timesteps=[1000, 300], output_type="latent")
    first = 0
    for steps in (1, 2, 5, 2):
        own, first = calls[first : first + steps], first + steps
        for name in ("timestep", "audio_timestep"):
            begins, ends = ([call[key][0].item() for call in own] for key in (name, name.replace("time", "next_time")))
            assert ends == [*begins[1:], 0.0]


def test_given_parts_of_a_clip_take_no_step(own_pipe, flow_map):
    own_pipe.load_student(flow_map)
    calls = record(own_pipe.transformer)
    image = torch.rand(3, 16, 16)
    make(own_pipe, image=image, num_inference_steps=2, output_type="latent")
    for call in calls:
        assert (call["timestep"][0, 0], call["next_timestep"][0, 0]) == (0, 0)
        assert (call["timestep"][0, 1:] > call["next_timestep"][0, 1:]).all()


def test_a_flow_map_leaves_no_trace(own_pipe, flow_map, turbo, tmp_path):
    before = make(own_pipe, output_type="latent")
    own_pipe.load_student(flow_map)
    student = make(own_pipe, output_type="latent")
    own_pipe.use_preset(None)
    own_pipe.disable_lora()
    assert_same(make(own_pipe, output_type="latent"), before)
    for remove in (lambda: own_pipe.delete_adapters("turbo"), own_pipe.unload_lora_weights):
        own_pipe.enable_lora()
        own_pipe.load_lora_weights(turbo, adapter_name="other")
        own_pipe.set_adapters("other")
        own_pipe.delete_adapters("other")
        assert own_pipe.transformer.config.is_flow_map, "the flow map's adapter is still there"
        remove()
        assert not own_pipe.transformer.config.is_flow_map
        assert_same(make(own_pipe, output_type="latent"), before)
        own_pipe.load_student(flow_map)
        assert_same(make(own_pipe, output_type="latent"), student)


def test_a_fused_flow_map_is_the_pipeline_itself(own_pipe, flow_map, tmp_path):
    own_pipe.load_student(flow_map)
    student = make(own_pipe, output_type="latent")
    own_pipe.unload_lora_weights()
    own_pipe.load_student(flow_map, fuse=True)
    assert_same(make(own_pipe, output_type="latent"), student, atol=1e-4)
    own_pipe.save_pretrained(tmp_path / "saved")
    saved = BatonPipeline.from_pretrained(tmp_path / "saved")
    saved.set_progress_bar_config(disable=True)
    assert_same(make(saved, output_type="latent"), student, atol=1e-4)
    saved.unload_lora_weights()
    assert saved.transformer.config.is_flow_map, "a checkpoint that is a flow map stays one"


def test_flow_maps_take_diffusers_scheduler_for_them_too(own_pipe, flow_map, caplog):
    own_pipe.load_student(flow_map)
    student = make(own_pipe, output_type="latent")
    schedulers = {
        name: FlowMapEulerDiscreteScheduler(shift=getattr(own_pipe, name).config.shift) for name in SCHEDULERS
    }
    own_pipe.register_modules(**schedulers)
    assert_same(make(own_pipe, output_type="latent"), student, atol=1e-3)
    assert not warnings(caplog)
    solver = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    own_pipe.register_modules(**{name: UniPCMultistepScheduler(**solver) for name in SCHEDULERS})
    make(own_pipe, output_type="latent")
    (message,) = warnings(caplog)
    assert (
        "takes Euler's steps, but `scheduler` is a `UniPCMultistepScheduler`: call `pipe.use_preset('turbo')`"
        in message
    )


def test_a_compiled_transformer_keeps_its_students(own_pipe, turbo):
    own_pipe.load_lora_weights(turbo, adapter_name="turbo")
    own_pipe.transformer = torch.compile(own_pipe.transformer)
    own_pipe.use_preset("turbo")
    assert own_pipe.config.num_inference_steps == 3


def test_a_student_replaces_a_solver_of_higher_order(own_pipe, turbo):
    solver = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    own_pipe.register_modules(
        scheduler=UniPCMultistepScheduler(**solver), audio_scheduler=UniPCMultistepScheduler(**solver)
    )
    own_pipe.load_lora_weights(turbo, adapter_name="turbo")
    own_pipe.use_preset("turbo")
    assert isinstance(own_pipe.scheduler, FlowMatchEulerDiscreteScheduler)
    assert own_pipe.scheduler is not own_pipe.audio_scheduler


def test_a_pipeline_is_saved_as_its_teacher(own_pipe, turbo, tmp_path):
    own_pipe.load_lora_weights(turbo, adapter_name="turbo")
    own_pipe.use_preset("turbo")
    student = make(own_pipe, output_type="latent")
    own_pipe.save_pretrained(tmp_path / "saved")
    assert_same(make(own_pipe, output_type="latent"), student)
    saved = BatonPipeline.from_pretrained(tmp_path / "saved")
    assert saved.config.num_inference_steps == 2 and saved.guider.guidance_scale == 4.0
    # The transformer of another pipeline brings its students along.
    other = BatonPipeline(**own_pipe.components)
    other.use_preset("turbo")
    other.set_progress_bar_config(disable=True)
    assert_same(make(other, output_type="latent"), student)


def test_warnings_say_what_to_set(own_pipe, turbo, caplog):
    own_pipe.load_lora_weights(turbo, adapter_name="turbo")
    make(own_pipe, output_type="latent")
    (message,) = warnings(caplog)
    assert "'turbo' was distilled to need no guidance, but the guiders take 4 passes for 2 steps" in message
    assert "`pipe.use_preset('turbo')`" in message
    caplog.clear()
    own_pipe.disable_lora()
    make(own_pipe, output_type="latent")
    assert not warnings(caplog), "an adapter that is off is no student"
    own_pipe.enable_lora()
    own_pipe.unload_lora_weights()
    own_pipe.register_to_config(num_inference_steps=16)
    make(own_pipe, output_type="latent", num_inference_steps=4)
    assert "4 steps are few for this checkpoint, which takes 16 by default" in warnings(caplog)[0]


@pytest.mark.parametrize(
    "values, message",
    [
        ({"num_inference_steps": 0}, "`num_inference_steps` is 0"),
        ({"num_inference_steps": "4"}, "`num_inference_steps` is '4'"),
        ({"shift": float("nan")}, "`shift` is nan"),
        ({"audio_shift": -1.0}, "`audio_shift` is -1.0"),
        ({"more": 1}, "must have num_inference_steps, shift, audio_shift there"),
    ],
)
def test_damaged_presets_are_refused_before_anything_changes(own_pipe, values, message):
    with pytest.raises(ValueError, match=message):
        StudentPreset.read({"student": {"num_inference_steps": 4, "shift": 1.0, "audio_shift": 1.0, **values}})
