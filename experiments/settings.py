"""The data that a study can run on: synthetic people, a folder of domains, or the paper's sets."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ml_collections import ConfigDict
from PIL import Image

from configs import benchmark, demo, finetune, folder, networks
from experiments.tables import Line
from metabin_jax.data import dataset, synthetic
from metabin_jax.data.records import Record
from metabin_jax.evaluation import protocols
from metabin_jax.runtime.errors import UserError
from metabin_jax.runtime.files import read_json, write_json, write_text
from metabin_jax.training.build import read
from metabin_jax.training.config import override

CONFIGS = {"synthetic": demo, "networks": networks, "folder": folder, "finetune": finetune, "paper": benchmark}
NAMES = tuple(CONFIGS)
SYNTHETIC = ("synthetic", "networks")
SUPERVISED = {
    "meta.train_losses": ("scatter", "shuffle", "triplet", "cross_entropy"),
    "meta.test_losses": ("triplet", "cross_entropy"),
    "data.domain_by": "camera",
    "data.train_splits": ("train",),
}
SMOKE = {
    "model.name": "stem", "data.identities": 8, "data.height": 32, "data.width": 32, "data.pad": 2, "init": "",
    "batch.ids_per_domain": 2, "batch.images_per_id": 2, "batch.ids_per_batch": 4,
    "epochs": 1, "steps_per_epoch": 2, "log_every": 1, "optimizer.warmup_epochs": 0,
}  # fmt: skip
# Config fields that a study sets -> the options that choose them.
CHOSEN_BY = {
    "method": "--rows", "seed": "--seeds", "init": "--init", "data.source": "--data", "data.path": "--path",
    "data.train_domains": "--targets", "data.eval_domains": "--targets",
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """What a study runs on.

    name: one of NAMES. path: the folder of domains or of the prepared sets. init: a file of weights to start from.
    smoke: a training that only shows that everything runs. overrides: config field -> text, for every row. Raises
    UserError if path or init is missing, or if an override belongs to an option of the study.
    """

    name: str
    path: str = ""
    init: str = ""
    smoke: bool = False
    overrides: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name in ("folder", "finetune") and not self.path:
            raise UserError(f"--data={self.name} needs --path, a folder with one sub-folder per domain")
        if self.name == "finetune" and not self.init:
            raise UserError("--data=finetune needs --init, a file of weights to start from")
        for name in sorted(self.overrides.keys() & CHOSEN_BY.keys()):
            raise UserError(f"--config.{name}: a study sets this field itself, choose it by {CHOSEN_BY[name]}")

    def keep(self, workdir: Path, lines: Sequence[Line]) -> None:
        """Writes this setting to the workdir. Raises UserError if `lines`, its results, are of another one."""
        here = {
            "data": self.name, "path": _absolute(self.path), "init": _absolute(self.init), "smoke": self.smoke,
            "config": dict(self.overrides),
        }  # fmt: skip
        file = workdir / "setting.json"
        if lines:
            # Committed results come without a setting.json, older ones without overrides.
            kept = {"config": {}} | (
                read_json(file) if file.exists() else here | {"config": lines[0].get("config", {})}
            )
            if kept != here:
                raise UserError(f"{workdir} has results of another setting, {kept}: choose another --workdir")
        write_json(file, here)

    def targets(self, supervised: bool) -> tuple[str, ...]:
        """The targets, each with a run of its own; the paper's four unseen sets share one run, "paper"."""
        if self.name == "synthetic":
            return synthetic.DOMAIN_NAMES[-1:]
        if self.name == "paper":
            return ("market1501",) if supervised else ("paper",)
        return self._domains[:1] if self.smoke else self._domains

    def config(self, target: str, supervised: bool, workdir: Path, sources: int = 0) -> ConfigDict:
        """Trains without the target and evaluates on it; supervised: trains on half of the target's people.

        Supervised targets need `halve` in this workdir first, except the paper's; the batch takes at most as many
        people per camera as that half has. sources: trains on the first so many other domains, in the order of the
        set's list or of their names; 0 means all. Raises UserError if there are fewer.
        """
        config = self._unseen(target)
        if supervised:
            if self.name == "paper":
                # The supplement trains on the cameras of Market-1501 and tests on the same set.
                config.update_from_flattened_dict(protocols.load("market_to_duke").overrides)
            else:
                config.batch.ids_per_domain = min(config.batch.ids_per_domain, self._fewest_of_a_camera(target))
                config.data.source, config.data.path = "csv", str(_manifest(workdir, target))
            config.data.protocol = ""
            config.data.train_domains = config.data.eval_domains = (target,)
            config.update_from_flattened_dict(SUPERVISED)
        if self.smoke:
            if config.data.source == "synthetic":
                config.data.train_domains = self._others(target)[:3]  # drawing all takes longer than training
            config.update_from_flattened_dict(SMOKE)
        if sources:
            others = self._others(target)
            if sources > len(others):
                raise UserError(
                    f"a row trains on {sources} sources, but beside {target!r} there are {len(others)} "
                    f"({', '.join(others)}): leave it out by --rows"
                )
            config.data.train_domains = others[:sources]
            config.data.protocol = ""  # a protocol fixes all of its sources
        self._override(config)
        return config

    def _override(self, config: ConfigDict) -> None:
        for name, text in self.overrides.items():
            override(config, name, text)

    def _others(self, target: str) -> tuple[str, ...]:
        """The domains that train for an unseen target."""
        if self.name == "paper":
            return benchmark.get_config().data.train_domains
        return tuple(domain for domain in self._domains if domain != target)

    @cached_property  # a study asks for them with every seed and row
    def _domains(self) -> tuple[str, ...]:
        if self.name in SYNTHETIC:
            return synthetic.DOMAIN_NAMES
        return tuple(sorted({record.domain for record in dataset.read("folder", self.path)}))

    def _unseen(self, target: str) -> ConfigDict:
        config = CONFIGS[self.name].get_config()
        if self.name != "paper":
            config.data.eval_domains = (target,)
        if self.path:
            config.data.path = self.path
        config.init = self.init
        return config

    def halve(self, target: str, workdir: Path) -> None:
        """Writes a manifest of the target for `config` of a supervised row: every other person trains.

        Every image of the rest is a query and in the gallery, as an unseen target's images are. The paper's set has
        splits of its own and needs no manifest.
        """
        if self.name == "paper":
            return
        path, config = _manifest(workdir, target), self._unseen(target)
        self._override(config)
        records, trains = self._halves(target)
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.name in SYNTHETIC:
            records = _written(records, path.with_suffix(""), (config.data.height, config.data.width))
        lines = ["path,pid,camid,domain,split"]
        for record in records:
            split = "train" if record.pid in trains else "all"
            lines.append(f'"{Path(record.path).resolve()}",{record.pid},{record.camid},"{target}",{split}')
        write_text(path, "\n".join(lines) + "\n")

    def _fewest_of_a_camera(self, target: str) -> int:
        """How many people of the training half the camera with the fewest has. Raises UserError below two."""
        records, trains = self._halves(target)
        people = Counter(camid for pid, camid in {(record.pid, record.camid) for record in records} if pid in trains)
        camera, fewest = people.most_common()[-1]
        if fewest < 2:
            raise UserError(
                f"a supervised row trains on every other person of {target!r}, of whom camera {camera} has {fewest}, "
                "and a batch needs two: leave the target out by --targets, or such rows by --rows"
            )
        return fewest

    def _halves(self, target: str) -> tuple[list[Record], set[int]]:
        """The records of the target, and the pids of every other person, who train."""
        records = read(self._unseen(target), (target,))
        return records, set(sorted({record.pid for record in records})[::2])


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path)) if path else ""


def _manifest(workdir: Path, target: str) -> Path:
    return workdir / "halves" / f"{target}.csv"


def _written(records: list[Record], folder: Path, size: tuple[int, int]) -> list[Record]:
    """The synthetic records as image files of `size` (height, width) in `folder`."""
    folder.mkdir(exist_ok=True)
    files = [record._replace(path=str(folder / f"{Path(record.path).name}.png")) for record in records]
    for file, image in zip(files, dataset.load_images("synthetic", records, size, ""), strict=True):
        Image.fromarray(image).save(file.path)
    return files
