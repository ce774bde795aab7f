"""What a shadow's report holds: counts and figures, of no single patient."""

from collections.abc import Mapping
from typing import Any

from schemas.model_config import Policy
from worker import shadow_alerts, shadow_scores
from worker.patient import FORGET_MS
from worker.shadow_alerts import Alerts
from worker.shadow_scores import Joined

DAY_MS = 86_400_000

FIGURES = {
    "compared": "input records of which both sides published a score, in the stretch that both have reached",
    "only_served, only_shadow": "records of that stretch of which one side alone published a score",
    "outside_served, outside_shadow": "scores of records before or after that stretch",
    "difference": "the shadow's risk less the served one",
    "decisions": "records whose risk reaches a level's `enter`; before persistence, refractory time and "
    "changes of policies, which alerts obey",
    "alerts_per_patient_day": "raised and escalated, what would page, for each day between a patient's first "
    "and last score, without silences of 48 h",
    "episodes": "of one patient, matched one with one where they overlap in event time; carried_over: one of "
    "them began before the stretch",
    "lead_hours": "of matched episodes, event time from the shadow's first alert to the served one: above 0 "
    "where the shadow was earlier",
    "news2": "NEWS2 runs beside both: its alerts are the same where both know the same of their patients",
}
"""What the figures of a report mean."""


class PatientTime:
    """How long patients were watched, in event time; two numbers for each."""

    def __init__(self) -> None:
        self._last_ms: dict[str, int] = {}
        self._watched_ms = 0

    def add(self, patient: str, time_ms: int) -> None:
        """Take the next score of a patient."""
        passed = time_ms - self._last_ms.setdefault(patient, time_ms)
        if passed > 0:
            self._last_ms[patient] = time_ms
            self._watched_ms += passed if passed < FORGET_MS else 0

    @property
    def patients(self) -> int:
        """How many there were."""
        return len(self._last_ms)

    @property
    def days(self) -> float:
        """Patient-days."""
        return self._watched_ms / DAY_MS


def side(versions: Mapping[int, int], elsewhere: int, alerts: Alerts) -> dict[str, Any]:
    """Who spoke on one side.

    Args:
        versions: of the model, with the number of scores of each.
        elsewhere: scores of other models or inputs.
        alerts: within the stretch.
    """
    seen = alerts.seen
    return {
        "scores_by_version": {str(version): count for version, count in sorted(versions.items())},
        "scores_elsewhere": elsewhere,
        "models": [
            {"version": version, "digest": digest, "alerts": count}
            for (version, digest), count in sorted(seen.models.items())
        ],
        "backends": dict(sorted(seen.backends.items())),
        "policy_versions": dict(sorted(seen.policies.items())),
    }


def scores(joined: Joined, policies: Mapping[str, Policy]) -> dict[str, Any]:
    """The risks of both sides."""
    return {
        "compared": len(joined.served),
        "only_served": joined.only_served,
        "only_shadow": joined.only_shadow,
        "outside_served": joined.outside_served,
        "outside_shadow": joined.outside_shadow,
        "difference": shadow_scores.difference(joined),
        "decisions": shadow_scores.decisions(joined, policies),
        "grid": shadow_scores.grid(joined),
    }


def alerts(served: Alerts, shadow: Alerts, time: PatientTime) -> dict[str, Any]:
    """The alerts of both sides, by voice."""
    content: dict[str, Any] = {"patients": time.patients, "patient_days": round(time.days, 2)}
    for voice in shadow_alerts.VOICES:
        matched = shadow_alerts.match(served.episodes[voice], shadow.episodes[voice])
        content[voice] = {
            "served": shadow_alerts.told(served, voice, time.days),
            "shadow": shadow_alerts.told(shadow, voice, time.days),
            "episodes": {
                "both": matched.both,
                "only_served": matched.only_served,
                "only_shadow": matched.only_shadow,
                "carried_over": matched.carried_over,
            },
            "lead_hours": shadow_alerts.leads(matched.leads_ms),
        }
    return content
