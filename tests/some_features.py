"""Features of drawn numbers, with labels of every kind."""

import numpy as np

from metabin_jax.retrieval.features import Features

MADE_BY = {
    "run": "/runs/a",
    "step": 9,
    "model": "tiny",
    "method": "metabin",
    "height": 32,
    "width": 16,
    "weights": "ab" * 32,
}


def some_features(count=5, width=3, **changed):
    feature = np.random.default_rng([count, width]).normal(size=(count, width)).astype(np.float32)
    columns = {
        "path": np.array([f"/bilder/größe/{row}.jpg" for row in range(count)]),
        "feature": feature / np.linalg.norm(feature, axis=1, keepdims=True),
        "pid": np.array(["Zoë", "", *["7"] * (count - 2)])[:count],
        "camid": np.arange(-1, count - 1),
        "domain": np.array([""] * count),
        "made_by": MADE_BY,
    }
    return Features(**columns | changed)
