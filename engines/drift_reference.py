"""The file reference.json: made of stays by a served model, written, read and checked."""

from pathlib import Path

import msgspec
import numpy as np

from engines import drift, evaluate, evaluate_stays, physionet2012
from engines.drift import Distribution, Reference
from engines.engine import Engine
from engines.errors import RepositoryError
from engines.repository import REFERENCE
from engines.robustness import Progress
from engines.steps import require_series
from schemas.model_config import ModelConfig
from schemas.window import NEVER


def of_stays(engine: Engine, source: Path, progress: Progress) -> Reference:
    """The reference of a served series model on stays in the Challenge's format.

    Args:
        engine: of the model.
        source: folder or archive.
        progress: told (what, done, of).

    Raises:
        DatasetError: the data cannot be read, or hold nothing that the model reads.
        KindError: the model reads images.
    """
    progress("reading stays", 0, 0)
    stays = physionet2012.read(source)
    made = evaluate_stays.rows_of(stays, progress)
    risks = evaluate_stays.served(engine, made, progress).risk
    found, absent_h = drift.hours_of(made, risks, engine.config)
    return drift.make(engine.config, found, absent_h, physionet2012.described(stays), "served")


def write(reference: Reference, folder: Path) -> Path:
    """Write it into a model's folder; gives the file."""
    path = folder / REFERENCE
    path.write_bytes(evaluate.pretty(reference))
    return path


def read(repository: Path, config: ModelConfig) -> Reference:
    """The reference of a model.

    Raises:
        RepositoryError: it is missing, damaged, or another model's.
        KindError: the model reads images.
    """
    require_series(config)
    path = repository / config.name / REFERENCE
    remedy = f"`riskstream model reference {config.name} --data physionet2012:DIR` writes it"
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Reference)
    except OSError as error:
        raise RepositoryError(f"cannot read {path}: {error.strerror}; {remedy}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RepositoryError(f"{path} is no reference: {error}; {remedy}") from error
    complaint = _complaint(found, config)
    if complaint:
        raise RepositoryError(f"{path}: {complaint}; {remedy}")
    return found


def _complaint(found: Reference, config: ModelConfig) -> str:
    """What is wrong with a reference for this model; nothing where it fits."""
    if found.digest != config.digest:
        return f"it is of the model {found.digest[:12]}, config.json names {config.digest[:12]}"
    if tuple(found.features) != config.features:
        lacking = [name for name in config.features if name not in found.features]
        alien = [name for name in found.features if name not in config.features]
        return f"its features are not the model's in the model's order: lacks {lacking}, has {alien} beside"
    if min(found.stays, found.hours) < 1:
        return f"it counts {found.stays} stays and {found.hours} hours; both must be above 0"
    for name, distribution in found.distributions().items():
        complaint = _wrong(distribution, found.hours)
        if complaint:
            return f"{name}: {complaint}"
    return ""


def _wrong(found: Distribution, hours: int) -> str:
    if len(found.hours) != len(found.edges) + 2:
        return f"{len(found.edges)} edges make {len(found.edges) + 2} bins, came {len(found.hours)}"
    if not np.isfinite(found.edges).all() or not (np.diff(found.edges) > 0).all():
        return "edges must be finite numbers that ascend"
    if min(found.hours) < 0 or sum(found.hours) != hours:
        return f"its bins hold {sum(found.hours)} hours, the reference {hours}; none may be negative"
    if not np.isfinite(found.noise) or found.noise < 0:
        return f"noise must be 0 or above, is {found.noise}"
    if not 1 <= found.absent_h <= NEVER:
        return f"absent_h must be 1 to {NEVER:g}, is {found.absent_h}"
    return ""
