"""What a log says while loops compile."""

import logging
import re

import pytest

numba = pytest.importorskip("numba")

from numba.core import event  # noqa: E402

from sog_longrange.summation.engines.numba_progress import Progress, progress  # noqa: E402


@pytest.fixture
def listener():
    """The only one that listens."""
    made, usual = Progress(), progress()
    event.unregister("numba:compile", usual)
    event.register("numba:compile", made)
    yield made
    event.unregister("numba:compile", made)
    event.register("numba:compile", usual)


def loop(module):
    """A function and one that calls it, as of a module."""

    def _half(x):
        return 0.5 * x

    _half.__module__ = module
    half = numba.njit(_half)

    def quarter(x):
        return half(half(x))

    quarter.__module__ = module
    return numba.njit(quarter)


@pytest.mark.parametrize("kept", [True, False])
def test_the_first_loop_is_announced_and_each_is_told_once(listener, caplog, kept):
    caplog.set_level(logging.INFO, "sog_longrange")
    listener.kept = kept
    own = loop("sog_longrange.summation.engines.loops")
    assert own(4.0) == own(4.0) == 1.0
    assert loop("elsewhere")(4.0) == 1.0
    loop("sog_longrange.summation.engines.loops")(8.0)
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == 3
    assert ("kept for later runs" in texts[0]) == kept
    assert all(re.match(r"Compiled `quarter` in \d+\.\d s", text) for text in texts[1:])
    assert listener.seconds > 0.0
