"""`metabin train` gives itself huge pages: once, in its own process, unless the user has a setting."""

import os
import subprocess
import sys

import pytest

from metabin_jax.runtime import huge_pages

CONFIG = """
import os
def get_config():
    raise SystemExit(f"{os.getpid()} {os.environ.get('GLIBC_TUNABLES', 'unset')}")
"""
KNOWN = huge_pages._glibc() >= huge_pages.OLDEST


def started(tmp_path, command, **setting):
    """The number of the process that was started, the one that ran the config, and what malloc was told."""
    (tmp_path / "config.py").write_text(CONFIG)
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"} | setting
    process = subprocess.Popen(
        [*command, "train", f"--config={tmp_path}/config.py", f"--workdir={tmp_path}/run"],
        env=environment, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    number, value = process.communicate()[1].rstrip("\n").split(" ")
    return process.pid, int(number), value


@pytest.mark.skipif(not KNOWN, reason="needs glibc 2.35")
@pytest.mark.parametrize(
    "command", [[sys.executable, "-m", "metabin_jax"], [os.path.dirname(sys.executable) + "/metabin"]]
)
def test_a_training_has_them(tmp_path, command):
    first, last, value = started(tmp_path, command)
    assert (first, value) == (last, "glibc.malloc.hugetlb=1")


@pytest.mark.parametrize("own", ["", "glibc.malloc.check=0"])
def test_a_setting_of_the_users_own_stays(tmp_path, own):
    first, last, value = started(tmp_path, [sys.executable, "-m", "metabin_jax"], GLIBC_TUNABLES=own)
    assert (first, value or "") == (last, own)


@pytest.mark.parametrize("version", ["glibc 2.34", "", None, ValueError])
def test_other_c_libraries_are_left_alone(monkeypatch, version):
    def confstr(name):
        if version is ValueError:
            raise ValueError("unrecognized configuration name")
        return version

    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(os, "confstr", confstr)
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("it started again"))
    huge_pages.start_again()
    assert "GLIBC_TUNABLES" not in os.environ
