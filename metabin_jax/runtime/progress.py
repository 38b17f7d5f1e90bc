"""Progress of long work on stderr: a bar on a terminal, whole lines in a file."""

import contextlib
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm

from metabin_jax.runtime.devices import is_first, say

LINE = "{desc}: {n_fmt}/{total_fmt}, {rate_noinv_fmt}, {remaining} left{postfix}"
DELAY = {False: 10.0, True: 2.0}  # seconds, in a file and on a terminal
BAR = "{desc}: {percentage:3.0f}%|{bar}| " + LINE.removeprefix("{desc}: ")


@contextlib.contextmanager
def patience(words: str) -> Iterator[None]:
    """Prints the words if what is done inside takes as long as work must take to show its progress."""
    timer = threading.Timer(DELAY[sys.stderr.isatty()], say, [words])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class _Lines:
    """tqdm moves back to the start of a line. In a file each state is a line instead."""

    def write(self, text: str) -> None:
        if line := text.strip():
            print(line, file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()


class Progress(tqdm):
    """A tqdm for `total` units, over `iterable` if there is one. Process 0 alone prints.

    Work that takes less than DELAY shows nothing. settings: of tqdm, in place of ours.
    """

    monitor_interval = 0  # no thread beside ours

    def __init__(self, what: str, total: int, iterable: Iterable | None = None, unit: str = "images", **settings: Any):
        self._moves = sys.stderr.isatty()
        ours = {"file": sys.stderr, "bar_format": BAR, "mininterval": 0.1}
        if not self._moves:
            ours = {"file": _Lines(), "bar_format": LINE, "mininterval": 10.0}
        # Without smoothing, the rate is the mean over all that was done.
        ours |= {"delay": DELAY[self._moves], "miniters": 1, "smoothing": 0, "disable": not is_first()}
        super().__init__(iterable, what, total, unit=f" {unit}", **(ours | settings))

    def start_clock(self, done: int = 0) -> None:
        """Counts `done` units, and leaves them and the time until now out of the rate."""
        self.n += done
        self.initial = self.last_print_n = self.n
        self.unpause()

    def close(self) -> None:
        if not self.disable:
            self.leave = self._moves or self.n > self.last_print_n  # a line that is there is not written again
        super().close()
