"""Where a model that was trained goes: written beside, and put into the repository whole, by a rename.

no model of the name   its folder, as version 1: the first version of a name is the served one
one that is there      the next version, beside those that it has; `versions.serve` makes it the served one
`replace`              version 1, in place of the folder that is there: for whoever ships models

So whatever is served stays as it is, but for `replace`, and nobody reads a folder that is half written.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from engines import repository
from engines.errors import KindError, RepositoryError
from engines.repository import CONFIG

FIRST = 1


class Staged(NamedTuple):
    """A model folder to write, with the config and its companions at the top, and the version that it is."""

    folder: Path
    version: int


@contextmanager
def staged(models: Path, name: str, kind: str, *, replace: bool) -> Iterator[Staged]:
    """A folder to write a model into; left without an error, it goes where it belongs.

    Args:
        models: the repository; made where it is not there.
        name, kind: of the model.
        replace: put it in place of the model of that name, which has one version.

    Raises:
        RepositoryError: the repository cannot be written, the name's folder holds no model, or several
            versions that would be replaced; at the end, it has changed meanwhile: what was made is kept.
        KindError: the model of that name is of another kind.
    """
    version = _version(models / name, kind, replace=replace)
    try:
        models.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=".training-", dir=models))
    except OSError as error:
        raise RepositoryError(f"cannot write to {models}: {error.strerror}; name another --out") from error
    made = Staged(beside / name, version)
    try:
        made.folder.mkdir()
        yield made
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    try:
        _put(made, models / name, replace=replace)
    except OSError as error:
        raise RepositoryError(
            f"cannot put it into {models / name}: {error.strerror}; what was trained is kept in "
            f"{made.folder}, whose model.onnx and config.json `riskstream model add` takes"
        ) from error
    shutil.rmtree(beside, ignore_errors=True)


def _version(place: Path, kind: str, *, replace: bool) -> int:
    """Which version a model becomes."""
    if not place.exists():
        return FIRST
    numbers = sorted(int(each.name) for each in place.iterdir() if repository.numbered(each))
    if replace:
        if len(numbers) > 1:
            raise RepositoryError(
                f"{place} holds the versions {numbers}, and --replace takes the place of one: without it the "
                "model becomes another version beside them; or name another --out"
            )
        return FIRST
    if not (place / CONFIG).is_file():
        raise RepositoryError(
            f"{place} is there and holds no {CONFIG}: name another --out, or --replace to put the model there"
        )
    served = repository.read_config(place.parent, place.name)
    if served.kind != kind:
        raise KindError(
            f"{place} holds a model of kind {served.kind}, of which one of kind {kind} is no version: name "
            "another --out, or --replace to put the model in its place"
        )
    return max(*numbers, served.version) + 1


def _put(made: Staged, place: Path, *, replace: bool) -> None:
    """By one rename, which fails where something has come to be there; replacing takes two."""
    if made.version > FIRST:
        own = made.folder / str(made.version)
        for file in [each for each in made.folder.iterdir() if each != own]:
            file.rename(own / file.name)
        own.rename(place / own.name)
        return
    if not (replace and place.exists()):
        made.folder.rename(place)
        return
    before = made.folder.with_name(".replaced")
    place.rename(before)
    try:
        made.folder.rename(place)
    except OSError:
        before.rename(place)
        raise
