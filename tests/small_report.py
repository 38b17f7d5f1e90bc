"""Domains and runs to report on, made by hand."""

from dataclasses import replace
from io import BytesIO

import numpy as np
from PIL import Image
from tiny_run import tiny_config

from metabin_jax.data.records import Record
from metabin_jax.evaluation import query_gallery
from metabin_jax.evaluation.statistics import summarise
from metabin_jax.evaluation.targets import evaluate_target
from metabin_jax.report import data, domain
from metabin_jax.training.config import metabin
from metabin_jax.training.workdir import settings

HOSTILE = "<script>alert(1)</script>\"'&é漢\udcff"


def at_angles(degrees):
    return np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], axis=1)


# Degrees. The queries: identity 1 on camera 1, identity 2 on camera 2, and one that has no match.
ANGLES = np.array([0, 90, 45, 5, 10, 20, 30])
RECORDS = [
    Record(f"d/{HOSTILE}.png", 1, 1, "d", "query"),
    Record("d/second.png", 2, 2, "d", "query"),
    Record("d/lonely.png", 9, 1, "d", "query"),
    Record("d/a.png", 1, 1, "d", "gallery"),
    Record("d/b.png", 2, 1, "d", "gallery"),
    Record("d/c.png", 1, 2, "d", "gallery"),
    Record("d/d.png", 3, 2, "d", "gallery"),
]


def examined(records=RECORDS, angles=ANGLES, **settings):
    splits = [query_gallery(records, settings.get("policy", "cross-camera"))]
    return domain_of(records, lambda rows: at_angles(angles[rows]), splits, **settings)


def domain_of(records, embed, splits, source="", **settings):
    settings |= {"listed": domain.LENGTH, "bins": domain.SCORE_BINS}
    return domain.examine(evaluate_target(records[0].domain, records, embed, splits, source, **settings))


def drawn(record):
    """A picture of 8 x 4 pixels, as a file."""
    shade = 20 * RECORDS.index(record) if record in RECORDS else 0
    Image.new("RGB", (4, 8), (shade, 0, 0)).save(file := BytesIO(), "png")
    return file


def run_data(domains=(), **changes):
    """A run that was never trained."""
    config = tiny_config("/data")
    config.data.train_domains = ("east", "north")
    run = data.RunData(
        name="mine", config=settings(config), preset=settings(metabin()), starts=[], rows=[], step=3, source_mAP=None,
        layers=[],
        domains=list(domains), summaries=summarise([each.result for each in domains]) if domains else [],
        file=drawn,
    )  # fmt: skip
    return replace(run, **changes)
