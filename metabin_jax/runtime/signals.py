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

    A signal that the process ignores, as SIGHUP under nohup, stays ignored. Of several processes, all stop after the
    same step once one of them got SIGTERM, which JAX itself then watches. Only the main thread can watch signals; in
    others this changes nothing.
    """

    def __init__(self) -> None:
        self.number = 0
        self._asked = 0  # how often
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequests":
        if threading.current_thread() is threading.main_thread():
            watched = [number for number in SIGNALS if jax.process_count() == 1 or number != signal.SIGTERM]
            watched = [number for number in watched if signal.getsignal(number) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._note) or signal.SIG_DFL for number in watched}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: object) -> None:
        self.number = number
        for watched, handler in self._before.items():
            signal.signal(watched, handler if watched == signal.SIGINT else signal.SIG_DFL)
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # so that the other processes hear of it

    def asked(self) -> bool:
        """Whether to stop now, the same in all processes, which ask equally often."""
        if jax.process_count() == 1:
            return bool(self.number)
        self._asked += 1  # JAX wants a count without gaps, and a dispatch may be several steps
        if is_reached := multihost_utils.reached_preemption_sync_point(self._asked):
            self.number = self.number or signal.SIGTERM
        return is_reached
