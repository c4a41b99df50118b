"""Students: adapters that were distilled to make clips in a few steps without guidance, and the settings that belong to them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.utils import logging

from ..guiders import GuidancePass, presets
from ..schedulers import EULER
from .components import PipelineParts


logger = logging.get_logger(__name__)

METADATA = "student"  # in the metadata of an adapter's file
_PARTS = ("scheduler", "audio_scheduler", "guider", "audio_guider")


@dataclass(frozen=True)
class StudentPreset:
    """
    How a student makes clips: Euler steps at these shifts, without guidance.

    Args:
        num_inference_steps (`int`): denoising steps.
        shift (`float`): of the video's noise levels.
        audio_shift (`float`): of the audio's.

    Raises:
        ValueError: if a value is of the wrong type or out of its range.
    """

    num_inference_steps: int
    shift: float
    audio_shift: float

    def __post_init__(self) -> None:
        steps = self.num_inference_steps
        if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= 1000:
            raise ValueError(
                f"the student's `num_inference_steps` is {steps!r}, but must be an integer from 1 to 1000."
            )
        for name in ("shift", "audio_shift"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise ValueError(f"the student's `{name}` is {value!r}, but must be a positive number.")

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> Self | None:
        """The preset in the metadata of an adapter, or None.

        Raises:
            ValueError: if it is damaged.
        """
        if METADATA not in config:
            return None
        values = config[METADATA]
        if not isinstance(values, dict) or values.keys() != cls.__dataclass_fields__.keys():
            raise ValueError(
                f"the adapter's metadata has `{METADATA}` {values!r}, but must have {', '.join(cls.__dataclass_fields__)} there: "
                "fetch or save the file again."
            )
        return cls(**values)

    def parts(self) -> dict[str, Any]:
        """Fresh schedulers and guiders."""
        shifts = {"scheduler": self.shift, "audio_scheduler": self.audio_shift}
        schedulers = {name: FlowMatchEulerDiscreteScheduler(shift=shift) for name, shift in shifts.items()}
        return {**schedulers, **presets()["none"]}

    def settings(self) -> dict[str, Any]:
        """[`parts`], and the number of steps."""
        return {**self.parts(), "num_inference_steps": self.num_inference_steps}


class StudentsMixin:
    """Presets of [`BatonPipeline`]'s adapters. The transformer keeps them, with its adapters."""

    _teacher: dict[str, Any] | None = None  # what a preset has replaced

    def use_preset(self, adapter_name: str | None) -> None:
        """
        Sets steps, schedulers and guiders as an adapter's student needs them.

        Args:
            adapter_name (`str` or `None`): the adapter, loaded by `load_lora_weights`; `None` restores the settings from
                before.

        Raises:
            ValueError: if there is no such adapter, or it has no preset.
        """
        known = student_presets(self.transformer)
        if adapter_name is not None and adapter_name not in list(known):
            raise ValueError(
                f"no adapter {adapter_name!r} with a preset is loaded, only {', '.join(known) or 'none'}: load a student with "
                "`load_lora_weights(..., adapter_name=...)`."
            )
        if self._teacher is not None:
            self._set(self._teacher)
            self._teacher = None
        if adapter_name is not None:
            self._teacher = self._current()
            self._set(known[adapter_name].settings())

    def load_student(
        self, source: str | os.PathLike, adapter_name: str = "turbo", fuse: bool = False, **kwargs: Any
    ) -> None:
        """
        Loads a student and uses its preset: `load_lora_weights`, then [`use_preset`].

        Args:
            source (`str` or `os.PathLike`): its folder, file or Hub id; a folder within a repository as `owner/name/folder`.
            adapter_name (`str`, defaults to `"turbo"`): its name, for `use_preset` and `set_adapters`.
            fuse (`bool`, defaults to `False`): merge it into the transformer's weights permanently. Steps are then as fast as
                the teacher's, PEFT is not needed, and the pipeline is saved as the student.
            kwargs: as for `load_lora_weights`.

        Raises:
            ValueError: as `load_lora_weights`, or if the adapter has no preset; it is then not loaded.
        """
        if not isinstance(source, (str, os.PathLike)):
            raise ValueError(f"{source!r} is no student: give its folder, file or Hub id.")
        source, options = find_student(source)
        match, preset = self._match_lora(source, kwargs.pop("prefix", None), {**options, **kwargs})
        if preset is None:
            raise ValueError(
                f"{source} is an adapter without a preset, so it is no student: load it with `load_lora_weights`."
            )
        if fuse:
            match.add_to(self.transformer)
            self._set(preset.settings())
            return
        self.load_lora_weights(source, adapter_name=adapter_name, **options, **kwargs)
        self.use_preset(adapter_name)

    def unload_lora_weights(self, *args: Any, **kwargs: Any) -> None:
        """As in diffusers. Settings that a preset has changed are restored."""
        super().unload_lora_weights(*args, **kwargs)
        self.transformer.student_presets = {}
        _forget_ends_of_steps(self.transformer)
        self.use_preset(None)

    def delete_adapters(self, adapter_names: list[str] | str) -> None:
        """As in diffusers. Settings that the preset of one of them has changed are restored."""
        super().delete_adapters(adapter_names)
        _forget_ends_of_steps(self.transformer)
        known = student_presets(self.transformer)
        for name in [adapter_names] if isinstance(adapter_names, str) else adapter_names:
            if known.pop(name, None) is not None:
                self.use_preset(None)

    @contextmanager
    def _as_teacher(self) -> Iterator[None]:
        """A context in which the pipeline has its settings without a preset."""
        if self._teacher is None:
            yield
            return
        current = self._current()
        self._set(self._teacher)
        try:
            yield
        finally:
            self._set(current)

    def _current(self) -> dict[str, Any]:
        parts = {name: getattr(self, name) for name in _PARTS}
        return {**parts, "num_inference_steps": self.config.num_inference_steps}

    def _set(self, values: dict[str, Any]) -> None:
        self.register_modules(**{name: values[name] for name in _PARTS})
        self.register_to_config(num_inference_steps=values["num_inference_steps"])


def find_student(source: str | os.PathLike) -> tuple[str, dict[str, str]]:
    """The arguments of `load_lora_weights` for a student: a folder or file; for `owner/name/folder` the Hub id, and the folder
    in it.

    Raises:
        ValueError: if it is neither there nor of a Hub id's form.
    """
    source = os.fspath(source)
    owner, *rest = source.split("/")
    if os.path.exists(source) or (owner and len(rest) == 1):
        return source, {}
    if not owner or len(rest) != 2:
        raise ValueError(
            f"the student {source!r} is neither a folder nor a Hub id like 'owner/name' or 'owner/name/folder'."
        )
    return f"{owner}/{rest[0]}", {"subfolder": rest[1]}


def student_presets(transformer: Any) -> dict[str, StudentPreset]:
    """Presets of a transformer's adapters, by name."""
    if not hasattr(transformer, "student_presets"):
        transformer.student_presets = {}
    return transformer.student_presets


def _forget_ends_of_steps(transformer: Any) -> None:
    """Removes the layers of a flow map from a transformer if only deleted adapters needed them."""
    if not transformer.config.is_flow_map:
        return
    layer = transformer.condition_embedder.step_embedder
    weight = layer.weight
    if not getattr(layer, "lora_A", None) and not weight.is_meta and not weight.any():
        transformer.make_flow_map(False)


def warn_of_students(pipe: PipelineParts, num_inference_steps: int, passes: Sequence[GuidancePass]) -> None:
    """Warns of a student with guidance or with another solver than Euler's, and of a teacher with few steps."""
    active = [name for name in student_presets(pipe.transformer) if name in _active_adapters(pipe.transformer)]
    if active and len(passes) > num_inference_steps:
        logger.warning(
            f"the adapter {active[0]!r} was distilled to need no guidance, but the guiders take {len(passes)} passes for "
            f"{num_inference_steps} steps: call `pipe.use_preset({active[0]!r})`, which sets steps, schedulers and guiders."
        )
    solver = next((name for name in _PARTS[:2] if not isinstance(getattr(pipe, name), EULER)), None)
    if solver is not None and (active or pipe.transformer.config.is_flow_map):
        remedy = f"call `pipe.use_preset({active[0]!r})`" if active else "set a `FlowMatchEulerDiscreteScheduler`"
        logger.warning(
            f"the student takes Euler's steps, but `{solver}` is a `{type(getattr(pipe, solver)).__name__}`: {remedy}."
        )
    if not active and 3 * num_inference_steps < pipe.config.num_inference_steps:
        logger.warning(
            f"{num_inference_steps} steps are few for this checkpoint, which takes {pipe.config.num_inference_steps} by default: "
            "leave out `num_inference_steps`, or load a student by `load_student`."
        )


def _active_adapters(transformer: Any) -> list[str]:
    if not getattr(transformer, "peft_config", None):
        return []
    layers = [
        module
        for module in transformer.modules()
        if hasattr(module, "disable_adapters") and hasattr(module, "base_layer")
    ]
    return [] if any(layer.disable_adapters for layer in layers[:1]) else transformer.active_adapters()
