import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import tiny_config

from metabin_jax.runtime import compilation
from metabin_jax.training import build


def test_compiled_programs_are_kept_where_jax_was_told_or_at_home(monkeypatch):
    told = jax.config.jax_compilation_cache_dir
    compilation.use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == told
    monkeypatch.setenv("HOME", "/home/somebody")
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        compilation.use_compilation_cache()
        assert jax.config.jax_compilation_cache_dir == "/home/somebody/.cache/metabin_jax/xla"
    finally:
        jax.config.update("jax_compilation_cache_dir", told)


@pytest.mark.parametrize("ahead", [True, False])
def test_what_is_compiled_ahead_is_not_compiled_again(ahead, caplog):
    jitted, x = jax.jit(lambda x: jnp.sin(x) * 3, donate_argnums=0), jnp.arange(7.0)
    expected = jnp.sin(x) * 3
    if ahead:
        jitted = compilation.compile_ahead(jitted, x)
        assert not x.is_deleted()
    with jax.log_compiles():
        caplog.clear()
        found = jitted(x)
    compiled = [record for record in caplog.records if "Compiling jit(<lambda>)" in record.getMessage()]
    assert len(compiled) == (0 if ahead else 1)
    assert x.is_deleted()
    np.testing.assert_array_equal(found, expected)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_freed_memory_is_given_back():
    def resident_mib():
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

    # Pieces below the size that the C library maps on their own, with one kept now and then, as a compiler leaves them.
    pieces = [bytearray(b"x") * 100_000 for _ in range(3000)]
    del pieces[:-1]
    before = resident_mib()
    compilation.compile_ahead(jax.jit(jnp.cos), jnp.zeros(3))
    assert resident_mib() < before - 100


@pytest.mark.parametrize("method", ["metabin", "bin", "bau"])
def test_a_fresh_state_is_made_by_one_program(folder, method):
    """Made one by one, the zeros of an optimiser take a program for every shape."""
    config = tiny_config(folder)
    config.method = method
    run = build.build(build.resolve(config))

    def zeros(make):
        return [each for each in jax.make_jaxpr(make)().eqns if each.primitive.name == "broadcast_in_dim"]

    image = jnp.zeros((1, 32, 32, 3))
    assert len(zeros(run.init)) == 1  # the image
    assert len(zeros(lambda: run.learner.init(jax.random.key(0), image))) > 10
