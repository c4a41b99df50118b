"""What holds for all tests."""

import os
import traceback

import pytest


# MKL's sums do not hang on where in memory the weights lie, as on AMD's processors they would: a model that is loaded computes what the
# saved one did, bit for bit. Read when torch is first imported.
os.environ.setdefault("MKL_CBWR", "AVX2,STRICT")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Runs a test that is marked `apart` in a process of its own, forked from this one: what it changes in torch ends with it."""
    if pyfuncitem.get_closest_marker("apart") is None:
        return None
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
