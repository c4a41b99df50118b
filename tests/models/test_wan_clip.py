"""The whole-clip form of the video autoencoder, against diffusers' own loop."""

import pytest
import torch
from diffusers import AutoencoderKLWan

from baton_diffusers.models.wan_clip import decode_clip, encode_clip
from tests.stage_parts import VIDEO_VAE


def video_vae(**kwargs):
    torch.manual_seed(0)
    vae = AutoencoderKLWan(**(VIDEO_VAE | kwargs | {"latents_mean": [0.0] * 6, "latents_std": [1.0] * 6})).eval()
    return vae


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"is_residual": True, "num_res_blocks": 2},
        {"temperal_downsample": [False, True, True], "dim_mult": [1, 2, 2, 2], "patch_size": 2}
        | {"in_channels": 12, "out_channels": 12},
        {"patch_size": None, "in_channels": 3, "out_channels": 3, "scale_factor_spatial": 4},
    ],
)
@pytest.mark.parametrize("num_frames", [1, 5, 17])
@torch.no_grad()
def test_whole_clip_equals_the_class(kwargs, num_frames):
    vae = video_vae(**kwargs)
    video = torch.rand(2, 3, num_frames, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    parameters = encode_clip(vae, video)
    torch.testing.assert_close(parameters, vae.encode(video).latent_dist.parameters, rtol=1e-5, atol=1e-5)
    latents = 0.3 * parameters.chunk(2, dim=1)[0]
    decoded = decode_clip(vae, latents)
    assert decoded.shape == video.shape
    torch.testing.assert_close(decoded.clamp(-1, 1), vae.decode(latents).sample, rtol=1e-5, atol=1e-5)


def test_whole_clip_refuses_a_broken_group():
    with pytest.raises(ValueError, match=r"1 \+ 4 \* n frames, got 16"):
        encode_clip(video_vae(), torch.zeros(1, 3, 16, 32, 32))
