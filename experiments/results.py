"""Writes docs/results.md, its figures and README's results from the committed rows: no number of them is typed.

    python -m experiments.results

The words are in experiments/results/page.md. There, {{name}} stands for what the function of that name returns.
"""

import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments import fig5, figures, why
from experiments.comparison import METHODS, choices, difference, differences, over_targets, pairs, table
from experiments.study import read
from experiments.tables import METRICS, Line, markdown
from metabin_jax.runtime.files import write_text

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "experiments/results"
PLANNED = 12
README = re.compile(r"(<!-- (headline|results) -->\n).*?(<!-- /\2 -->)", re.DOTALL)


def verdict(lines: Sequence[Line], first: str, second: str) -> str:
    """A sentence on the difference in R-1."""
    found = difference(lines, first, second, "R-1")
    side = "ahead of" if found.mean > 0 else "behind"
    words = f"{first} is {abs(found.mean):.1f} points of R-1 {side} {second}"
    interval = f"95 % interval {found.low:+.1f} to {found.high:+.1f}, {found.targets} networks"
    if found.low <= 0 <= found.high:
        return f"{words}, which may be chance ({interval})."
    return f"**{words}** ({interval})."


def found(lines: Sequence[Line]) -> str:
    """The answers, one a line."""
    asked = [
        ("Does learning rho help?", "BIN", "BN"),
        ("Does meta-learning rho, as in the paper, help beyond that?", "MetaBIN", "BIN"),
        ("And with cross-entropy in the meta losses too?", "MetaBIN + cross-entropy", "BIN"),
        ("And meta-learning all parameters (MLDG), a question that came up with the results?", "BIN with MLDG", "BIN"),
        ("Does the exact meta-gradient help?", "MetaBIN exact", "MetaBIN"),
        ("Is MetaBIN better than fixed mixes?", "MetaBIN", "DualNorm"),
        ("And than IBN-a, which most toolkits have?", "MetaBIN", "IBN-a"),
    ]
    return "\n".join(f"- {question} {verdict(lines, first, second)}" for question, first, second in asked)


def means(lines: Sequence[Line]) -> dict[str, dict[str, float]]:
    """Method -> metric -> `over_targets`, best R-1 first."""
    found = {name: pairs(lines, name) for name in METHODS}
    values = {name: {metric: over_targets(own, metric) for metric in METRICS} for name, own in found.items() if own}
    return dict(sorted(values.items(), key=lambda item: -item[1]["R-1"]))


def advice(lines: Sequence[Line]) -> str:
    """What a reader who chooses a norm layer may take from the order."""
    order, undecided = list(means(lines)), []
    best = order[0]
    for name in order[1:]:
        test = difference(lines, best, name, "R-1")
        if test.low <= 0 <= test.high:
            undecided.append(name)
    words = f"{best} has the best mean. "
    if undecided:
        words += f"On these networks it cannot be told apart from {', '.join(undecided)}. "
    worse = [name for name in order if name not in (best, *undecided)]
    return words + (f"{best} is better than {', '.join(worse)}." if worse else "")


def unfinished(lines: Sequence[Line]) -> str:
    """What is missing of the plan."""
    counts = {name: len(pairs(lines, name)) for name in METHODS}
    if missing := [f"{name} ({count})" for name, count in counts.items() if count < PLANNED]:
        return f"**Not finished**: each method is to have {PLANNED} pairs. Fewer so far: {', '.join(missing)}."
    return f"All runs are here: {PLANNED} pairs of target and seed of each of {len(METHODS)} methods."


def rho(lines: Sequence[Line]) -> str:
    """The end of the curves in numbers."""
    watched = why.watched(lines)
    body = []
    for method, own in watched.items():
        target, source = 100 * why.curve(own, "R-1"), 100 * why.curve(own, "source R-1")
        steps, mean_rho = own[0]["curve"]["step"], why.mean_rho(own)
        near = next(step for step, value in zip(steps, target, strict=True) if value > target.max() - 1)
        end = f"{mean_rho[-1]:.2f}" if mean_rho.size else "-"
        body.append([method, f"{target[-1]:.1f}", f"{near:,.0f}", f"{source[-1]:.1f}", end])
    header = [
        "at the last step",
        "R-1, target",
        "first within 1 point of its best at step",
        "R-1, held out",
        "rho, mean of stages",
    ]
    return markdown(header, body)


def longer_on(lines: Sequence[Line]) -> str:
    """The networks and seeds of the longer runs."""
    pairs = {(line["target"], line["seed"]) for own in why.longer(lines).values() for line in own}
    return ", ".join(f"{target} (seed {seed})" for target, seed in sorted(pairs))


def longer(lines: Sequence[Line]) -> str:
    """R-1 and rho along the longer runs."""
    body = []
    for method, own in why.longer(lines).items():
        places = [own[0]["curve"]["step"].index(step) for step in why.STEPS]
        for what, name in (("target", "R-1"), ("held out", "source R-1")):
            scores = 100 * why.curve(own, name)[places]
            body.append([f"{method}, R-1, {what}", *(f"{score:.1f}" for score in scores)])
        if (mean := why.mean_rho(own)).size:
            body.append([f"{method}, rho, mean of stages", *(f"{value:.2f}" for value in mean[places])])
    return markdown(["at step", *(f"{step:,}" for step in why.STEPS)], body)


def gradients(lines: Sequence[Line]) -> str:
    """The gradients on rho along the longer runs."""
    names = {
        "size/base": "base gradient, root mean square",
        "size/meta": "meta-gradient, root mean square",
        **{f"mean/{loss}": f"{name}, mean" for loss, (name, _) in fig5.PAPER.items()},
        "mean/cross_entropy": "cross-entropy, mean",
    }
    body = []
    for method, own in why.longer(lines).items():
        for name in (name for name in names if name in own[0]["curve"]):
            values = why.curve(own, name)
            body.append([f"{method}, {names[name]}", *(f"{value:.1e}" for value in values)])
    return markdown(["at step", *(f"{step:,}" for step in why.STEPS)], body)


def headline(lines: Sequence[Line]) -> str:
    """README's first sentences on what was found."""
    share = {name: f"{values['R-1']:.1f} %" for name, values in means(lines).items()}
    words = (
        "On synthetic camera networks that were not trained on, the first image found shows the right person for "
        f"{share['BN']} of the queries with BN and for {share['MetaBIN']} with MetaBIN. BIN, which learns the mix "
        f"without meta-learning, reaches {share['BIN']}. [How it was measured](docs/results.md)."
    )
    return textwrap.fill(words, 120)


def readme(lines: Sequence[Line]) -> str:
    """README's block under "What was measured"."""
    values = means(lines)
    body = [[f"{each['R-1']:.1f} / {each['mAP']:.1f}" for each in values.values()]]
    main = ("MetaBIN", "MetaBIN + cross-entropy")
    return "\n\n".join(
        (
            markdown(list(values), body),
            "    .venv/bin/python -m experiments.comparison --workdir=experiments/results/networks --seeds 0 1",
            "The command trains the runs that are missing, which takes hours on a CPU, and prints the tables.",
            " ".join(verdict(lines, name, "BIN") for name in main) + f" {verdict(lines, 'BIN', 'BN')}",
        )
    )


BLOCKS: dict[str, Callable[[Sequence[Line]], str]] = {
    "found": found, "table": table, "differences": differences, "advice": advice, "unfinished": unfinished,
    "choices": choices, "rho": rho, "longer_on": longer_on, "longer": longer,
    "gradients": gradients,
}  # fmt: skip


def page(lines: Sequence[Line], words: str) -> str:
    """The words with every {{name}} replaced. Raises KeyError for a name that is not in BLOCKS."""
    return re.sub(r"\{\{(.*?)\}\}", lambda match: BLOCKS[match[1]](lines), words)


def with_blocks(text: str, lines: Sequence[Line]) -> str:
    """README with both of its blocks replaced."""
    blocks = {"headline": headline(lines), "results": readme(lines)}
    return README.sub(lambda match: f"{match[1]}{blocks[match[2]]}\n{match[3]}", text)


def committed() -> list[Line]:
    """The lines of all runs on the networks, also of the longer ones."""
    return [line for name in ("results", "why") for line in read(FOLDER / f"networks/{name}.jsonl")]


def main() -> None:
    lines = committed()
    write_text(ROOT / "docs/results.md", page(lines, (FOLDER / "page.md").read_text()))
    write_text(ROOT / "README.md", with_blocks((ROOT / "README.md").read_text(), lines))
    watched = why.watched(lines)
    for name, draw in (("scores", why.draw_scores), ("rho", why.draw_rho), ("inner", why.draw_inner)):
        figures.save(draw(watched), FOLDER / f"networks/{name}.png")
    figures.save(why.draw_scores(why.longer(lines)), FOLDER / "networks/longer.png")
    figures.save(why.draw_gradients(why.longer(lines)), FOLDER / "networks/gradients.png")


if __name__ == "__main__":
    main()
