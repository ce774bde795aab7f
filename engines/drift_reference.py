"""The reference of a model that is made already: rows and served risks of stays; numpy and the engine."""

from pathlib import Path

from engines import drift, evaluate, evaluate_stays, physionet2012
from engines.drift import Reference
from engines.engine import Engine
from engines.repository import REFERENCE
from engines.robustness import Progress


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
    found = drift.hours_of(made, risks, engine.config)
    return drift.make(engine.config, found, physionet2012.described(stays), "served")


def write(reference: Reference, folder: Path) -> Path:
    """Write it into a model's folder; gives the file."""
    path = folder / REFERENCE
    path.write_bytes(evaluate.pretty(reference))
    return path
