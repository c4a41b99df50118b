"""One denoising step of the transformer with random weights: its time, eager and compiled, against what it could be.

    python benchmarks/denoise_step.py                                    # full size, 704x704, 5 s: a GPU of 40 GB or more
    python benchmarks/denoise_step.py --size tiny                        # seconds on a CPU: shows that the benchmark runs
    python benchmarks/denoise_step.py --ovi ../Ovi                       # beside the published code, from its checkout
    python benchmarks/denoise_step.py --direction i2av                   # with a first frame that is given

A step is one forward, without guidance. The floor is the floating-point operations of its matrix products, counted by
PyTorch, over the rate at which this machine does one large matrix product in the same dtype. Ovi's code gets the same weights
and inputs, and PyTorch's scaled dot-product attention in place of its own call to flash attention, which is what ours uses: so
the attention kernel is the same. The outputs of both are compared before anything is timed.
"""

import argparse
import importlib
import statistics
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from baton_diffusers import DualBranchTransformer
from baton_diffusers.models.conversion import OVI_AUDIO_ROPE_SCALE, ovi_keys


DIRECTIONS = ("t2av", "i2av", "v2a")

# Configuration of the transformer; latent frames, height and width; audio latents; text length.
SIZES = {
    "full": ({}, (31, 44, 44), 157, 512),
    "full-10s": ({}, (61, 44, 80), 314, 512),
    "tiny": (
        {
            "in_channels": 8,
            "out_channels": 8,
            "audio_in_channels": 5,
            "audio_out_channels": 5,
            "num_layers": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 24,
            "ffn_dim": 96,
            "audio_ffn_dim": 96,
            "text_dim": 16,
            "freq_dim": 32,
        },
        (5, 8, 12),
        26,
        16,
    ),
}


def random_model(config: dict, device: str, dtype: torch.dtype) -> DualBranchTransformer:
    """The transformer without plan layers, its weights drawn where they are needed: at full size it never is on the CPU."""
    with torch.device("meta"):
        model = DualBranchTransformer(audio_rope_scale=OVI_AUDIO_ROPE_SCALE, **config)
    stays = set(model._keep_in_fp32_modules)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if stays & set(name.split(".")) else dtype)
    model.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.02, generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)
    return model.eval()


def random_inputs(
    model: DualBranchTransformer, size: str, device: str, dtype: torch.dtype, direction: str = "t2av"
) -> dict[str, torch.Tensor]:
    """One clip's latents and text. What is given has timestep 0: the first frame for I2AV, the whole video for V2A."""
    _, grid, audio_length, text_length = SIZES[size]
    config = model.config
    generator = torch.Generator(device).manual_seed(1)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)

    noisy = torch.full((1,), 500.0, device=device)
    timestep = noisy
    if direction == "i2av":
        timestep = noisy[:, None].repeat(1, grid[0])
        timestep[:, 0] = 0
    elif direction == "v2a":
        timestep = torch.zeros_like(noisy)
    return {
        "hidden_states": noise(1, config.in_channels, *grid),
        "audio_hidden_states": noise(1, audio_length, config.audio_in_channels),
        "timestep": timestep,
        "audio_timestep": noisy,
        "encoder_hidden_states": noise(1, text_length, config.text_dim),
    }


def published_model(checkout: Path, model: DualBranchTransformer) -> torch.nn.Module:
    """Ovi's own transformer of the same size, with the weights of ours and the same attention kernel."""
    # `ovi.modules` imports all of Ovi, with its requirements, when it is first imported: here it is only a folder.
    package = types.ModuleType("ovi.modules")
    package.__path__ = [str(checkout / "ovi" / "modules")]
    sys.modules["ovi.modules"] = package
    sys.path.insert(0, str(checkout))
    fusion = importlib.import_module("ovi.modules.fusion")
    for module in (fusion, importlib.import_module("ovi.modules.model")):
        module.flash_attention = _attention
    config = model.config
    shared = {
        "dim": config.num_attention_heads * config.attention_head_dim,
        "freq_dim": config.freq_dim,
        "text_dim": config.text_dim,
        "num_heads": config.num_attention_heads,
        "num_layers": config.num_layers,
        "eps": config.eps,
    }
    video = {"model_type": "ti2v", "patch_size": config.patch_size, "in_dim": config.in_channels}
    video |= {"out_dim": config.out_channels, "ffn_dim": config.ffn_dim}
    audio = {"model_type": "t2a", "patch_size": (1,), "in_dim": config.audio_in_channels}
    audio |= {"out_dim": config.audio_out_channels, "ffn_dim": config.audio_ffn_dim}
    audio["temporal_rope_scaling_factor"] = config.audio_rope_scale
    with torch.device("meta"):
        published = fusion.FusionModel(shared | video, shared | audio)
    state = model.state_dict()
    published.load_state_dict({key: state[name].to(model.dtype) for name, key in ovi_keys(state).items()}, assign=True)
    published.set_rope_params()
    return published.eval()


def _attention(q, k, v, **_):
    # In the place of Ovi's `flash_attention`. Sequences are whole here, so that their lengths say nothing new.
    attended = F.scaled_dot_product_attention(*(states.transpose(1, 2) for states in (q, k, v)))
    return attended.transpose(1, 2).contiguous()


def published_step(published: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """One forward of Ovi's code on our inputs; its outputs in our layout. Ovi has one noise level for both modalities, and a
    first frame that may be clean: it knows T2AV and I2AV."""
    latents, audio_latents = inputs["hidden_states"], inputs["audio_hidden_states"]
    patch = published.video_model.patch_size
    text = [inputs["encoder_hidden_states"][0]]
    for branch in (published.video_model, published.audio_model):
        branch.text_len = len(text[0])
    with torch.autocast(latents.device.type, latents.dtype, enabled=latents.dtype != torch.float32):
        video, audio = published(
            vid=[latents[0]],
            audio=[audio_latents[0]],
            t=inputs["audio_timestep"],
            vid_context=text,
            audio_context=text,
            vid_seq_len=latents[0, 0].numel() // (patch[1] * patch[2]),
            audio_seq_len=audio_latents.shape[1],
            first_frame_is_clean=inputs["timestep"].ndim == 2,
        )
    return video[0][None], audio[0][None]


def count_flops(model: DualBranchTransformer, inputs: dict[str, torch.Tensor]) -> int:
    """Floating-point operations of one forward's matrix products, convolutions and attention."""
    with torch.device("meta"):
        model = DualBranchTransformer.from_config(model.config)
    inputs = {name: tensor.to("meta", torch.float32) for name, tensor in inputs.items()}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**inputs)
    return counter.get_total_flops()


def seconds(call: Callable[[], object], repeats: int, device: str) -> float:
    """Median time of a call after two that warm up."""
    times = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def matrix_rate(device: str, dtype: torch.dtype, repeats: int) -> float:
    """Floating-point operations per second of one large matrix product."""
    size = 8192 if device == "cuda" else 512
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / seconds(lambda: a @ b, repeats, device)


@torch.no_grad()
def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--direction", choices=DIRECTIONS, default="t2av")
    parser.add_argument("--modes", nargs="+", choices=("eager", "compiled"), default=["eager", "compiled"])
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="Ovi's code takes bfloat16 only"
    )
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument(
        "--attention-backend", metavar="NAME", help="one of diffusers'; by default PyTorch's own attention"
    )
    parser.add_argument("--ovi", type=Path, metavar="DIR", help="a checkout of https://github.com/character-ai/Ovi")
    options = parser.parse_args(arguments)
    if options.ovi is not None and not (options.ovi / "ovi" / "modules" / "fusion.py").is_file():
        parser.error(f"{options.ovi} is not a checkout of Ovi: it lacks ovi/modules/fusion.py")
    if options.ovi is not None and options.attention_backend is not None:
        parser.error("--ovi compares both codes with PyTorch's own attention: leave out --attention-backend")

    if options.ovi is not None and options.direction == "v2a":
        parser.error("--ovi compares what Ovi's code does: give --direction t2av or i2av")

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and options.size != "tiny":
        parser.error(f"--size {options.size} needs a GPU: try --size tiny")
    dtype = getattr(torch, options.dtype)
    model = random_model(SIZES[options.size][0], device, dtype)
    inputs = random_inputs(model, options.size, device, dtype, options.direction)
    if options.attention_backend is not None:
        model.set_attention_backend(options.attention_backend)

    flops, rate = count_flops(model, inputs), matrix_rate(device, dtype, options.repeats)
    floor = flops / rate
    where = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    shapes = " and ".join(
        " x ".join(map(str, inputs[name].shape[1:])) for name in ("hidden_states", "audio_hidden_states")
    )
    print(f"{where}, torch {torch.__version__}, {options.dtype}, {options.direction}, latents {shapes}")
    print(f"{flops / 1e12:.4g} TFLOP at {rate / 1e12:.4g} TFLOP/s: floor {1e3 * floor:.4g} ms")

    times = {}
    if options.ovi is not None:
        published = published_model(options.ovi, model)
        video, audio = published_step(published, inputs)
        output = model(**inputs)
        for name, ours, theirs in (("video", output.sample, video), ("audio", output.audio_sample, audio)):
            error = (ours.float() - theirs.float()).abs().max() / theirs.float().abs().max()
            print(f"largest difference from Ovi's {name}, over its largest value: {error:.2g}")
        times["published"] = seconds(lambda: published_step(published, inputs), options.repeats, device)
        del published
    if "eager" in options.modes:
        times["eager"] = seconds(lambda: model(**inputs), options.repeats, device)
    if "compiled" in options.modes:
        model.compile_repeated_blocks(fullgraph=True)
        times["compiled"] = seconds(lambda: model(**inputs), options.repeats, device)

    print(f"{'':12}{'ms':>12}{'of the floor':>15}" + (f"{'x Ovi':>12}" if options.ovi is not None else ""))
    for name, value in times.items():
        faster = f"{times['published'] / value:>12.2f}" if "published" in times else ""
        print(f"{name:12}{1e3 * value:>12.4g}{100 * floor / value:>14.1f}%{faster}")


if __name__ == "__main__":
    main()
