"""How far two results lie apart: one measure for all comparisons with the PyTorch twin."""

from collections.abc import Mapping

import numpy as np
import torch

# With tensors this small two threads mostly wait for each other: 50 times slower on a busy machine.
torch.set_num_threads(1)


def distance(actual, expected) -> float:
    """|actual - expected| over |expected| (L2 norms), or |actual| where expected is 0; any kind of array."""
    actual, expected = (np.asarray(x.detach() if hasattr(x, "detach") else x) for x in (actual, expected))
    if actual.shape != expected.shape:
        raise AssertionError(f"shapes differ: {actual.shape} and {expected.shape}")
    scale = np.linalg.norm(expected.ravel())
    return float(np.linalg.norm((actual - expected).ravel()) / (scale or 1.0))


def worst(actual: Mapping, expected: Mapping) -> tuple[float, str]:
    """The largest distance over two dictionaries with the same keys, and where."""
    assert actual.keys() == expected.keys(), sorted(actual.keys() ^ expected.keys())
    return max((distance(actual[name], expected[name]), name) for name in expected)
