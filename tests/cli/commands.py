"""How tests call `baton`."""

import pytest

from baton_diffusers import cli


PROMPT = "A red ball on the left bounces twice."


def run(*arguments):
    """The exit code of `baton ARGUMENTS`."""
    with pytest.raises(SystemExit) as exit:
        cli.main([str(argument) for argument in arguments])
    return exit.value.code


def loaded_in_vain(*_):
    """Stands for loading where nothing is to be loaded."""
    raise AssertionError("loaded in vain")
