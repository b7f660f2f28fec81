"""Settings that every test shares."""

import os
import signal

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

# A shell that runs the tests in the background has them ignore Ctrl-C, and so would every process
# that they start; what Ctrl-C does is tested as in the foreground.
signal.signal(signal.SIGINT, signal.default_int_handler)
