"""How long a worker may take to stop."""

STOP_S = 20.0
"""How long shutting down may take after the last checkpoint before it is cut short."""

SLACK_S = 5.0
"""What is left for closing connections before a process that is to stop ends itself."""


def shutdown_s(rebalance_timeout_s: float) -> float:
    """The longest that a process lives after SIGTERM; a supervisor must not kill it sooner."""
    return rebalance_timeout_s / 2 + STOP_S + SLACK_S
