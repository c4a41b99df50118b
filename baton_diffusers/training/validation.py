"""Clips of what is trained so far, to look at and scored, while the training goes on."""

from __future__ import annotations

from pathlib import Path

from ..media import write_clip
from ..pipelines.pipeline_baton import BatonPipeline
from ..stage.scoring import summarise
from .evaluation import draw_examples, evaluate, generated_clips
from .transformer import TransformerWithText


class StageValidation:
    """
    Generates scenes of Stage's validation split, writes them as mp4 files, and scores them. For [`Trainer`]'s `validate`.

    The scenes and their noise are the same at every step, so that clips of different steps can be compared.

    Args:
        model: Folder of a pipeline, which gives all components but the transformer and its text encoder.
        folder: Where the clips go, in one folder for each step.
        scenes_per_tier: Scenes of each tier.
        plan: What the clips follow: "planner", "none" or "ground truth".
        num_inference_steps: Denoising steps; by default the pipeline's.
        scale: Every pixel becomes `scale` x `scale` pixels of the mp4.
    """

    def __init__(
        self,
        model: str | Path,
        folder: str | Path,
        scenes_per_tier: int = 2,
        plan: str = "planner",
        num_inference_steps: int | None = None,
        scale: int = 4,
    ) -> None:
        self.folder = Path(folder)
        self.examples = draw_examples(scenes_per_tier, split="validation")
        self.pipe = BatonPipeline.from_pretrained(model)
        self.pipe.set_progress_bar_config(disable=True)
        self.plan = plan
        self.num_inference_steps = num_inference_steps
        self.scale = scale

    def __call__(self, module: TransformerWithText, step: int) -> dict[str, float]:
        """Scores by the names of `summarise`, over all tiers. Clips already there are replaced."""
        folder = self.folder / f"step_{step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        self.pipe.register_modules(transformer=module.transformer, text_encoder=module.text_encoder)
        self.pipe.to(module.transformer.device)
        generate = generated_clips(self.pipe, self.examples, self.num_inference_steps, self.plan)

        def make(batch):
            clips = generate(batch)
            for example, (frames, waveform) in zip(batch, clips, strict=True):
                path = folder / f"{example.scene.tier}-{example.seed}.mp4"
                write_clip(path, frames, waveform, self.pipe.frame_rate, self.pipe.sampling_rate, self.scale)
                path.with_suffix(".txt").write_text(example.prompt + "\n")
            return clips

        summary = summarise(evaluate(make, self.examples))["all"]
        names = ("p_acc", "strict", "m_wer", "desync")
        return {name: summary[name]["value"] for name in names if summary[name] is not None}
