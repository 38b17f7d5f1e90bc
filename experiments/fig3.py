"""Figure 3: t-SNE of the embeddings of queries and gallery on unseen targets, for BN, IN, BIN and MetaBIN.

Each method has a panel with the first seed's run; t-SNE has a fixed seed. If a run is evaluated on several sets, as in
the paper, its panel shows all of them, one colour per set. If it is evaluated on one, each target has its own panels,
and colours tell some of its people apart. The paper's conclusion from the picture is measured over all seeds, before
t-SNE: the cosine distance of a query to its nearest match and to the nearest image of another person.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from experiments import figures
from experiments.study import Job
from experiments.tables import Line, markdown, mean_std
from metabin_jax.evaluation import QueryGallery, distance, embed
from metabin_jax.training.build import load_images, model_of
from metabin_jax.training.evaluate import domain_splits, read_targets

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_IMAGES = 1000  # per domain: more points would overlap, and t-SNE would take long
PERPLEXITY, SEED = 30, 0
MARKERS = {"query": ("o", 26), "gallery": ("^", 16)}  # and sizes


class Shown(NamedTuple):
    """Images of one domain: rows among its records, labels, and which are queries; the rest is the gallery."""

    row_N: NDArray[np.int64]
    pid_N: NDArray[np.int64]
    camid_N: NDArray[np.int64]
    query_N: NDArray[np.bool_]


def shown(split: QueryGallery, limit: int = MAX_IMAGES) -> Shown:
    """All images of each person, up to `limit` images: people with queries first, then by pid.

    If the same images are queries and gallery, the first image of a person is shown as a query.
    """
    row_N, at_N = np.unique(np.concatenate([split.query_row, split.gallery_row]), return_index=True)
    pid_N = np.concatenate([split.query_pid, split.gallery_pid])[at_N]
    camid_N = np.concatenate([split.query_camid, split.gallery_camid])[at_N]
    first_N = np.isin(np.arange(len(row_N)), np.unique(pid_N, return_index=True)[1])
    query_N = np.isin(row_N, split.query_row) & (first_N | ~np.isin(row_N, split.gallery_row))
    order_N = np.lexsort((pid_N, ~np.isin(pid_N, pid_N[query_N])))
    _, person_N = np.unique(pid_N[order_N], return_inverse=True)
    ends = np.flatnonzero(np.append(np.diff(person_N) != 0, True)) + 1  # where a person's images end
    kept = order_N[: max(ends[0], ends[ends <= limit].max(initial=0))]
    return Shown(row_N[kept], pid_N[kept], camid_N[kept], query_N[kept])


def nearest(embedding_ND: NDArray, images: Shown) -> tuple[float, float]:
    """Mean cosine distances of queries to their nearest match and to the nearest image of another person.

    A match comes from another camera, as in the evaluation; queries without a match are left out.
    """
    query, gallery = np.flatnonzero(images.query_N), np.flatnonzero(~images.query_N)
    distance_QG = distance(embedding_ND[query], embedding_ND[gallery])
    same_QG = images.pid_N[query, None] == images.pid_N[None, gallery]
    other_camera_QG = images.camid_N[query, None] != images.camid_N[None, gallery]
    match_Q = np.where(same_QG & other_camera_QG, distance_QG, np.inf).min(1)
    other_Q = np.where(same_QG, np.inf, distance_QG).min(1)
    valid_Q = np.isfinite(match_Q) & np.isfinite(other_Q)
    return float(match_Q[valid_Q].mean()), float(other_Q[valid_Q].mean())


def tsne(embedding_ND: NDArray) -> NDArray[np.float64]:
    """Places [N, 2]. Uses one thread: the order of sums over threads varies, and t-SNE amplifies the difference."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    perplexity = min(PERPLEXITY, (len(embedding_ND) - 1) / 3)
    with threadpool_limits(1):
        return TSNE(perplexity=perplexity, metric="cosine", init="pca", random_state=SEED).fit_transform(embedding_ND)


def measure(job: Job) -> Line:
    """domains: for each, x, y, pid and query (0 or 1) of every image, and the two distances of `nearest`."""
    config, step, variables = figures.restore(job)
    model = model_of(config, variables)
    records = read_targets(config)
    images = load_images(config, records)
    domain_N = np.array([record.domain for record in records])
    parts, embeddings = [], []
    for domain in config.data.eval_domains:
        rows = np.flatnonzero(domain_N == domain)
        splits, _ = domain_splits(config, domain, [records[row] for row in rows.tolist()])
        part = shown(splits[0])
        parts.append(part)
        embeddings.append(embed(model, variables, images, config.eval.batch_size, rows=rows[part.row_N]))
    places = np.split(tsne(np.concatenate(embeddings)), np.cumsum([len(part.row_N) for part in parts])[:-1])
    domains = {}
    for domain, part, embedding_ND, place_N2 in zip(config.data.eval_domains, parts, embeddings, places, strict=True):
        match, other = nearest(embedding_ND, part)
        domains[domain] = {
            "match": match,
            "other": other,
            "x": place_N2[:, 0].round(2).tolist(),
            "y": place_N2[:, 1].round(2).tolist(),
            "pid": part.pid_N.tolist(),
            "query": part.query_N.astype(int).tolist(),
        }
    return job.head | {"step": step, "domains": domains}


def report(lines: Sequence[Line]) -> str:
    def mean(number: str, line: Line) -> float:
        return float(np.mean([domain[number] for domain in line["domains"].values()]))

    rows = []
    for run, name in figures.names_of_runs(lines).items():
        own = [line for line in lines if line["run"] == run]
        match_S, other_S = (figures.per_seed(own, lambda line, n=n: mean(n, line)) for n in ("match", "other"))
        cells = [mean_std(value_S, 3) for value_S in (match_S, other_S, match_S / other_S)]
        rows.append([name, *cells, len(match_S)])
    header = ["method", "to the nearest match", "to the nearest other person", "ratio", "seeds"]
    return (
        f"{markdown(header, rows)}\n\nCosine distances of queries, mean ± standard deviation over seeds. The "
        "paper says that MetaBIN has shorter query-gallery distances than the others; it gives no numbers."
    )


def draw(lines: Sequence[Line]) -> "Figure":
    from matplotlib.figure import Figure

    names = figures.names_of_runs(lines)
    targets = sorted({line["target"] for line in lines})
    figure = Figure(figsize=(3 * len(names), 3.2 * len(targets) + 0.6), layout="constrained")
    grid = figure.subplots(len(targets), len(names), squeeze=False)
    for row, target in zip(grid, targets, strict=True):
        for panel, (run, name) in zip(row, names.items(), strict=True):
            own = [line for line in lines if (line["run"], line["target"]) == (run, target)]
            panel.set(xticks=[], yticks=[], title=name if target == targets[0] else "")
            if own:
                _scatter(panel, min(own, key=lambda line: line["seed"])["domains"])
        row[0].set_ylabel(target if len(targets) > 1 else "")
    keys = [(name, mark, size, "black") for name, (mark, size) in MARKERS.items()]
    domains = list(lines[0]["domains"])
    if len(domains) > 1:
        keys += [(domain, "s", 26, colour) for domain, colour in zip(domains, figures.COLOURS, strict=False)]
    else:
        keys.append((f"other identities ({len(figures.COLOURS)} have a colour)", "s", 26, figures.PALE))
    handles = [
        grid[0, 0].scatter([], [], s=size, marker=mark, c=colour, label=name) for name, mark, size, colour in keys
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def _scatter(panel: Any, domains: dict[str, dict[str, Any]]) -> None:
    """One domain: the first people in colours, the others grey. Several domains: one colour each."""
    for domain, colour in zip(domains, [*figures.COLOURS] if len(domains) > 1 else [None], strict=False):
        part = domains[domain]
        x_N, y_N, pid_N, query_N = (np.array(part[name]) for name in ("x", "y", "pid", "query"))
        people = list(dict.fromkeys(pid_N[query_N == 1].tolist()))[: len(figures.COLOURS)]
        colour_of = dict(zip(people, figures.COLOURS, strict=False))
        colour_N = np.array([colour or colour_of.get(pid, figures.PALE) for pid in pid_N.tolist()])
        for is_query, (mark, size) in zip((1, 0), MARKERS.values(), strict=True):
            for pale in (True, False):  # colours above grey
                some = (query_N == is_query) & ((colour_N == figures.PALE) == pale)
                panel.scatter(x_N[some], y_N[some], s=size, marker=mark, c=colour_N[some], linewidths=0, alpha=0.9)


ROWS = figures.from_table4("BN", "IN", "BIN", "MetaBIN")
ANALYSIS = figures.Analysis("fig3", __doc__, ROWS, measure, report, draw, needs=("sklearn",))

if __name__ == "__main__":
    figures.main(ANALYSIS)
