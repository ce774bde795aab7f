"""Which policy is in force: the shipped ones under the changes that a file and the policies topic hold.

What is asked is answered from memory, by the timestamp of the record that is decided on. `PolicyFile` and
`PolicyTopic` keep that memory fresh while the worker runs; what they cannot use they report and leave out,
and what was in force stays in force.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from engines import repository
from engines.errors import KindError, RepositoryError
from schemas import news2_policy
from schemas.errors import PolicyError
from schemas.latch import Which
from schemas.messages import ModelReference
from schemas.model_config import NEWS2, AlertPolicy, Level, ModelConfig, Policy
from schemas.news2_policy import News2Policy
from schemas.policy_change import PolicyChange, changed
from schemas.stored import Speaker
from worker.config import Settings
from worker.decide import TREND_MS
from worker.decode import milliseconds
from worker.patient import FORGET_MS, Patient
from worker.plan import Scored
from worker.version_policies import VersionPolicies

Scope = tuple[str, str | None, str | None]
AnyPolicy = Policy | News2Policy


SILENT_S = FORGET_MS / 1000
"""How long a patient may be silent and is still remembered."""

TREND_S = TREND_MS / 1000 + 3600
"""How far back the trend in an alert reaches, its first hour included."""

NO_IMAGING = Policy("none", (Level("none", 1.0),), 0.5, 0.0, 0.0, 1.0, SILENT_S)
"""Where no imaging model is named, what ends the episodes that one had opened before."""


class _Versions(NamedTuple):
    """The changes of one scope by when they take effect, oldest first."""

    begins_ms: list[int]
    changes: list[PolicyChange]


class Policies:
    """The policies in force.

    Args:
        model: name of the served model.
        risk: its policy, as it ships.
        news2: NEWS2's, as it ships.
        horizon_s: how far back, in record time, a rebuild reads: it bounds what changes may ask.
        imaging: name of the model whose findings raise alerts, and its policy as it ships; None for none.
        versions: policies of that model's versions; all have the one that ships where none are given.

    names: of those who raise alerts, by latch.
    """

    def __init__(
        self,
        model: str,
        risk: Policy,
        news2: News2Policy,
        horizon_s: float = float("inf"),
        imaging: tuple[str, Policy] | None = None,
        versions: VersionPolicies | None = None,
    ) -> None:
        name, policy = imaging or (None, NO_IMAGING)
        self.shipped: Mapping[Which, AnyPolicy] = {"risk": risk, "news2": news2, "imaging": policy}
        self.names: dict[Which, str] = {"risk": model, "news2": NEWS2}
        if name is not None:
            self.names["imaging"] = name
        self.versions = versions
        self._horizon_s = horizon_s
        self._sources: dict[str, list[PolicyChange]] = {}
        self._versions: dict[Scope, _Versions] = {}
        self._changed_models: set[str] = set()
        self._made: dict[tuple[AnyPolicy, tuple[bytes, ...]], AnyPolicy] = {}

    def ship(self, policy: Policy, which: Which = "risk") -> list[str]:
        """Go on with the policy of another version of the model, or of the imaging model.

        Returns:
            Why changes that were held are left out from now on; empty when none is.
        """
        self.shipped = {**self.shipped, which: policy}
        return [why for source, held in list(self._sources.items()) for why in self.replace(source, held)]

    def risk(
        self, patient_id: str, care_unit: str | None, timestamp_ms: int, base: Policy | None = None
    ) -> Policy:
        """The model's policy for a patient, at a record's timestamp; arguments as of `of`."""
        found = self.of("risk", patient_id, care_unit, timestamp_ms, base)
        assert isinstance(found, Policy)
        return found

    def news2(self, patient_id: str, care_unit: str | None, timestamp_ms: int) -> News2Policy:
        """NEWS2's policy for a patient, at a record's timestamp."""
        found = self.of("news2", patient_id, care_unit, timestamp_ms)
        assert isinstance(found, News2Policy)
        return found

    def news2_before(self, scored: Scored) -> News2Policy:
        """NEWS2's policy at a patient's record before one that is judged."""
        return self.news2(scored.patient.id, *scored.before)

    def imaging(
        self, by: Speaker | ModelReference | None, patient_id: str, care_unit: str | None, timestamp_ms: int
    ) -> AnyPolicy:
        """The policy for a finding, at a record's timestamp: that of the version that made it, as changed."""
        return self.of("imaging", patient_id, care_unit, timestamp_ms, self._made_by(by))

    def last(self, which: Which, patient: Patient, base: AnyPolicy | None = None) -> AnyPolicy:
        """The policy of one of a patient's latches at the patient's last record; `base` as of `of`."""
        if which == "imaging":
            base = self._made_by(patient.imaging_by)
        return self.of(which, patient.id, patient.care_unit, patient.touched_ms, base)

    async def seek(self, models: Iterable[ModelReference]) -> None:
        """Have the policies of versions at hand that made findings, as far as the repository has them."""
        versions = {model.version for model in models if model.name == self.names.get("imaging")}
        if versions and self.versions is not None:
            await self.versions.seek(versions)

    def _made_by(self, by: Speaker | ModelReference | None) -> Policy | None:
        """The policy of the version that made a finding; None where what ships stands in."""
        if by is None or self.versions is None or by.name != self.names.get("imaging"):
            return None
        return self.versions.of(by.version)

    def severities(self, which: Which) -> frozenset[str]:
        """Names of the shipped policy's severities, whatever changes name."""
        return frozenset(level.severity for level in self.shipped[which].levels)

    def of(
        self,
        which: Which,
        patient_id: str,
        care_unit: str | None,
        timestamp_ms: int,
        base: AnyPolicy | None = None,
    ) -> AnyPolicy:
        """The policy of one of a patient's latches, at a record's timestamp.

        The same changes in force give the same object, so that rows can be grouped by it.

        Args:
            base: what the changes are laid over, where that is not what ships now.
        """
        name, base = self.names.get(which), base or self.shipped[which]
        if name is None or name not in self._changed_models:
            return base
        layers = self._layers(name, patient_id, care_unit, timestamp_ms)
        if not layers:
            return base
        key = (base, tuple(change.key for change in layers))
        policy = self._made.get(key)
        if policy is None:
            policy = self._made[key] = self._changed(base, layers)
        return policy

    def _changed(self, base: AnyPolicy, layers: list[PolicyChange]) -> AnyPolicy:
        try:
            return changed(base, layers)
        except PolicyError:
            # They fit what ships now, and the version before it has a chunk to finish.
            return base

    def _layers(
        self, name: str, patient_id: str, care_unit: str | None, timestamp_ms: int
    ) -> list[PolicyChange]:
        scopes: list[Scope] = [(name, None, None), (name, None, patient_id)]
        if care_unit is not None:
            scopes.insert(1, (name, care_unit, None))
        found = []
        for scope in scopes:
            versions = self._versions.get(scope)
            at = bisect_right(versions.begins_ms, timestamp_ms) if versions is not None else 0
            if versions is not None and at:
                found.append(versions.changes[at - 1])
        return found

    def replace(self, source: str, changes: Iterable[PolicyChange]) -> list[str]:
        """Hold these changes of a source, the file or the topic, and none that it had before.

        Where both have one version of a scope, the topic's stands.

        Returns:
            Why changes are left out; empty when none is.
        """
        refused, held = [], []
        for change in changes:
            why = self._refusal(change)
            if why is None:
                held.append(change)
            else:
                refused.append(f"{change.model}, {change.layer}, version {change.version}: {why}")
        self._sources[source] = held
        one = {(c.scope, c.version): c for name in sorted(self._sources) for c in self._sources[name]}
        by_scope: dict[Scope, list[PolicyChange]] = {}
        for change in sorted(one.values(), key=_order):
            by_scope.setdefault(change.scope, []).append(change)
        self._made.clear()
        self._versions = {
            scope: _Versions([milliseconds(change.effective_from) for change in ordered], ordered)
            for scope, ordered in by_scope.items()
        }
        self._changed_models = {scope[0] for scope in self._versions}
        return refused

    def changes(self) -> list[PolicyChange]:
        """All changes held, by scope and by when they take effect."""
        return [change for versions in self._versions.values() for change in versions.changes]

    def _refusal(self, change: PolicyChange) -> str | None:
        which = next((which for which, name in self.names.items() if name == change.model), None)
        if which is None:
            return None  # of a model that another role or worker serves
        try:
            policy: AlertPolicy = changed(self.shipped[which], [change])
        except PolicyError as error:
            return str(error)
        more = "a rebuild reads no more again; raise RISKSTREAM_REBUILD_HORIZON_H for more"
        if which == "imaging":
            # Any layer may bring the longest expiry there is, on both sides of what is remembered.
            most_s = max(self._horizon_s - 3 * SILENT_S, 0.0)
            if policy.memory_s > most_s:
                return f"persistence_s and resolve_s may be {most_s:g} s at most: {more}"
            return None
        # Half for each, so that no two layers come to more together.
        most_s = (self._horizon_s - 2 * SILENT_S) / 2
        if max(policy.memory_s, policy.expiry_s) > most_s:
            return f"persistence_s, resolve_s and expiry_s may be {most_s:g} s at most: {more}"
        return None


def _order(change: PolicyChange) -> tuple[float, int]:
    return change.effective_from.timestamp(), change.version


def shipped(settings: Settings, model: ModelConfig) -> Policies:
    """The policies of a worker with these settings, under no change yet.

    Raises:
        PolicyError: NEWS2's policy cannot be used.
        EngineError: the imaging model's config cannot be used, or it is no image model.
    """
    imaging, news2 = imaging_config(settings), news2_policy.load(settings.news2_policy)
    horizon_s = settings.rebuild_horizon_h * 3600
    if imaging is None:
        return Policies(model.name, model.policy, news2, horizon_s)
    versions = VersionPolicies(settings.model_repository, imaging.name)
    versions.read()
    return Policies(model.name, model.policy, news2, horizon_s, (imaging.name, imaging.policy), versions)


def imaging_config(settings: Settings) -> ModelConfig | None:
    """The config of the model whose findings raise alerts; None where the settings name none.

    A repository of one's own need not hold the one that is the default: no findings raise alerts then.

    Raises:
        EngineError: it cannot be used, or is no image model.
    """
    if not settings.imaging_model:
        return None
    try:
        config = repository.read_config(settings.model_repository, settings.imaging_model)
    except RepositoryError:
        if "imaging_model" in settings.model_fields_set:
            raise
        return None
    if config.kind != "image":
        raise KindError(f"{config.name} reads no images; imaging_model must name an image model, or none")
    return config


def needed_s(which: Which, policy: AlertPolicy) -> float:
    """How far back, in record time, a rebuild must read for decisions under a policy to be what they were.

    A patient may have been silent, and is remembered; what was decided on last before that rests on a window,
    or on one finding, which may itself be as old as the expiry; and what a trace remembers reaches back
    across one silence that does not expire it.
    """
    if which == "imaging":
        across = policy.memory_s + policy.expiry_s if policy.memory_s else TREND_S
        return SILENT_S + policy.expiry_s + across
    return 2 * SILENT_S + max(policy.memory_s + policy.expiry_s, TREND_S)
