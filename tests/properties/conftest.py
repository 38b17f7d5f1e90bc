"""Few cases in `make test`, the same ones each time; `make fuzz` asks for many, other ones each time."""

import os
from pathlib import Path

from hypothesis import HealthCheck, configuration, settings

cases = os.environ.get("CASES", "")
configuration.set_hypothesis_home_dir(Path(__file__).parents[2] / ".cache" / "hypothesis")
settings.register_profile(
    "metabin",
    max_examples=int(cases or 20),
    derandomize=not cases,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much],
)
settings.load_profile("metabin")
