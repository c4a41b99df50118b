"""Tiny random components of nano's shapes, which take Stage's clips as they are: 64x64 pixels, 16 frames/s, 16 kHz."""

from diffusers import AutoencoderKLWan, MMAudioVAE

from baton_diffusers.models.semantic_encoders import AudioSemanticEncoder, VideoSemanticEncoder
from tests.tiny import seeded


# A video autoencoder of strides 16 and 4 that learns in seconds.
VIDEO_VAE = {
    "base_dim": 8,
    "z_dim": 6,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],
    "patch_size": 4,
    "in_channels": 48,
    "out_channels": 48,
    "scale_factor_spatial": 16,
}


def codecs() -> tuple[AutoencoderKLWan, MMAudioVAE]:
    """Strides of 16 in space and 4 in time; 31.25 audio latents per second."""
    latents = {"z_dim": 4, "latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [0.5, 1.0, 1.5, 2.0]}
    vae = seeded(AutoencoderKLWan, **VIDEO_VAE | latents | {"dim_mult": [1, 1, 1]})
    audio_vae = seeded(
        MMAudioVAE,
        mel_bins=16,
        latent_channels=6,
        hidden_channels=8,
        channel_multipliers=(1, 1),
        layers_per_block=1,
        sample_rate=16000,
        n_fft=1024,
        hop_length=256,
    )
    return vae, audio_vae


def semantic_encoders() -> tuple[VideoSemanticEncoder, AudioSemanticEncoder]:
    """Plan tokens of width 8 in a 2 x 2 grid at 6 keyframes per second, and of width 4 at 8 per second."""
    video = seeded(
        VideoSemanticEncoder,
        vision_config={
            "hidden_size": 8,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": 32,
        },
        video_grid=(2, 2),
    )
    audio = seeded(
        AudioSemanticEncoder,
        audio_config={
            "sampling_rate": 16000,
            "hidden_size": 4,
            "num_filters": 2,
            "upsampling_ratios": [10, 10, 20],
            "num_lstm_layers": 1,
            "codebook_size": 4,
            "codebook_dim": 4,
            "target_bandwidths": [0.5],
        },
        tokens_per_chunk=8,
    )
    return video, audio
