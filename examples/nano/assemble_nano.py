"""Puts nano's trained parts together as a pipeline folder.

python examples/nano/assemble_nano.py --parts runs/export --transformer runs/transformer/export --output my_checkpoint

With `--overwrite`, the new parts replace the parts of the pipeline in the folder; its card and all other files stay. Weights
are stored in float16. The trained vocoder, or without one Griffin-Lim, turns spectrograms into sound.
"""

import baton_diffusers.interrupts  # noqa: F401


# isort: split
import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, ConfigMixin, FlowMatchEulerDiscreteScheduler, MMAudioVAE, MMAudioVocoder
from transformers import AutoTokenizer, UMT5EncoderModel
from vocoder import check_vocoder

from baton_diffusers import BatonPipeline, DualBranchTransformer, VAPlannerModel
from baton_diffusers.guiders import PlanGuidance
from baton_diffusers.models.plan_checker import PlanChecker
from baton_diffusers.models.plan_decoder import AudioPlanDecoder, VideoPlanDecoder
from baton_diffusers.models.semantic_encoders import AudioSemanticEncoder, VideoSemanticEncoder
from baton_diffusers.models.vocoder_griffin_lim import GriffinLimVocoder


def griffin_lim(audio_vae: MMAudioVAE) -> GriffinLimVocoder:
    """The vocoder without weights for the spectrograms of an autoencoder."""
    # A low momentum costs 0.01 of spectral error, and keeps rounding errors 50 times smaller than the usual 0.99.
    return GriffinLimVocoder(
        sampling_rate=audio_vae.config.sample_rate,
        n_fft=audio_vae.config.n_fft,
        hop_length=audio_vae.config.hop_length,
        mel_bins=audio_vae.config.mel_bins,
        num_iterations=32,
        momentum=0.5,
    )


def holds_vocoder(folder: Path) -> bool:
    """Whether a folder holds what `train_codecs.py vocoder` exports."""
    config = folder / "config.json"
    return config.is_file() and json.loads(config.read_text()).get("_class_name") == MMAudioVocoder.__name__


def trained_vocoder(folder: Path, audio_vae: MMAudioVAE) -> MMAudioVocoder:
    """
    What `train_codecs.py vocoder` exported.

    Raises:
        ValueError: If the folder holds no such vocoder, or one for other spectrograms than the autoencoder's.
    """
    if not holds_vocoder(folder):
        raise ValueError(f"{folder} holds no MMAudioVocoder: give an export of `train_codecs.py vocoder`")
    vocoder = MMAudioVocoder.from_pretrained(folder)
    check_vocoder(vocoder, audio_vae)
    return vocoder


def trained_plan_decoders(folder: Path | None) -> dict[str, VideoPlanDecoder | AudioPlanDecoder]:
    """What `plan_decoders.py` exported, by the names of the pipeline's components; nothing without a folder."""
    classes = {"video_plan_decoder": VideoPlanDecoder, "audio_plan_decoder": AudioPlanDecoder}
    return {} if folder is None else {name: cls.from_pretrained(folder / name) for name, cls in classes.items()}


def assemble(
    parts: Path,
    transformer: Path,
    planner: Path | None,
    vocoder: Path | None,
    plan_checker: Path | None,
    plan_decoders: Path | None,
    shift: float,
    scales: tuple[float, float],
    **config: int,
) -> BatonPipeline:
    """The pipeline of the exported parts, in float32.

    Raises:
        ValueError: If parts do not fit together, see `trained_vocoder` and `BatonPipeline`.
    """
    audio_vae = MMAudioVAE.from_pretrained(parts / "audio_vae")
    if vocoder is None and holds_vocoder(parts / "vocoder"):
        vocoder = parts / "vocoder"
    return BatonPipeline(
        transformer=DualBranchTransformer.from_pretrained(transformer / "transformer"),
        vae=AutoencoderKLWan.from_pretrained(parts / "vae"),
        audio_vae=audio_vae,
        vocoder=griffin_lim(audio_vae) if vocoder is None else trained_vocoder(vocoder, audio_vae),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
        audio_scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
        text_encoder=UMT5EncoderModel.from_pretrained(transformer / "text_encoder"),
        tokenizer=AutoTokenizer.from_pretrained(parts / "tokenizer"),
        planner=None if planner is None else VAPlannerModel.from_pretrained(planner),
        planner_tokenizer=AutoTokenizer.from_pretrained(parts / "planner_tokenizer"),
        guider=PlanGuidance(guidance_scale=scales[0]),
        audio_guider=PlanGuidance(guidance_scale=scales[1]),
        video_semantic_encoder=VideoSemanticEncoder.from_pretrained(parts / "video_semantic_encoder"),
        audio_semantic_encoder=AudioSemanticEncoder.from_pretrained(parts / "audio_semantic_encoder"),
        plan_checker=None if plan_checker is None else PlanChecker.from_pretrained(plan_checker),
        **trained_plan_decoders(plan_decoders),
        **config,
    )


def remove_parts(folder: Path) -> None:
    """Removes the components of the pipeline in a folder, if there is one; otherwise old shards could remain."""
    index = folder / BatonPipeline.config_name
    if index.is_file():
        for name, value in json.loads(index.read_text()).items():
            if isinstance(value, list) and (folder / name).is_dir():
                shutil.rmtree(folder / name)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=Path, default=Path("runs/export"), help="folder of the exported components")
    parser.add_argument("--transformer", type=Path, default=Path("runs/transformer/export"))
    parser.add_argument("--planner", type=Path, default=Path("runs/export/planner"))
    parser.add_argument("--no-planner", action="store_true", help="leave the planner out")
    parser.add_argument(
        "--vocoder",
        type=Path,
        help="export of `train_codecs.py vocoder`; by default the one among the parts, or else Griffin-Lim",
    )
    parser.add_argument(
        "--plan-checker", type=Path, help="export of `reading.py`, with the text encoder that it reads with"
    )
    parser.add_argument("--plan-decoders", type=Path, help="folder of the two exports of `plan_decoders.py`")
    parser.add_argument("--output", type=Path, required=True, help="folder of the pipeline, new or empty")
    parser.add_argument("--overwrite", action="store_true", help="replace the pipeline in --output")
    parser.add_argument("--shift", type=float, default=2.0, help="of both schedulers")
    parser.add_argument("--guidance-scale", type=float, default=2.5)
    parser.add_argument("--audio-guidance-scale", type=float, default=2.5)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--max-sequence-length", type=int, default=128)
    arguments = parser.parse_args(arguments)
    output = arguments.output
    if output.is_dir() and any(output.iterdir()) and not arguments.overwrite:
        parser.error(f"{output} is not empty: give a new folder, or --overwrite to replace the pipeline in it")
    try:
        pipe = assemble(
            arguments.parts,
            arguments.transformer,
            None if arguments.no_planner else arguments.planner,
            arguments.vocoder,
            arguments.plan_checker,
            arguments.plan_decoders,
            arguments.shift,
            (arguments.guidance_scale, arguments.audio_guidance_scale),
            height=64,
            width=64,
            num_frames=49,
            num_inference_steps=arguments.steps,
            max_sequence_length=arguments.max_sequence_length,
        )
    except ValueError as error:
        parser.error(str(error))
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module) and not isinstance(component, GriffinLimVocoder):  # a filter bank
            component.half()
        if isinstance(component, ConfigMixin):
            component.register_to_config(_name_or_path="")  # the folder of its training is of no use
    remove_parts(output)
    pipe.save_pretrained(output, max_shard_size="15MB")
    for file in output.rglob("*.safetensors"):
        file.chmod(0o644)  # safetensors writes files for their owner alone
    for file in output.rglob("tokenizer.json"):  # which is half spaces
        file.write_text(json.dumps(json.loads(file.read_text()), ensure_ascii=False, separators=(",", ":")))
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    print(f"{output}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
