"""What `DualBranchTransformer` computes once for a clip: keys and values that do not change over the denoising steps."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers.utils import is_peft_available
from torch import nn


@dataclass(eq=False)
class KeysValues:
    """Keys and values of one attention layer, `(batch_size, num_tokens, heads, head_dim)`, from the first forward on that
    needs them. An object of its own kind, so that the hooks of an offloaded layer hand it on as it is.
    """

    key: torch.Tensor | None = None
    value: torch.Tensor | None = None

    def once(self, project: Callable[[], tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
        """What is kept here; `project` is called where nothing is."""
        if self.key is None:
            self.key, self.value = project()
        return self.key, self.value


@dataclass(frozen=True, eq=False)
class BlockCache:
    """Where one block keeps what one pass leaves; by default nothing is kept.

    Args:
        text: What the video branch reads in the text.
        audio_text: What the audio branch reads in the text.
        plan: What the video branch reads in the plan.
        audio_plan: What the audio branch reads in the plan.
        video: What the audio branch reads in a clean video stream.
        audio: What the video branch reads in a clean audio stream.
    """

    text: KeysValues | None = None
    audio_text: KeysValues | None = None
    plan: KeysValues | None = None
    audio_plan: KeysValues | None = None
    video: KeysValues | None = None
    audio: KeysValues | None = None

    KINDS: ClassVar[tuple[str, ...]] = ("text", "audio_text", "plan", "audio_plan", "video", "audio")

    def lacks(self, kind: str) -> bool:
        """Whether the keys and values of a kind must still be computed."""
        place = getattr(self, kind)
        return place is None or place.key is None


NOTHING_KEPT = BlockCache()


class DualBranchCache:
    r"""
    Keeps what does not change over the denoising steps of a clip: give one to each `forward` of the clip.

    Kept are the keys and values of the text, of the plan, and, of a *clean stream* (a modality whose timestep is 0
    everywhere and which does not read the other one), those by which the other modality reads it. A clean stream is run
    once; its velocity, which has no use, is not computed, and `forward` returns `None` in its place.

    Nothing stale is returned. What a forward is given (latents, text, plan, skipped blocks) is compared by value with what
    the kept keys and values were made from. They are dropped when the transformer's weights change, its adapters or their
    scales, its attention processors, its dtype or its device. One thing cannot be seen: a change through
    `parameter.data`, past PyTorch's own counting; call [`clear`] after it. (Fusing adapters, which does so, is seen.)

    The cost is memory: [`DualBranchTransformer.cache_bytes`] says beforehand what a number of tokens costs, [`num_bytes`]
    what is kept now.

    Args:
        num_passes (`int`, defaults to 4): how many different inputs of each kind (text, plan, clean stream) are kept, which
            need be no more than the passes of guidance; then the one used longest ago goes.

    Raises:
        ValueError: if `num_passes` is less than 1.
    """

    def __init__(self, num_passes: int = 4) -> None:
        if num_passes < 1:
            raise ValueError(
                f"`num_passes` is {num_passes}, but at least 1 is kept: leave out `cache` to keep nothing."
            )
        self.num_passes = num_passes
        self._entries: dict[str, list[tuple[tuple, list[KeysValues]]]] = {}
        self._weights: list | None = None

    def clear(self) -> None:
        """Drops everything, and frees its memory."""
        self._entries.clear()

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors that are kept: keys, values, and the inputs that they were made from."""
        tensors = []
        for entries in self._entries.values():
            for inputs, layers in entries:
                tensors += [value for value in inputs if isinstance(value, torch.Tensor)]
                tensors += [tensor for layer in layers for tensor in (layer.key, layer.value) if tensor is not None]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def find(self, kind: str, inputs: tuple[Any, ...], num_layers: int) -> list[KeysValues]:
        """The places, one for each layer, of keys and values made from `inputs`: filled ones, or new ones.

        Args:
            kind (`str`): what the keys and values are of.
            inputs (`tuple`): all that they depend on but the weights: tensors and hashable values, compared by value.
            num_layers (`int`): layers of the transformer.
        """
        entries = self._entries.setdefault(kind, [])
        for index, (kept, layers) in enumerate(entries):
            if len(kept) == len(inputs) and all(map(_equal, kept, inputs)):
                entries.append(entries.pop(index))
                return layers
        del entries[: len(entries) - self.num_passes + 1]
        layers = [KeysValues() for _ in range(num_layers)]
        # Copies: the caller may go on to write into its own tensors.
        kept = tuple(value.detach().clone() if isinstance(value, torch.Tensor) else value for value in inputs)
        entries.append((kept, layers))
        return layers

    @torch.compiler.disable
    def drop_if_changed(self, transformer: nn.Module, epoch: int) -> None:
        """Drops everything if the weights are no longer those that it was computed with.

        Args:
            transformer (`nn.Module`): the model, with the adapters' scales of this forward.
            epoch (`int`): how often the model was moved, cast, or merged with an adapter.
        """
        weights = [epoch, *_weights_state(transformer)]
        if self._weights is None or len(weights) != len(self._weights) or not all(map(_same, self._weights, weights)):
            self.clear()
        self._weights = weights


def _equal(kept: Any, given: Any) -> bool:
    if isinstance(kept, torch.Tensor) and isinstance(given, torch.Tensor):
        return kept.dtype == given.dtype and kept.device == given.device and torch.equal(kept, given)
    return type(kept) is type(given) and kept == given


def _same(before: Any, after: Any) -> bool:
    if isinstance(before, weakref.ref) and isinstance(after, weakref.ref):
        return before() is after() and before() is not None  # `==` of two references would compare tensors
    return type(before) is type(after) and before == after


def _weights_state(model: nn.Module) -> list:
    """What tells weights from others without reading them: objects (as weak references), versions, dtypes, scales."""
    adapter_layer: tuple = ()
    if is_peft_available():
        from peft.tuners.tuners_utils import BaseTunerLayer

        adapter_layer = (BaseTunerLayer,)
    state: list = []
    for module in model.modules():
        hook = getattr(module, "_hf_hook", None)
        if any(getattr(part, "offload", False) is True for part in getattr(hook, "hooks", (hook,))):
            state.append(weakref.ref(hook))  # accelerate makes its parameters anew for each forward
        else:
            for parameter in module._parameters.values():
                if parameter is not None:
                    version = None if parameter.is_inference() else parameter._version
                    state += [weakref.ref(parameter), version, parameter.dtype]
        if isinstance(module, adapter_layer):
            scaling = dict(getattr(module, "scaling", {}))
            state.append(
                (module.disable_adapters, tuple(module.active_adapters), tuple(module.merged_adapters), scaling)
            )
        processor = getattr(module, "processor", None)
        if processor is not None:
            state += [weakref.ref(processor), getattr(processor, "_attention_backend", None)]
    return state
