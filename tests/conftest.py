"""What holds for all tests."""

import os
import subprocess
import sys
import traceback

import pytest


# MKL's sums do not hang on where in memory the weights lie, as on AMD's processors they would: a model that is loaded computes what the
# saved one did, bit for bit. Read when torch is first imported.
os.environ.setdefault("MKL_CBWR", "AVX2,STRICT")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Runs a test that is marked `apart` in a process of its own: what it changes in torch ends with it. The process is forked from
    this one; with `apart(fresh=True)` it is a new one, for tests with a backward pass, whose engine counts the devices only once."""
    marker = pyfuncitem.get_closest_marker("apart")
    if marker is None or os.environ.get("BATON_TEST_APART"):
        return None
    if marker.kwargs.get("fresh"):
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:xdist",
            "-m",
            "",
            pyfuncitem.nodeid,
        ]
        environment = {**os.environ, "BATON_TEST_APART": "1"}
        result = subprocess.run(
            command, cwd=pyfuncitem.config.rootpath, env=environment, capture_output=True, text=True
        )
        if result.returncode:
            pytest.fail(result.stdout[-3000:] + result.stderr[-1000:], pytrace=False)
        return True
    told, tells = os.pipe()
    if not (child := os.fork()):
        failure = ""
        try:
            pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames})
        except BaseException:
            failure = traceback.format_exc()
        with os.fdopen(tells, "w") as pipe:
            pipe.write(failure)
        os._exit(0 if not failure else 1)
    os.close(tells)
    with os.fdopen(told) as pipe:
        failure = pipe.read()
    if os.waitpid(child, 0)[1]:
        pytest.fail(failure or "the process of the test was killed", pytrace=False)
    return True
