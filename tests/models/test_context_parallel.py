"""Two processes that share the tokens of a clip say what one says."""

import os
import socket

import pytest
import torch
from diffusers import ContextParallelConfig

from baton_diffusers.models.cache_dual_branch import CleanStream

from ..tiny import AUDIO_CHANNELS, FULL, random_plan, tiny_transformer
from .test_transformer_dual_branch import BATCH_SIZE, NUM_TOKENS, differ, make_inputs, run


WORLD_SIZE = 2


def routes(inputs):
    """What a pipeline asks of a clip: per-token timesteps, routing, a reference, blocks left out."""
    per_token = inputs["timestep"][:, None].repeat(1, NUM_TOKENS)
    per_token[:, :4] = 0.0
    return [
        {},
        {"plan": None, "timestep": per_token},
        {"plan": None, "timestep": per_token[:, ::4]},
        {"video_reads_audio": torch.tensor([True, False]), "audio_reads_video": torch.tensor([False, True])},
        {"reference_audio_hidden_states": torch.ones(BATCH_SIZE, 4, AUDIO_CHANNELS), "skip_layers": [0]},
    ]


def clean_routes():
    """A clean stream, and under which name it is kept."""
    clean = torch.zeros(BATCH_SIZE)
    return [
        ({"timestep": clean, "video_reads_audio": False}, "clean_video"),
        ({"audio_timestep": clean, "audio_reads_video": False}, "clean_audio"),
    ]


def work(rank, port):
    """One process: the whole clip by itself, and then its share of the clip."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(WORLD_SIZE))
    torch.distributed.init_process_group("gloo")
    torch.accelerator.device_count = lambda: WORLD_SIZE  # diffusers counts devices, of which a CPU has one
    for config in ({}, FULL):
        for audio_length in (36, 35):
            model = tiny_transformer(**config)
            inputs = {**make_inputs(audio_latents=(audio_length, AUDIO_CHANNELS)), "plan": random_plan(BATCH_SIZE)}
            expected = [run(model, inputs, **route) for route in routes(inputs)]
            clean_expected = [run(model, inputs, **route) for route, _ in clean_routes()]
            model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=WORLD_SIZE))
            lengths = []
            model.blocks[2].register_forward_hook(
                lambda _, __, states, lengths=lengths: lengths.append([s.shape[1] for s in states if s is not None])
            )
            for changes, wanted in zip(routes(inputs), expected, strict=True):
                for velocity, value in zip(run(model, inputs, **changes), wanted, strict=True):
                    assert not differ(velocity, value, 1e-5)
            for (changes, name), wanted in zip(clean_routes(), clean_expected, strict=True):
                stream = CleanStream()
                for kept in (None, stream, stream):
                    for velocity, value in zip(run(model, inputs, **changes, **{name: kept}), wanted, strict=True):
                        assert velocity is None or not differ(velocity, value, 1e-5)
            assert lengths[0] == [NUM_TOKENS // WORLD_SIZE, audio_length]
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one():
    """In Ovi's form and with windows and context tokens, for an even and for an odd number of audio latents."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(work, (port,), nprocs=WORLD_SIZE)
