"""Errors of this package, one level deep; `reason` is a metric label and says which check failed.

    EngineError
    ├── RepositoryError   the model folder is not there, or a file of it cannot be read
    ├── DigestError       model.onnx is not the file that config.json names
    ├── GraphError        the graph cannot be loaded, or its tensors are not those of config.json
    ├── GoldenFileError   golden.npz is missing or damaged: nothing to prove an engine by
    ├── GoldenError       the engine does not reproduce golden.npz
    ├── MemoryBudgetError the model needs more memory than it may take, or than there is
    ├── KindError         the model is of another kind than this command or role takes
    ├── InputError        what was handed to `Engine.run` does not fit the model: the caller's mistake
    ├── BuildError        a plan cannot be built, or is not to be used
    ├── NoPlanError       there is no current plan, and none may be built
    ├── BackendError      the runtime is absent, took another device, or failed while it ran
    ├── DatasetError      a data set is absent or not in its format
    ├── ImageError        a file is not a picture that can be decoded, or not of the kind that is asked for;
    │                     its reason is one of `IMAGE_REASONS`
    └── ExtraError        an optional dependency is not installed

A model refused at load stays refused until its folder is mended; the others are worth a retry only
after the cause their message names is gone. No message holds a patient's value or identifier.
"""


class EngineError(Exception):
    """A model cannot be loaded, run, evaluated or trained."""

    reason = "engine"


class RepositoryError(EngineError):
    """Check the repository's path and the folder's layout (`engines/repository.py` draws it)."""

    reason = "model-not-found"


class DigestError(EngineError):
    """Copy the model folder again as a whole: its files are of different versions."""

    reason = "digest-mismatch"


class GraphError(EngineError):
    """Mend config.json or export the graph again; the message names the tensor."""

    reason = "graph-mismatch"


class GoldenFileError(EngineError):
    """Copy the version's folder again, or add the graph as another version, with new golden data."""

    reason = "golden-unreadable"


class GoldenError(EngineError):
    """Do not serve: this machine or runtime computes other risks than the model's maker recorded."""

    reason = "golden-mismatch"


class MemoryBudgetError(EngineError):
    """Give the model more memory, or make it smaller; the message has what it needs and what there is."""

    reason = "memory-budget"


class KindError(EngineError):
    """Name a model of the kind that the message asks for; `riskstream model list` shows the kinds."""

    reason = "wrong-kind"


class InputError(EngineError):
    """Names, types, shapes or batch size differ from config.json."""

    reason = "invalid-input"


class BuildError(EngineError):
    """Mend the graph or the order at the place that the message names; it holds the compiler's words."""

    reason = "build-failed"


class NoPlanError(EngineError):
    """Build the plan that the message names: `riskstream model build`.

    Args:
        message: which plan, and why there is none.
        architecture: that the build has to be given for this GPU; None where the usual one is right.
    """

    reason = "no-plan"

    def __init__(self, message: str, architecture: str | None = None) -> None:
        super().__init__(message)
        self.architecture = architecture


class BackendError(EngineError):
    """Install or repair the runtime that the message names."""

    reason = "backend"


class DatasetError(EngineError):
    """Check the path and the files; the message says what was looked for."""

    reason = "invalid-dataset"


IMAGE_REASONS = {
    "not-an-image": "neither PNG, JPEG nor DICOM",
    "too-large": "too many bytes, pixels or frames",
    "no-pixels": "a DICOM object without pixel data of whole numbers",
    "several-frames": "several pictures in one file, and none is chosen",
    "wrong-frame": "the frame that is asked for is not in the file",
    "wrong-modality": "the modality is not one that the model takes, or is not stated",
    "wrong-body-part": "the body part is not one that the model takes, or is not stated",
    "wrong-view": "the view is not one that the model takes, or is not stated",
    "other-patient": "the file names another patient than its event",
    "burned-in": "the file says that text is burned into its pixels",
    "unsupported-syntax": "a DICOM transfer syntax that is not decoded here",
    "unsupported-photometric": "a DICOM photometric interpretation that is not decoded here",
    "unsupported-pixels": "bits, sign or samples of DICOM pixels that are not decoded here",
    "invalid-window": "a DICOM window without a positive width or of an unknown function",
    "size-mismatch": "the header and the pixel data disagree about the size",
    "damaged-header": "DICOM attributes that cannot be read or are missing",
    "damaged-pixels": "DICOM pixel data that cannot be decoded",
    "damaged-file": "a damaged PNG or JPEG file",
    "decode-timeout": "decoding took longer than it may",
    "decode-memory": "decoding took more memory than it may",
    "decode-crashed": "the decoder ended without an answer",
}
"""Every reason of an `ImageError`, and what it means: fit for a metric label and for a dead letter."""


class ImageError(EngineError):
    """Send one PNG, JPEG or DICOM picture, whole and of the accepted kind; the message says what came.

    Args:
        reason: one of `IMAGE_REASONS`.
        message: what came and what is taken; what the reason means, if left out.
    """

    def __init__(self, reason: str, message: str = "") -> None:
        super().__init__(message or IMAGE_REASONS[reason])
        self.reason = reason


class ExtraError(EngineError):
    """Install the extra that the message names."""

    reason = "extra-missing"
