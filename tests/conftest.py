"""The strictest environment the tests can stand; set before anything imports jax."""

import dataclasses
import os
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Two simulated devices, so that sharding is tested on any machine.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

# Compilation dominates the suite's time: keep every executable between runs.
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


@pytest.fixture(scope="session", autouse=True)
def forms_of_this_platform():
    """The forms of other platforms never run here, and tracing them as well would take twice as long."""
    from metabin_jax.runtime.platforms import tracing_for

    with tracing_for(jax.default_backend()):
        yield


@pytest.fixture
def all_forms(forms_of_this_platform):
    """Every platform's form is traced, as it is for a user."""
    from metabin_jax.runtime.platforms import tracing_for

    with tracing_for(""):
        yield


@pytest.fixture(scope="session", autouse=True)
def temporary_files(tmp_path_factory):
    """What libraries leave among the temporary files is removed with pytest's own."""
    folder = str(tmp_path_factory.mktemp("temporary"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        yield


@pytest.fixture
def settings_of_jax():
    """Those that `metabin plan` and its tests change stay those of the other tests."""
    names = ("jax_platforms", "jax_enable_compilation_cache", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def optimised_again():
    """What --smoke asks of JAX ends with the test."""
    yield
    jax.config.update("jax_disable_most_optimizations", False)


# What test_train and test_resume share; tiny_run is imported late, when the settings above hold.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from tiny_run import draw_folder

    return draw_folder(tmp_path_factory.mktemp("tiny") / "data")


@pytest.fixture(scope="module")
def quick_net():
    from tiny_run import pixel_nets

    with pixel_nets():
        yield


@pytest.fixture(scope="module")
def straight(folder, quick_net, tmp_path_factory):
    """The workdir of a run that nothing interrupted, and its result."""
    from tiny_run import tiny_config

    from metabin_jax.training.train import train

    workdir = tmp_path_factory.mktemp("straight")
    return workdir, train(tiny_config(folder), workdir)


# What the tests of `metabin prepare` share; metabin_jax is imported late, too.


@pytest.fixture
def raw(tmp_path):
    return tmp_path / "raw"


@pytest.fixture
def data_dir(tmp_path):
    return tmp_path / "prepared"


@pytest.fixture
def complete(monkeypatch):
    """The miniature of VIPeR has its published counts."""
    from metabin_jax.data.sets.catalogue import SETS

    monkeypatch.setitem(SETS, "viper", dataclasses.replace(SETS["viper"], published={"ids": 2, "images": 3}))
