"""Convert the published files of Ovi, and of the models that it needs, to the folder of a `BatonPipeline`.

    python conversion_scripts/convert_ovi_to_diffusers.py \\
        --transformer ckpts/Ovi/model_960x960_10s.safetensors \\
        --vae ckpts/Wan2.2-TI2V-5B/Wan2.2_VAE.pth \\
        --text-encoder ckpts/Wan2.2-TI2V-5B/models_t5_umt5-xxl-enc-bf16.pth \\
        --tokenizer ckpts/Wan2.2-TI2V-5B/google/umt5-xxl \\
        --audio-vae ckpts/MMAudio/ext_weights/v1-16.pth \\
        --vocoder ckpts/MMAudio/ext_weights/best_netG.pt \\
        --output baton-11b

`--vae Wan-AI/Wan2.2-TI2V-5B-Diffusers --text-encoder Wan-AI/Wan2.2-TI2V-5B-Diffusers` copies those two unchanged. With
`--transformer` and `--output` alone, the transformer is written to `transformer` in the output folder. `--planner
Qwen/Qwen3-8B` adds a fresh planner around that language model, and fresh plan layers to the transformer, which leave its output
unchanged until they are trained.

The folder's defaults are Ovi's recipe: its schedulers, scales and negative prompts, the block that the negative pass skips, and
the form of prompts that the file was trained with.

Weights are read and written one shard at a time and keep their dtype, except that float8 becomes bfloat16, which holds the
same values. Everything is checked before anything is written, and the folder appears when it is complete.
"""

import baton_diffusers.interrupts  # noqa: F401


# isort: split
import argparse
import copy
import json
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import list_repo_files, snapshot_download
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen3Config, UMT5Config, UMT5EncoderModel

from baton_diffusers import BatonPipeline
from baton_diffusers.guiders import presets
from baton_diffusers.models import conversion
from baton_diffusers.models.audio_16khz import MMAudioVAE16kHz, MMAudioVocoder16kHz
from baton_diffusers.models.component_files import (
    PublishedWeights,
    check_component,
    check_keys,
    empty_model,
    new_folder,
    save_weights,
    weight_files,
)
from baton_diffusers.models.transformer_dual_branch import DualBranchTransformer
from baton_diffusers.models.va_planner import VAPlannerModel
from baton_diffusers.pipelines.modular_files import write_modular_files


# By the names of Ovi's files: the default size of clips, and the form of prompts. Ovi rounds 720 to 704.
VARIANTS = {
    "720x720_5s": (
        ("model", "model_fp8_e4m3fn"),
        {"height": 704, "width": 704, "num_frames": 121, "prompt_form": "audcap"},
    ),
    "960x960_5s": (
        ("model_960x960",),
        {"height": 704, "width": 1280, "num_frames": 121, "prompt_form": "audio"},
    ),
    "960x960_10s": (
        ("model_960x960_10s",),
        {"height": 704, "width": 1280, "num_frames": 241, "prompt_form": "audio"},
    ),
}
OTHERS = ("vae", "text_encoder", "audio_vae", "vocoder")


@dataclass
class Part:
    """A model of the pipeline, checked and ready to be written.

    Args:
        model (`torch.nn.Module`): the model, on the meta device unless it is small.
        save (`Callable[[Path], Any]`): writes it to a folder.
        num_bytes (`int`): size of its weights.
    """

    model: torch.nn.Module
    save: Callable[[Path], Any]
    num_bytes: int


def streamed(model: torch.nn.Module, keys: Mapping[str, str], published: PublishedWeights, hint: str = "") -> Part:
    """A model whose weights are converted from published files, one shard at a time; weights that are in no file are fresh.

    Args:
        model (`torch.nn.Module`): the model on the meta device.
        keys (`Mapping[str, str]`): published key of each of its parameters.
        published (`PublishedWeights`): the files.
        hint (`str`): what to say when a key does not fit.
    """
    state = model.state_dict()
    state.pop("encoder.embed_tokens.weight", None)  # tied to `shared`
    keys = {name: key for name, key in keys.items() if name in state}
    check_keys(published.shapes, {keys[name]: state[name].shape for name in keys}, published.name, hint)
    published.check_finite()
    dtypes = {name: published.dtypes[key] for name, key in keys.items()}
    common = dtypes[max(keys, key=lambda name: state[name].numel())]
    parameters = {
        name: conversion.without_fp8(torch.empty(tensor.shape, dtype=dtypes.get(name, common), device="meta"))
        for name, tensor in state.items()
    }

    def read(names: list[str]) -> dict[str, torch.Tensor]:
        # One by one, so that the source of a tensor is freed before the next is read.
        tensors = {}
        for name in names:
            tensor = published.read([keys[name]])[keys[name]] if name in keys else fresh_tensor(model, name)
            tensors[name] = tensor.to(parameters[name].dtype)
        return tensors

    def save(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        if isinstance(model, UMT5EncoderModel):
            model.config.save_pretrained(folder)
            save_weights(folder, parameters, read, "model")
        else:
            model.save_config(folder)
            save_weights(folder, parameters, read)

    return Part(model, save, sum(tensor.nbytes for tensor in parameters.values()))


def fresh_tensor(model: torch.nn.Module, name: str) -> torch.Tensor:
    """A parameter of a model on the meta device as its constructor would draw it."""
    path, _, own = name.rpartition(".")
    if not path:  # the planner's placeholders and queries
        return 0.02 * torch.randn(model.get_parameter(name).shape)
    leaf = copy.deepcopy(model.get_submodule(path)).to_empty(device="cpu")
    leaf.reset_parameters()
    tensor = leaf.get_parameter(own).detach()
    # Output projections of plan layers start at zero (`PlanAttention`).
    return torch.zeros_like(tensor) if "plan_attn.to_out." in name else tensor


def transformer(file: Path, num_attention_heads: int, audio_rope_scale: float, planner: VAPlannerModel | None) -> Part:
    """Ovi's transformer; with a planner, it gets fresh plan layers."""
    published = PublishedWeights(file)
    config = conversion.ovi_config(published.shapes, num_attention_heads, audio_rope_scale, published.name)
    if planner is not None:
        config |= {"video_plan_dim": planner.config.video_dim, "audio_plan_dim": planner.config.audio_dim}
    with torch.device("meta"):
        model = DualBranchTransformer(**config)

    keys = conversion.ovi_keys(model.state_dict())
    return streamed(model, keys, published, conversion.OVI_HINT)


def planner(source: str) -> Part:
    """A fresh planner around a Qwen3 checkpoint in the format of transformers."""
    folder = local(source, ".json", ".safetensors")
    file = folder / "config.json"
    is_qwen3 = file.is_file() and json.loads(file.read_text()).get("model_type") == Qwen3Config.model_type
    if not is_qwen3 or not any(folder.glob("*.safetensors")):
        raise ValueError(f"{source} is not a Qwen3 checkpoint in the format of transformers, with safetensors.")
    config = Qwen3Config.from_pretrained(folder).to_diff_dict()
    with torch.device("meta"):
        model = VAPlannerModel(config)
    published = PublishedWeights(sorted(folder.glob("*.safetensors")), prefix="model.")  # without the head
    keys = {
        name: name.removeprefix("language_model.") for name in model.state_dict() if name.startswith("language_model.")
    }

    return streamed(model, keys, published)


def video_vae(source: str) -> Part:
    """Wan2.2's video autoencoder, from its own file or in diffusers' format."""
    if not Path(source).is_file():
        return taken_over(source, "vae", AutoencoderKLWan)
    published = PublishedWeights(source)
    config = conversion.wan_vae_config(published.shapes, published.name)
    with torch.device("meta"):
        model = AutoencoderKLWan(**config)
    names = [name for name, _ in model.named_parameters()]
    keys = {name: conversion.published_wan_vae_key(name, config["num_res_blocks"]) for name in names}
    return streamed(model, keys, published)


def text_encoder(source: str) -> Part:
    """UMT5's encoder, from Wan's file or in transformers' format."""
    if not Path(source).is_file():
        return taken_over(source, "text_encoder", UMT5EncoderModel)
    published = PublishedWeights(source)
    with torch.device("meta"):
        model = UMT5EncoderModel(UMT5Config(**conversion.umt5_config(published.shapes, published.name)))
    keys = {name: conversion.published_umt5_key(name) for name in model.state_dict()}
    return streamed(model, keys, published)


def taken_over(source: str, name: str, model_class: type[torch.nn.Module]) -> Part:
    """A component in the format of diffusers or transformers, whose files are copied: a folder or Hub id of the component, or
    of a pipeline that holds it under `name`."""
    folder = local(source, ".json", ".safetensors", part=name)
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise ValueError(f"{source} holds neither a config.json with safetensors nor a folder {name} with them.")
    check_component(folder, model_class)
    model = empty_model(folder, model_class)
    weights = weight_files(folder, model_class)

    def save(target: Path) -> None:
        target.mkdir()
        for file in (*weights, *folder.glob("*.json")):
            shutil.copyfile(file, target / file.name)

    return Part(model, save, sum(file.stat().st_size for file in weights))


def audio_vae(file: Path) -> Part:
    """MMAudio's 16 kHz autoencoder, its filters normalised."""
    published = PublishedWeights(file)
    model = MMAudioVAE16kHz(**conversion.mmaudio_vae_config(published.shapes, published.name))
    expected = {key: tensor.shape for key, tensor in model.vae.state_dict().items()}
    check_keys(published.shapes, expected, published.name)
    published.check_finite()
    tensors = published.read(list(expected))
    model.vae.load_state_dict(
        {key: conversion.normalise_mmaudio_weight(key, tensor) for key, tensor in tensors.items()}
    )
    return whole(model)


def vocoder(file: Path) -> Part:
    """MMAudio's 16 kHz BigVGAN, its weight norm folded in."""
    published = PublishedWeights(file, entry="generator")
    published.check_finite()
    tensors = conversion.fold_weight_norm(published.read(list(published.shapes)))
    shapes = {key: tensor.shape for key, tensor in tensors.items()}
    model = MMAudioVocoder16kHz(**conversion.bigvgan_config(shapes, published.name))
    check_keys(shapes, {key: tensor.shape for key, tensor in model.state_dict().items()}, published.name)
    model.load_state_dict(tensors)
    return whole(model)


def whole(model: torch.nn.Module) -> Part:
    """A small model, held in memory."""
    return Part(model, model.save_pretrained, sum(tensor.nbytes for tensor in model.state_dict().values()))


def tokenizer(source: str, name: str) -> PreTrainedTokenizerBase:
    """A tokenizer from a folder or Hub id of its own, or of a pipeline that holds it under `name`."""
    folder = local(source, ".json", ".txt", ".model", ".jinja", part=name)
    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ValueError(f"{source} holds no tokenizer ({str(error).splitlines()[0]}).") from error


def local(source: str, *suffixes: str, part: str | None = None) -> Path:
    """A folder, or a copy of those files of a Hub repository that end in `suffixes`; or what it holds under `part`."""
    folder = Path(source)
    if not folder.is_dir():
        if source.count("/") != 1:
            raise ValueError(f"{source} is neither a file nor a folder nor a Hub id like 'owner/name'.")
        try:
            inside = part is not None and any(file.startswith(f"{part}/") for file in list_repo_files(source))
            patterns = [f"{part}/*{suffix}" if inside else f"*{suffix}" for suffix in suffixes]
            ignored = None if inside else "*/*"
            folder = Path(snapshot_download(source, allow_patterns=patterns, ignore_patterns=ignored))
        except Exception as error:  # of the Hub's client, of httpx or of the system
            raise ValueError(f"{source} is no folder here, and could not be loaded from the Hub: {error}") from error
    return folder / part if part is not None and (folder / part).is_dir() else folder


def convert(arguments: argparse.Namespace) -> Path:
    """Converts the files that the arguments name, and returns the folder that it wrote.

    Raises:
        ValueError: if a file or an argument is not what it should be.
        OSError: if something cannot be written.
    """
    given = [name for name in OTHERS if getattr(arguments, name) is not None]
    if not given and arguments.planner is None and arguments.tokenizer is None:
        part = transformer(arguments.transformer, arguments.num_attention_heads, arguments.audio_rope_scale, None)
        target = arguments.output / "transformer"
        with new_folder(target, part.num_bytes) as folder:
            part.save(folder)
        return target

    lacking = [f"--{name.replace('_', '-')}" for name in OTHERS if name not in given]
    if lacking:
        raise ValueError(
            f"a whole pipeline needs {' and '.join(lacking)}, too; --transformer alone converts that part."
        )
    variant = arguments.variant or next(
        (name for name, (stems, _) in VARIANTS.items() if arguments.transformer.stem in stems), None
    )
    if variant is None:
        raise ValueError(
            f"{arguments.transformer.name} is not a name of Ovi's: give --variant, one of {', '.join(VARIANTS)}."
        )

    # 1. Models
    parts, small = {}, {}
    if arguments.planner is not None:
        parts["planner"] = planner(arguments.planner)
        small["planner_tokenizer"] = tokenizer(arguments.planner, "planner_tokenizer")
    parts["transformer"] = transformer(
        arguments.transformer,
        arguments.num_attention_heads,
        arguments.audio_rope_scale,
        parts["planner"].model if parts else None,
    )
    parts["vae"] = video_vae(arguments.vae)
    parts["text_encoder"] = text_encoder(arguments.text_encoder)
    parts["audio_vae"] = audio_vae(arguments.audio_vae)
    parts["vocoder"] = vocoder(arguments.vocoder)

    # 2. Tokenizer, and Ovi's recipe: UniPC with shift 5, guidance of 4 and 3, negative prompts
    small["tokenizer"] = tokenizer(arguments.tokenizer or arguments.text_encoder, "tokenizer")
    for name in ("scheduler", "audio_scheduler"):
        small[name] = UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0, num_train_timesteps=1000
        )
    for name, guider in presets()["ovi"].items():
        small[name] = guider if arguments.skip_layers is None else guider.new(skip_layers=arguments.skip_layers)
    num_layers = parts["transformer"].model.config.num_layers
    lacking = [layer for layer in small["guider"].skip_layers if layer >= num_layers]
    if lacking:
        raise ValueError(
            f"{arguments.transformer.name} has the blocks 0 to {num_layers - 1}, but the negative pass is to leave out {lacking}:"
            " give --skip-layers, alone for none."
        )
    defaults = {
        **VARIANTS[variant][1],
        "negative_prompt": conversion.OVI_NEGATIVE_PROMPT,
        "audio_negative_prompt": conversion.OVI_AUDIO_NEGATIVE_PROMPT,
    }

    # 3. The pipeline, which refuses parts that do not fit one another
    pipe = BatonPipeline(**{name: part.model for name, part in parts.items()}, **small, **defaults)
    with new_folder(arguments.output, sum(part.num_bytes for part in parts.values())) as folder:
        BatonPipeline(**dict.fromkeys(parts), **small, **defaults).save_pretrained(folder)
        for name, part in parts.items():
            part.save(folder / name)
        pipe.save_config(folder)
        write_modular_files(folder, pipe.config)
    return arguments.output


def main(arguments: list[str] | None = None) -> None:
    """Run the command; ends in `SystemExit` with a message if it cannot be done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--transformer", type=Path, required=True, metavar="FILE", help="one of Ovi's files")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the folder to make")
    parser.add_argument("--vae", metavar="FILE|REPO|DIR", help="Wan2.2_VAE.pth, or in diffusers' format")
    parser.add_argument("--text-encoder", metavar="FILE|REPO|DIR", help="UMT5-XXL, Wan's or in transformers' format")
    parser.add_argument("--tokenizer", metavar="REPO|DIR", help="by default it is looked for with the text encoder")
    parser.add_argument("--audio-vae", type=Path, metavar="FILE", help="MMAudio's v1-16.pth")
    parser.add_argument("--vocoder", type=Path, metavar="FILE", help="MMAudio's best_netG.pt")
    parser.add_argument("--planner", metavar="REPO|DIR", help="Qwen3: adds a fresh planner around it, and plan layers")
    parser.add_argument(
        "--variant", choices=VARIANTS, help="size of clips and form of prompts; by default read from the file's name"
    )
    parser.add_argument(
        "--skip-layers",
        type=int,
        nargs="*",
        metavar="BLOCK",
        help="blocks that the negative pass leaves out; by default Ovi's, which is 11",
    )
    parser.add_argument("--num-attention-heads", type=int, default=conversion.OVI_NUM_ATTENTION_HEADS)
    parser.add_argument("--audio-rope-scale", type=float, default=conversion.OVI_AUDIO_ROPE_SCALE)
    diffusers_logging.set_verbosity_error()  # hides the warning that guiders are experimental
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    torch.manual_seed(0)  # fresh layers are the same every time
    try:
        print(convert(parser.parse_args(arguments)))
    except (ValueError, OSError) as error:
        sys.exit(f"{Path(__file__).stem}: {error}")
    except KeyboardInterrupt:
        sys.exit(f"{Path(__file__).stem}: interrupted, and nothing is written")


if __name__ == "__main__":
    main()
