"""Figure 2: R-1, mAP and memory by (a) the number of meta-train domains and (b) the images per domain of a meta batch.

(a) takes 1 to K - 1 of the K sources for meta-train. The shuffle loss needs two meta-train domains; with one it is left
out. (b) changes the meta batches only. The base batch stays the same, because the paper compares the meta update with
the base update. So (b) samples it from all identities (`batch.sampling`): a base batch sampled by domains would change
with `batch.ids_per_domain`. Memory is XLA's count for the compiled programs: arguments (the state and the batches) and
temporaries, on the platform that the figure names. The paper's MiB are of a GPU.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import figures
from experiments.settings import Setting
from experiments.study import Job
from experiments.tables import METRICS, Line, Row, markdown, mean_scores, mean_std
from metabin_jax.algorithm import Batch
from metabin_jax.runtime.compilation import use_compilation_cache
from metabin_jax.training.build import Run, build, read, resolve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IDS_PER_DOMAIN = (2, 4, 6, 8)
BASE_MIB = 7895  # of the paper's base update, Sec. 4.3


def rows(setting: Setting, workdir: Path) -> list[Row]:
    """The rows of (a), one of which is plain MetaBIN, then the rows of (b) that every domain has identities for."""
    config = resolve(setting.config(setting.targets(supervised=False)[0], False, workdir))
    sources, ids, images = len(config.data.train_domains), config.batch.ids_per_domain, config.batch.images_per_id
    persons: dict[str, set[int]] = {}
    for record in read(config, (*config.data.train_domains, *config.data.eval_domains)):
        if record.split in config.data.train_splits:
            persons.setdefault(record.domain, set()).add(record.pid)
    fewest = min(map(len, persons.values()))
    base = {"batch.sampling": "identities", "batch.ids_per_batch": sources * ids}
    return [
        *(
            Row(f"{n} meta-train", {} if n == (sources + 1) // 2 else {"batch.meta_train_domains": n})
            for n in range(1, sources)
        ),
        *(
            Row(f"{n * images} images", base | {"batch.ids_per_domain": n})
            for n in IDS_PER_DOMAIN[: 1 if setting.smoke else None]
            if n <= fewest
        ),
    ]


def measure(job: Job) -> Line:
    """R-1 and mAP (fractions), the fields in which the runs differ, and bytes of the base and the meta update."""
    scores = figures.scores(job).values()
    use_compilation_cache()
    run = build(resolve(job.config()))
    assert run.meta is not None
    return job.head | {
        **mean_scores(scores),
        "sampling": run.config.batch.sampling,
        "sources": len(run.data.domains),
        "meta_train_domains": run.meta.num_meta_train,
        "images_per_domain": run.config.batch.ids_per_domain * run.config.batch.images_per_id,
        **memory(run),
        "platform": jax.default_backend(),
    }


def memory(run: Run) -> dict[str, int]:
    """Bytes of arguments and temporaries of the base and the meta update; the state is donated, as in training."""
    state = jax.eval_shape(run.init)
    base, *meta = (_batch_shapes(run, len(row_N)) for row_N in run.rows(0))

    def needs(update: Callable[..., Any], *batches: Batch) -> int:
        # Unused arguments occupy memory too.
        jitted = jax.jit(update, donate_argnums=0, keep_unused=True)
        found = jitted.lower(state, *batches).compile().memory_analysis()
        return found.argument_size_in_bytes + found.temp_size_in_bytes

    return {"base_bytes": needs(run.learner.base_update, base), "meta_bytes": needs(run.learner.meta_update, *meta)}


def _batch_shapes(run: Run, size: int) -> Batch:
    label_N = jax.ShapeDtypeStruct((size,), jnp.int32)
    image_NHWC = jax.ShapeDtypeStruct((size, run.config.data.height, run.config.data.width, 3), jnp.float32)
    return Batch(image_NHWC, label_N, label_N)  # type: ignore[arg-type]  # shapes in place of arrays


def panels(lines: Sequence[Line]) -> dict[str, tuple[str, dict[int, list[Line]]]]:
    """Title -> label of x, and the lines by x."""
    found: dict[str, tuple[str, dict[int, list[Line]]]] = {}
    for title, label, field, sampling in (
        ("(a) domains", "meta-train domains", "meta_train_domains", "domains"),
        ("(b) images", "images per domain in a meta batch", "images_per_domain", "identities"),
    ):
        own = [line for line in lines if line["sampling"] == sampling]
        if own:
            by_x = {x: [line for line in own if line[field] == x] for x in sorted({line[field] for line in own})}
            found[title] = label, by_x
    return found


def report(lines: Sequence[Line]) -> str:
    body, best = [], []
    for title, (label, by_x) in panels(lines).items():
        score_of = {}
        for x, own in by_x.items():
            score_SM = figures.per_seed(own, lambda line: [100 * line[metric] for metric in METRICS])
            score_of[x] = score_SM.mean(0)[0]
            base, meta = (_mib(own, field) for field in ("base_bytes", "meta_bytes"))
            cells = [mean_std(value_S) for value_S in score_SM.T]
            body.append([title, f"{x} {label}", *cells, len(score_SM), f"{meta:.1f}", f"{base:.1f}"])
        least = min(by_x, key=lambda x: _mib(by_x[x], "meta_bytes"))
        best.append(f"{title}: highest R-1 at {max(score_of, key=score_of.__getitem__)}, least memory at {least}")
    header = ["", "setting", "R-1", "mAP", "seeds", "meta update, MiB", "base update, MiB"]
    return (
        f"{markdown(header, body)}\n\nR-1 and mAP in %, mean ± standard deviation over seeds. "
        f"{'; '.join(best)}. In the paper, (a) has both at 3 of 5 meta-train domains, and the best of (b) needs less "
        f"memory than the base update ({BASE_MIB:,} MiB). "
        f"{_platform(lines)}."
    )


def _mib(lines: Sequence[Line], field: str) -> float:
    """Mean over seeds and targets: targets differ in their number of identities, and so in memory."""
    return float(np.mean([line[field] for line in lines]) / 2**20)


def _platform(lines: Sequence[Line]) -> str:
    platforms = sorted({line["platform"] for line in lines})
    return f"Memory: arguments and temporaries of the programs that XLA compiled for {' and '.join(platforms)}"


def draw(lines: Sequence[Line]) -> "Figure":
    from matplotlib.figure import Figure

    found = panels(lines)
    figure = Figure(figsize=(5.2 * len(found), 4.2), layout="constrained")
    for panel, (title, (label, by_x)) in zip(
        figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True
    ):
        at = range(len(by_x))
        right = panel.twinx()
        panel.set_zorder(right.get_zorder() + 1)  # lines above bars
        panel.patch.set_visible(False)
        meta, base = ([_mib(own, field) for own in by_x.values()] for field in ("meta_bytes", "base_bytes"))
        right.bar(at, meta, 0.5, color=figures.PALE, label="memory, meta update")
        right.plot(at, base, "--", color=figures.GREY, label="memory, base update")
        right.set(ylabel="MiB", ylim=(0, 1.6 * max(*meta, *base)))
        for metric, mark, colour, aside in zip(METRICS, "os", figures.COLOURS, (-0.05, 0.05), strict=False):
            value = [figures.per_seed(own, lambda line, m=metric: 100 * line[m]) for own in by_x.values()]
            mean, std = [x.mean() for x in value], [float(figures.deviation(x)) for x in value]
            panel.errorbar(np.add(at, aside), mean, yerr=std, marker=mark, color=colour, capsize=3, label=metric)
        panel.set(title=title, xlabel=label, ylabel="%")
        panel.set_xticks(at, by_x)
        panel.margins(y=0.2)
    handles = [*panel.get_legend_handles_labels()[0], *right.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False)
    figure.supxlabel(_platform(lines), fontsize=9)
    return figure


ANALYSIS = figures.Analysis("fig2", __doc__, rows, measure, report, draw)

if __name__ == "__main__":
    figures.main(ANALYSIS)
