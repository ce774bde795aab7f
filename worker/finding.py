"""What `riskstream check` finds: one thing looked at, how it is, and what to do."""

from typing import Literal, NamedTuple

Severity = Literal["ok", "warning", "failed"]


class Finding(NamedTuple):
    """One check.

    subject: what was looked at; stands in docs/runbook.md.
    well: false when it failed; a warning is still well.
    detail: what was found.
    severity: "failed" when a worker cannot start or would do wrong; "warning" when it works, but something
        will hurt one day.
    advice: what to do; empty when all is well or the detail says it.
    """

    subject: str
    well: bool
    detail: str
    severity: Severity
    advice: str = ""


def ok(subject: str, detail: str) -> Finding:
    """All is well."""
    return Finding(subject, True, detail, "ok")


def warning(subject: str, detail: str, advice: str) -> Finding:
    """It works for now."""
    return Finding(subject, True, detail, "warning", advice)


def failed(subject: str, detail: str, advice: str = "") -> Finding:
    """A worker cannot start, or would do wrong."""
    return Finding(subject, False, detail, "failed", advice)
