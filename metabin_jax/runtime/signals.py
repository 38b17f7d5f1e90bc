"""Requests to stop: SIGTERM, SIGINT and SIGHUP end a training after the step under way."""

import contextlib
import os
import signal
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))


class StopRequests(contextlib.AbstractContextManager["StopRequests"]):
    """Notes the first signal instead of dying; a second one ends the process at once. Use as a context.

    Of several processes, all stop after the same step once one of them got SIGTERM, which JAX itself then watches. Only
    the main thread can watch signals; in others this changes nothing.
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequests":
        if threading.current_thread() is threading.main_thread():
            watched = [number for number in SIGNALS if jax.process_count() == 1 or number != signal.SIGTERM]
            self._before = {number: signal.signal(number, self._note) for number in watched}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _note(self, number: int, _: object) -> None:
        self.number = number
        self._restore()
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # so that the other processes hear of it

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else handler)
        self._before = {}

    def asked(self, step: int) -> bool:
        """Whether to stop after this step, the same in all processes."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.number = self.number or signal.SIGTERM
            return True
        return jax.process_count() == 1 and bool(self.number)
