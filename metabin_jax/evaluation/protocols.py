"""What to train on, what to evaluate on, and what others reported for it; the data are in protocols.json."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metabin_jax.runtime.errors import UserError
from metabin_jax.runtime.files import read_json

Numbers = Mapping[str, tuple[float, float | None]]  # metric -> mean and deviation over the splits, in %


@dataclass(frozen=True)
class Published:
    """Numbers of others, in %, per target and as the mean over all targets; None for a deviation not reported."""

    label: str
    source: str
    targets: Mapping[str, Numbers]
    mean: Numbers = field(default_factory=dict)


@dataclass(frozen=True)
class Protocol:
    """A benchmark.

    sources, targets: names of `data.sets.SETS`. source_splits: the record splits that train. domain_by: what the
    domains are that meta-learning splits, "source" or "camera". overrides: config field -> value, on top of a preset.
    withdrawn: a sentence per set that its authors withdrew. published: empty if nobody reported MetaBIN.
    """

    name: str
    sources: tuple[str, ...]
    source_splits: tuple[str, ...]
    targets: tuple[str, ...]
    domain_by: str = "source"
    description: str = ""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    withdrawn: tuple[str, ...] = ()
    published: tuple[Published, ...] = ()


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
    withdrawn = tuple(sentence for data_set, sentence in content["withdrawn"].items() if data_set in used)
    published = tuple(Published(**reported) for reported in entry.pop("published", ()))
    return Protocol(name, **entry, withdrawn=withdrawn, published=published)


def _content() -> dict[str, Any]:
    return _tuples(read_json(Path(__file__).with_suffix(".json")))


def _tuples(value: Any) -> Any:
    """The same with tuples for JSON's lists, as the config has them."""
    if isinstance(value, dict):
        return {name: _tuples(inner) for name, inner in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
