"""The other processes of a distributed training: if one is gone, the rest say so and end."""

import contextlib
import os
import shutil
import sys
import threading
import time
from pathlib import Path

import jax

from metabin_jax.runtime.devices import is_first
from metabin_jax.runtime.errors import Stopped

EVERY, LOST_AFTER = 5.0, 40.0  # seconds; JAX notices after about a minute, with a stack of C++ calls


def forget(workdir: Path) -> None:
    """Removes what an earlier run left; before all processes wait for each other."""
    if is_first():
        shutil.rmtree(workdir / "peers", ignore_errors=True)


class Peers(contextlib.AbstractContextManager["Peers"]):
    """Each process counts up in WORKDIR/peers/INDEX, which all share. Use as a context; a single process does nothing.

    If another process fails, or its file stands still for LOST_AFTER seconds, this one ends with status 1 and one
    sentence. What it was about to compute is lost to the last checkpoint, as it needs the others to go on.
    """

    def __init__(self, workdir: Path):
        self._own = workdir / "peers" / str(jax.process_index())
        self._others = [
            path for index in range(jax.process_count()) if (path := self._own.with_name(str(index))) != self._own
        ]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Peers":
        if self._others:
            self._own.parent.mkdir(exist_ok=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._others:
            if kind is jax.errors.JaxRuntimeError:  # most likely because a peer is gone, which is about to be noticed
                self._thread.join(LOST_AFTER + 2 * EVERY)
            self._ended.set()
            self._thread.join()
            self._own.write_text("ended" if kind in (None, Stopped) else "failed")

    def _watch(self) -> None:
        texts, since, count = dict.fromkeys(self._others, ""), dict.fromkeys(self._others, time.monotonic()), 0
        while not self._ended.wait(EVERY if count else 0):
            count += 1
            self._own.write_text(str(count))
            for path in self._others:
                text = path.read_text() if path.exists() else ""
                if text not in (texts[path], "failed"):
                    texts[path], since[path] = text, time.monotonic()
                stands = time.monotonic() - since[path]
                if text == "failed" or (text != "ended" and stands > LOST_AFTER):
                    why = (
                        "failed: its log says why" if text == "failed" else f"has not been heard of for {stands:.0f} s"
                    )
                    print(
                        f"process {path.name} {why}. This one ends too; the same command, for all processes, resumes "
                        "from the latest checkpoint",
                        file=sys.stderr, flush=True,
                    )  # fmt: skip
                    os._exit(1)
