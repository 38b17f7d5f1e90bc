"""Processes that test_devices.py starts, as the devices of a process are fixed once JAX is up."""

import os
import sys
from pathlib import Path

import jax

# The tests' settings, which a process of its own does not get from conftest.py.
CACHE = {
    "JAX_COMPILATION_CACHE_DIR": str(Path(__file__).parents[1] / ".cache" / "jax"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
}


def config(folder):
    """Half of the identities of each source are held out, so that embedding over all devices chooses the checkpoint."""
    from tiny_run import tiny_config

    config = tiny_config(Path(folder))
    config.selection, config.val_fraction, config.epochs = "source_val", 0.5, 2
    return config


def eight_devices(folder):
    """Three iterations in float64 over 1, 2, 4 and 8 of eight simulated devices, and what comes of checkpoints."""
    import jax.numpy as jnp
    import numpy as np
    import optax
    from compile_options import COMPILE_QUICKLY
    from small_problem import draw_batch, small_net, start_state

    from metabin_jax.algorithm import MetaBIN
    from metabin_jax.runtime.devices import Placement, shapes_on
    from metabin_jax.training.checkpoint import Checkpoints

    jax.config.update("jax_enable_x64", True)
    model, optimizer = small_net(), optax.sgd(0.05, momentum=0.9)
    fresh = start_state(model, optimizer).replace(step=jnp.asarray(200, jnp.int32))
    steps = [
        jax.device_get((draw_batch(range(4), 20 + n), draw_batch((n, 3), 30 + n), draw_batch(((n + 1) % 3, 2), 40 + n)))
        for n in range(3)
    ]
    placements = {count: Placement.over(jax.devices()[:count]) for count in (1, 2, 4, 8)}
    found = {}

    def trainer(first_order):
        learner = MetaBIN(model, optimizer, lambda step: 0.01 * step, lambda step: 0.02 * step, first_order)
        return jax.jit(learner.train_step, compiler_options=COMPILE_QUICKLY)

    def vector(state):
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(jax.device_get(state.replace(step=())))])

    def train(train_step, state, count, batches):
        placement, losses = placements[count], []
        state = jax.device_put(state, placement.whole)
        for batch in batches:
            state, metrics = train_step(state, *placement.put(batch))
            losses.append([metrics[name] for name in sorted(metrics)])
        assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state))
        assert {leaf.sharding.num_devices for leaf in jax.tree.leaves(state)} == {count}
        return state, np.array(losses)

    def keep(name, state, losses=()):
        found[name] = vector(state)
        found[f"{name} losses"] = np.array(losses)

    # Compilation takes the time: each number of devices with one of the two meta-gradients.
    exact, first = trainer(first_order=False), trainer(first_order=True)
    for count in (1, 2, 8):
        keep(f"exact {count}", *train(exact, fresh, count, steps))
    for count in (1, 4):
        keep(f"first {count}", *train(first, fresh, count, steps))

    # Two devices, each by itself, and the mean of their states after every step. A half twice, which changes no moments
    # and no mean, is of the shape that is compiled already.
    state = jax.device_get(fresh)
    for batch in steps:
        halves = [
            jax.tree.map(lambda rows, h=half: np.concatenate([np.split(rows, 2)[h]] * 2), batch) for half in (0, 1)
        ]
        one, other = (jax.device_get(train(first, state, 1, [half])[0]) for half in halves)
        state = jax.tree.map(lambda a, b: a if a.dtype == np.int32 else (a + b) / 2, one, other)
    keep("apart", state)

    # Two steps, a checkpoint, and the third on another number of devices.
    for name, train_step, before, after in (("exact", exact, 8, 1), ("first", first, 1, 4)):
        with Checkpoints(folder / name, scored=False) as checkpoints:
            checkpoints.save(train(train_step, fresh, before, steps[:2])[0])
        whole = placements[after].whole
        like = shapes_on(whole, fresh)
        with Checkpoints(folder / name, scored=False, create=False) as checkpoints:
            restored = checkpoints.restore(like, checkpoints.latest_step())
        assert {leaf.sharding for leaf in jax.tree.leaves(restored)} == {whole}
        keep(f"{name} {before}, then none", restored)
        keep(f"{name} {before}, then {after}", *train(train_step, restored, after, steps[2:]))
    np.savez(folder / "found.npz", **found)


def command_line(*arguments):
    """`metabin` with nets that compile quickly, which says on stderr how many rows it gathers and that it decodes."""
    from tiny_run import pixel_nets

    from metabin_jax.cli import main
    from metabin_jax.data import cache, pipeline

    RawBatch, decode_all = pipeline.RawBatch, cache._decode_all

    def counted(image, pid, domain):
        sys.stderr.write(f"gathered {len(image)}\n")  # whole lines, as several threads gather
        return RawBatch(image, pid, domain)

    def told(records, *rest):
        sys.stderr.write(f"decoded {len(records)}\n")
        decode_all(records, *rest)

    pipeline.RawBatch, cache._decode_all = counted, told
    with pixel_nets():
        return main(list(arguments))


def command(*arguments, devices=1, **environment):
    """What subprocess.Popen takes to run this file."""
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    paths = {"PYTHONPATH": os.pathsep.join((str(Path(__file__).parents[1]), str(Path(__file__).parent)))}
    settings = os.environ | flags | paths | CACHE | environment
    return {"args": [sys.executable, __file__, *map(str, arguments)], "env": settings}


if __name__ == "__main__":
    jax.config.update("jax_numpy_rank_promotion", "raise")
    what, *rest = sys.argv[1:]
    sys.exit(eight_devices(Path(*rest)) if what == "eight_devices" else command_line(*rest))
