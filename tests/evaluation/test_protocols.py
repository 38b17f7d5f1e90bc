import json
from pathlib import Path

import pytest

from metabin_jax.data.records import SPLITS
from metabin_jax.data.sets.catalogue import SETS
from metabin_jax.evaluation import protocols
from metabin_jax.evaluation.statistics import METRICS
from metabin_jax.training import config

EXPECTED = (
    "paper",
    "paper_without_duke",
    "p1",
    "p2_market1501",
    "p2_msmt17",
    "p2_cuhk03np",
    "p3_market1501",
    "p3_msmt17",
    "p3_cuhk03np",
    "market_to_duke",
    "duke_to_market",
    "market_to_msmt17",
    "msmt17_to_market",
)
CAMERAS = {"market1501": 6, "dukemtmcreid": 8, "msmt17": 15}
SMALL = {"viper", "prid2011", "grid", "ilids"}
every_protocol = pytest.mark.parametrize("name", EXPECTED)


def test_names():
    assert protocols.names() == EXPECTED
    with pytest.raises(ValueError, match=r"There is no protocol 'p4'; known are paper, paper_without_duke, p1, p2_"):
        protocols.load("p4")


@every_protocol
def test_every_name_is_known(name):
    """Sets, splits, config fields and metrics; nothing is evaluated that was trained on."""
    protocol = protocols.load(name)
    known = set(SETS)
    assert protocol.name == name and protocol.description.endswith(".")
    assert set(protocol.sources) <= known and set(protocol.targets) <= known
    assert not set(protocol.sources) & set(protocol.targets)
    assert set(protocol.source_splits) <= set(SPLITS) and protocol.domain_by in ("source", "camera")
    settings = config.metabin()
    for field, value in protocol.overrides.items():
        config.override(settings, field, ",".join(map(str, value)) if isinstance(value, tuple) else str(value))
        group, _, last = field.rpartition(".")
        assert (settings[group] if group else settings)[last] == value
    assert settings.epochs == (120 if protocol.domain_by == "camera" else 100)
    for published in protocol.published:
        assert set(published.targets) == set(protocol.targets)
        for numbers in (*published.targets.values(), published.mean):
            assert set(numbers) <= set(METRICS)
            assert all(20 < mean < 100 and (std is None or 1 < std < 5) for mean, std in numbers.values())


@every_protocol
def test_domains_can_be_split(name):
    """About half of the domains are meta-train, as in the paper (3 of 5, 3 of 6, 4 of 8), and a batch has 96 images."""
    protocol = protocols.load(name)
    batch = config.metabin().batch.to_dict()
    batch |= {field.split(".")[1]: value for field, value in protocol.overrides.items() if field.startswith("batch.")}
    domains = CAMERAS[protocol.sources[0]] if protocol.domain_by == "camera" else len(protocol.sources)
    assert batch["meta_train_domains"] in (0, {3: 2, 4: 2, 5: 3, 6: 3, 8: 4, 15: 8}[domains])  # 0 is half of them
    if protocol.domain_by == "camera":
        images = domains * batch["ids_per_domain"] * batch["images_per_id"]
        assert images == (90 if domains == 15 else 96)  # 96 does not divide by 15
        assert batch["ids_per_batch"] * batch["images_per_id"] == images  # the preset `official`
        assert protocol.overrides["optimizer.decay_epochs"] == (50, 90)
        for losses in ("meta.train_losses", "meta.test_losses"):
            assert protocol.overrides[losses][-2:] == ("triplet", "cross_entropy")
        assert protocol.overrides["meta.gamma"] == (0.2 if protocol.sources == ("market1501",) else 0.5)


def test_training_data_of_the_paper():
    """All images of sources that add up to the 18,530 identities of Sec. 4.1; without Duke 1,812 fewer."""

    def ids(name):
        protocol = protocols.load(name)
        assert set(protocol.source_splits) == set(SPLITS) and set(protocol.targets) == SMALL
        return sum(SETS[source].published["ids"] for source in protocol.sources)

    assert ids("paper") == 18_530
    assert ids("paper_without_duke") == ids("p1") == 18_530 - 1_812


def test_leave_one_out():
    large = {"market1501", "msmt17", "cuhk03np"}
    for left_out in sorted(large):
        training, everything = (protocols.load(f"{number}_{left_out}") for number in ("p2", "p3"))
        for protocol in (training, everything):
            assert protocol.targets == (left_out,)
            assert set(protocol.sources) == large - {left_out} | {"cuhksysu"}
        assert set(training.source_splits) == {"train", "all"}
        assert set(everything.source_splits) == set(SPLITS)


def test_withdrawn_sets_are_named():
    with_duke = {name for name in EXPECTED if protocols.load(name).withdrawn}
    assert with_duke == {"paper", "market_to_duke", "duke_to_market"}
    assert "withdrawn by its authors" in protocols.load("paper").withdrawn[0]


def test_published_numbers():
    """Table 1's last row in its order, some deviations, and that the means are those of the targets."""
    ours, resnet = protocols.load("paper").published
    row = [ours.targets[t][m][0] for t in ("viper", "prid2011", "grid", "ilids") for m in ("R-1", "R-5", "R-10", "mAP")]
    table_1 = "56.9 76.7 82.0 66.0 72.5 88.2 91.3 79.8 49.7 67.6 76.8 58.1 79.7 93.3 97.3 85.5"
    assert row == [float(number) for number in table_1.split()]
    assert ours.targets["viper"]["R-1"] == (56.9, 3.0) and ours.targets["grid"]["mAP"] == (58.1, 2.6)
    for published in (ours, resnet):
        for metric, (mean, _) in published.mean.items():
            of_targets = [numbers[metric][0] for numbers in published.targets.values()]
            assert abs(sum(of_targets) / 4 - mean) < 0.11, metric
    assert protocols.load("duke_to_market").published[0].targets == {
        "market1501": {"R-1": (69.2, None), "mAP": (35.9, None)}
    }


def test_no_unknown_keys():
    """A misspelt optional key would otherwise be ignored."""
    content = json.loads(Path(protocols.__file__).with_suffix(".json").read_text(encoding="utf-8"))
    fields = set(protocols.Protocol.__dataclass_fields__) - {"name", "withdrawn"}
    assert all(set(entry) <= fields for entry in content["protocols"].values())
