"""What every process that runs tests needs."""

import signal

from hypothesis import HealthCheck, settings

# How long an example takes says nothing of it on a busy machine.
settings.register_profile(
    "same-examples-every-time",
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("same-examples-every-time")

# pytest-xdist's processes, and those that a script starts in the background, ignore SIGINT. The programs that
# tests start would inherit that, and what is tested of Ctrl-C would fail, or prove nothing.
signal.signal(signal.SIGINT, signal.default_int_handler)
