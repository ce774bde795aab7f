"""What every process that runs tests needs."""

import signal

# pytest-xdist's processes, and those that a script starts in the background, ignore SIGINT. The programs that
# tests start would inherit that, and what is tested of Ctrl-C would fail, or prove nothing.
signal.signal(signal.SIGINT, signal.default_int_handler)
