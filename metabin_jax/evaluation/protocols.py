"""What to train on, what to evaluate on, and what others reported for it; the data stand in protocols.json."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metabin_jax.runtime.errors import UserError

Numbers = Mapping[str, tuple[float, float | None]]  # metric -> mean and deviation over the splits, in %


@dataclass(frozen=True)
class Published:
    """Numbers of others, in %, per target and as the mean over all targets; None for a deviation not reported."""

    label: str
    source: str
    targets: Mapping[str, Numbers]
    mean: Numbers


@dataclass(frozen=True)
class Protocol:
    """A benchmark.

    sources, targets: names of `data.sets.SETS`. source_splits: the record splits that train. domain_by: what the
    domains are that meta-learning splits, "source" or "camera". overrides: config field -> value, on top of a preset.
    withdrawn: a sentence per set that its authors withdrew. published: none where nobody reported MetaBIN.
    """

    name: str
    description: str
    sources: tuple[str, ...]
    source_splits: tuple[str, ...]
    targets: tuple[str, ...]
    domain_by: str
    overrides: Mapping[str, Any]
    withdrawn: tuple[str, ...]
    published: tuple[Published, ...]


def names() -> tuple[str, ...]:
    """The names of all protocols, the paper's first."""
    return tuple(_content()["protocols"])


def load(name: str) -> Protocol:
    """The protocol of this name. Raises ValueError for an unknown one."""
    content = _content()
    if name not in content["protocols"]:
        raise UserError(f"There is no protocol {name!r}; known are {', '.join(content['protocols'])}.")
    entry = content["protocols"][name]
    used = (*entry["sources"], *entry["targets"])
    return Protocol(
        name=name,
        description=entry["description"],
        sources=tuple(entry["sources"]),
        source_splits=tuple(entry["source_splits"]),
        targets=tuple(entry["targets"]),
        domain_by=entry.get("domain_by", "source"),
        overrides={field: _plain(value) for field, value in entry.get("overrides", {}).items()},
        withdrawn=tuple(sentence for data_set, sentence in content["withdrawn"].items() if data_set in used),
        published=tuple(_published(reported) for reported in entry.get("published", ())),
    )


def _content() -> dict[str, Any]:
    return json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))


def _plain(value: Any) -> Any:
    """The config holds tuples where JSON has lists."""
    return tuple(value) if isinstance(value, list) else value


def _published(entry: dict[str, Any]) -> Published:
    def numbers(of: dict[str, list]) -> Numbers:
        return {metric: (mean, std) for metric, (mean, std) in of.items()}

    targets = {target: numbers(of) for target, of in entry["targets"].items()}
    return Published(entry["label"], entry["source"], targets, numbers(entry.get("mean", {})))
