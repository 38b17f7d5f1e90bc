"""Table 1 and Figures 2 and 3: rows, measures, words and pictures, against values worked out by hand."""

import math
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny_run import draw_folder

pytest.importorskip("matplotlib", reason="the figures are drawn with matplotlib")

from experiments import fig2, fig3, figures, table1
from experiments.settings import Setting
from experiments.study import Job
from metabin_jax.data.augment import normalise
from metabin_jax.evaluation import QueryGallery, protocols
from metabin_jax.training.build import build, resolve


def line(run="method=metabin", target="x", seed=0, **numbers):
    return {"run": run, "target": target, "seed": seed, **numbers}


# --- Table 1 --------------------------------------------------------------------------------------------------------


def test_the_papers_table_agrees_with_what_stands_elsewhere():
    """With the benchmark's published numbers, and its means over the targets with Tables 2 to 4."""
    cells = {row.split()[0]: row.split()[3:] for row in table1.PAPER.strip().splitlines()}
    assert len(cells) == 14 and {len(numbers) for numbers in cells.values()} == {16}
    published = protocols.load("paper").published[0].targets
    assert [float(value) for value in cells["MetaBIN"]] == [
        published[target][metric][0] for target in table1.TARGETS for metric in table1.METRICS
    ]
    for method, r1, mean_ap in (("MetaBIN", 64.7, 72.3), ("DualNorm", 57.6, 61.8)):
        numbers = np.array(cells[method], float)
        assert numbers[0::4].mean() == pytest.approx(r1, abs=0.051)
        assert numbers[3::4].mean() == pytest.approx(mean_ap, abs=0.051)


def scores(r1, mean_ap):
    return {"R-1": r1, "R-5": 0.5, "R-10": 0.75, "mAP": mean_ap}


def test_ours_stand_beside_the_papers():
    lines = [line(target="paper", scores={t: scores(0.4, 0.2) for t in table1.TARGETS})]
    lines += [line(target="paper", seed=1, scores={t: scores(0.5, 0.2) for t in table1.TARGETS})]
    words = table1.report(lines)
    assert words.count("| method |") == 1
    ours = "45.0 ± 7.1 / 50.0 ± 0.0 / 75.0 ± 0.0 / 20.0 ± 0.0"
    assert f"| MetaBIN (ours) | DG | all other domains | {' | '.join([ours] * 4)} | 2 |" in words
    assert "| MTDnet (reported) | S | target | 47.5 / 73.1 / 82.6 / - | 32.0 / 51.0 / 62.0 / - | - |" in words


def test_other_targets_have_a_table_of_their_own():
    lines = [line(target=t, seed=seed, scores={t: scores(0.4, 0.2)}) for t, seed in (("a", 0), ("b", 0), ("b", 1))]
    words = table1.report(lines)
    assert words.startswith("| method | type | source | a | b | seeds |") and words.count("| method |") == 2
    assert "| 40.0 / 50.0 / 75.0 / 20.0 | 40.0 ± 0.0 / 50.0 ± 0.0 / 75.0 ± 0.0 / 20.0 ± 0.0 | 1 |" in words


# --- Figure 2 -------------------------------------------------------------------------------------------------------


def test_rows_change_the_meta_batches_alone(tmp_path):
    """Identities of every domain: 5, so 8 of each cannot be drawn; one row is that of Table 4."""
    folder = draw_folder(tmp_path / "data", ("a", "b", "c", "d", "e"), ids=6)
    setting = Setting("folder", str(folder))
    found = {}
    for row in fig2.rows(setting, tmp_path):
        run = build(resolve(Job(row, "a", 0, setting, tmp_path).config()))
        sizes = [len(rows) for rows in (run.base.base(0), *run.meta.meta(0))]
        found[row.name] = (*sizes, row.run == "method=metabin")
    assert found == {
        "1 meta-train": (64, 16, 48, False),
        "2 meta-train": (64, 32, 32, True),
        "3 meta-train": (64, 48, 16, False),
        "8 images": (64, 16, 16, False),
        "16 images": (64, 32, 32, False),
        "24 images": (64, 48, 48, False),
    }


def test_memory_is_arguments_and_temporaries():
    """The state counts once, donated and looked at or not; a large product in between counts as a temporary."""

    def base_update(state, xb):
        return state, xb.image.sum()

    def meta_update(state, xs, xt):
        row = state["w"].ravel()
        return state, jnp.sin(row[:, None] * row[None, :] + 1) @ row + xs.image.sum() + xt.image.sum()

    run = SimpleNamespace(
        init=lambda: {"w": jnp.zeros((32, 32)), "unused": jnp.zeros(1000)},
        learner=SimpleNamespace(base_update=base_update, meta_update=meta_update),
        config=SimpleNamespace(data=SimpleNamespace(height=8, width=4)),
        rows=lambda step: [np.zeros(10), np.zeros(6), np.zeros(4)],
    )
    batch = 10 * (8 * 4 * 3 * 4 + 4 + 4)
    state = 4 * (1024 + 1000)
    found = fig2.memory(run)
    assert state + batch <= found["base_bytes"] < state + batch + 4096
    assert found["meta_bytes"] >= state + batch + 4 * 1024 * 1024


def sampled(sampling, x, r1, meta_mib, seed=0):
    numbers = {"meta_train_domains": x, "images_per_domain": x, "sources": 5, "sampling": sampling, "platform": "cpu"}
    return line(f"{sampling} {x}", seed=seed, **{"R-1": r1, "mAP": 0.25}, **numbers) | {
        "base_bytes": 8 * 2**20,
        "meta_bytes": meta_mib * 2**20,
    }


def test_performance_and_memory_side_by_side():
    lines = [sampled("domains", 1, 0.5, 9), sampled("domains", 2, 0.75, 7), sampled("identities", 8, 0.5, 4)]
    lines += [sampled("domains", 2, 0.25, 7, seed=1)]
    words = fig2.report(lines)
    assert "| (a) domains | 2 meta-train domains | 50.0 ± 35.4 | 25.0 ± 0.0 | 2 | 7.0 | 8.0 |" in words
    assert "(a) domains: highest R-1 at 1, least memory at 2; (b) images: highest R-1 at 8" in words
    figure = fig2.draw(lines)
    domains, _, domains_right, images_right = figure.axes
    assert [bar.get_height() for bar in domains_right.patches] == [9, 7]
    assert [bar.get_height() for bar in images_right.patches] == [4]
    assert domains.containers[0].lines[0].get_ydata().tolist() == [50, 50]
    assert [label.get_text() for label in domains.get_xticklabels()] == ["1", "2"]
    assert (domains.get_ylabel(), domains_right.get_ylabel()) == ("%", "MiB") and "cpu" in figure.get_supxlabel()


# --- Figure 3 -------------------------------------------------------------------------------------------------------


def split_of(query, gallery):
    """(row, pid, camid) of each image."""
    columns = [np.array(part).T for part in (query, gallery)]
    return QueryGallery(*[part[k] for k in range(3) for part in columns])


def test_whole_persons_are_shown_queried_ones_first():
    split = split_of([(0, 7, 1), (5, 3, 1)], [(1, 7, 2), (2, 1, 2), (3, 3, 2), (4, 3, 3)])
    images = fig3.shown(split)
    assert images.row_N.tolist() == [3, 4, 5, 0, 1, 2]
    assert images.pid_N.tolist() == [3, 3, 3, 7, 7, 1]
    assert images.camid_N.tolist() == [2, 3, 1, 1, 2, 2]
    assert images.query_N.tolist() == [False, False, True, True, False, False]
    assert [len(fig3.shown(split, limit).row_N) for limit in (1, 4, 5, 6)] == [3, 3, 5, 6]


def test_of_images_that_are_both_the_first_is_the_query():
    every = [(0, 4, 1), (1, 4, 2), (2, 9, 1), (3, 9, 1)]
    assert fig3.shown(split_of(every, every)).query_N.tolist() == [True, False, True, False]


def test_distances_to_the_nearest_match_and_to_the_nearest_other():
    """At angles of a circle. The query's own camera is no match, and a query without one is left out."""
    angles = np.radians([0, 5, 30, 20, 90])
    embedding_ND = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    pid, camid = np.array([1, 1, 1, 2, 3]), np.array([1, 1, 2, 1, 1])
    images = fig3.Shown(np.arange(5), pid, camid, np.array([True, False, False, False, True]))
    match, other = fig3.nearest(embedding_ND, images)
    assert match == pytest.approx(1 - math.cos(math.radians(30)))
    assert other == pytest.approx(1 - math.cos(math.radians(20)))


def test_persons_are_kept_together_and_the_same_every_time():
    """Six persons in six directions; and without order in the features there is none in the places."""
    pytest.importorskip("sklearn", reason="Figure 3 takes its t-SNE from scikit-learn")
    rng = np.random.default_rng(0)
    pid_N = np.repeat(np.arange(6), 8)
    noise_ND = rng.normal(size=(48, 16))

    def kept_together(embedding_ND):
        place_N2 = fig3.tsne(embedding_ND)
        distance_NN = np.linalg.norm(place_N2[:, None] - place_N2[None], axis=2) + np.diag(np.full(48, np.inf))
        np.testing.assert_array_equal(place_N2, fig3.tsne(embedding_ND))
        return (pid_N[distance_NN.argmin(1)] == pid_N).mean()

    assert kept_together((0.3 * noise_ND + 4 * np.eye(16)[pid_N]).astype(np.float32)) == 1
    assert kept_together(noise_ND.astype(np.float32)) < 0.5


def test_each_image_is_placed_by_its_own_embedding(tmp_path, monkeypatch):
    """Of two targets in one run, which are not in the order of the folder; a stand-in for t-SNE keeps the embedding."""
    folder = draw_folder(tmp_path / "data", ("a", "b", "c", "d"), ids=3)
    setting = Setting("folder", str(folder), smoke=True)
    job = Job(figures.from_table4("MetaBIN")(setting, tmp_path)[0], "b", 0, setting, tmp_path)
    config = job.config()
    config.data.eval_domains, config.data.cache_dir = ("c", "a"), str(tmp_path / "cache")
    run = build(resolve(config))
    state = run.init()
    variables = {"params": state.params, "rho": state.rho, "batch_stats": state.batch_stats}
    monkeypatch.setattr(figures, "restore", lambda job: (config, 7, variables))
    monkeypatch.setattr(fig3, "tsne", lambda embedding_ND: 1000 * embedding_ND[:, :2])
    found = fig3.measure(job)["domains"]
    assert list(found) == ["c", "a"]
    drawn = {}
    for domain, part in found.items():
        assert part["pid"] == [0] * 4 + [1] * 4 + [2] * 4 and part["query"] == [1, 0, 0, 0] * 3
        pixels = [np.asarray(Image.open(file)) for file in sorted((folder / domain).iterdir())]
        _, embedding_ND, _ = run.learner.model.apply(variables, normalise(np.stack(pixels)), train=False)
        drawn[domain] = np.array([part["x"], part["y"]]).T
        np.testing.assert_allclose(drawn[domain], 1000 * np.asarray(embedding_ND)[:, :2], atol=0.02)
    assert abs(drawn["c"] - drawn["a"]).max() > 1


def places(pids, x=0.0):
    query = [int(k == 0 or pids[k - 1] != pid) for k, pid in enumerate(pids)]
    count = len(pids)
    return {
        "match": 0.1,
        "other": 0.2,
        "x": [x] * count,
        "y": [float(k) for k in range(count)],
        "pid": pids,
        "query": query,
    }


def colours_drawn(panel):
    return {
        tuple(colour) for points in panel.collections if len(points.get_offsets()) for colour in points.get_facecolors()
    }


def test_one_panel_per_method_and_target():
    pids = [pid for pid in range(9) for _ in range(2)]
    lines = [
        line(f"method={method}", target, seed, domains={target: places(pids, x=seed)})
        for method in ("bn", "metabin") for target in ("a", "b") for seed in (1, 0)
    ]  # fmt: skip
    panels = fig3.draw(lines).axes
    assert [panel.get_title() for panel in panels] == ["BN", "MetaBIN", "", ""]
    assert [panel.get_ylabel() for panel in panels] == ["a", "", "b", ""]
    points = np.concatenate([points.get_offsets() for points in panels[1].collections])
    assert len(points) == 18 and set(points[:, 0]) == {0}  # of the first seed
    assert len(colours_drawn(panels[1])) == len(figures.COLOURS) + 1
    assert "| BN | 0.100 ± 0.000 | 0.200 ± 0.000 | 0.500 ± 0.000 | 2 |" in fig3.report(lines)


def test_several_sets_of_a_run_share_a_panel():
    domains = {name: places([1, 1, 2, 2]) for name in ("viper", "grid")}
    figure = fig3.draw([line(target="paper", domains=domains)])
    (panel,) = figure.axes
    assert len(colours_drawn(panel)) == 2
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["query", "gallery", "viper", "grid"]
