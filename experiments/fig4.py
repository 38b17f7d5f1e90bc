"""Figure 4: how rho is distributed in each layer at the end of training, BIN against MetaBIN.

Like the paper's figure, this one shows for every layer the share of channels by the value of rho, over all seeds and
targets. Channels at exactly 1 (never moved, or clipped there) and at exactly 0 are counted apart. The table puts the
paper's claim in numbers: MetaBIN moves channels towards IN in the shallow and the middle layers.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from experiments import figures
from experiments.study import Job
from experiments.tables import Line, markdown, mean_std
from metabin_jax.report.rho import RHO_BINS, rho_layers
from metabin_jax.training.build import model_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

THIRDS = ("shallow", "middle", "deep")


def measure(job: Job) -> Line:
    """counts: channels of each layer at 0, in RHO_BINS equal bins between, and at 1. mean: mean rho of each layer."""
    config, step, variables = figures.restore(job)
    model = model_of(config, variables)
    layers = rho_layers(model, variables, (config.data.height, config.data.width))
    return job.head | {
        "step": step,
        "layers": [layer.name for layer in layers],
        "counts": [layer.counts.tolist() for layer in layers],
        "mean": [layer.mean for layer in layers],
    }


def shares(line: Line) -> np.ndarray:
    """The share of each layer's channels in each bin: [L, RHO_BINS + 2]."""
    count_LB = np.array(line["counts"], float)
    return count_LB / count_LB.sum(1, keepdims=True)


def towards_in(line: Line) -> np.ndarray:
    """1 - rho: means over the channels of the first, second and last third of the layers; nan for an empty third."""
    channels_L = np.array(line["counts"]).sum(1)
    thirds = zip(np.array_split(1 - np.array(line["mean"]), 3), np.array_split(channels_L, 3), strict=True)
    return np.array([np.average(part, weights=channels) if len(part) else np.nan for part, channels in thirds])


def report(lines: Sequence[Line]) -> str:
    rows = []
    for run, name in figures.names_of_runs(lines).items():
        own = [line for line in lines if line["run"] == run]
        part_S3 = figures.per_seed(own, towards_in)
        at_one_S = figures.per_seed(own, lambda line: np.array(line["counts"])[:, -1].sum() / np.sum(line["counts"]))
        cells = [mean_std(part_S, 4) for part_S in part_S3.T]
        rows.append([name, *cells, mean_std(100 * at_one_S), len(part_S3)])
    header = ["1 - rho", *(f"{part} third" for part in THIRDS), "channels at 1 (%)", "seeds"]
    return (
        f"{markdown(header, rows)}\n\nMeans over channels; 0 is BN, 1 is IN. Mean ± standard deviation over "
        "seeds. The paper gives no numbers."
    )


def draw(lines: Sequence[Line]) -> "Figure":
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap, to_rgba
    from matplotlib.figure import Figure

    names = figures.names_of_runs(lines)
    bins = RHO_BINS + 2
    figure = Figure(figsize=(9, 2.2 + 2.2 * len(names)), layout="constrained")
    panels = figure.subplots(len(names), sharex=True, squeeze=False)[:, 0]
    inside = colormaps["cividis"](np.linspace(0, 1, RHO_BINS))
    colours = ListedColormap([to_rgba(figures.VERMILION), *inside, to_rgba(figures.PALE)])
    for panel, (run, name) in zip(panels, names.items(), strict=True):
        own = [line for line in lines if line["run"] == run]
        share_LB = figures.per_seed(own, shares).mean(0)
        top_LB = share_LB.cumsum(1)
        for b in range(bins):
            panel.bar(range(len(share_LB)), share_LB[:, b], 0.9, top_LB[:, b] - share_LB[:, b], color=colours(b))
        panel.set(title=name, ylabel="share of channels", ylim=(0, 1), xlim=(-0.6, len(share_LB) - 0.4))
    figures.name_layers(panels[-1], lines[0]["layers"])
    scale = ScalarMappable(BoundaryNorm(range(bins + 1), bins), colours)
    bar = figure.colorbar(scale, ax=panels, label="rho", ticks=[0.5, *range(1, bins), bins - 0.5])
    edges = [f"{value:.1f}" for value in np.linspace(0, 1, RHO_BINS + 1)]
    bar.ax.set_yticklabels(["exactly 0 (IN)", *edges, "exactly 1 (BN)"], fontsize=8)
    return figure


ANALYSIS = figures.Analysis("fig4", __doc__, figures.from_table4("BIN", "MetaBIN"), measure, report, draw)

if __name__ == "__main__":
    figures.main(ANALYSIS)
