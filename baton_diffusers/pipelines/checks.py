"""Checks that several arguments of a call share: each raises a `ValueError` that names the argument, its value and the remedy.

What one object alone reads, it checks itself: sizes and numbers of frames [`~components.ClipSize`], texts [`~texts.Texts`], plans and cues
[`~planning.PlanRequest`], given media [`~given.Given`].
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import torch

from ..plan import SemanticPlan


OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def check_whole_number(name: str, value: Any, least: int = 1, most: int | None = None) -> None:
    """Refuses what is not an integer of at least `least` and at most `most`; `True` and `False` are no numbers."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ValueError(f"`{name}` is {value!r}, but must be an integer of at least {least}.")
    if most is not None and value > most:
        raise ValueError(f"`{name}` is {value!r}, but must be at most {most}.")


def check_number(name: str, value: Any) -> None:
    """Refuses what is no finite number; `True` and `False` are none."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise ValueError(f"`{name}` is {value!r}, but must be a number.")


def check_plan(name: str, value: Any) -> None:
    """Refuses what is no plan."""
    if not isinstance(value, SemanticPlan):
        raise ValueError(
            f"`{name}` is a {type(value).__name__}, but has to be a `SemanticPlan`, or the path of its file."
        )


def check_flags(**flags: Any) -> None:
    """Refuses what is neither `True` nor `False`."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise ValueError(f"`{name}` is {value!r}, but must be True or False.")


def check_texts(name: str, texts: Any) -> None:
    """Refuses what is neither a string nor a list of strings that can be written as UTF-8."""
    listed = [texts] if isinstance(texts, str) else texts
    if not isinstance(listed, list) or not listed or not all(isinstance(text, str) for text in listed):
        raise ValueError(f"`{name}` is {texts!r}, but must be a string or a list of at least one string.")
    for text in listed:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"`{name}` has the character {text[error.start]!r} at position {error.start}, half of a surrogate pair, which is "
                "no text: remove it."
            ) from None


def check_tensor(name: str, value: Any) -> None:
    """Refuses what is not a floating-point tensor of finite values."""
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        found = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
        raise ValueError(f"`{name}` is {found}, but must be a floating-point `torch.Tensor`.")
    if not value.isfinite().all():
        raise ValueError(f"`{name}` holds NaN or infinite values: give finite ones.")


def check_generator(generator: Any, num_clips: int) -> None:
    """Refuses what is neither a generator nor a list with one for each clip."""
    listed = generator if isinstance(generator, list) else [] if generator is None else [generator]
    for value in listed:
        if not isinstance(value, torch.Generator):
            is_seed = isinstance(value, int) and 0 <= value < 2**64
            hint = f"`torch.Generator().manual_seed({value})`" if is_seed else "one, or a list of them"
            raise ValueError(f"`generator` is {generator!r}, but must be a `torch.Generator`: give {hint}.")
    if isinstance(generator, list) and len(generator) != num_clips:
        raise ValueError(
            f"`generator` lists {len(generator)} generators for {num_clips} clips: give one for each, or a single one."
        )


def check_callback(callback: Any, tensor_inputs: Any, allowed: Sequence[str]) -> None:
    """Refuses a callback that cannot be called, and names of tensors that it cannot have."""
    if callback is not None and not callable(callback):
        raise ValueError(f"`callback_on_step_end` is {callback!r}, but must be callable.")
    is_listed = isinstance(tensor_inputs, (list, tuple)) and all(isinstance(name, str) for name in tensor_inputs)
    if not is_listed:
        raise ValueError(
            f"`callback_on_step_end_tensor_inputs` is {tensor_inputs!r}, but must be a list of names from {allowed}."
        )
    unknown = [name for name in tensor_inputs if name not in allowed]
    if unknown:
        raise ValueError(f"`callback_on_step_end_tensor_inputs` names {unknown}, but must be from {allowed}.")


def check_output_type(output_type: Any) -> None:
    """Refuses an output that is not made."""
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"`output_type` is {output_type!r}, but must be one of {OUTPUT_TYPES}.")


def check_finite(values: Any, what: str, cause: str) -> None:
    """Refuses tensors that a model has made, if one holds NaN or infinite values. `None` is passed over.

    Args:
        values: a tensor, or several in a tuple.
        what (`str`): what they are, as the subject of the error.
        cause (`str`): what usually causes it, and the remedy.
    """
    values = values if isinstance(values, tuple) else (values,)
    if not all(value is None or value.isfinite().all() for value in values):
        raise ValueError(f"{what} NaN or infinite values: {cause}.")
