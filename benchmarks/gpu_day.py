"""All measurements that need a GPU, in one run of a few minutes. The results are saved as JSON, part by part.

    python benchmarks/gpu_day.py --output results.json --ovi ../Ovi     # eight minutes on a GPU of 80 GB, from a bare machine
    python benchmarks/gpu_day.py --output results.json --budget 240     # the same command goes on with the parts that are not done
    python benchmarks/gpu_day.py --output /tmp/results.json --size tiny # a rehearsal on a CPU

Weights are random and made where they are needed: nothing is fetched. Each part is a process of its own with a limit of time. A
part that fails leaves its traceback in the results, and a part that is stopped leaves its results so far; then the next part
runs. Nothing is installed: a part says what it lacks. `--ovi` is a checkout of https://github.com/character-ai/Ovi, whose
published code is timed beside ours.
"""

import argparse
import contextlib
import gc
import importlib.util
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
# A process that forks must not have used the GPU, so torch asks the driver's management library whether there is one.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

import denoise_step  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from diffusers import UniPCMultistepScheduler  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

from baton_diffusers import BatonPipeline, default_checkpoint, memory  # noqa: E402
from baton_diffusers.guiders import PlanGuidance  # noqa: E402
from baton_diffusers.pipelines import conditions  # noqa: E402
from baton_diffusers.pipelines.planning import PlanRequest  # noqa: E402
from baton_diffusers.pipelines.texts import Texts  # noqa: E402


# Memory that CUDA itself takes; no allocator counts it.
CONTEXT = int(0.7 * 2**30)
PROMPT = "A red ball on the left bounces twice, then a purple face on the right says three nine."


class Day:
    """The arguments of a part: the options, the device, and a place for its results.

    Args:
        options (`argparse.Namespace`): of the command line.
        file (`Path`): where what is found is kept.
    """

    def __init__(self, options: argparse.Namespace, file: Path) -> None:
        self.options, self.found = options, {}
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.is_full = options.size == "full"
        self.dtype = torch.bfloat16
        self.repeats = 5 if self.is_full else 1
        self._file = file

    def note(self, **found: Any) -> None:
        """Keeps facts at once, so that a part which is stopped leaves them."""
        self.found |= found
        self._file.write_text(json.dumps(self.found))
        print("   ", json.dumps({name: value for name, value in found.items() if name != "error"}), flush=True)

    def seconds(self, call: Callable[[], object]) -> float:
        """Median time of a call after two that warm up."""
        return denoise_step.seconds(call, self.repeats, self.device.type)

    @contextlib.contextmanager
    def measured(self) -> Iterator[dict[str, float]]:
        """Seconds of the block, and the peak of GPU memory in it, over all and over what was there before."""
        result: dict[str, float] = {}
        before = self.synchronize()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        yield result
        self.synchronize()
        result["seconds"] = round(time.perf_counter() - start, 3)
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated()
            result |= {"peak_gib": gib(peak), "risen_gib": gib(peak - before)}
            result |= {"reserved_gib": gib(torch.cuda.max_memory_reserved())}

    def synchronize(self) -> int:
        """Waits for the GPU; returns the bytes of what is on it."""
        if self.device.type != "cuda":
            return 0
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()


def gib(size: float) -> float:
    """Bytes in GiB."""
    return round(size / 2**30, 3)


# The parts


def machine(day: Day) -> None:
    """What the machine is, and its two ceilings: a large matrix product and a large copy."""
    day.note(torch=torch.__version__, device=day.device.type, cpus=os.cpu_count())
    if day.device.type == "cuda":
        properties = torch.cuda.get_device_properties(0)
        day.note(gpu=properties.name, memory_gib=gib(properties.total_memory), cuda=torch.version.cuda)
    rate = denoise_step.matrix_rate(day.device.type, day.dtype, day.repeats)
    data = torch.ones(2**30 if day.is_full else 2**20, dtype=torch.uint8, device=day.device)
    copied = 2 * data.nbytes / day.seconds(data.clone)
    day.note(matrix_tflops=round(rate / 1e12, 2), copy_tb_per_s=round(copied / 1e12, 3))


@torch.no_grad()
def denoise(day: Day, compiled: bool = False) -> None:
    """One denoising step of Ovi's size in each direction: time, memory, difference from Ovi's published code."""
    model = denoise_step.random_model(denoise_step.SIZES[day.options.size][0], day.device.type, day.dtype)
    day.note(parameters=sum(parameter.numel() for parameter in model.parameters()))
    floor = 1 / denoise_step.matrix_rate(day.device.type, day.dtype, day.repeats)
    published = None
    if not compiled and day.options.ovi is None:
        day.note(ovi="not compared: no --ovi")
    elif not compiled:
        try:
            published = denoise_step.published_model(day.options.ovi, model)
        except Exception as error:
            day.note(ovi=f"not compared: {type(error).__name__}: {error}")
    if compiled:
        model.compile_repeated_blocks(fullgraph=True)
    for direction in denoise_step.DIRECTIONS:
        inputs = denoise_step.random_inputs(model, day.options.size, day.device.type, day.dtype, direction)
        with day.measured() as first:  # with compilation, if any
            model(**inputs)
        found = {"ms": 1e3 * day.seconds(lambda inputs=inputs: model(**inputs)), "first": first}
        if not compiled:
            found["of_the_floor"] = 1e3 * floor * denoise_step.count_flops(model, inputs) / found["ms"]
        day.note(**{direction: found})
        if published is None or direction == "v2a":
            continue
        try:
            output, theirs = model(**inputs), denoise_step.published_step(published, inputs)
            for name, a, b in zip(("video", "audio"), (output.sample, output.audio_sample), theirs, strict=True):
                found[f"{name}_differs"] = ((a.float() - b.float()).abs().max() / b.float().abs().max()).item()
            found["ovi_ms"] = 1e3 * day.seconds(lambda inputs=inputs: denoise_step.published_step(published, inputs))
        except Exception as error:
            found["ovi"] = f"{type(error).__name__}: {error}"
        day.note(**{direction: found})


def configuration(day: Day) -> str:
    """The configuration whose whole pipeline is run."""
    return "baton-11b" if day.is_full else "baton-nano"


def clip_size(day: Day) -> dict[str, int]:
    """The clip of the configuration."""
    config = json.loads((ROOT / "model_cards" / configuration(day) / "model_index.json").read_text())
    return {name: config[name] for name in ("height", "width", "num_frames")}


def expected(day: Day) -> None:
    """What `baton memory` says, which needs no GPU: GiB besides the weights in each stage, and the peaks of the recipes for cards."""
    models, config = memory.load_components(configuration(day))
    size, peaks = clip_size(day), {}
    for given in (None, *memory.GIVEN):
        peaks[given] = memory.activations(models, config, **size, given=given)
        day.note(**{f"given {given}": {stage: gib(peak) for stage, peak in peaks[given].items()}})
    tiled = peaks[None] | memory.activations(models, config, **size, tiled=True, stages=("decode",))
    for fp8 in (False, True):
        if fp8:
            models["transformer"].enable_layerwise_casting(torch.float8_e4m3fn, torch.bfloat16)
        for gigabytes, name in memory.CARDS.items():
            recipe = memory.RECIPES[name]
            if recipe.fp8 == fp8:
                result = memory.estimate(models, name, tiled if recipe.tiled else peaks[None])
                found = {
                    "recipe": name,
                    "peak_gib": gib(result.peak),
                    "reached_in": result.stage,
                    "ram_gib": gib(result.ram),
                }
                day.note(**{f"{gigabytes} GB": found})


def full_pipeline(day: Day, stays: bool) -> BatonPipeline:
    """A pipeline of random weights in the dtypes that `from_pretrained` gives them. They are drawn on the GPU, model by model, and
    brought to the CPU unless all of it `stays`."""
    models, config = memory.load_components(configuration(day))
    generator = torch.Generator(day.device).manual_seed(0)
    for model in models.values():
        names: dict[int, list[str]] = {}  # of one tensor: `to_empty` would make it as often as it is named
        for name, parameter in model.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(name)
        model.to_empty(device=day.device)
        for first, *others in names.values():
            for other in others:
                parent, _, leaf = other.rpartition(".")
                setattr(model.get_submodule(parent), leaf, model.get_parameter(first))
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point():
                tensor.data.zero_()
                continue
            tensor.data.normal_(std=0.02, generator=generator)
            if "norm" in name and name.endswith("weight"):
                tensor.data.add_(1)
        if not stays:
            model.to("cpu")
    tokenizers = {
        name: AutoTokenizer.from_pretrained(default_checkpoint() / name) for name in ("tokenizer", "planner_tokenizer")
    }
    schedule = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 5.0}
    pipe = BatonPipeline(
        **models,
        **tokenizers,
        scheduler=UniPCMultistepScheduler(**schedule),
        audio_scheduler=UniPCMultistepScheduler(**schedule),
        guider=PlanGuidance(guidance_scale=1.0),
        audio_guider=PlanGuidance(guidance_scale=1.0),
        max_sequence_length=config["max_sequence_length"],
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def stages(day: Day) -> None:
    """Each stage of a call with everything on the GPU, by what is given: seconds, and memory besides the weights."""
    pipe, size = full_pipeline(day, stays=True), clip_size(day)
    day.note(weights_gib=gib(day.synchronize()))

    def stage(name: str, call: Callable[[], Any]) -> Any:
        with day.measured() as found:
            result = call()
        day.note(**{name: found})
        return result

    text = stage("text", lambda: pipe.encode_prompt(PROMPT, do_classifier_free_guidance=False))[0]
    cues = [""] if pipe.planner.writes_cues else None  # random weights write no sheet
    plan = stage("plan", lambda: pipe.prepare_plan(PROMPT, size["num_frames"], cues=cues))
    latents, audio_latents = pipe.prepare_latents(1, **size, generator=torch.Generator().manual_seed(0))
    noisy, clean = torch.full((1,), 500.0, device=day.device), torch.zeros(1, device=day.device)
    first = noisy[:, None].repeat(1, latents.shape[2])
    first[:, 0] = 0
    video, audio = (noise.to(pipe.transformer.dtype) for noise in (latents, audio_latents))
    for given, timestep, reference in (
        (None, noisy, None),
        ("image", first, None),
        ("video", clean, None),
        ("reference_audio", noisy, audio),
    ):
        inputs = {"timestep": timestep, "audio_timestep": noisy, "reference_audio_hidden_states": reference}
        stage(
            f"denoise, given {given}",
            lambda inputs=inputs: pipe.transformer(video, audio, encoder_hidden_states=text, plan=plan, **inputs),
        )
    stage("decode", lambda: pipe.decode_latents(latents, audio_latents, size["num_frames"]))
    picture = torch.zeros(1, 3, 1, size["height"], size["width"], device=day.device)
    stage("encode, given image", lambda: pipe.encode_video(picture))


def card(day: Day, gigabytes: int) -> None:
    """A call from prompt to frames by the recipe for a card, with no more GPU memory than that card has."""
    name = memory.CARDS[gigabytes]
    recipe = memory.RECIPES[name]
    start = time.perf_counter()
    pipe = full_pipeline(day, stays=recipe.offload is None)
    gc.collect()
    day.note(recipe=name, seconds_to_make=round(time.perf_counter() - start, 1))
    start = time.perf_counter()
    if day.device.type == "cuda":
        torch.cuda.empty_cache()
        total, allowed = torch.cuda.get_device_properties(0).total_memory, gigabytes * 2**30 - CONTEXT
        torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / total))
        day.note(allowed_gib=gib(allowed))
        recipe.follow(pipe)
    day.note(seconds_to_follow=round(time.perf_counter() - start, 1))

    start, peaks = time.perf_counter(), []

    def reached(stage: str) -> None:
        nonlocal start
        day.synchronize()
        found = {"seconds": round(time.perf_counter() - start, 2)}
        if day.device.type == "cuda":
            peaks.append(torch.cuda.max_memory_allocated())
            found |= {"peak_gib": gib(peaks[-1]), "reserved_gib": gib(torch.cuda.max_memory_reserved())}
            torch.cuda.reset_peak_memory_stats()
        day.note(**{stage: found})
        start = time.perf_counter()

    def telling(stage: str, call: Callable) -> Callable:
        def told(*arguments: Any, **keywords: Any) -> Any:
            try:
                return call(*arguments, **keywords)
            finally:
                reached(stage)

        return told

    for stage, owner, name in (
        ("text", Texts, "encode"),
        ("plan", PlanRequest, "make"),
        ("decode", conditions, "finished_video"),
    ):
        setattr(owner, name, telling(stage, getattr(owner, name)))

    def stepped(pipe: BatonPipeline, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
        reached(f"step {step + 1}")
        return {}

    try:
        frames, audio = pipe(
            PROMPT,
            **clip_size(day),
            cues="" if pipe.planner.writes_cues else None,  # random weights write no sheet
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
            callback_on_step_end=stepped,
            return_dict=False,
        )
    except Exception:
        if day.device.type == "cuda":
            day.note(peak_when_it_failed_gib=gib(torch.cuda.max_memory_allocated()))
        raise
    day.note(frames=list(np.shape(frames)), sound_is_finite=bool(np.isfinite(audio).all()))
    day.note(
        peak_gib=gib(max(peaks, default=0)), ram_gib=gib(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    )


def clip(day: Day) -> None:
    """Nano's clip on the GPU: its seconds, and whether it has the facts that the CPU's has."""
    from baton_diffusers.stage import sample_scene, write_prompt
    from baton_diffusers.stage.scoring import score_clip

    prompts = [
        (scene, write_prompt(scene, seed)) for seed, scene in ((seed, sample_scene(seed)) for seed in (0, 1, 2))
    ]
    pipe = BatonPipeline.from_pretrained(default_checkpoint())
    pipe.set_progress_bar_config(disable=True)
    steps = {} if day.is_full else {"num_inference_steps": 2}
    clips: dict[str, list] = {}
    for name, device, number in (("gpu", day.device, 3), ("cpu", "cpu", 2)):
        pipe.to(device)
        seconds = []
        for seed, (_, prompt) in enumerate(prompts[:number]):
            start = time.perf_counter()
            output = pipe(prompt, generator=torch.Generator().manual_seed(seed), **steps)
            day.synchronize()
            seconds.append(round(time.perf_counter() - start, 2))
            clips.setdefault(name, []).append(output.clip())
        day.note(**{f"{name}_seconds": seconds})
    for seed, ((scene, prompt), *pair) in enumerate(zip(prompts, clips["gpu"], clips["cpu"], strict=False)):
        scores = [score_clip(clip[0], clip[1][0], scene) for clip in pair]
        differs = np.abs(pair[0][0].astype(np.float32) - pair[1][0]).mean()
        found = {"prompt": prompt, "mean_difference_of_255": round(float(differs), 3)}
        found |= {"p_acc": [score.p_acc for score in scores], "same_facts": scores[0].facts == scores[1].facts}
        day.note(**{f"clip {seed}": found})


def tests(day: Day) -> None:
    """The tests that are marked `gpu`; without a GPU, other tests of one file."""
    marked = sorted(str(path) for path in (ROOT / "tests").rglob("test_*.py") if "pytest.mark.gpu" in path.read_text())
    is_gpu = day.device.type == "cuda"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-m",
        "gpu" if is_gpu else "not gpu and not slow",
    ]
    command += [*marked, "--tb=short"] if is_gpu else [str(ROOT / "tests" / "test_coordinates.py")]
    if is_gpu and importlib.util.find_spec("xdist"):
        command += ["-n", "6"]
    try:  # a test that writes an mp4 needs the program
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        day.note(left_out=f"a clip by a recipe of the command line: {error}")
        command += ["-k", "not clip_is_made_by_a_recipe"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = result.stdout.splitlines()
    day.note(
        code=result.returncode,
        summary=lines[-1:],
        failures=[line for line in lines if line.startswith(("FAILED", "ERROR"))],
    )
    if result.returncode:
        day.note(output=(result.stdout + result.stderr)[-6000:])


def train(day: Day) -> None:
    """Nano's second stage by its own recipe, from a cache that is made here: how fast it learns."""
    with tempfile.TemporaryDirectory() as folder:
        nano, clips = ROOT / "model_cards" / "baton-nano", 256 if day.is_full else 8
        start = time.perf_counter()
        cache = ["-m", "baton_diffusers.cli", "cache", "stage", "--clips", clips, "--output", f"{folder}/features"]
        run_script(day, *cache)
        day.note(cached_clips=clips, seconds_to_cache=round(time.perf_counter() - start, 1))
        overrides = {
            "features": f"{folder}/features",
            "trainer.run_dir": f"{folder}/run",
            "trainer.max_minutes": 1.0 if day.is_full else "null",
            "trainer.steps": 100000 if day.is_full else 2,
            "trainer.batch_size": 64 if day.is_full else 2,
            "trainer.log_every": 50 if day.is_full else 1,
            "trainer.compile": "false",
            "trainer.mixed_precision": "bf16" if day.is_full else "no",
            "vae": nano / "vae",
            "audio_vae": nano / "audio_vae",
            "tokenizer": nano / "tokenizer",
            "initial_text_encoder": "null",
        }
        start = time.perf_counter()
        script, config = (find(name) for name in ("train_transformer.py", "transformer.yaml"))
        run_script(day, script, config, *(f"{key}={value}" for key, value in overrides.items()))
        rows = (Path(folder) / "run" / "log.csv").read_text().splitlines()
        day.note(seconds_to_train=round(time.perf_counter() - start, 1), columns=rows[0], first=rows[1], last=rows[-1])


def find(name: str) -> Path:
    """A file of the examples, in whichever of their folders it is."""
    return next((ROOT / "examples").rglob(name))


def run_script(day: Day, *command: Any) -> None:
    """Runs Python on a script of the repository; what it printed last is in the error."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    result = subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if result.returncode:
        raise RuntimeError(
            f"{' '.join(map(str, command))} ended with {result.returncode}: {(result.stdout + result.stderr)[-3000:]}"
        )


# Name, what to run, and the seconds that it may take on a GPU; in the order of what a day without them would miss most.
PARTS: dict[str, tuple[Callable[[Day], None], int]] = {
    "machine": (machine, 60),
    "denoise": (denoise, 100),
    "stages": (stages, 100),
    "card-8": (lambda day: card(day, 8), 150),
    "card-24": (lambda day: card(day, 24), 120),
    "clip": (clip, 60),
    "tests": (tests, 120),
    "compiled": (lambda day: denoise(day, compiled=True), 150),
    "card-12": (lambda day: card(day, 12), 150),
    "train": (train, 150),
}


def begin(name: str, options: argparse.Namespace, file: Path, method: str) -> multiprocessing.Process:
    """Starts a part in a process of its own."""
    process = multiprocessing.get_context(method).Process(target=_in_process, args=(name, options, file))
    process.start()
    return process


def _in_process(name: str, options: argparse.Namespace, file: Path) -> None:
    os.setsid()  # so that all that it starts ends with it
    try:
        day = Day(options, file)
        if day.is_full and day.device.type == "cpu" and name != "expected":
            raise RuntimeError("--size full needs a GPU: try --size tiny")
        run = expected if name == "expected" else PARTS[name][0]
        run(day)
        day.note(status="done")
    except BaseException:
        traceback.print_exc()
        found = json.loads(file.read_text()) if file.is_file() else {}
        file.write_text(json.dumps({**found, "status": "failed", "error": traceback.format_exc()[-4000:]}))
        sys.exit(1)


def ended(process: multiprocessing.Process, seconds: float, file: Path) -> dict[str, Any]:
    """Waits for a part so long, stops it if it is still at work, and reads what it found."""
    process.join(max(seconds, 0.1))
    stopped = process.is_alive()
    if stopped:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
    found = json.loads(file.read_text()) if file.is_file() else {}
    if stopped:
        found["status"] = f"stopped after {seconds:.0f} s"
    return {"status": f"ended with {process.exitcode}", **found}


def main(arguments: list[str] | None = None) -> None:
    """Runs the parts that are not done yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FILE.json",
        help="the results; parts done there are not run again",
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="by default all, in this order")
    parser.add_argument("--budget", type=float, default=480, metavar="SECONDS", help="no part goes on after so long")
    parser.add_argument("--ovi", type=Path, metavar="DIR", help="a checkout of https://github.com/character-ai/Ovi")
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    options = parser.parse_args(arguments)
    if not options.output.parent.is_dir():
        parser.error(f"{options.output.parent} is not a folder")
    if options.ovi is not None and not (options.ovi / "ovi" / "modules" / "fusion.py").is_file():
        parser.error(f"{options.ovi} is not a checkout of Ovi: it lacks ovi/modules/fusion.py")

    end = time.monotonic() + options.budget
    results = json.loads(options.output.read_text()) if options.output.is_file() else {}

    def keep(name: str, found: dict[str, Any]) -> None:
        results[name] = found
        temporary = options.output.with_suffix(".tmp")
        temporary.write_text(json.dumps(results, indent=1))
        temporary.replace(options.output)

    method = (
        "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    )  # one import of torch for all parts
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.json" for name in (*PARTS, "expected")}
        aside = None
        if results.get("expected", {}).get("status") != "done":  # beside the others: it needs a CPU alone
            aside = begin("expected", options, files["expected"], method)
        for name in options.parts:
            left = end - time.monotonic()
            if results.get(name, {}).get("status") == "done":
                continue
            if left < 5:
                print(f"{name}: no time is left for it", flush=True)
                continue
            print(f"{name}:", flush=True)
            start, limit = time.monotonic(), min(PARTS[name][1], left)
            found = ended(begin(name, options, files[name], method), limit, files[name])
            if name == "machine" and found["status"] != "done" and method == "fork":
                method = "spawn"  # for a driver that does not bear a fork
                found = ended(begin(name, options, files[name], method), limit, files[name])
            keep(name, {**found, "seconds": round(time.monotonic() - start, 1)})
            if name == "machine" and found["status"] != "done":
                break  # there is nothing to run the others on
        if aside is not None:
            keep("expected", ended(aside, end - time.monotonic(), files["expected"]))
    print("\n".join(f"{name:10} {found['status']:22} {found.get('seconds', '')}" for name, found in results.items()))


if __name__ == "__main__":
    main()
