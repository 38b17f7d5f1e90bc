"""A process that is gone ends the others with a sentence."""

import os
import time

import jax
import pytest

from metabin_jax.runtime import peers
from metabin_jax.runtime.errors import Stopped


class Ended(Exception):
    pass


@pytest.fixture
def two(monkeypatch, tmp_path):
    """This process is the first of two, and quick to give up; whether it ended is noted."""
    ended = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    monkeypatch.setattr(peers, "EVERY", 0.02)
    monkeypatch.setattr(peers, "LOST_AFTER", 2)

    monkeypatch.setattr(os, "_exit", ended.append)
    return tmp_path, tmp_path / "peers/1", ended


def wait(ended):
    """Until something is noted, up to 20 seconds."""
    for _ in range(1000):
        if ended:
            return
        time.sleep(0.02)


def test_a_peer_that_counts_is_there(two, capsys):
    workdir, other, ended = two
    with peers.Peers(workdir):
        for count in range(150):
            other.write_text(str(count))
            time.sleep(0.02)
    assert (ended, capsys.readouterr().err) == ([], "")
    assert (workdir / "peers/0").read_text() == "ended"


@pytest.mark.parametrize("before", ["", "3"])
def test_a_peer_that_stands_still_is_gone(two, capsys, before):
    workdir, other, ended = two
    with peers.Peers(workdir):
        if before:
            other.write_text(before)
        wait(ended)
    assert set(ended) == {1}
    assert "process 1 has not been heard of for" in capsys.readouterr().err


def test_a_peer_that_failed_is_gone_at_once_and_one_that_ended_is_not(two, capsys):
    workdir, other, ended = two
    with peers.Peers(workdir):
        other.write_text("ended")
        time.sleep(2.5)
        assert ended == []
        other.write_text("failed")
        wait(ended)
    assert set(ended) == {1} and "process 1 failed: its log says why" in capsys.readouterr().err


def test_the_others_learn_how_this_one_ended(two):
    workdir, _, _ = two
    for error, word in ((Ended(), "failed"), (Stopped(15, "asked"), "ended")):
        with pytest.raises(type(error)), peers.Peers(workdir):
            raise error
        assert (workdir / "peers/0").read_text() == word


def test_a_single_process_has_no_peers(tmp_path):
    with peers.Peers(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
