"""Which version of a model is served, changed so that every reader, and every crash, finds a whole one.

1. prove   the version that is to be served: digest, tensors, golden data
2. keep    the served config and companions, as they stand at the top, in the folder of their version
3. open    `.switching`: from here on companions are read in the folders of their versions
4. place   the new version's companions at the top
5. serve   the new version's config.json at the top, by one rename: the moment of the change
6. note    it in served.json
7. close   `.switching` is removed

Stopped before 5, the old version is served, whole; after 5 the new one. Whatever was left open, the next
change settles first. Several commands at once are held apart by a lock on `.lock`.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from msgspec import Struct

from engines import repository
from engines.errors import DigestError, KindError, RepositoryError
from engines.repository import COMPANIONS, CONFIG, SWITCHING
from schemas.model_config import ModelConfig

HISTORY = "served.json"
"""What was served, the newest last; only ever appended to."""

LOCK = ".lock"


class Served(Struct, frozen=True, forbid_unknown_fields=True):
    """One change of the served version.

    version, digest: of what came to be served.
    when: null for what was served before the history began.
    rolled_back: it was served before, and was returned to.
    """

    version: int
    digest: str
    when: datetime | None = None
    rolled_back: bool = False


def serve(models: Path, name: str, version: int) -> ModelConfig:
    """Make a version the served one, once it has proved itself; where it is already, it proves itself anew.

    Returns:
        The config that is served now.

    Raises:
        EngineError: as `repository.load`; the version that is served stays so, even if this is it.
        KindError: it is of another kind than the served one.
        RepositoryError: the folder cannot be written, or another command is changing it.
    """
    with _changing(models / name):
        return _serve(models, name, version, rolled_back=False)


def rollback(models: Path, name: str) -> ModelConfig:
    """Serve what was served before; a second call goes back one further.

    Returns:
        The config that is served now.

    Raises:
        RepositoryError: nothing was served before, or as `serve`.
        DigestError: the version that was served before is another graph now.
        EngineError: as `serve`.
    """
    with _changing(models / name):
        before = _before(history(models, name))
        if before is None:
            raise RepositoryError(
                f"nothing was served before what {name} serves now; it has the versions "
                f"{repository.versions(models, name)}, of which `riskstream model serve` chooses one"
            )
        digest = repository.read_config(models, name, before.version).digest
        if digest != before.digest:
            raise DigestError(
                f"version {before.version} of {name} had digest {before.digest[:12]} when it was served, now "
                f"{digest[:12]}: `riskstream model serve {name} --version {before.version}` takes it as it is"
            )
        return _serve(models, name, before.version, rolled_back=True)


def history(models: Path, name: str) -> list[Served]:
    """What was served, the oldest first and the newest last; begins with the first change.

    Raises:
        RepositoryError: there is no such model, or its history cannot be read.
    """
    config = repository.read_config(models, name)
    file = models / name / HISTORY
    try:
        noted = msgspec.json.decode(file.read_bytes(), type=list[Served])
    except FileNotFoundError:
        noted = []
    except (OSError, msgspec.MsgspecError) as error:
        raise RepositoryError(f"cannot read {file}: {error}; move it away to begin another") from error
    if not noted or (noted[-1].version, noted[-1].digest) != (config.version, config.digest):
        noted.append(Served(config.version, config.digest))  # put there by hand, or since the model was made
    return noted


def settle(folder: Path) -> None:
    """End a change that was stopped half-way, in favour of the version that is served.

    Args:
        folder: of the model. Whoever writes config.json at its top calls this first.

    Raises:
        RepositoryError: the folder cannot be read or written.
    """
    if (folder / SWITCHING).exists():
        with _changing(folder):
            pass


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that readers, and a crash, find what was there before or all of this, never a part.

    Raises:
        OSError: it cannot be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def _serve(models: Path, name: str, version: int, *, rolled_back: bool) -> ModelConfig:
    served, chosen = repository.read_config(models, name), repository.read_config(models, name, version)
    if chosen.kind != served.kind:
        raise KindError(
            f"version {version} of {name} is of kind {chosen.kind}, the served one of {served.kind}; "
            "workers that serve the one cannot take the other: add it under another name"
        )
    repository.load(models, name, version=version).close()
    if version == served.version:
        return served
    noted, top = history(models, name), models / name
    entry = Served(version, chosen.digest, datetime.now(UTC), rolled_back)
    _keep(top, top / str(served.version))
    _write_history(top, noted)
    write_whole(top / SWITCHING, msgspec.json.encode(entry))
    _place(top / str(version), top)
    write_whole(top / CONFIG, (top / str(version) / CONFIG).read_bytes())
    _write_history(top, [*noted, entry])
    (top / SWITCHING).unlink()
    return chosen


@contextmanager
def _changing(folder: Path) -> Iterator[None]:
    """Alone in the folder, with nothing left open."""
    repository.read_config(folder.parent, folder.name)
    try:
        with (folder / LOCK).open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if (folder / SWITCHING).exists():
                _close(folder)
            yield
    except BlockingIOError as error:
        raise RepositoryError(f"another command is changing {folder}: try again when it has ended") from error
    except OSError as error:
        raise RepositoryError(
            f"cannot change what {folder} serves: {error}; run this where the repository can be written"
        ) from error


def _close(folder: Path) -> None:
    """Put right what a change left open: the top gets the companions of the version whose config is there."""
    served = repository.read_config(folder.parent, folder.name)
    source = repository.companions(folder.parent, served)
    if source != folder:
        _place(source, folder)
    try:
        entry = msgspec.json.decode((folder / SWITCHING).read_bytes(), type=Served)
    except msgspec.MsgspecError as error:
        raise RepositoryError(f"{folder / SWITCHING} is damaged: {error}; remove it") from error
    noted = history(folder.parent, folder.name)
    if entry.version == served.version and noted[-1].when is None:
        noted[-1] = entry  # stopped between serving it and noting it
    _write_history(folder, noted)
    (folder / SWITCHING).unlink()


def _keep(top: Path, own: Path) -> None:
    """The served version's companions and config, as they stand at the top, into its own folder."""
    own.mkdir(exist_ok=True)
    for name in (*COMPANIONS, CONFIG):
        if (top / name).is_file():
            write_whole(own / name, (top / name).read_bytes())


def _place(own: Path, top: Path) -> None:
    """Make the companions at the top those of a version."""
    for name in COMPANIONS:
        if (own / name).is_file():
            write_whole(top / name, (own / name).read_bytes())
        else:
            (top / name).unlink(missing_ok=True)


def _before(noted: list[Served]) -> Served | None:
    """What a rollback returns to: rolling back takes the newest away, serving puts one on top."""
    stack: list[Served] = []
    for entry in noted:
        if entry.rolled_back:
            del stack[-2:]
        stack.append(entry)
    return stack[-2] if len(stack) > 1 else None


def _write_history(folder: Path, noted: list[Served]) -> None:
    write_whole(folder / HISTORY, msgspec.json.format(msgspec.json.encode(noted), indent=2) + b"\n")


def _sync(folder: Path) -> None:
    """Make a rename last."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
