"""Settings that every test shares."""

import os

from hypothesis import HealthCheck, settings

# The same examples in every run: a failure anywhere can be repeated everywhere.
settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("repeatable")

# Figures are drawn without a display.
os.environ.setdefault("MPLBACKEND", "Agg")
