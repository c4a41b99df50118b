"""Processes of their own for tests: several that train together, and some that are killed. They start from a server that has
imported torch already, so that each costs a fraction of a second."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

import torch


_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.training.stages", "tests.stage_parts", "baton_diffusers.training.data.cache"])


def start(function: Callable, *arguments: Any) -> multiprocessing.Process:
    """A process that runs `function(*arguments)` on one thread."""
    process = _CONTEXT.Process(target=_run, args=(function, arguments, {}))
    process.start()
    return process


def run_together(number: int, function: Callable, *arguments: Any) -> None:
    """Runs `function(*arguments)` in as many processes, as `accelerate launch --cpu` or torchrun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": number, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    processes = []
    for rank in range(number):
        environment = {**shared, "RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": number}
        processes.append(_CONTEXT.Process(target=_run, args=(function, arguments, environment)))
        processes[-1].start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * number


def _run(function: Callable, arguments: tuple, environment: dict[str, Any]) -> None:
    os.environ.update({name: str(value) for name, value in environment.items()})
    torch.set_num_threads(1)
    function(*arguments)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
