"""The page: RunData in, one HTML file out that needs no other."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict

from metabin_jax.evaluation.tables import figures, none_for_nan
from metabin_jax.report import html
from metabin_jax.report.charts import Chart, Place, Series, chart, stairs, thinned
from metabin_jax.report.data import RunData, collect
from metabin_jax.report.domain import CMC_RANKS, SCORE_EDGES, Domain, cmc, score_histogram
from metabin_jax.report.rho import RHO_BINS, overall
from metabin_jax.runtime.errors import needs
from metabin_jax.runtime.files import check_writable, write_text

MOST_NAMED = 100  # queries without a match


class Curves(NamedTuple):
    """Metrics of the training in one chart: those whose name begins with a prefix, times `factor`.

    caption: what the chart shows and says. form, y_range: as `charts.chart` takes them.
    """

    title: str
    prefixes: tuple[str, ...]
    label: str
    caption: str
    form: str = ".3f"
    factor: float = 1
    y_range: tuple[float, float] | None = None


TRAINING = (
    Curves(
        "Base losses", ("base/",), "loss",
        "Cross-entropy and triplet loss on the training batches. Where they still fall at the end, training longer "
        "may help; flat from the start means that labels or the learning rate are wrong.",
    ),
    Curves(
        "Meta losses", ("meta_train/", "meta_test/"), "loss",
        "Losses of the two parts into which the source domains are split at each step. Meta-test above meta-train for "
        "the same loss: what is learned on some sources does not fit the others yet.",
    ),
    Curves(
        "Balance rho per stage", ("rho/",), "mean rho",
        "Mean balance of each stage's channels: 1 is all batch normalisation, 0 all instance normalisation. All still "
        "near 1 means that the meta update has hardly moved the net from plain batch normalisation.",
        y_range=(0, 1),
    ),
    Curves(
        "Inner step |rho' - rho|", ("inner/rho_change",), "mean change",
        "How far the inner step pushes rho before the meta-test loss looks at it. Next to nothing means that the "
        "meta-test sees practically the same net; it rises and falls with the cyclic beta.",
        ".4g",
    ),
    Curves(
        "Clipped share", ("inner/clipped",), "channels, %",
        "Channels that the inner step pushes out of [0, 1] and the clipping brings back. A large share means that "
        "most of the push is lost at the edge.",
        ".1f",
        100,
    ),
    Curves(
        "Held-out sources", ("source_mAP",), "mAP, %",
        "Mean average precision on held-out source identities, by which the checkpoint is selected. A fall at the end "
        "means overfitting.",
        ".1f",
        100,
    ),
    Curves(
        "Speed", ("images_per_second",), "images/s",
        "Images per second, without the compilation. Dips mean that a checkpoint, reading data or something else on "
        "the machine held the device up.",
        ".0f",
    ),
)  # fmt: skip


def write_report(config: Any, workdir: str | Path, output: str | Path) -> Path:
    """Writes the page about the run in `workdir` to `output`, and returns its path.

    config: as `training.trained.load` takes it, with the domains to evaluate on in config.data.eval_domains; without
    one, the page is about the training alone. Raises ValueError or FileNotFoundError, with one sentence, before any
    work is lost.
    """
    needs("the report", "report", "jinja2")
    output = check_writable(output)
    write_text(output, render(collect(config, Path(workdir).expanduser())))
    return output


def render(run: RunData) -> str:
    """The page as HTML."""
    return html.render(
        "template.html",
        run.file,
        run=run,
        settings=config_rows(run.config, run.preset),
        training=training_charts(run),
        cmc_chart=cmc_chart,
        score_chart=score_chart,
        figures=lambda estimate: figures(none_for_nan(estimate._asdict())),
        overall=overall,
        rho_bins=RHO_BINS,
        most_named=MOST_NAMED,
    )


def config_rows(config: dict[str, Any], preset: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Field, value and, if it is another, the preset's value."""
    own, default = _texts(config), _texts(preset)
    return [(name, text, "" if default.get(name) == text else default.get(name, "")) for name, text in own.items()]


def _texts(config: dict[str, Any]) -> dict[str, str]:
    return {
        name: (", ".join(map(str, value)) if isinstance(value, list) else str(value)) or "(empty)"
        for name, value in flatten_dict(config, sep=".").items()
    }


def training_charts(run: RunData) -> list[Chart]:
    """Of the metrics that were logged; a metric may be missing from some rows."""
    stages = list(dict.fromkeys("rho/" + layer.name.split()[0].split(".")[0] for layer in run.layers))
    logged = sorted({name for row in run.rows for name in row}, key=lambda name: (name not in stages, name))
    names = stages + [name for name in logged if name not in stages]
    charts = []
    for title, prefixes, label, caption, form, factor, y_range in TRAINING:
        series: list[Series] = []
        most = 1
        for name in (name for name in names if name.startswith(prefixes)):
            rows, every = thinned([row for row in run.rows if name in row])
            series.append((name, [row["step"] for row in rows], [factor * row[name] for row in rows]))
            most = max(most, every)
        if most > 1:
            caption += f" One logged value in {most} is drawn."
        charts.append(chart(title, caption, series, "step", label, y_range, form))
    return [drawn for drawn in charts if drawn]


def cmc_chart(domain: Domain) -> Chart | None:
    """None without a query that has a match."""
    return chart(
        "Cumulative match characteristic",
        "Share of the queries with a match among the first k images of their list. A curve that rises late means that "
        "matches are near, but not first: re-ranking may help there.",
        [("CMC", CMC_RANKS, 100 * cmc(domain.result))],
        "rank k",
        "queries, %",
        (0, 100),
    )


def score_chart(domain: Domain) -> Chart | None:
    """The occupied part of the histogram, each kind of pair in percent of its own number; None without a pair."""
    matches, others = score_histogram(domain.result.pairs)
    occupied = np.flatnonzero(matches + others)
    if not len(occupied):
        return None
    first, last = occupied[0], occupied[-1] + 1
    edges = SCORE_EDGES[first : last + 1]
    threshold = domain.result.verification.threshold
    kinds = (("matches", matches), ("non-matches", others))
    return chart(
        "Scores of pairs",
        "Cosine similarity of a query and a gallery image of the same identity (other camera), and of two identities, "
        "each in percent of its own number. The less the two overlap, the safer is a decision by a threshold.",
        [(name, *stairs(edges, 100 * count[first:last] / count.sum())) for name, count in kinds if count.sum()],
        "cosine similarity",
        "pairs, %",
        mark=None if np.isnan(threshold) else Place(threshold, f"threshold {threshold:.3f}"),
        filled=True,
    )
