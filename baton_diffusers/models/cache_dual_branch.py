"""What `DualBranchTransformer` computes once for a call: the clean streams that do not read the noisy one."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch


class KeysValues:
    """Keys and values of one attention layer, `(batch_size, num_tokens, heads, head_dim)`, from the first forward on.

    It is neither a tensor nor a container, so the hooks of an offloaded layer pass it on unchanged.
    """

    def __init__(self) -> None:
        self.key: torch.Tensor | None = None
        self.value: torch.Tensor | None = None

    def once(self, project: Callable[[], tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values: the kept ones, or those that `project` computes."""
        if self.key is None:
            self.key, self.value = project()
        return self.key, self.value


class CleanStream:
    r"""
    A modality at timestep 0 that does not read the other one: it is the same at every denoising step.

    Give one to each `forward` of a call with these latents, text, plan and `skip_layers`, as `clean_video` or `clean_audio`.
    The first forward runs the stream and keeps its keys and values for the other modality, if that reads them; later forwards
    do not run it. The transformer compares nothing: make a new object for other inputs or other weights. A
    pipeline keeps one for each anchor of guidance, `defaultdict(CleanStream)["video", anchor.name]`, for the time of a call.

    The cost is memory, see [`DualBranchTransformer.cache_bytes`].
    """

    def __init__(self) -> None:
        self._blocks: dict[int, KeysValues] = {}

    def block(self, index: int) -> KeysValues:
        """The keys and values of a block."""
        if index not in self._blocks:
            self._blocks[index] = KeysValues()
        return self._blocks[index]

    def is_filled(self, layers: Iterable[int]) -> bool:
        """Whether the keys and values of these blocks are kept."""
        return all(index in self._blocks and self._blocks[index].key is not None for index in layers)

    @property
    def num_bytes(self) -> int:
        """Bytes of the keys and values that are kept."""
        tensors = [x for block in self._blocks.values() for x in (block.key, block.value) if x is not None]
        return sum(tensor.nbytes for tensor in tensors)
