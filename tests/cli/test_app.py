import pytest

from tests.cli.commands import run


@pytest.mark.parametrize("command", [[], ["generate"], ["stage"], ["evaluate"], ["cache"], ["memory"]])
def test_flags_take_no_value(command, capsys):
    assert run(*command, "--help") == 0
    assert "bool" not in capsys.readouterr().out.lower()
