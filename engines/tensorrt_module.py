"""TensorRT and TensorRT for RTX: two modules with one API. Their only home, and PyCUDA's.

Both import, and every command's help works, without them: they are imported when they are asked for.
"""

from types import ModuleType
from typing import Any, cast

from engines.errors import BackendError, ExtraError

BACKENDS = ("tensorrt", "tensorrt-rtx")

MOST_MESSAGES = 20
"""Warnings and errors kept of one use; the first ones name the cause."""


def module_of(backend: str) -> ModuleType:
    """The Python module of a backend.

    Raises:
        BackendError: there is no such backend.
        ExtraError: it is not installed, or a library of it is missing.
    """
    if backend not in BACKENDS:
        raise BackendError(f"no backend {backend!r} to build for; there is {', '.join(BACKENDS)}")
    try:
        return _rtx() if backend == "tensorrt-rtx" else _tensorrt()
    except (ImportError, OSError) as error:
        raise ExtraError(
            f"the backend {backend} cannot be loaded ({error}): pip install 'riskstream[{backend}]'"
        ) from error


def _rtx() -> ModuleType:
    import tensorrt_rtx

    return cast(ModuleType, tensorrt_rtx)


def _tensorrt() -> ModuleType:
    import tensorrt

    return cast(ModuleType, tensorrt)


def device_architecture() -> str:
    """Compute capability of the first GPU, such as `sm89`.

    Raises:
        ExtraError: PyCUDA, or the driver's library, is not installed.
        BackendError: there is no GPU that can be used.
    """
    try:
        import pycuda.driver as cuda
    except (ImportError, OSError) as error:
        raise ExtraError(
            f"TensorRT builds for the GPU of this machine, and none can be asked ({error}): install NVIDIA's "
            "driver and pip install 'riskstream[tensorrt]'. Without a GPU, --backend tensorrt-rtx builds"
        ) from error
    try:
        cuda.init()
        major, minor = cuda.Device(0).compute_capability()
    except cuda.Error as error:
        raise BackendError(f"no GPU that TensorRT could build on: {error}") from error
    return f"sm{major}{minor}"


def message_log(module: ModuleType) -> Any:
    """A logger for the module that prints nothing and keeps the first warnings and errors in `.messages`."""
    severity = module.ILogger.Severity
    kept = (severity.INTERNAL_ERROR, severity.ERROR, severity.WARNING)

    class MessageLog(module.ILogger):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.messages: list[str] = []

        def log(self, level: Any, message: str) -> None:
            if level in kept and len(self.messages) < MOST_MESSAGES:
                self.messages.append(message)

    return MessageLog()
