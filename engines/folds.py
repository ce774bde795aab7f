"""What cross-validation leaves behind for those who choose an alert policy: risks that nobody learnt from.

<folder>/folds.json          the model's name, the data's digest, and each stay's fold
<folder>/<model>-fold-<k>/   a model folder: trained and calibrated without the stays of fold k
"""

from pathlib import Path

import msgspec
from msgspec import Struct

from engines.errors import RepositoryError

FOLDS = "folds.json"


class Folds(Struct, frozen=True, forbid_unknown_fields=True):
    """Which model has not seen which stay.

    model: name of the model that was trained.
    data: digest of its data, as in evaluation.json.
    folds: fold of each stay, by record.
    """

    model: str
    data: str
    folds: dict[str, int]

    def names(self) -> list[str]:
        """Names of the fold models, by fold."""
        return [fold_name(self.model, fold) for fold in range(1 + max(self.folds.values()))]


def fold_name(model: str, fold: int) -> str:
    """The name of the model that has not seen a fold."""
    return f"{model}-fold-{fold}"


def read(folder: Path) -> Folds:
    """What `model train --folds` wrote.

    Raises:
        RepositoryError: the file is missing or is none of these.
    """
    path = folder / FOLDS
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Folds)
    except OSError as error:
        raise RepositoryError(
            f"cannot read {path}: {error.strerror}; `model train NAME --data DIR --folds {folder}` writes it"
        ) from error
    except msgspec.MsgspecError as error:
        raise RepositoryError(f"{path}: {error}") from error
    if not found.folds or min(found.folds.values()) < 0:
        raise RepositoryError(f"{path}: folds must name one stay or more, with folds from 0")
    return found
