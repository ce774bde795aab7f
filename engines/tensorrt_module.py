"""TensorRT and TensorRT for RTX: two modules with one API. Their only home, and PyCUDA's.

Both import, and every command's help works, without them: they are imported when they are asked for.
"""

import threading
from functools import cache
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


def cuda_driver() -> ModuleType:
    """PyCUDA's driver interface, initialised.

    Raises:
        ExtraError: PyCUDA, or the driver's library, is not installed.
        BackendError: there is no GPU that can be used.
    """
    try:
        import pycuda.driver as cuda
    except (ImportError, OSError) as error:
        raise ExtraError(
            f"no GPU can be asked or used ({error}): install NVIDIA's driver (libcuda.so.1), the CUDA "
            "toolkit (PyCUDA is compiled against its headers) and then pip install 'riskstream[cuda]'. "
            "Without a GPU, model build --backend tensorrt-rtx builds plans and onnxruntime serves"
        ) from error
    try:
        cuda.init()
        cuda.Device(0)
    except cuda.Error as error:
        raise BackendError(
            f"no GPU that can be used: {error}; see what nvidia-smi lists and CUDA_VISIBLE_DEVICES hides"
        ) from error
    return cast(ModuleType, cuda)


_retaining = threading.Lock()


def primary_context(driver: Any) -> Any:
    """The primary context of the first GPU, which CUDA's runtime, and so TensorRT, uses too; not pushed.

    Retained once for the process and never released: engines that shared the GPU through contexts of their
    own would take turns on it, and PyCUDA's release leaves a primary context on the thread's stack.

    Args:
        driver: from `cuda_driver`.
    """
    with _retaining:  # PyCUDA leaks what is allocated by one object and freed by another of the same context
        return _primary_context(driver)


@cache
def _primary_context(driver: Any) -> Any:
    return driver.Device(0).retain_primary_context()


def free_memory(driver: Any) -> int:
    """Bytes of the first GPU's memory that are free."""
    context = primary_context(driver)
    context.push()
    try:
        return int(driver.mem_get_info()[0])
    finally:
        context.pop()


def free_memory_if_known() -> int | None:
    """As `free_memory`, for backends that do without PyCUDA; None where it or a GPU is not there to ask."""
    try:
        return free_memory(cuda_driver())
    except (ExtraError, BackendError):
        return None


def capability(driver: Any) -> tuple[int, int]:
    """Compute capability of the first GPU, such as (8, 9)."""
    major, minor = driver.Device(0).compute_capability()
    return int(major), int(minor)


def device_architecture() -> str:
    """Compute capability of the first GPU, such as `sm89`.

    Raises:
        ExtraError, BackendError: as `cuda_driver`.
    """
    major, minor = capability(cuda_driver())
    return f"sm{major}{minor}"


def message_log(module: ModuleType) -> Any:
    """A logger for the module that prints nothing and keeps the first warnings and errors in `.messages`.

    `.of_this_thread` are those that came in the thread that asks; `.forget()` forgets them. A runtime may log
    in any thread.
    """
    severity = module.ILogger.Severity
    kept = (severity.INTERNAL_ERROR, severity.ERROR, severity.WARNING)

    class MessageLog(module.ILogger):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self._said: list[tuple[int, str]] = []

        @property
        def messages(self) -> list[str]:
            return [message for _, message in self._said]

        @property
        def of_this_thread(self) -> list[str]:
            return [message for thread, message in self._said if thread == threading.get_ident()]

        def forget(self) -> None:
            self._said = [said for said in self._said if said[0] != threading.get_ident()]

        def log(self, level: Any, message: str) -> None:
            if level in kept and len(self.of_this_thread) < MOST_MESSAGES:
                self._said.append((threading.get_ident(), message))

    return MessageLog()
