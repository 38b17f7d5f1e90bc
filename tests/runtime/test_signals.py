"""Which signals a training notes, and what it leaves behind."""

import os
import signal

import jax
import pytest

from metabin_jax.runtime import signals
from metabin_jax.runtime.signals import StopRequests


@pytest.fixture(autouse=True)
def handlers():
    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_an_ignored_signal_stays_ignored_as_under_nohup():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopRequests() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.asked()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked() and stop.number == signal.SIGTERM
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


@pytest.mark.parametrize("is_asked", [False, True])
def test_the_callers_handlers_come_back(is_asked):
    own = {number: lambda *_: None for number in signals.SIGNALS}
    for number, handler in own.items():
        signal.signal(number, handler)
    with StopRequests() as stop:
        assert all(signal.getsignal(number) == stop._note for number in own)
        if is_asked:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # a second one ends the process
    assert {number: signal.getsignal(number) for number in own} == own


def test_several_processes_stop_however_many_steps_a_dispatch_has(monkeypatch):
    """JAX stops them at the count after the largest that it has seen, and at no other."""
    seen, safe = [], 4

    def reached(count):
        seen.append(count)
        return count == safe

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(signals.multihost_utils, "reached_preemption_sync_point", reached)
    stop = StopRequests()
    assert [stop.asked() for _ in range(4)] == [False, False, False, True]
    assert seen == [1, 2, 3, 4] and stop.number == signal.SIGTERM
