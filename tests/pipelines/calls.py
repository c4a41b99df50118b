"""Calls of the tiny pipeline, and what tests see of them."""

import torch


PROMPT, OTHER = "a red circle jumps", "the green star moves left and says two while it moves right"


def seeds(*numbers):
    """A generator for each number; for a single one, itself."""
    generators = [torch.Generator().manual_seed(number) for number in numbers]
    return generators if len(generators) > 1 else generators[0]


def make(pipe, prompt=PROMPT, seed=0, output_type="pt", **kwargs):
    generator = kwargs.pop("generator", None) or seeds(seed)
    return pipe(prompt, generator=generator, output_type=output_type, **kwargs)


def assert_same(output, other, atol=0.0):
    torch.testing.assert_close(output.frames, other.frames, rtol=0, atol=atol)
    torch.testing.assert_close(output.audio, other.audio, rtol=0, atol=atol)


def differ(output, other):
    """Whether the picture and the sound both differ."""
    return not torch.equal(output.frames, other.frames) and not torch.equal(output.audio, other.audio)


def record(module):
    """The keyword arguments of every call of `module`."""
    calls = []
    module.register_forward_pre_hook(lambda _, args, kwargs: calls.append(kwargs), with_kwargs=True)
    return calls


def forbid(pipe):
    """Makes every layer of every model raise."""

    def refuse(module, _):
        raise AssertionError(f"{type(module).__name__} ran")

    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            for module in component.modules():
                module.register_forward_pre_hook(refuse)
    return pipe


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe
