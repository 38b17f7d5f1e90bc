"""Many devices and several processes train and evaluate as one; many_devices.py is what other processes run."""

import json
import re
import shutil
import socket
import subprocess

import jax
import jax.numpy as jnp
import many_devices
import numpy as np
import pytest
from tiny_run import draw_folder, rows

from metabin_jax.evaluation import distances, embedding
from metabin_jax.runtime import devices
from metabin_jax.runtime.devices import Placement
from metabin_jax.training import build, evaluate, train
from metabin_jax.training.checkpoint import Checkpoints

pytestmark = pytest.mark.usefixtures("quick_net")

CONFIG = "import many_devices\n\ndef get_config():\n    return many_devices.config({folder!r})\n"


class Process:
    def __init__(self, log, *arguments, **settings):
        self._out, self._err = log.with_suffix(".out"), log.with_suffix(".err")
        with self._out.open("w") as out, self._err.open("w") as err:
            self._process = subprocess.Popen(**many_devices.command(*arguments, **settings), stdout=out, stderr=err)

    def end(self):
        self._process.kill()
        self._process.wait()

    def finish(self):
        """What it printed to stdout and to stderr."""
        status = self._process.wait(timeout=300)
        out, err = self._out.read_text(), self._err.read_text()
        assert status == 0, err
        return out, err


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return draw_folder(tmp_path_factory.mktemp("devices") / "data", ids=8)


@pytest.fixture(scope="module")
def running(folder):
    """All of them at once, as they take the longest to get ready."""
    root = folder.parent
    (root / "config.py").write_text(CONFIG.format(folder=str(folder)))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    simulated = Process(root / "simulated", "eight_devices", root, devices=8)
    arguments = ("metabin", "train", "--distributed", f"--config={root / 'config.py'}", f"--workdir={root / 'two'}")
    together = [
        Process(
            root / f"process{index}", *arguments,
            JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES="2", JAX_PROCESS_ID=str(index),
        )
        for index in range(2)
    ]  # fmt: skip
    yield root, simulated, together
    for process in (simulated, *together):
        process.end()


@pytest.fixture(scope="module")
def reference(folder, running, quick_net):
    """The workdir of a run of nine steps in this process, with the images in a cache of its own."""
    config = many_devices.config(folder)
    config.data.cache_dir, config.epochs = str(folder.parent / "reference-cache"), 3
    train.train(config, folder.parent / "reference")
    return folder.parent / "reference"


@pytest.fixture(scope="module")
def two_processes(running):
    """The workdir of two processes that trained six steps of the same, and what each of them printed."""
    root, _, together = running
    return root / "two", [process.finish() for process in together]


@pytest.fixture(scope="module")
def found(running):
    root, simulated, _ = running
    simulated.finish()
    return np.load(root / "found.npz")


def distance(actual, expected):
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


# Float64: only the order of sums differs; measured: 5e-15.
@pytest.mark.parametrize(
    ("actual", "expected"), [("exact 2", "exact 1"), ("exact 8", "exact 1"), ("first 4", "first 1")]
)
def test_any_number_of_devices_gives_the_one_device_result(found, actual, expected):
    assert distance(found[actual], found[expected]) < 1e-12
    assert distance(found[f"{actual} losses"], found[f"{expected} losses"]) < 1e-12


def test_devices_by_themselves_or_another_gradient_would_be_seen(found):
    assert distance(found["apart"], found["first 1"]) > 1e-2
    assert distance(found["exact 1"], found["first 1"]) > 1e-3


@pytest.mark.parametrize(("before", "after", "straight"), [("exact 8", 1, "exact 1"), ("first 1", 4, "first 1")])
def test_a_checkpoint_goes_on_with_another_number_of_devices(found, before, after, straight):
    assert distance(found[f"{before}, then {after}"], found[straight]) < 1e-12
    assert distance(found[f"{before}, then none"], found[straight]) > 1e-2


def test_two_processes_train_as_one(reference, two_processes):
    """In float32, sums in another order; measured: no difference at all."""
    ours, theirs = ([row for row in rows(workdir) if row["step"] <= 6] for workdir in (two_processes[0], reference))
    assert len(ours) == len(theirs) == 6 + 2  # two rows are scores of the held-out identities
    for row, other in zip(ours, theirs, strict=True):
        assert row.keys() == other.keys()
        names = row.keys() - {"images_per_second"}
        assert [row[name] for name in names] == pytest.approx([other[name] for name in names], rel=1e-5)
    assert ours[-1] != pytest.approx(ours[-2], rel=1e-3)


def test_one_process_writes_and_prints(two_processes):
    workdir, ((out, err), (other_out, other_err)) = two_processes
    assert sorted(path.name for path in workdir.iterdir()) == [
        "checkpoints", "config.json", "environment.json", "evaluation.json", "evaluation.md", "lock",
        "metrics.jsonl", "peers", "records.txt", "tensorboard",
    ]  # fmt: skip
    assert len(list((workdir / "tensorboard").iterdir())) == 1
    assert len(json.loads((workdir / "environment.json").read_text())) == 1
    assert "ours: metabin" in out and re.search(r"step\b.* 6/6\b", err)
    assert "ours" not in other_out and "step" not in other_err


def test_a_process_reads_only_rows_of_its_own_and_decodes_nothing_twice(two_processes):
    for number, (_, err) in enumerate(two_processes[1]):
        gathered = [int(line.split()[1]) for line in err.splitlines() if line.startswith("gathered")]
        assert sorted(gathered) == [2] * 6 + [4] * 6 + [6] * 6  # of 4, 8 and 12
        decoded = [line for line in err.splitlines() if line.startswith("decoded")]
        assert decoded == ([] if number else ["decoded 96", "decoded 32"])


def test_one_process_evaluates_and_goes_on_with_the_checkpoint_of_two(folder, reference, two_processes, tmp_path):
    shutil.copytree(two_processes[0], tmp_path / "one")
    config = many_devices.config(folder)
    result = evaluate.evaluate(config, tmp_path / "one")
    assert result == json.loads((two_processes[0] / "evaluation.json").read_text())
    config.epochs = 3
    train.train(config, tmp_path / "one")
    states = []
    for workdir in (tmp_path / "one", reference):
        with Checkpoints(workdir, scored=True, create=False) as checkpoints:
            assert checkpoints.latest_step() == 9
            like = build.build(build.resolve(config)).init()
            states.append(jax.device_get(checkpoints.restore(like, 9)))
    for ours, theirs in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert (
        max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (states[0].params, like.params)), strict=True))
        > 1e-2
    )


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (("", "2", "0"), "JAX_COORDINATOR_ADDRESS=, JAX_NUM_PROCESSES=2 and JAX_PROCESS_ID=0 must be HOST:PORT"),
        (("host", "2", "0"), "JAX_COORDINATOR_ADDRESS=host, "),
        (("host:1", "", "0"), "JAX_NUM_PROCESSES= and"),
        (("host:1", "2", "2"), "JAX_NUM_PROCESSES=2 and JAX_PROCESS_ID=2 must be"),
        (("host:1", "two", "0"), "JAX_NUM_PROCESSES=two and"),
        (("", "", ""), r"found no other processes \(no cluster\): start by srun, or set JAX_COORDINATOR_ADDRESS, "),
    ],
)
def test_what_does_not_name_the_processes_is_refused(monkeypatch, environment, message):
    def initialize(**_):
        raise ValueError("no cluster")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    for name, value in zip(devices.BY_HAND, environment, strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        devices.start()


def test_processes_are_named_by_hand_or_by_the_cluster(monkeypatch):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **settings: calls.append(settings))
    for values in (("", "", ""), ("host:1", "", ""), ("host:1", "8", "7")):
        for name, value in zip(devices.BY_HAND, values, strict=True):
            monkeypatch.setenv(name, value)
        devices.start()
    by_hand = {"num_processes": 8, "process_id": 7, "cluster_detection_method": "deactivate"}
    ended = {"shutdown_timeout_seconds": devices.ENDED_WITHIN}
    assert calls == [ended, ended, ended | by_hand]


def test_a_workdir_that_is_not_shared_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "SHARED_WITHIN", 0)
    devices.check_shared(tmp_path)
    with pytest.raises(ValueError, match=r"process 0 does not see .*config\.json of process 0: --workdir must name"):
        devices.check_shared(tmp_path / "config.json")


def test_images_to_embed_are_cut_over_the_devices(monkeypatch):
    seen = []

    def embed_batch(model, placement, steps, variables, image_NHWC):
        seen.append([(shard.device, shard.data.shape) for shard in image_NHWC.addressable_shards])
        return image_NHWC[:, 0, 0]

    monkeypatch.setattr(embedding, "_embed_batch", embed_batch)
    image_NHWC = np.random.default_rng([0]).integers(0, 256, (5, 4, 4, 3), np.uint8)
    (found_ND,) = embedding.embed_batches(None, {}, [image_NHWC], 5)
    assert seen == [[(one, (3, 4, 4, 3)) for one in jax.devices()]]
    np.testing.assert_array_equal(found_ND, image_NHWC[:, 0, 0])


def test_a_device_ranks_its_queries_without_the_others():
    placement = Placement.over(jax.devices())

    def array(shape, sharding, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def collectives(function, *arguments, **settings):
        text = function.lower(*arguments, **settings).compile().as_text()
        return [name for name in ("all-gather", "all-reduce", "all-to-all", "collective-permute") if name in text]

    distance_BG = array((6, 80), placement.by_rows)
    query_BD, gallery_CD = array((6, 5), placement.by_rows), array((40, 5), placement.whole)
    for metric in ("cosine", "euclidean"):
        assert not collectives(distances.distance_tile, query_BD, gallery_CD, metric=metric)
    assert collectives(jax.jit(jnp.sum), distance_BG), "what adds up over queries would be seen"
