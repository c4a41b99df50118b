"""diffusers' own checks of a model and of a pipeline, run on tiny ones of ours from a checkout of its repository.

    git clone https://github.com/huggingface/diffusers ../diffusers
    DIFFUSERS_CHECKOUT=../diffusers python -m pytest tests/diffusers_checks.py

Nothing here is collected without being named. The checks are those of `tests/models/testing_utils`,
`tests/pipelines/testing_utils` and `tests/modular_pipelines/testing_utils` there; the package that they judge is the installed one. Most of those about memory,
compilation, training and quantisation skip themselves where there is no accelerator. Some of them a processor can run, if
it is given to them under a name that is not "cpu"; the rest fails there, for want of streams, memory limits or kernels:

    DIFFUSERS_TEST_DEVICE=cpu:0 ... tests/diffusers_checks.py -k "Training or layerwise or TorchAo or pipeline_level_group"

What is not for us is said where it stands: a check that says nothing about our classes is replaced by a skip with the
reason. Left out altogether are

- IP adapters: the model has none;
- tensor parallelism: there is no `_tp_plan`;
- single files: those are of checkpoints on the Hub that diffusers converts; ours are Ovi's (`tests/models/test_ovi_fixtures.py`);
- GGUF, Quanto, ModelOpt, SDNQ, AutoRound and Nunchaku: not promised;
- MagCache, FasterCache, Pyramid Attention Broadcast, and TaylorSeer's lite mode, which the pipeline's check of it takes:
  refused by `DualBranchTransformer.enable_cache`, which says why.
"""

import functools
import importlib.util
import os
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from baton_diffusers import BatonAutoBlocks, BatonModularPipeline, BatonPipeline
from baton_diffusers.models.semantic_encoders import AudioSemanticEncoder, VideoSemanticEncoder
from baton_diffusers.models.transformer_dual_branch import DualBranchTransformer
from baton_diffusers.models.va_planner import VAPlannerModel

from .tiny import (
    AUDIO_LATENTS,
    DURATION,
    LATENTS,
    NUM_FRAMES,
    SIZE,
    TEXT_DIM,
    random_plan,
    tiny_audio_semantic_encoder,
    tiny_pipeline,
    tiny_planner,
    tiny_trained_vocoder,
    tiny_transformer,
    tiny_video_semantic_encoder,
)


CHECKOUT = Path(os.environ.get("DIFFUSERS_CHECKOUT", ""))
if not (CHECKOUT / "tests" / "models" / "testing_utils").is_dir():
    pytest.skip(
        "`DIFFUSERS_CHECKOUT` names no checkout of diffusers' repository with its tests", allow_module_level=True
    )

# Under a name of its own, since our tests are a package `tests` too.
_spec = importlib.util.spec_from_file_location(
    "diffusers_tests", CHECKOUT / "tests" / "__init__.py", submodule_search_locations=[str(CHECKOUT / "tests")]
)
sys.modules["diffusers_tests"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sys.modules["diffusers_tests"])

from diffusers_tests.models import testing_utils as of_models  # noqa: E402
from diffusers_tests.modular_pipelines import testing_utils as of_modular  # noqa: E402
from diffusers_tests.pipelines import testing_utils as of_pipelines  # noqa: E402
from diffusers_tests.testing_utils import enable_full_determinism, torch_device  # noqa: E402


enable_full_determinism()


def not_for_us(reason):
    """Takes the place of a check that says nothing about us."""

    def check(self):
        pytest.skip(reason)

    return check


def arguments(model):
    """What a model was made with."""
    return {name: value for name, value in model.config.items() if not name.startswith("_")}


# The transformer, in its full form: a plan, context tokens, windows


FULL = {"num_layers": 2, "num_context_tokens": 4, "cross_modal_window": 1, "audio_cross_modal_window": 1}


class Transformer(of_models.BaseModelTesterConfig):
    model_class = DualBranchTransformer
    main_input_name = "hidden_states"
    output_shape = LATENTS
    different_shapes_for_compilation = [(4, 4), (4, 8), (8, 8)]

    def get_init_dict(self):
        return arguments(tiny_transformer(**FULL))

    def get_dummy_inputs(self, height=4, width=4, batch_size=2):
        generator = torch.Generator().manual_seed(0)

        def randn(*shape):
            return torch.randn(batch_size, *shape, generator=generator).to(torch_device)

        return {
            "hidden_states": randn(*LATENTS[:2], height, width),
            "audio_hidden_states": randn(*AUDIO_LATENTS),
            "timestep": torch.linspace(900.0, 100.0, batch_size).to(torch_device),
            "audio_timestep": torch.linspace(300.0, 700.0, batch_size).to(torch_device),
            "encoder_hidden_states": randn(5, TEXT_DIM),
            "plan": random_plan(batch_size).to(torch_device),
        }


class TestTransformer(Transformer, of_models.ModelTesterMixin):
    pass


class TestTransformerInOvisForm(Transformer, of_models.ModelTesterMixin):
    def get_init_dict(self):
        return arguments(tiny_transformer(num_layers=2))


class TestTransformerAttention(Transformer, of_models.AttentionTesterMixin):
    pass


class TestTransformerAttentionBackends(Transformer, of_models.AttentionBackendTesterMixin):
    pass


class TestTransformerMemory(Transformer, of_models.MemoryTesterMixin):
    pass


class TestTransformerTraining(Transformer, of_models.TrainingTesterMixin):
    def test_gradient_checkpointing_is_applied(self):
        super().test_gradient_checkpointing_is_applied(expected_set={"DualBranchTransformer"})


class TestTransformerCompile(Transformer, of_models.TorchCompileTesterMixin):
    pass


class TestTransformerLora(Transformer, of_models.LoraTesterMixin):
    pass


class TestTransformerLoraHotSwapping(Transformer, of_models.LoraHotSwappingForModelTesterMixin):
    pass


class TestTransformerFirstBlockCache(Transformer, of_models.FirstBlockCacheTesterMixin):
    pass


class TestTransformerTaylorSeerCache(Transformer, of_models.TaylorSeerCacheTesterMixin):
    pass


class TestTransformerContextParallel(Transformer, of_models.ContextParallelTesterMixin):
    pass


class Saved:
    """A checkpoint on disk without zeros, in the precision in which quantisation computes."""

    torch_dtype = torch.bfloat16
    modules_to_not_convert_for_test = ["proj_out"]

    @pytest.fixture(autouse=True, scope="class")
    def checkpoint(self, request, tmp_path_factory):
        folder = tmp_path_factory.mktemp("checkpoint")
        tiny_transformer(**FULL).save_pretrained(folder)
        request.cls.pretrained_model_name_or_path = str(folder)

    def get_dummy_inputs(self):
        names = ("hidden_states", "audio_hidden_states", "encoder_hidden_states")
        inputs = super().get_dummy_inputs()
        return {**inputs, **{name: inputs[name].to(self.torch_dtype) for name in names}}


NO_GRADIENT = "the first output alone is trained on, which the last block's sound does not reach"


class TestTransformerBitsAndBytes(Saved, Transformer, of_models.BitsAndBytesTesterMixin):
    test_bnb_training = not_for_us(NO_GRADIENT)


class TestTransformerTorchAo(Saved, Transformer, of_models.TorchAoTesterMixin):
    test_torchao_training = not_for_us(NO_GRADIENT)


# The planner and the semantic encoders, whose outputs are no `BaseOutput`: a plan, and a tensor


class PlannerWithTuples(VAPlannerModel):
    def forward(self, return_dict=True, **inputs):
        plan = super().forward(**inputs)
        tokens = {"video_tokens": plan.video_tokens, "audio_tokens": plan.audio_tokens}
        return tokens if return_dict else tuple(tokens.values())


class VideoSemanticEncoderWithTuples(VideoSemanticEncoder):
    def forward(self, pixel_values, return_dict=True):
        tokens = super().forward(pixel_values)
        return {"tokens": tokens} if return_dict else (tokens,)


class AudioSemanticEncoderWithTuples(AudioSemanticEncoder):
    def forward(self, waveform, return_dict=True):
        tokens = super().forward(waveform)
        return {"tokens": tokens} if return_dict else (tokens,)


class Planner(of_models.BaseModelTesterConfig):
    model_class = PlannerWithTuples
    main_input_name = "input_ids"
    output_shape = tuple(random_plan().video_tokens.shape[1:])

    def get_init_dict(self):
        return arguments(tiny_planner())

    def get_dummy_inputs(self, batch_size=2):
        input_ids = torch.randint(3, 20, (batch_size, 6), generator=torch.Generator().manual_seed(0))
        attention_mask = torch.ones_like(input_ids)
        attention_mask[0, :2] = 0
        return {
            "input_ids": input_ids.to(torch_device),
            "attention_mask": attention_mask.to(torch_device),
            "duration": DURATION,
        }


class TestPlanner(Planner, of_models.ModelTesterMixin):
    pass


class TestPlannerMemory(Planner, of_models.MemoryTesterMixin):
    pass


class TestPlannerTraining(Planner, of_models.TrainingTesterMixin):
    pass


class TestPlannerLora(Planner, of_models.LoraTesterMixin):
    pass


class VideoEncoder(of_models.BaseModelTesterConfig):
    model_class = VideoSemanticEncoderWithTuples
    main_input_name = "pixel_values"
    output_shape = (4, 6)
    model_split_percents = [0.8]

    def get_init_dict(self):
        return arguments(tiny_video_semantic_encoder())

    def get_dummy_inputs(self, batch_size=2):
        generator = torch.Generator().manual_seed(0)
        return {"pixel_values": torch.rand(batch_size, 3, 16, 16, generator=generator).to(torch_device)}


class TestVideoSemanticEncoder(VideoEncoder, of_models.ModelTesterMixin):
    pass


class TestVideoSemanticEncoderMemory(VideoEncoder, of_models.MemoryTesterMixin):
    pass


class AudioEncoder(of_models.BaseModelTesterConfig):
    model_class = AudioSemanticEncoderWithTuples
    main_input_name = "waveform"
    output_shape = (8, 4)

    def get_init_dict(self):
        return arguments(tiny_audio_semantic_encoder())

    def get_dummy_inputs(self, batch_size=2):
        generator = torch.Generator().manual_seed(0)
        return {"waveform": (torch.rand(batch_size, 1, 4000, generator=generator) - 0.5).to(torch_device)}


class TestAudioSemanticEncoder(AudioEncoder, of_models.ModelTesterMixin):
    pass


class TestAudioSemanticEncoderMemory(AudioEncoder, of_models.MemoryTesterMixin):
    test_cpu_offload = not_for_us("EnCodec's encoder is not split")
    test_disk_offload_without_safetensors = test_disk_offload_with_safetensors = test_cpu_offload
    test_layerwise_casting_training = not_for_us("the semantic encoders are frozen")


# The pipeline


# Its vocoder is trained: Griffin-Lim has no weights to cast, and is tested by ourselves.


class Pipeline(of_pipelines.BasePipelineTesterConfig):
    pipeline_class = BatonPipeline
    required_input_params_in_call_signature = frozenset(
        {"prompt", "negative_prompt", "height", "width", "num_frames", "prompt_embeds", "negative_prompt_embeds"}
    )
    batch_input_params = frozenset({"prompt", "negative_prompt"})
    optional_input_params = frozenset(
        {
            "num_inference_steps",
            "num_videos_per_prompt",
            "generator",
            "latents",
            "audio_latents",
            "output_type",
            "return_dict",
            "callback_on_step_end",
            "callback_on_step_end_tensor_inputs",
        }
    )
    output_shape = (NUM_FRAMES, 3, SIZE, SIZE)

    def get_dummy_components(self, num_layers=2):
        transformer = tiny_transformer(**{**FULL, "num_layers": num_layers})
        components = tiny_pipeline(transformer=transformer, vocoder=tiny_trained_vocoder()).components
        transformer.pipeline_settings = {}  # a pipeline of some of them has the defaults, and so must that of the others
        return components

    def get_dummy_inputs(self):
        return {
            "prompt": "a red circle jumps left and says two",
            "negative_prompt": "green",
            "generator": self.get_generator(0),
            "num_inference_steps": 2,
            "height": SIZE,
            "width": SIZE,
            "num_frames": NUM_FRAMES,
            "output_type": "pt",
        }


PICKLES = not_for_us("it saves pickles, which are never loaded: see `tests/pipelines/test_loading.py`")


class TestPipeline(Pipeline, of_pipelines.PipelineTesterMixin):
    test_encode_prompt_works_in_isolation = not_for_us(
        "embeddings tell a planner nothing: see `TestPipelineUnderAPlan`"
    )
    test_save_load_optional_components = not_for_us(
        "the text may be absent, but not both: see `TestPipelineOfEmbeddings`"
    )
    test_to_dtype = not_for_us("the sound stays in float32: see `tests/pipelines/test_pipeline_baton.py`")
    test_save_load_local = test_torch_dtype_dict = test_loading_with_variants = PICKLES
    test_loading_with_incorrect_variants_raises_error = not_for_us(
        "what is missing is named by `from_pretrained` itself"
    )


class TestPipelineUnderAPlan(Pipeline, of_pipelines.common.BasePipelineOutputMixin):
    @pytest.fixture(autouse=True)
    def among_diffusers_own(self, monkeypatch):
        """The check reads the source of `encode_prompt`, which it looks for there."""
        monkeypatch.setattr("diffusers.pipelines.BatonPipeline", BatonPipeline, raising=False)

    test_encode_prompt_works_in_isolation = of_pipelines.PipelineTesterMixin.test_encode_prompt_works_in_isolation

    def get_dummy_inputs(self):
        return {**super().get_dummy_inputs(), "plan": random_plan()}


class TestPipelineOfEmbeddings(Pipeline, of_pipelines.common.BasePipelineOutputMixin):
    test_save_load_optional_components = PICKLES

    def get_pipeline(self, **components):
        """The guiders are left in: they may be absent on loading, but the default ones take their places."""
        pipe = super().get_pipeline(**components)
        pipe._optional_components = [name for name in pipe._optional_components if not name.endswith("guider")]
        return pipe

    def get_dummy_inputs(self):
        inputs, generator = super().get_dummy_inputs(), torch.Generator().manual_seed(0)
        for name in ("prompt", "negative_prompt"):
            del inputs[name]
            inputs[f"{name}_embeds"] = torch.randn(1, 16, TEXT_DIM, generator=generator).to(torch_device)
        return {**inputs, "plan": random_plan()}


class TestPipelineMemory(Pipeline, of_pipelines.MemoryTesterMixin):
    pass


class TestPipelineLora(Pipeline, of_pipelines.LoraTesterMixin):
    test_logs_info_when_no_lora_keys_found = not_for_us("a file without layers for the transformer is refused")
    test_low_cpu_mem_usage_with_loading = test_simple_inference_with_text_denoiser_lora_save_load = PICKLES


class TestPipelineLoraMemory(Pipeline, of_pipelines.LoraMemoryTesterMixin):
    pass


class TestPipelineFirstBlockCache(Pipeline, of_pipelines.FirstBlockCacheTesterMixin):
    pass


# The modular pipeline


@functools.cache
def modular_folder():
    folder = tempfile.mkdtemp(prefix="baton-modular-")
    tiny_pipeline(vocoder=tiny_trained_vocoder()).save_pretrained(folder)
    return folder


def workflow(*encoders, video=True, audio=True):
    """The blocks of a workflow, by name and class."""
    names = ["input", "text_encoder", "planner", *encoders]
    names += [f"denoise.{name}" for name in ("set_timesteps", "stand_ins", "prepare_latents", "denoise")]
    names += ["video_decoder"] * video + ["audio_decoder"] * audio
    special = {"denoise.stand_ins": "BatonStandInStep"}
    words = {name: name.split(".")[-1].title().replace("_", "") for name in names}
    return [(name, special.get(name, f"Baton{words[name]}Step")) for name in names]


class Modular(of_modular.BaseModularPipelineTesterConfig):
    pipeline_class = BatonModularPipeline
    pipeline_blocks_class = BatonAutoBlocks
    params = frozenset({"prompt", "height", "width", "num_frames"})
    batch_params = frozenset({"prompt", "negative_prompt"})
    optional_params = frozenset({"num_inference_steps", "num_videos_per_prompt", "latents", "output_type"})
    output_name = "videos"
    expected_workflow_blocks = {  # noqa: RUF012
        "text2av": workflow(),
        "text2video": workflow(audio=False),
        "text2audio": workflow(video=False),
        "image2av": workflow("video_encoder"),
        "video2audio": workflow("video_encoder"),
        "audio2video": workflow("audio_encoder"),
        "continue": workflow("video_encoder", "audio_encoder"),
        "inpaint": workflow("video_encoder", "audio_encoder"),
        "reference2av": workflow("reference_encoder"),
    }

    @property
    def pretrained_model_name_or_path(self):
        return modular_folder()

    @pytest.fixture(autouse=True)
    def trusted(self, monkeypatch):
        """The checks load the folders of diffusers' own pipelines, which bring no code."""
        monkeypatch.setattr("diffusers.modular_pipelines.modular_pipeline.resolve_trust_remote_code", lambda *_: True)

    def get_dummy_inputs(self, seed=0):
        return {
            "prompt": "a red circle jumps left and says two",
            "generator": self.get_generator(seed),
            "num_inference_steps": 2,
            "height": SIZE,
            "width": SIZE,
            "num_frames": NUM_FRAMES,
            "output_type": "pt",
        }


class TestModularPipeline(Modular, of_modular.ModularPipelineTesterMixin):
    test_num_images_per_prompt = not_for_us("videos per prompt: `num_videos_per_prompt`, in `tests/pipelines`")


class TestModularLoading(Modular, of_modular.ModularLoadingTesterMixin):
    test_modular_index_consistency = not_for_us(
        "since 0.42 the index names the folder that is saved to; the check is of the default before"
    )


class TestModularWorkflow(Modular, of_modular.ModularWorkflowTesterMixin):
    pass


class TestModularGuider(Modular, of_modular.ModularGuiderTesterMixin):
    pass


class TestModularMemory(Modular, of_modular.ModularMemoryTesterMixin):
    pass


class TestModularAutoOffload(Modular, of_modular.ModularAutoOffloadTesterMixin):
    pass
