"""The file reference.json: made of stays by a served model, written, read and checked."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from engines import drift, evaluate, evaluate_stays, folds, physionet2012, repository
from engines.drift import Distribution, Reference
from engines.engine import Engine
from engines.errors import RepositoryError
from engines.physionet2012 import Stay
from engines.repository import REFERENCE
from engines.robustness import Progress
from engines.steps import require_series
from schemas.model_config import ModelConfig
from schemas.window import NEVER, Rows


def of_stays(engine: Engine, source: Path, progress: Progress, kept: Path | None = None) -> Reference:
    """The reference of a served series model on stays in the Challenge's format.

    Args:
        engine: of the model.
        source: folder or archive.
        progress: told (what, done, of).
        kept: what `model train --folds` wrote: each stay's risk is then that of the model that has not seen
            it. A model knows the stays that it was trained on too well.

    Raises:
        DatasetError: the data cannot be read, or hold nothing that the model reads.
        KindError: the model reads images.
        RepositoryError: the kept models are another model's, or lack a stay.
    """
    progress("reading stays", 0, 0)
    stays = physionet2012.read(source)
    made = evaluate_stays.rows_of(stays, progress)
    if kept is None:
        risks = evaluate_stays.served(engine, made, progress).risk
    else:
        risks = _out_of_fold(engine.config.name, stays, made, kept, progress)
    found, absent_h = drift.hours_of(made, risks, engine.config)
    described = physionet2012.described(stays)
    return drift.make(engine.config, found, absent_h, described, "served" if kept is None else "out of fold")


def _out_of_fold(
    name: str, stays: Sequence[Stay], made: Rows, kept: Path, progress: Progress
) -> NDArray[np.float32]:
    """Risks, float32[stays, steps], each stay's by the model that has not seen it."""
    known = folds.read(kept)
    missing = [stay.record for stay in stays if stay.record not in known.folds]
    if known.model != name or missing:
        raise RepositoryError(
            f"{kept} holds folds of {known.model!r} over {len(known.folds):,} stays; {name!r} needs its own, "
            f"and {len(missing):,} of the {len(stays):,} stays are not among them"
        )
    number = np.array([known.folds[stay.record] for stay in stays])
    risks = np.empty(made.values.shape[:2], dtype=np.float32)
    for fold, fold_name in enumerate(known.names()):
        engine = repository.load(kept, fold_name)
        held_out = np.flatnonzero(number == fold)
        rows = Rows(*(array[held_out] for array in made))
        risks[held_out] = evaluate_stays.served(engine, rows, progress).risk
        engine.close()
    return risks


def write(reference: Reference, folder: Path) -> Path:
    """Write it into a model's folder; gives the file."""
    path = folder / REFERENCE
    path.write_bytes(evaluate.pretty(reference))
    return path


def read(models: Path, config: ModelConfig) -> Reference:
    """The reference of a model.

    Raises:
        RepositoryError: it is missing, damaged, or another model's.
        KindError: the model reads images.
    """
    require_series(config)
    path = repository.companions(models, config) / REFERENCE
    remedy = f"`riskstream model reference {config.name} --version {config.version} --data SOURCE` writes it"
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
