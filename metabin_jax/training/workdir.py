"""The workdir of a run: its config, which must not change when the run resumes, and the record of its starts."""

import json
from pathlib import Path

from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from metabin_jax.runtime.errors import UserError
from metabin_jax.runtime.files import read_json, write_json
from metabin_jax.runtime.runlog import environment

# What may change when a run resumes.
RESUMABLE = ("epochs", "log_every", "eval.", "data.path", "data.cache_dir", "data.resident", "steps_per_dispatch")


def check_workdir(config: ConfigDict, workdir: Path) -> None:
    """Raises UserError if `workdir` is a file or holds a run of another config."""
    if workdir.is_file():
        raise UserError(f"{workdir} is a file: --workdir must name a folder, new or of the same run")
    path = workdir / "config.json"
    if not path.exists():
        return
    before, now = (flatten_dict(fields, sep=".") for fields in (read_json(path), settings(config)))
    for field in sorted(before.keys() | now.keys()):
        old, new = before.get(field), now.get(field)
        if old != new and not field.startswith(RESUMABLE):
            raise UserError(
                f"{workdir} holds a run with config.{field}={old!r}, not {new!r}: choose another workdir, "
                "or the old value"
            )


def describe_run(config: ConfigDict, workdir: Path) -> None:
    """Writes config.json, and adds this start of the run to environment.json."""
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / "config.json", settings(config))
    path = workdir / "environment.json"
    starts = read_json(path) if path.exists() else []
    write_json(path, [*starts, environment()])


def read_config(workdir: str | Path) -> ConfigDict:
    """The config of the run in `workdir`. Raises FileNotFoundError if there is no run."""
    path = Path(workdir).expanduser() / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: name a workdir of metabin train")
    fields = flatten_dict(read_json(path)).items()
    return ConfigDict(unflatten_dict({name: tuple(v) if isinstance(v, list) else v for name, v in fields}))


def settings(config: ConfigDict) -> dict:
    """The config as JSON: dicts and lists."""
    return json.loads(config.to_json())
