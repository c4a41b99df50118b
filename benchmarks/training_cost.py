r"""What Baton's three training stages and a distillation cost: FLOPs, GPU-hours, memory of each GPU, bytes on disk. On paper, from the models' own code.

python benchmarks/training_cost.py                                       # the authors' size: 1.5M clips, 8B and 11B parameters
python benchmarks/training_cost.py --seconds 10 --height 960 --width 960 --gpus 256 --mfu 0.35

"Cached" encodes each clip once for all stages and epochs, "not cached" each time it is used. The planner of stage 3 plans each
time in either case. Memory is counted for a run from the cache: it holds the trained model, and in stage 3 the planner. The
authors do not say for how many epochs they trained: `--epochs 3 3 1` is a guess.

The distillation (`examples/train_distillation.py`) trains an adapter for a student of few steps; each GPU holds all weights, and the cached
features hold the texts.

Forward passes are run on tensors without data, and torch counts their operations; a trained step counts three of them, four with
gradient checkpointing. MFU counts three, since recomputing is not useful work. To see what a machine reaches, give the seconds
of a measured step, from the `seconds` and `step` columns of a run's log.csv:

python benchmarks/training_cost.py --model model_cards/baton-nano --seconds 3 --height 64 --width 64 --text-length 80 \
  --train-text-encoder --gpus 1 --batch-size 8 --peak-tflops 0.1 --step-seconds 1.31

Or let a transformer of one layer of full width be run here, forward and backward, on the GPU, or on a CPU at a size that it can bear:

python benchmarks/training_cost.py --measure-layer bfloat16
python benchmarks/training_cost.py --measure-layer float32 --seconds 1 --height 256 --width 256 --text-length 64
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, MMAudioVAE
from torch.utils.flop_counter import FlopCounterMode
from transformers import UMT5Config, UMT5EncoderModel

from baton_diffusers import coordinates
from baton_diffusers.models.semantic_encoders import AudioSemanticEncoder, VideoSemanticEncoder
from baton_diffusers.models.transformer_dual_branch import DualBranchTransformer
from baton_diffusers.models.va_planner import VAPlannerModel
from baton_diffusers.models.wan_clip import encode_clip
from baton_diffusers.plan import SemanticPlan
from baton_diffusers.training.config import ATTENTION, FEED_FORWARD
from baton_diffusers.training.distillation_methods import Consistency, FlowMap


# Of a trained parameter: bfloat16 weight and gradient, float32 master weight and AdamW's two moments.
BYTES_PER_TRAINED_PARAMETER = 2 + 2 + 4 + 8
# What a layer of width h keeps for its backward pass, in bytes per token and channel, without attention's scores (Korthikanti
# et al. 2022, arXiv 2205.05198, their 34): one layer's worth is alive at a time under gradient checkpointing.
BYTES_PER_ACTIVATION = 34


@dataclass
class Model:
    """A model's parameters and the FLOPs of a forward pass over one clip."""

    parameters: float
    forward: float


def counted(
    build: Callable[..., torch.nn.Module], run: Callable[[torch.nn.Module], Any], layers: int, device: str = "meta"
) -> Model:
    """The cost of many equal layers, extrapolated from one and two; on the meta device they have no data."""
    found = []
    for number in (1, 2):
        with torch.device(device):
            model = build(number).eval().requires_grad_(False)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            run(model)
        found.append((sum(p.numel() for p in model.parameters()), counter.get_total_flops()))
    (parameters, flops), (parameters_of_two, flops_of_two) = found
    return Model(
        parameters + (layers - 1) * (parameters_of_two - parameters), flops + (layers - 1) * (flops_of_two - flops)
    )


class Clip:
    """The sizes of one clip, in pixels, latents and tokens.

    Args:
        folder: Where the models' configurations are.
        arguments: The command's.
    """

    def __init__(self, folder: Path, arguments: argparse.Namespace) -> None:
        self.config = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/config.json")}
        transformer, vae, audio_vae = (self.config[name] for name in ("transformer", "vae", "audio_vae"))
        planner, video = self.config["planner"], self.config["video_semantic_encoder"]
        self.height, self.width = arguments.height, arguments.width
        stride = transformer["temporal_stride"]
        self.num_frames = round(arguments.seconds * transformer["frame_rate"]) // stride * stride + 1
        self.duration = coordinates.clip_duration(self.num_frames, transformer["frame_rate"])
        space = vae["scale_factor_spatial"]
        self.latents = (
            transformer["in_channels"],
            coordinates.num_latent_frames(self.num_frames, stride),
            self.height // space,
            self.width // space,
        )
        length = coordinates.num_audio_latents(
            self.duration, transformer["audio_latent_rate"], transformer.get("audio_latent_min_coverage", 0.0)
        )
        self.audio_latents = (length, transformer["audio_in_channels"])
        patch = transformer["patch_size"]
        self.video_tokens = self.latents[1] * (self.latents[2] // patch[1]) * (self.latents[3] // patch[2])
        self.keyframes = coordinates.keyframe_times(self.duration, planner["keyframe_rate"])
        self.centres = coordinates.patch_centres(*video["video_grid"])
        self.audio_times = coordinates.audio_plan_times(self.duration, planner["audio_tokens_per_chunk"])
        self.plan_tokens = (len(self.keyframes) * len(self.centres), len(self.audio_times))
        self.text_length = arguments.text_length
        self.samples = coordinates.num_samples(self.duration, audio_vae["sample_rate"])

    def feature_bytes(self, with_text: bool) -> int:
        """Bytes of a clip's cached features, in float16."""
        numbers = torch.Size(self.latents).numel() + torch.Size(self.audio_latents).numel()
        planner = self.config["planner"]
        numbers += self.plan_tokens[0] * planner["video_dim"] + self.plan_tokens[1] * planner["audio_dim"]
        if with_text:
            numbers += self.text_length * self.config["transformer"]["text_dim"]
        return 2 * numbers


def transformer_inputs(
    clip: Clip, device: str = "meta", dtype: torch.dtype = torch.float32
) -> tuple[tuple[torch.Tensor, ...], SemanticPlan]:
    """What the transformer reads of one clip: random numbers, or on the meta device none."""
    config = clip.config["transformer"]

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    plan = SemanticPlan(
        video_tokens=numbers(1, clip.plan_tokens[0], config["video_plan_dim"]),
        video_times=clip.keyframes.repeat_interleave(len(clip.centres)),
        video_centres=clip.centres.repeat(len(clip.keyframes), 1),
        audio_tokens=numbers(1, clip.plan_tokens[1], config["audio_plan_dim"]),
        audio_times=clip.audio_times,
        duration=clip.duration,
    )
    latents, audio_latents = numbers(1, *clip.latents), numbers(1, *clip.audio_latents)
    return (latents, audio_latents, numbers(1).abs(), numbers(1, clip.text_length, config["text_dim"])), plan


def measure_layer(clip: Clip, dtype: torch.dtype) -> None:
    """Runs a transformer of one layer, embeddings and heads included, forward and backward; prints how its time compares with
    what was counted, and its rate with that of a plain matrix product of the same size."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = {**plain(clip.config["transformer"]), "num_layers": 1}

    def step(model: DualBranchTransformer, inputs: tuple[torch.Tensor, ...], plan: SemanticPlan) -> None:
        video, audio = model(*inputs, plan=plan, return_dict=False)
        (video.sum() + audio.sum()).backward()

    def seconds(run: Callable[[], Any], repeats: int) -> float:
        # A CPU may be shared: its own time counts.
        clock = time.perf_counter if device == "cuda" else time.process_time
        found = []
        for _ in range(1 + repeats):  # the first is not counted
            start = clock()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            found.append(clock() - start)
        return min(found[1:]) / (1 if device == "cuda" else torch.get_num_threads())

    with torch.device("meta"):
        model = DualBranchTransformer(**config)
    with FlopCounterMode(display=False) as counter:
        model(*transformer_inputs(clip)[0], plan=transformer_inputs(clip)[1])
    forward = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        step(model, *transformer_inputs(clip))
    trained = counter.get_total_flops()

    with torch.device(device):
        model = DualBranchTransformer(**config)
    for name, parameter in model.named_parameters():
        if not set(model._keep_in_fp32_modules) & set(name.split(".")):
            parameter.data = parameter.data.to(dtype)
    taken = seconds(lambda: step(model, *transformer_inputs(clip, device, dtype)), 2)
    width, rows = config["num_attention_heads"] * config["attention_head_dim"], clip.video_tokens
    a = torch.randn(rows, width, device=device, dtype=dtype)
    b = torch.randn(width, config["ffn_dim"], device=device, dtype=dtype)
    matrix = 2 * rows * width * config["ffn_dim"] / seconds(lambda: a @ b, 10)
    name = torch.cuda.get_device_name() if device == "cuda" else f"a CPU with {torch.get_num_threads()} thread(s)"
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"\nmeasured on {name}, in {str(dtype).removeprefix('torch.')}: one layer of width {width} with embeddings and heads, "
        f"{parameters / 1e6:.0f} M parameters, {clip.video_tokens} video and {clip.audio_latents[0]} audio tokens\n"
        f"  counted: forward {forward / 1e12:.4g} TFLOP, with backward {trained / 1e12:.4g}, {trained / forward:.2f} times as much\n"
        f"  measured: {taken:.3g} s, {trained / taken / 1e12:.4g} TFLOP/s; a matrix product of {rows}x{width}x"
        f"{config['ffn_dim']} reaches {matrix / 1e12:.4g} TFLOP/s: the layer {trained / taken / matrix:.0%} of that"
    )


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A tensor that has a shape and no data."""
    return torch.empty(shape, dtype=dtype, device="meta")


def plain(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration as arguments."""
    return {name: value for name, value in config.items() if not name.startswith("_")}


def count_models(clip: Clip) -> dict[str, Model]:
    """All models that take part in training."""
    config = clip.config

    def run_transformer(model: DualBranchTransformer) -> None:
        inputs, plan = transformer_inputs(clip)
        model(*inputs, plan=plan)

    def build_planner(layers: int) -> VAPlannerModel:
        planner = plain(config["planner"])
        language_model = {**planner.pop("language_model_config"), "num_hidden_layers": layers}
        model = VAPlannerModel(language_model, **planner)
        model.language_model.set_attn_implementation("eager")  # the others look into the mask, which has no data here
        return model

    def run_planner(model: VAPlannerModel) -> None:
        ids = empty(1, clip.text_length, dtype=torch.long)
        model(ids, torch.ones_like(ids), clip.duration)

    def build_vision(layers: int) -> VideoSemanticEncoder:
        encoder = plain(config["video_semantic_encoder"])
        # its last layer is not built
        vision = {**encoder.pop("vision_config"), "num_hidden_layers": layers + 1}
        return VideoSemanticEncoder(vision, **encoder)

    def run_vision(model: VideoSemanticEncoder) -> None:
        size = config["video_semantic_encoder"]["vision_config"]["image_size"]
        model(empty(len(clip.keyframes), 3, size, size))

    def run_text(model: UMT5EncoderModel) -> None:
        model(empty(1, clip.text_length, dtype=torch.long))

    def run_sound(model: AudioSemanticEncoder) -> None:
        model(torch.zeros(1, model.audio_channels, len(clip.audio_times) * model.sampling_rate // per_chunk))

    per_chunk = config["planner"]["audio_tokens_per_chunk"]
    text = UMT5Config(**config["text_encoder"])
    transformer = plain(config["transformer"])
    return {
        "transformer": counted(
            lambda layers: DualBranchTransformer(**{**transformer, "num_layers": layers}),
            run_transformer,
            transformer["num_layers"],
        ),
        "planner": counted(
            build_planner, run_planner, config["planner"]["language_model_config"]["num_hidden_layers"]
        ),
        "text_encoder": counted(
            lambda layers: UMT5EncoderModel(UMT5Config(**{**text.to_dict(), "num_layers": layers})),
            run_text,
            text.num_layers,
        ),
        "video_semantic_encoder": counted(
            build_vision, run_vision, config["video_semantic_encoder"]["vision_config"]["num_hidden_layers"] - 1
        ),
        "audio_semantic_encoder": counted(
            lambda _: AudioSemanticEncoder(**plain(config["audio_semantic_encoder"])),
            run_sound,
            1,
            "cpu",  # EnCodec computes its paddings with tensors
        ),
        "vae": counted(
            lambda _: AutoencoderKLWan(**plain(config["vae"])),
            lambda model: encode_clip(model, empty(1, 3, clip.num_frames, clip.height, clip.width)),
            1,
        ),
        "audio_vae": counted(
            lambda _: MMAudioVAE(**plain(config["audio_vae"])),
            lambda model: model.vae.encoder(
                empty(1, config["audio_vae"]["mel_bins"], clip.samples // config["audio_vae"]["hop_length"])
            ),
            1,
        ),
    }


def distillation_forwards(method: Consistency | FlowMap, passes: int, draws: int = 20_000) -> float:
    """Forward passes without gradient for one sample of a distillation, on average: of the teacher under guidance of so many `passes`, of
    the student on its way to its own states, and where a target ends before its step does."""
    host = torch.Generator().manual_seed(0)
    crossings = [method.draw(host) for _ in range(draws)]
    own = sum(c.start // c.own_stride for c in crossings if c.own_stride is not None)
    targets = sum(passes * (c.middle - c.start) + (c.middle < c.end) for c in crossings)
    return (own + targets) / draws


def adapter_parameters(config: dict[str, Any], rank: int) -> int:
    """Parameters of an adapter on attention and feed-forward layers."""
    counts = []
    for layers in (1, 2):
        with torch.device("meta"):
            model = DualBranchTransformer(**{**plain(config), "num_layers": layers})
        adapted = [
            module.in_features + module.out_features
            for name, module in model.named_modules()
            if name.startswith("blocks.") and name.endswith((*ATTENTION, *FEED_FORWARD))
        ]
        counts.append(rank * sum(adapted))
    return counts[0] + (config["num_layers"] - 1) * (counts[1] - counts[0])


def memory(
    trained: Model, frozen: list[Model], layers: int, width: int, tokens: int, arguments: argparse.Namespace
) -> float:
    """Bytes of one GPU: states spread over all GPUs, two whole layers at work, and activations under checkpointing."""
    states = BYTES_PER_TRAINED_PARAMETER * trained.parameters / arguments.gpus
    states += sum(2 * model.parameters for model in frozen) / arguments.gpus
    whole_layers = (
        2 * 2 * 2 * trained.parameters / layers
    )  # weights and gradients of the layer at work and of the next
    clips = max(1, arguments.batch_size // arguments.gpus)
    kept = 2 * clips * tokens * width * layers
    at_work = BYTES_PER_ACTIVATION * clips * tokens * width
    return states + whole_layers + kept + at_work


def main(arguments: argparse.Namespace) -> None:
    clip = Clip(arguments.model, arguments)
    models = count_models(clip)
    print(
        f"clip: {clip.duration:.2f} s, {clip.num_frames} frames of {clip.height}x{clip.width}: {clip.video_tokens} video "
        f"tokens, {clip.audio_latents[0]} audio tokens, plan of {clip.plan_tokens[0]} + {clip.plan_tokens[1]} tokens\n"
    )
    print(f"{'model':24}{'parameters':>14}{'forward / clip':>18}")
    for name, model in models.items():
        print(f"{name:24}{model.parameters / 1e6:>12.1f} M{model.forward / 1e12:>12.4g} TFLOP")

    text_learns = arguments.train_text_encoder
    transformer, planner, text = (models[name] for name in ("transformer", "planner", "text_encoder"))
    encoders = [models["video_semantic_encoder"], models["audio_semantic_encoder"]]
    autoencoders = [models["vae"], models["audio_vae"]]
    trained_with_text = Model(
        transformer.parameters + text_learns * text.parameters, transformer.forward + text_learns * text.forward
    )
    text_frozen = [] if text_learns else [text]
    language_model, config = clip.config["planner"]["language_model_config"], clip.config["transformer"]
    stages = (
        # what is trained, what is frozen and could be cached, its layers, width and tokens, epochs
        (
            "1 planner",
            planner,
            encoders,
            (
                language_model["num_hidden_layers"],
                language_model["hidden_size"],
                sum(clip.plan_tokens) + clip.text_length,
            ),
        ),
        ("2 transformer, real plans", trained_with_text, [*autoencoders, *encoders, *text_frozen], None),
        ("3 transformer, planned", trained_with_text, [*autoencoders, planner, *text_frozen], None),
    )
    width = config["num_attention_heads"] * config["attention_head_dim"]
    shape = (config["num_layers"], width, clip.video_tokens + clip.audio_latents[0])
    rate = arguments.mfu * arguments.peak_tflops * 1e12

    if arguments.measure_layer is not None:
        measure_layer(clip, getattr(torch, arguments.measure_layer))
    if arguments.step_seconds is not None:
        work = 3 * arguments.batch_size * trained_with_text.forward
        reached = work / arguments.step_seconds
        print(
            f"\nmeasured: a step of {arguments.batch_size} clips is {work / 1e12:.4g} TFLOP and takes "
            f"{arguments.step_seconds:g} s: {reached / 1e12:.4g} TFLOP/s, an MFU of "
            f"{reached / (arguments.peak_tflops * 1e12):.1%} of {arguments.peak_tflops:g} TFLOP/s"
        )
    print(
        f"\n{arguments.clips} clips a stage and epoch, batch {arguments.batch_size}, {arguments.gpus} GPUs of "
        f"{arguments.peak_tflops:g} TFLOP/s at an MFU of {arguments.mfu:.0%}"
    )
    print(f"{'stage':28}{'EFLOP':>9}{'cached':>16}{'not cached':>16}{'memory per GPU':>18}")
    hours = 1 / (rate * 3600)
    features = {id(model): model for _, _, frozen, _ in stages for model in frozen if model is not planner}
    once = hours * arguments.clips * sum(model.forward for model in features.values())
    totals = [once, 0.0]
    print(f"{'0 features, once':28}{'':9}{once:>10.0f} GPU-h{'-':>16}")
    for (name, trained, frozen, own_shape), epochs in zip(stages, arguments.epochs, strict=True):
        samples = epochs * arguments.clips
        work = 3 * samples * trained.forward
        at_work = [model for model in frozen if model is planner]
        cached = hours * (work + samples * sum(model.forward for model in at_work))
        uncached = hours * (work + samples * sum(model.forward for model in frozen))
        totals = [totals[0] + cached, totals[1] + uncached]
        gigabytes = memory(trained, at_work, *(own_shape or shape), arguments) / 1e9
        print(f"{name:28}{work / 1e18:>9.1f}{cached:>10.0f} GPU-h{uncached:>10.0f} GPU-h{gigabytes:>15.1f} GB")
    print(f"{'all':28}{'':9}{totals[0]:>10.0f} GPU-h{totals[1]:>10.0f} GPU-h")
    student, teacher, target = arguments.distill
    adapter = adapter_parameters(config, arguments.rank)
    alone = argparse.Namespace(**{**vars(arguments), "gpus": 1, "batch_size": arguments.batch_size / arguments.gpus})
    held = Model(adapter, 0), [transformer, planner]
    gigabytes = memory(*held, *shape, alone) / 1e9
    methods = {
        "distillation, consistency": Consistency(student, teacher, target, own_share=0.5),
        "distillation, flow map": FlowMap(teacher, target, own_share=0.5),
    }
    without_gradient = {name: distillation_forwards(method, arguments.passes) for name, method in methods.items()}
    for name, passes in without_gradient.items():
        # The frozen weights have no gradients: the backward pass is one forward pass's work, not two.
        work = arguments.distilled * (passes + 2) * transformer.forward
        taken = hours * (work + arguments.distilled * planner.forward)
        uncached = taken + hours * arguments.distilled * sum(model.forward for model in (*autoencoders, text))
        print(f"{name:28}{work / 1e18:>9.1f}{taken:>10.0f} GPU-h{uncached:>10.0f} GPU-h{gigabytes:>15.1f} GB")
    print(
        f"  from {teacher} steps of {arguments.passes} passes, targets of {target}: {arguments.distilled:,} samples of "
        f"{' and '.join(f'{passes:.4g}' for passes in without_gradient.values())} passes without gradient and one with, for {student} steps "
        f"without guidance or any number of them; an adapter of rank {arguments.rank}, {adapter / 1e6:.4g} M parameters"
    )
    size = clip.feature_bytes(with_text=not text_learns)
    print(f"\ncached features: {size / 1e6:.2f} MB a clip, {size * arguments.clips / 1e12:.2f} TB in all")
    states = BYTES_PER_TRAINED_PARAMETER - 4  # neither gradients nor the bfloat16 copy
    for name, model in (("planner", planner), ("transformer", trained_with_text)):
        print(f"checkpoint of the {name}: {states * model.parameters / 1e9:.1f} GB with the optimiser's state")
    print(
        "Memory and checkpoints are sums of parts, not measured: fragmentation and buffers of communication come on top."
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("model_cards/baton-11b"), help="folder of configurations")
    parser.add_argument("--clips", type=int, default=1_500_000)
    parser.add_argument("--epochs", type=float, nargs=3, default=(1, 1, 1), help="of the three stages")
    parser.add_argument("--seconds", type=float, default=5.04)
    parser.add_argument("--height", type=int, default=704)
    parser.add_argument("--width", type=int, default=704)
    parser.add_argument("--text-length", type=int, default=512, help="tokens of a prompt, padding included")
    parser.add_argument("--train-text-encoder", action="store_true", help="as nano does")
    parser.add_argument("--batch-size", type=int, default=64, help="over all GPUs")
    parser.add_argument("--gpus", type=int, default=64)
    parser.add_argument(
        "--distill",
        type=int,
        nargs=3,
        default=(4, 48, 12),
        metavar=("STUDENT", "TEACHER", "TARGET"),
        help="steps of the student, of its teacher, and of a target",
    )
    parser.add_argument(
        "--distilled", type=int, default=64_000, help="samples of the distillation, as 1000 steps of 64"
    )
    parser.add_argument("--passes", type=int, default=2, help="of a guided step of the teacher")
    parser.add_argument("--rank", type=int, default=64, help="of the student's adapter")
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="of a GPU; an H100's in bfloat16")
    parser.add_argument("--mfu", type=float, default=0.4)
    parser.add_argument("--step-seconds", type=float, help="a measured step of the transformer, to calibrate")
    parser.add_argument(
        "--measure-layer",
        choices=("float32", "bfloat16"),
        help="run one layer here, forward and backward, to calibrate",
    )
    main(parser.parse_args())
