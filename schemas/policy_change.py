"""Changes to alert policies, as data: for everyone, for a care unit, for a patient.

A policy in force is made of layers: the one that ships (a model's config.json, or NEWS2's file), then the
changes in force for everyone, for the patient's care unit, for the patient. Each layer says only what it
changes. Of one scope the change in force is the one that took effect last. "Now" is the Kafka timestamp of
the record that is decided on, so the same log under the same changes gives the same alerts; a change that is
known before it takes effect changes nothing that was published.

On the topic each version has a key of its own (`key`), so that a compacted topic keeps them all: an alert of
last month can be explained by the policy of last month. A change is taken back by one with a greater version.
"""

from collections.abc import Iterable
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from schemas import news2_policy
from schemas.errors import PolicyError
from schemas.messages import Identifier, Time
from schemas.model_config import NEWS2, AlertPolicy, Level, Policy, policy_complaints
from schemas.news2_policy import News2Policy

Seconds = Annotated[float, Meta(ge=0.0, le=172_800.0)]
"""At most 48 hours: nothing is remembered for longer."""

P = TypeVar("P", bound=Policy | News2Policy)


class ChangedLevel(Struct, frozen=True, forbid_unknown_fields=True):
    """One severity; fields as in a model's or NEWS2's policy."""

    severity: Annotated[str, Meta(min_length=1, max_length=32)]
    enter: float
    persistence_s: Seconds = 0.0


class PolicyChange(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One version of what one scope changes.

    model: whose policy; `news2` for the early warning score's own.
    version: of this scope's change, rising. Named by every alert that it bears on.
    effective_from: records with a Kafka timestamp from here on are decided by it.
    care_unit, patient: whom it is for; neither means everyone, and one excludes the other.
    levels, exit, single: stated together, because they bind one another; `single`, which may be null, is
        NEWS2's alone.
    refractory_s, expiry_s: stated together.
    scale, fresh_s: NEWS2's alone. Scale 2 is for a patient with a prescribed target of 88 to 92%.
    reason, author: why, and who answers for it (a role, never a patient's data); for the record.
    """

    model: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
    version: Annotated[int, Meta(ge=1, le=999_999)]
    effective_from: Time
    care_unit: Identifier | None = None
    patient: Identifier | None = None
    levels: Annotated[tuple[ChangedLevel, ...], Meta(min_length=1, max_length=8)] | UnsetType = UNSET
    exit: float | UnsetType = UNSET
    single: str | UnsetType | None = UNSET
    resolve_s: Seconds | UnsetType = UNSET
    refractory_s: Seconds | UnsetType = UNSET
    expiry_s: Seconds | UnsetType = UNSET
    update_delta: float | UnsetType = UNSET
    scale: int | UnsetType = UNSET
    fresh_s: Seconds | UnsetType = UNSET
    reason: Annotated[str, Meta(max_length=512)] = ""
    author: Annotated[str, Meta(max_length=128)] = ""

    @property
    def layer(self) -> str:
        """`everyone`, `unit` or `patient`: what a policy's version names it by."""
        if self.patient is not None:
            return "patient"
        return "everyone" if self.care_unit is None else "unit"

    @property
    def scope(self) -> tuple[str, str | None, str | None]:
        """(model, care unit, patient)."""
        return self.model, self.care_unit, self.patient

    @property
    def key(self) -> bytes:
        """Of its record on the topic: scope and version, as JSON."""
        return msgspec.json.encode([*self.scope, self.version])


CHANGED = (
    "levels", "exit", "single", "resolve_s", "refractory_s", "expiry_s", "update_delta", "scale", "fresh_s",
)  # fmt: skip
"""Fields of a change that are a policy's."""

_TOGETHER = (("levels", "exit"), ("refractory_s", "expiry_s"))
_NEWS2_TOGETHER = (("levels", "exit", "single"), ("refractory_s", "expiry_s"))
_NEWS2_ALONE = ("single", "scale", "fresh_s")

_EXAMPLE = Policy(
    version="0",
    levels=(Level("raised", 0.5),),
    exit=0.4,
    resolve_s=0.0,
    refractory_s=0.0,
    update_delta=0.1,
    expiry_s=3600.0,
)
"""Any model's policy. What fits it fits every other, because fields that bind one another come together."""

_change = msgspec.json.Decoder(PolicyChange)
_changes = msgspec.json.Decoder(list[PolicyChange])


def decode(content: bytes) -> PolicyChange:
    """One change, as on the topic.

    Raises:
        PolicyError: it is no such JSON, or contradicts itself. The message quotes nothing of it.
    """
    return _sound(_read(_change, content, "the change"))


def read(content: bytes, what: str) -> list[PolicyChange]:
    """A file of changes: a JSON array.

    Args:
        content: of the file.
        what: names it in errors.

    Raises:
        PolicyError: it is no such JSON, a change contradicts itself, or one version stands twice.
    """
    changes = _read(_changes, content, what)
    known = set()
    for number, change in enumerate(changes):
        try:
            _sound(change)
        except PolicyError as error:
            raise PolicyError(f"{what}, change {number}: {error}") from None
        if (change.scope, change.version) in known:
            raise PolicyError(f"{what}, change {number}: its scope and version stand there twice")
        known.add((change.scope, change.version))
    return changes


def changed(base: P, changes: Iterable[PolicyChange]) -> P:
    """A policy under changes, the widest scope first.

    Raises:
        PolicyError: a value does not fit this kind of policy.
    """
    version, fields = base.version, msgspec.to_builtins(base)
    for change in changes:
        stated = {name: getattr(change, name) for name in CHANGED}
        told = {name: value for name, value in stated.items() if value is not UNSET}
        fields |= _whole(msgspec.to_builtins(told))
        version = f"{version}+{change.layer}.{change.version}"
    try:
        policy = msgspec.convert(fields, type(base))
    except msgspec.ValidationError as error:
        raise PolicyError(str(error)) from None
    return msgspec.structs.replace(policy, version=version)


def _whole(value: Any) -> Any:
    """JSON values with 5 for 5.0: NEWS2's policy counts in whole points."""
    if isinstance(value, dict):
        return {name: _whole(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_whole(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def complaints(change: PolicyChange) -> list[str]:
    """What is wrong with a change beyond its types; empty when nothing is."""
    found = []
    if change.care_unit is not None and change.patient is not None:
        found.append("state care_unit or patient, not both")
    for names in _NEWS2_TOGETHER if change.model == NEWS2 else _TOGETHER:
        stated = [name for name in names if getattr(change, name) is not UNSET]
        if 0 < len(stated) < len(names):
            found.append(f"{', '.join(names)} bind one another: state all of them, or none")
    if change.model != NEWS2:
        alone = [name for name in _NEWS2_ALONE if getattr(change, name) is not UNSET]
        found += [f"{name} is for model `{NEWS2}` alone" for name in alone]
    return found or _policy_complaints(change)


CHART_HIGH, CHART_WITHIN_S = 7, 3600.0
"""Points for which NEWS2's chart calls for an emergency response; how soon an alert of them should come."""


def cautions(change: PolicyChange) -> list[str]:
    """What may be meant, but deserves a second look; empty when nothing does."""
    found = []
    if change.model == NEWS2 and change.levels is not UNSET:
        timely = [level for level in change.levels if level.persistence_s <= CHART_WITHIN_S]
        if not any(level.enter <= CHART_HIGH for level in timely):
            found.append(
                f"no severity alerts at {CHART_HIGH} points within an hour, as NEWS2's chart calls for; "
                "NEWS2 is the floor when no model answers"
            )
    if change.scale == 2 and change.patient is None:
        found.append("SpO2 scale 2 for more than one patient: it is for a prescribed target of 88 to 92%")
    return found


def _policy_complaints(change: PolicyChange) -> list[str]:
    base: AlertPolicy
    try:
        if change.model == NEWS2:
            base = changed(news2_policy.load(), [change])
            return news2_policy.complaints(base)
        base = changed(_EXAMPLE, [change])
    except PolicyError as error:
        return [str(error)]
    return policy_complaints(base)


def _sound(change: PolicyChange) -> PolicyChange:
    for complaint in complaints(change):
        raise PolicyError(complaint)
    return change


T = TypeVar("T")


def _read(decoder: "msgspec.json.Decoder[T]", content: bytes, what: str) -> T:
    try:
        return decoder.decode(content)
    except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PolicyError(f"{what}: {_said(error)}") from None


def _said(error: Exception) -> str:
    """What msgspec says, less what it quotes of the input: the names of unknown fields, and of enums."""
    text = str(error)
    if "unknown field" in text:
        known: Any = ", ".join(PolicyChange.__struct_fields__)
        return f"there is a field that is not known; known are {known}"
    return text if isinstance(error, msgspec.ValidationError) else "it is not JSON"
