"""Puts nano's trained parts together as a pipeline folder.

python examples/assemble_nano.py --parts runs/export --transformer runs/transformer/export --output model_cards/baton-nano

Weights are stored in float16; the card and everything else that is not written here stays as it is.
"""

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, ConfigMixin, FlowMatchEulerDiscreteScheduler, MMAudioVAE
from transformers import AutoTokenizer, UMT5EncoderModel

from baton_diffusers import BatonPipeline, DualBranchTransformer, VAPlannerModel
from baton_diffusers.guiders import PlanGuidance
from baton_diffusers.models.semantic_encoders import AudioSemanticEncoder, VideoSemanticEncoder
from baton_diffusers.models.vocoder_griffin_lim import GriffinLimVocoder


def assemble(
    parts: Path, transformer: Path, planner: Path | None, shift: float, scales: tuple[float, float], **config: int
) -> BatonPipeline:
    """The pipeline of the exported parts, in float32."""
    audio_vae = MMAudioVAE.from_pretrained(parts / "audio_vae")
    # A low momentum costs 0.01 of spectral error, and keeps rounding errors 50 times smaller than the usual 0.99.
    vocoder = GriffinLimVocoder(
        sampling_rate=audio_vae.config.sample_rate,
        n_fft=audio_vae.config.n_fft,
        hop_length=audio_vae.config.hop_length,
        mel_bins=audio_vae.config.mel_bins,
        num_iterations=32,
        momentum=0.5,
    )
    return BatonPipeline(
        transformer=DualBranchTransformer.from_pretrained(transformer / "transformer"),
        vae=AutoencoderKLWan.from_pretrained(parts / "vae"),
        audio_vae=audio_vae,
        vocoder=vocoder,
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
        **config,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=Path, default=Path("runs/export"), help="folder of the exported components")
    parser.add_argument("--transformer", type=Path, default=Path("runs/transformer/export"))
    parser.add_argument("--planner", type=Path, default=Path("runs/export/planner"))
    parser.add_argument("--no-planner", action="store_true", help="leave the planner out")
    parser.add_argument("--output", type=Path, default=Path("model_cards/baton-nano"))
    parser.add_argument("--shift", type=float, default=2.0, help="of both schedulers")
    parser.add_argument("--guidance-scale", type=float, default=2.5)
    parser.add_argument("--audio-guidance-scale", type=float, default=2.5)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--max-sequence-length", type=int, default=80)
    arguments = parser.parse_args()
    pipe = assemble(
        arguments.parts,
        arguments.transformer,
        None if arguments.no_planner else arguments.planner,
        arguments.shift,
        (arguments.guidance_scale, arguments.audio_guidance_scale),
        height=64,
        width=64,
        num_frames=49,
        num_inference_steps=arguments.steps,
        max_sequence_length=arguments.max_sequence_length,
    )
    for name, component in pipe.components.items():
        if isinstance(component, torch.nn.Module) and name != "vocoder":  # the vocoder is a filter bank, no weights
            component.half()
        if isinstance(component, ConfigMixin):
            component.register_to_config(_name_or_path="")  # where it lay while it was trained is of no use to anybody
    pipe.save_pretrained(arguments.output, max_shard_size="15MB")
    for file in arguments.output.rglob("*.safetensors"):
        file.chmod(0o644)  # safetensors writes files for their owner alone
    size = sum(file.stat().st_size for file in arguments.output.rglob("*") if file.is_file())
    print(f"{arguments.output}: {size / 1e6:.1f} MB")
