"""Writes the JSON Schema files (2020-12) in `json/` from the message types, and says if they are current.

    python -m schemas.json_schema           write them
    python -m schemas.json_schema --check   exit 1 and name each file that is not current

`feature-table.json` holds the feature table itself, for those who send records from another language.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from schemas.features import FEATURES, LOINC, MDC, Feature
from schemas.imaging import ImagingEvent
from schemas.messages import Alert, DeadLetter, FeedbackRecord, Finding, Score, VitalsRecord
from schemas.model_card import ModelCard
from schemas.model_config import ModelConfig
from schemas.news2_policy import News2Policy
from schemas.policy_change import PolicyChange
from schemas.stored import StoredBin, StoredPatient

DIRECTORY = Path(__file__).parent / "json"

ROOTS: dict[str, type[msgspec.Struct]] = {
    "vitals-record": VitalsRecord,
    "alert": Alert,
    "score": Score,
    "dead-letter": DeadLetter,
    "feedback-record": FeedbackRecord,
    "imaging-event": ImagingEvent,
    "finding": Finding,
    "policy-change": PolicyChange,
    "model-config": ModelConfig,
    "model-card": ModelCard,
    "news2-policy": News2Policy,
    "feature": Feature,
    "stored-patient": StoredPatient,
    "stored-bin": StoredBin,
}
"""File name without extension -> the type it describes."""

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def documents() -> dict[str, bytes]:
    """File name -> its content, for every file in `json/`."""
    schemas = {f"{name}.schema.json": _schema(root) for name, root in ROOTS.items()}
    return {
        name: _encoded(value) for name, value in {**schemas, "feature-table.json": _feature_table()}.items()
    }


def stale(directory: Path = DIRECTORY) -> list[str]:
    """Names of files that are missing, differ, or belong to no type any more."""
    wanted = documents()
    present = {path.name: path.read_bytes() for path in directory.glob("*.json")}
    return sorted(name for name in wanted | present if wanted.get(name) != present.get(name))


def write(directory: Path = DIRECTORY) -> None:
    """Make the folder hold exactly the current files."""
    directory.mkdir(exist_ok=True)
    wanted = documents()
    for path in directory.glob("*.json"):
        if path.name not in wanted:
            path.unlink()
    for name, content in wanted.items():
        (directory / name).write_bytes(content)


def _schema(root: type[msgspec.Struct]) -> dict[str, Any]:
    # "{name}" is msgspec's placeholder for the name of a nested type.
    (reference,), definitions = msgspec.json.schema_components([root], ref_template="#/$defs/{name}")
    return {"$schema": DIALECT, **reference, "$defs": definitions}


def _feature_table() -> dict[str, Any]:
    return {
        "systems": {"loinc": LOINC, "mdc": MDC},
        "features": [
            {"channel": channel, **msgspec.structs.asdict(feature)}
            for channel, feature in enumerate(FEATURES)
        ],
    }


def _encoded(value: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def main(arguments: Sequence[str], directory: Path = DIRECTORY) -> int:
    """Write the files, or with `--check` compare them; the exit status."""
    if "--check" not in arguments:
        write(directory)
        return 0
    names = stale(directory)
    for name in names:
        print(f"{name} is not current; run `python -m schemas.json_schema`", file=sys.stderr)
    return 1 if names else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
