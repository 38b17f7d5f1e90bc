import sys
import time

import pytest
import tqdm.std

from metabin_jax.runtime import progress
from metabin_jax.runtime.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands until the test moves it."""
    now = [100.0]
    monkeypatch.setattr(tqdm.std, "time", lambda: now[0])
    return now


def work(clock, *steps):
    """The first 100 images take a minute, as the net is compiled; then 100 more at each of these seconds."""
    with Progress("embedding", 1000) as bar:
        clock[0] += 60
        bar.start_clock(100)
        for seconds in steps:
            clock[0] += seconds
            bar.update(100)


def test_a_file_gets_whole_lines_and_the_rate_leaves_out_the_compilation(clock, capsys):
    """After 5 s it is too early for a line; the last state is written once."""
    work(clock, 5, 5)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["embedding: 300/1000, 20.00 images/s, 00:35 left"]
    work(clock, 5, 5, 2.5)
    assert capsys.readouterr().err.splitlines() == [*lines, "embedding: 400/1000, 24.00 images/s, 00:25 left"]


def test_a_terminal_gets_one_line_that_moves(clock, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    work(clock, 2, 2)
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.endswith("\n")
    assert err.count("\r") > 2 and "30%|" in err


def test_short_work_shows_nothing(clock, capsys):
    def count(seconds):
        for _ in Progress("decoding images", 1001, range(1001)):
            clock[0] += seconds / 1001
        return capsys.readouterr().err

    assert count(9.9) == ""
    assert count(11).splitlines()[-1] == "decoding images: 1001/1001, 91.00 images/s, 00:00 left"


def test_another_process_shows_nothing(clock, capsys, monkeypatch):
    monkeypatch.setattr(progress, "is_first", lambda: False)
    work(clock, 5, 5)
    assert capsys.readouterr().err == ""


def test_long_waits_are_explained_and_short_ones_are_not(capsys, monkeypatch):
    monkeypatch.setattr(progress, "DELAY", {False: 1, True: 1})
    with progress.patience("compiling the net"):
        pass
    time.sleep(1.2)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "DELAY", {False: 0.01, True: 0.01})
    with progress.patience("compiling the net"):
        time.sleep(1)
    assert capsys.readouterr().err == "compiling the net\n"
