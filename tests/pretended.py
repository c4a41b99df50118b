"""A device that holds no data: whole calls and steps of training run on it at full size in seconds, on a machine without a GPU.

Within `on_device`, models and tensors move there by `.to(device())` as to any device. Tensors of the device have shapes, types and a
place, and no numbers. An operation on tensors of two devices raises, as on a GPU. What the host would have to wait for there (`.item()`,
`bool(tensor)`, `.cpu()`, boolean indexing, `nonzero`) is counted with its place in our code, and answered: with `True`, or with zeros.

PyTorch lets a backend be registered from Python. `FakeTensorMode` gives its tensors what they have, and a dispatch mode above it decides
for each operation whether real tensors of the CPU are meant, which stay real, or ones of the device.
"""

import collections
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend


@dataclass
class Trace:
    """What happened on the device.

    Args:
        reads (`Counter`): times that the host read a value, by place.
        counts (`Callable`): whether reads are counted now.
    """

    reads: collections.Counter = field(default_factory=collections.Counter)
    counts: Callable[[], bool] = lambda: True


@cache
def device() -> torch.device:
    """The device, registered once for the process, and for good: tests that use it are marked `apart`."""
    _setup_privateuseone_for_python_backend("pretended")
    torch.pretended.get_rng_state = lambda *_: torch.empty(0, dtype=torch.uint8)  # for `torch.random.fork_rng`
    torch.pretended.set_rng_state = lambda *_: None
    return torch.device("pretended:0")


@cache
def _fake_mode() -> FakeTensorMode:
    device()
    return FakeTensorMode(allow_non_fake_inputs=True)


def _place() -> str:
    for frame in reversed(traceback.extract_stack()):
        if "/baton_diffusers/" in frame.filename:
            return f"{frame.filename.split('/baton_diffusers/')[-1]}:{frame.lineno}: {frame.line}"
    return "elsewhere"


class _Mode(TorchDispatchMode):
    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace

    def _read(self) -> None:
        if self.trace.counts():
            self.trace.reads[_place()] += 1

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, aten, there = kwargs or {}, torch.ops.aten, device().type
        leaves = tree_leaves((args, kwargs))
        if not any(isinstance(x, FakeTensor) or (isinstance(x, torch.device) and x.type == there) for x in leaves):
            with unset_fake_temporarily():
                return function(*args, **kwargs)
        if function is aten._local_scalar_dense.default:
            self._read()
            return args[0].dtype == torch.bool
        if function is aten.nonzero.default:
            self._read()
            return torch.empty((args[0].numel(), args[0].dim()), dtype=torch.long, device=args[0].device)
        if function is aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1]):
            self._read()
            is_mask = [i is not None and i.dtype == torch.bool for i in args[1]]
            indices = [
                torch.arange(i.shape[0], device=i.device) if masks else i
                for i, masks in zip(args[1], is_mask, strict=True)
            ]
            args = (args[0], indices)
        if function is aten._to_copy.default and kwargs.get("device") is not None:
            if kwargs["device"].type == "cpu" and isinstance(args[0], FakeTensor):
                self._read()
                with unset_fake_temporarily():
                    return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        fake = _fake_mode()
        args, kwargs = tree_map(
            lambda x: fake.from_tensor(x) if isinstance(x, torch.Tensor) and not isinstance(x, FakeTensor) else x,
            (args, kwargs),
        )
        return function(*args, **kwargs)


class Generator(torch.Generator):
    """A generator of the device."""

    device = property(lambda self: device())


@contextmanager
def on_device() -> Iterator[Trace]:
    """The context in which models and tensors of the device can be made and used."""
    trace, make, move = Trace(), torch.tensor, torch.nn.Module.to

    def tensor(data, *, device=None, **kwargs):  # does not pass the dispatcher
        made = make(data, **kwargs)
        return made if device is None or torch.device(device).type == "cpu" else made.to(device)

    def to(module, *args, **kwargs):  # would put data of another device into the parameters that are there
        target, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
        if target is not None and target.type != "meta":
            _bring(module, target)
        return module if dtype is None else move(module, dtype)

    with pytest.MonkeyPatch.context() as patch, _fake_mode(), _Mode(trace):
        patch.setattr(torch, "tensor", tensor)
        patch.setattr(torch.nn.Module, "to", to)
        yield trace


def _bring(model: torch.nn.Module, target: torch.device) -> None:
    """Moves weights, whose numbers are lost; those that are shared stay so."""
    moved: dict[int, torch.Tensor] = {}

    def move(value: torch.Tensor) -> torch.Tensor:
        if id(value) not in moved:
            with unset_fake_temporarily():
                if target.type == "cpu":
                    new = torch.zeros(value.shape, dtype=value.dtype)
                else:
                    new = FakeTensor(_fake_mode(), torch.empty(value.shape, dtype=value.dtype, device="meta"), target)
            is_weight = isinstance(value, torch.nn.Parameter)
            moved[id(value)] = torch.nn.Parameter(new, requires_grad=value.requires_grad) if is_weight else new
        return moved[id(value)]

    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, value in tensors.items():
                if value is not None and value.device != target:
                    tensors[name] = move(value)
