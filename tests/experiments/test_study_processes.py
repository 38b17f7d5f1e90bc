"""Several processes share the runs of a study."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stub_work import leave_mark
from test_study import ROWS, SYNTHETIC

from experiments.command_line import command_line, parse
from experiments.study import read, run_study
from experiments.tables import Row


def marks(workdir):
    return [line.split()[:3] for line in (workdir / "marks").read_text().splitlines()]


@pytest.mark.parametrize(
    ("arguments", "jobs"), [([], 1), (["--smoke"], 2), (["--smoke", "--jobs=1"], 1), (["--jobs=3"], 3)]
)
def test_only_a_smoke_run_takes_two_processes_by_itself(arguments, jobs, monkeypatch):
    monkeypatch.setattr("sys.argv", ["study", *arguments])
    assert parse(command_line("x", "")).jobs == jobs


def test_several_processes_neither_lose_nor_repeat_a_row(tmp_path):
    names = ("meets", "b", "c")
    rows = [Row(name, {"method": name}) for name in names]
    lines = run_study(rows, SYNTHETIC, [0, 1], tmp_path, ["x", "y"], jobs=2, work=leave_mark)
    expected = sorted([row, target, str(seed)] for row in names for target in "xy" for seed in (0, 1))
    assert sorted(marks(tmp_path)) == expected
    assert (
        sorted([line["run"].removeprefix("method="), line["target"], str(line["seed"])] for line in lines) == expected
    )
    assert read(tmp_path / "results.jsonl") == lines
    workers = {line.split()[3] for line in (tmp_path / "marks").read_text().splitlines()}
    assert len(workers) == 2 and str(os.getpid()) not in workers


def test_a_row_that_fails_keeps_what_was_done_and_stops_the_rest(tmp_path):
    rows = [Row(name, {"method": name}) for name in ("a", "bad", *"cdefghijkl")]
    with pytest.raises(ValueError, match="this row cannot work"):
        run_study(rows, SYNTHETIC, [0], tmp_path, ["x"], jobs=2, work=leave_mark)
    kept = [
        [line["run"].removeprefix("method="), line["target"], str(line["seed"])]
        for line in read(tmp_path / "results.jsonl")
    ]
    assert sorted(kept) == sorted(marks(tmp_path))
    assert ["a", "x", "0"] in kept and len(kept) < len(rows) - 1


def test_a_killed_study_takes_its_workers_along_and_is_resumed(tmp_path):
    rows = "[Row(name, {'method': name}) for name in ('a', 'slow', 'b', 'c')]"
    code = (
        "if __name__ == '__main__':\n"
        "    from pathlib import Path; from stub_work import leave_mark\n"
        "    from experiments.study import Row, Setting, run_study\n"
        f"    run_study({rows}, Setting('synthetic'), [0, 1], Path({str(tmp_path)!r}), jobs=2, work=leave_mark)\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    paths = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    process = subprocess.Popen([sys.executable, str(script)], env=environment)
    log = tmp_path / "results.jsonl"
    try:
        # Both workers end up in the slow row, of one seed each.
        _until(lambda: len(read(log)) == 4 and process.poll() is None)
        with pytest.raises(ValueError, match="another study runs in"):
            run_study(ROWS, SYNTHETIC, [0], tmp_path)
        workers = {int(line.split()[3]) for line in (tmp_path / "marks").read_text().splitlines()}
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    _until(lambda: not any(_alive(worker) for worker in workers))

    assert log.read_bytes().endswith(b"\n") and len(read(log)) == len(marks(tmp_path)) == 4
    (tmp_path / "hurry").touch()
    lines = run_study(
        [Row(name, {"method": name}) for name in ("a", "slow", "b", "c")], SYNTHETIC, [0, 1], tmp_path, work=leave_mark
    )
    done = sorted([row, "underpass", str(seed)] for row in ("a", "b", "c", "slow") for seed in (0, 1))
    assert sorted(marks(tmp_path)) == done
    assert read(log) == lines and len(lines) == 8


def _until(condition, seconds=180):  # on a busy machine three processes take long to import JAX
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_one_run_needs_no_process(tmp_path):
    def work(job):  # which another process could not be given
        return {"run": job.row.run, "target": job.target, "seed": job.seed, "process": os.getpid()}

    assert run_study(ROWS[:1], SYNTHETIC, [0], tmp_path, jobs=2, work=work)[0]["process"] == os.getpid()
