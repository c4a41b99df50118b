"""What guidance and given modalities cost, in runs of the denoiser's branches and in time.

python benchmarks/guidance_cost.py --steps 20 --repeats 3

The transformer has nano's size and random weights. The clip has nano's length, 49 frames of 64x64 with their sound. Each setting
runs the steps of a clip and keeps clean streams, as `use_cache=True` does. Branches are counted; time is CPU seconds of this
process. Settings take turns, and the median is compared with the clip without guidance.

The project sets two limits. SyncCFG on context tokens costs at most 2.1 joint forwards. With a given modality, each guidance pass
costs at most one run of the given branch and one run of the other branch at each step, plus 10%. The exit status is 1 if a limit
is exceeded.
"""

import argparse
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
import yaml

from baton_diffusers import DualBranchTransformer, SemanticPlan, coordinates
from baton_diffusers.guiders import (
    AnchorGuidance,
    PlanGuidance,
    SyncGuidance,
    num_forward_passes,
    passes_of_steps,
    presets,
)
from baton_diffusers.models.cache_dual_branch import CleanStream


NANO = Path(__file__).parents[1] / "examples" / "configs" / "nano"
NUM_FRAMES, SIZE = 49, 64
SYNC_LIMIT, GIVEN_LIMIT = 2.1, 1.1


@dataclass(frozen=True)
class Setting:
    """Guiders of a clip; a modality without one is given."""

    name: str
    guider: AnchorGuidance | None
    audio_guider: AnchorGuidance | None


def settings() -> list[Setting]:
    """What is measured. The first one is the reference."""
    none, text, sync = (presets()[name] for name in ("none", "text", "harmony"))
    reading = SyncGuidance(3.0, clean_reads=True), SyncGuidance(2.0, modality="audio", clean_reads=True)
    return [
        Setting("no guidance", **none),
        Setting("text", **text),
        Setting("SyncCFG, context tokens", **sync),
        Setting("SyncCFG, Ovi's form", *reading),
        Setting("V2A, no guidance", None, PlanGuidance(1.0)),
        Setting("V2A, text", None, PlanGuidance(3.0)),
        Setting("A2V, no guidance", PlanGuidance(1.0), None),
        Setting("A2V, text", PlanGuidance(4.0), None),
    ]


class Clip:
    """Random inputs of one clip, and the steps of its denoising without schedulers."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        config = yaml.safe_load((NANO / "transformer.yaml").read_text())
        planner = yaml.safe_load((NANO / "planner.yaml").read_text())["planner"]
        model, text_length = config["transformer"], config["max_sequence_length"]
        self.transformer = DualBranchTransformer(**model).eval()

        duration = coordinates.clip_duration(NUM_FRAMES, model["frame_rate"])
        num_latent_frames = coordinates.num_latent_frames(NUM_FRAMES, model["temporal_stride"])
        audio_length = coordinates.num_audio_latents(
            duration, model["audio_latent_rate"], model.get("audio_latent_min_coverage", 0.0)
        )
        size = SIZE // yaml.safe_load((NANO / "video_vae.yaml").read_text())["model"]["scale_factor_spatial"]
        shape = (1, model["in_channels"], num_latent_frames, size, size)
        audio_shape = (1, audio_length, model["audio_in_channels"])
        self.latents, self.still = torch.randn(2, *shape)
        self.audio_latents, self.silence = torch.randn(2, *audio_shape)
        self.texts = torch.randn(2, 1, text_length, model["text_dim"])
        self.plan = random_plan(duration, planner)

    @torch.no_grad()
    def denoise(self, setting: Setting, num_steps: int) -> None:
        """Runs the forwards of a clip, as a pipeline's loop does."""
        streams, clean = defaultdict(CleanStream), torch.zeros(1)
        steps = passes_of_steps(setting.guider, setting.audio_guider, num_steps)
        for i, passes in enumerate(steps):
            t = torch.tensor([1000.0 * (1 - i / num_steps)])
            latents = self.latents if setting.guider is None else self.latents + i
            audio_latents = self.audio_latents if setting.audio_guider is None else self.audio_latents + i
            for p in passes:
                self.transformer(
                    hidden_states=self.still if p.anchor.static else latents,
                    audio_hidden_states=self.silence if p.anchor.mute else audio_latents,
                    timestep=clean if p.anchor.static or setting.guider is None else t,
                    audio_timestep=clean if p.anchor.mute or setting.audio_guider is None else t,
                    encoder_hidden_states=self.texts[0 if p.anchor.text else 1],
                    plan=self.plan if p.anchor.plan else None,
                    video_reads_audio=p.video_reads_audio,
                    audio_reads_video=p.audio_reads_video,
                    clean_video=streams["video", p.anchor.name] if p.keeps_video or not p.runs_video else None,
                    clean_audio=streams["audio", p.anchor.name] if p.keeps_audio or not p.runs_audio else None,
                    return_dict=False,
                )


def random_plan(duration: float, planner: dict) -> SemanticPlan:
    """A plan in the layout of nano's planner."""
    layout = coordinates.plan_layout(
        duration, planner["keyframe_rate"], planner["video_grid"], planner["audio_tokens_per_chunk"]
    )
    video_tokens = torch.randn(1, len(layout.video_times), planner["video_dim"])
    audio_tokens = torch.randn(1, len(layout.audio_times), planner["audio_dim"])
    return SemanticPlan.laid_out(layout, video_tokens, audio_tokens, duration)


@contextmanager
def counted(transformer: DualBranchTransformer) -> Iterator[Counter]:
    """Counts calls of the transformer and runs of each branch."""
    block, counts = transformer.blocks[0], Counter()
    modules = {"calls": transformer, "video": block.attn1, "audio": block.audio_attn1}
    handles = [
        module.register_forward_pre_hook(lambda *_, name=name: counts.update([name]))
        for name, module in modules.items()
    ]
    yield counts
    for handle in handles:
        handle.remove()


@contextmanager
def timed_branches(transformer: DualBranchTransformer) -> Iterator[Counter]:
    """Adds up the CPU seconds that the layers of each branch's blocks take."""
    seconds, starts, handles = Counter(), {}, []
    for block in transformer.blocks:
        for name, layer in block.named_children():
            branch = "audio" if name.startswith("audio_") else "video"
            handles += [
                layer.register_forward_pre_hook(lambda layer, _: starts.update({layer: time.process_time()})),
                layer.register_forward_hook(
                    lambda layer, *_, branch=branch: seconds.update({branch: time.process_time() - starts[layer]})
                ),
            ]
    yield seconds
    for handle in handles:
        handle.remove()


def measure(clip: Clip, num_steps: int, repeats: int) -> bool:
    """Prints the table, and returns whether all limits hold."""
    rows = settings()
    seconds, counts = {row.name: [] for row in rows}, {}
    clip.denoise(rows[0], 2)  # warm-up
    for _ in range(repeats):
        for row in rows:
            with counted(clip.transformer) as counts[row.name]:
                start = time.process_time()
                clip.denoise(row, num_steps)
                seconds[row.name].append(time.process_time() - start)
    with timed_branches(clip.transformer) as of_branch:
        clip.denoise(rows[0], num_steps)
    video_share = of_branch["video"] / of_branch.total()
    joint = median(seconds[rows[0].name])
    print(
        f"{num_steps} steps; the video branch is {video_share:.0%} of a forward, the audio branch {1 - video_share:.0%}"
    )
    print("| setting | calls | video runs | audio runs | CPU seconds | x joint | limit |")
    print("|---|---|---|---|---|---|---|")

    holds = True
    for row in rows:
        count = counts[row.name]
        promised = num_forward_passes(row.guider, row.audio_guider, num_steps)
        if (count["calls"], count["video"], count["audio"]) != (promised.calls, promised.video, promised.audio):
            raise RuntimeError(f"{row.name}: {promised} was promised, but {dict(count)} was counted.")

        ratio, limit = median(seconds[row.name]) / joint, None
        if row.name == "SyncCFG, context tokens":
            limit = SYNC_LIMIT
        elif row.guider is None or row.audio_guider is None:
            given, made = (video_share, 1 - video_share) if row.guider is None else (1 - video_share, video_share)
            limit = GIVEN_LIMIT * promised.calls / num_steps * (given / num_steps + made)
        holds = holds and (limit is None or ratio <= limit)
        cells = (row.name, count["calls"], count["video"], count["audio"])
        limit = "" if limit is None else f"{limit:.2f}"
        print("|", " | ".join(map(str, cells)), f"| {median(seconds[row.name]):.2f} | {ratio:.2f} | {limit} |")
    return holds


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="denoising steps of a clip (default: %(default)s)")
    parser.add_argument(
        "--repeats", type=int, default=3, help="clips that are timed for each setting (default: %(default)s)"
    )
    arguments = parser.parse_args()
    sys.exit(not measure(Clip(), arguments.steps, arguments.repeats))
