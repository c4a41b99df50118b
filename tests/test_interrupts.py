import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "error, message",
    [
        ("KeyboardInterrupt", "-c: interrupted"),
        ("ImportError(1) from KeyboardInterrupt()", "-c: interrupted"),
        ("ValueError(1)", "ValueError: 1"),
    ],
)
def test_an_interruption_is_one_line_and_an_error_is_not(error, message):
    code = f"import baton_diffusers.interrupts; raise {error}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode != 0 and result.stderr.splitlines()[-1] == message
    assert ("Traceback" in result.stderr) == ("KeyboardInterrupt" not in error)


def test_an_interruption_of_a_destructor_is_not_lost():
    # A job in the background is started with interrupts ignored.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code = f"{heard}import baton_diffusers.interrupts, time\nclass A:\n    def __del__(self): raise KeyboardInterrupt\nA()\ntime.sleep(9)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=8)
    assert result.returncode != 0 and result.stderr == "-c: interrupted\n"
