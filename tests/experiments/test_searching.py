"""The benchmark of a search, with a small gallery."""

import re
import sys

from experiments.benchmarks import searching


def test_it_times_the_command(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["searching", "--images=20", "--turns=1"])
    searching.main()
    out = capsys.readouterr().out
    assert out.startswith("20 images in the gallery, ")
    rows = dict(re.findall(r"^\| ([^|]+) \| ([\d.]+) \(", out, re.MULTILINE))
    assert list(rows) == ["metabin search, the first time", "Python starts and imports", "metabin search"]
    assert 0.1 < float(rows["Python starts and imports"]) < float(rows["metabin search"])
