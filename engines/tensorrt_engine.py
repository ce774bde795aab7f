"""Plans run by TensorRT, or by TensorRT for RTX with the same code: compiled, never executed on a GPU.

    rows --> page-locked --copy--> device --compute--> device --copy--> page-locked --> rows

A batch goes this way on a stream of its own. Two batches may be in flight, each in a slot of its own: one is
copied while the other is computed.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from engines import memory
from engines.engine import F32, Engine, Parts
from engines.errors import BackendError, GraphError
from engines.plans import write_whole
from engines.precision import Precision
from engines.tensorrt_device import device
from engines.tensorrt_module import message_log
from engines.tensorrt_slot import Slot
from schemas.model_config import ModelConfig

TILE = 16
"""Rows. Batches are padded to a multiple, as the reference's are, so that few shapes ever occur."""

IN_FLIGHT = 2
"""Slots. While one batch is computed, the next is staged and copied; a third would only wait behind it."""


class TensorRTEngine(Engine):
    """A plan with a slot for each batch in flight: an execution context, a stream and buffers.

    Threads: nothing belongs to a thread. The GPU's primary context is pushed for the length of a load, a run
    or a close, on whichever thread does it, and popped before that returns, so loading may happen in one
    thread and running in others. A third thread that runs meanwhile is refused. A close meanwhile leaves
    freeing to the thread whose call ends last: nothing is freed under a call that hangs.

    Bytes of a row: batches are padded as the reference's, but TensorRT may choose kernels by shape. That a
    row's bytes do not depend on its batch is not proven; outputs are held to golden data.
    """

    in_flight = IN_FLIGHT

    def __init__(
        self,
        config: ModelConfig,
        plan: bytes,
        module: Any,
        driver: Any,
        cache: Path | None = None,
        precision: Precision = "fp32",
    ) -> None:
        """Load a plan and allocate all memory it will use.

        Args:
            config: the model's.
            plan: made by the same version of the module from this model; `engines/tensorrt_load.py` checks.
            module: `tensorrt` or `tensorrt_rtx`.
            driver: PyCUDA's, from `cuda_driver`.
            cache: file for the kernels that TensorRT for RTX compiles when it loads a plan: read now, written
                at the close, so that the next load need not compile them. TensorRT has no such cache.
            precision: of the plan; `backend` names it unless it is fp32.

        Raises:
            BackendError: the runtime does not load the plan, or the GPU fails or has too little memory.
            GraphError: the plan's tensors are not the config's.
            MemoryBudgetError: its contexts and buffers need more of the GPU's memory than is free.
        """
        named = "" if precision == "fp32" else f"-{precision}"
        super().__init__(config, f"{module.__name__.replace('_', '-')}-cuda{named}")
        if precision == "fp16":
            self.golden_tolerance = config.golden_tolerance_fp16
        self._module, self._driver = module, driver
        self._cache_file = cache
        self._device = device(driver)
        self._changed = threading.Condition()  # of the three that follow; not held while the GPU works
        self._closed = self._freed = False
        self._idle: list[Slot] = []
        # What lives on the GPU is held by these and by slots alone, never by a local: an error's traceback
        # would keep that until no context is current, and PyCUDA would leak it.
        self._runtime: Any = None
        self._engine: Any = None
        self._options: Any = None
        self._cache: Any = None
        self._slots: list[Slot] = []
        self._log = message_log(module)
        try:
            self._device.refuse_hanging()
            with self._cuda("loading the plan", self._device.current()):
                self._open(plan)
        except BaseException:
            self.close()
            raise

    def _execute(self, inputs: Mapping[str, F32], rows: int) -> dict[str, F32]:
        outputs = self._room(rows)
        with self._slot(f"a batch of {rows}") as slot:
            self._go(inputs, outputs, rows, slot)
        return outputs

    def _execute_in_each(self, inputs: Mapping[str, F32], rows: int) -> Iterator[dict[str, F32]]:
        for slot in tuple(self._slots):
            outputs = self._room(rows)
            with self._slot(f"a batch of {rows}", slot):
                self._go(inputs, outputs, rows, slot)
            yield outputs

    def _execute_in_parts(self, inputs: Mapping[str, F32], rows: int) -> tuple[dict[str, F32], Parts | None]:
        """By the GPU's own clock; copying in and out hold what the host does for it: staging, taking out."""
        outputs = self._room(rows)
        copy_in = compute = copy_out = 0.0
        with self._slot(f"a batch of {rows}") as slot:
            for piece in self._pieces(rows):
                staging = self._send(inputs, piece, slot, timed=True)
                taking = self._fetch(outputs, piece, slot)
                copy_in += staging + slot.seconds("sent", "arrived")
                compute += slot.seconds("arrived", "computed")
                copy_out += slot.seconds("computed", "left") + taking
        return outputs, Parts(copy_in, compute, copy_out)

    def close(self) -> None:
        """Free everything, now or, where calls are under way in other threads, when the last of them ends."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            if self._freed or len(self._idle) < len(self._slots):
                return
            self._freed = True
        self._device.free(self._free)

    @contextmanager
    def _slot(self, doing: str, asked: Slot | None = None) -> Iterator[Slot]:
        """The one that has been idle for longest, or waited for one that is asked for.

        Nothing is under way in it at the end, failed or not.
        """
        with self._changed:
            if asked is not None:
                self._changed.wait_for(lambda: self._closed or asked in self._idle)
            if self._closed:
                raise BackendError("the engine is closed")
            if not self._idle:
                raise BackendError(
                    f"the engine is in use by {IN_FLIGHT} other threads: no more at a time may run it"
                )
            slot = asked or self._idle[0]
            self._idle.remove(slot)
        self._log.forget()
        try:
            with self._cuda(doing, self._device.call()):
                try:
                    yield slot
                except BaseException:
                    with suppress(self._driver.Error):
                        slot.stream.synchronize()  # what is left of the batch writes to the slot's buffers
                    raise
        finally:
            with self._changed:
                self._idle.append(slot)
                self._changed.notify_all()
            if self._closed:
                self.close()

    @contextmanager
    def _cuda(self, doing: str, context: AbstractContextManager[None]) -> Iterator[None]:
        """CUDA's errors are named."""
        try:
            with context:
                yield
        except self._driver.Error as error:
            raise BackendError(f"CUDA failed at {doing}: {error}; if it persists, start again") from error

    def _go(self, inputs: Mapping[str, F32], outputs: dict[str, F32], rows: int, slot: Slot) -> None:
        for piece in self._pieces(rows):
            self._send(inputs, piece, slot)
            self._fetch(outputs, piece, slot)

    def _open(self, plan: bytes) -> None:
        self._runtime = self._module.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise BackendError(
                f"{self._module.__name__} {self._module.__version__} does not load the plan of "
                f"{self.config.name} ({self._told()}): build it again on this machine, with a driver that "
                "this version supports, or serve on onnxruntime"
            )
        self._compare()
        shapes = [self._engine.get_tensor_profile_shape(name, 0) for name in self.input_dims]
        self._least = max(int(least[0]) for least, _, _ in shapes)
        self._most = min(int(most[0]) for _, _, most in shapes)
        # The plan's weights are there by now; what its contexts and the buffers take is not.
        contexts = IN_FLIGHT * int(self._engine.device_memory_size_v2)
        rest = contexts + memory.of_plan(self.config, 0, self._most)[1]
        memory.require(self.config, rest, None, int(self._driver.mem_get_info()[0]), "the GPU")
        self._configure()
        for _ in range(IN_FLIGHT):
            self._slots.append(Slot())
            self._idle.append(self._slots[-1])
            self._slots[-1].context = self._new_context()
            if self._slots[-1].context is None:
                raise BackendError(f"no execution context for {self.config.name}: {self._told()}")
        try:
            for slot in self._slots:
                slot.allocate(self._driver, self.input_dims | self.output_dims, self._most)
        except self._driver.MemoryError as error:
            free, total = (size >> 20 for size in self._driver.mem_get_info())
            raise BackendError(
                f"too little memory for {self.config.name} at batches of {self._most} (the GPU has {free} of "
                f"{total} MiB free): free some, or build a plan for smaller batches ({error})"
            ) from error

    def _configure(self) -> None:
        """What every execution context is made with; TensorRT for RTX alone has it."""
        strategy = getattr(self._module, "DynamicShapesKernelSpecializationStrategy", None)
        if strategy is None:
            return
        self._options = self._engine.create_runtime_config()
        # It would change to kernels of a shape's own while it serves, and so a row's bytes.
        self._options.dynamic_shapes_kernel_specialization_strategy = strategy.NONE
        if self._cache_file is not None:
            self._cache = self._options.create_runtime_cache()
            with suppress(OSError):  # there is none yet; another GPU's, driver's or version's is not taken in
                self._cache.deserialize(self._cache_file.read_bytes())
            self._options.set_runtime_cache(self._cache)

    def _new_context(self) -> Any:
        if self._options is None:
            return self._engine.create_execution_context()
        return self._engine.create_execution_context(self._options)

    def _compare(self) -> None:
        """Check that the plan's tensors are the config's, float32 with a free batch axis."""
        mode = self._module.TensorIOMode
        sides = ((mode.INPUT, self.input_dims), (mode.OUTPUT, self.output_dims))
        wanted = {name: (side, (-1, *dims)) for side, all_dims in sides for name, dims in all_dims.items()}
        found = {}
        for i in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(i)
            found[name] = (self._engine.get_tensor_mode(name), tuple(self._engine.get_tensor_shape(name)))
            if self._engine.get_tensor_dtype(name) != self._module.DataType.FLOAT:
                raise GraphError(f"{name} is float32 in config.json, not so in the plan: build it again")
        if found != wanted:
            raise GraphError(
                f"{self.config.name}: config.json has the tensors {sorted(wanted)}, the plan {sorted(found)}"
                ", or with other dims: build it again"
            )

    def _pieces(self, rows: int) -> list[slice]:
        """More than one where the plan's profile has less room than the model's largest batch."""
        return [slice(at, min(at + self._most, rows)) for at in range(0, rows, self._most)]

    def _padded(self, rows: int) -> int:
        return min(max(-(-rows // TILE) * TILE, self._least), self._most)

    def _room(self, rows: int) -> dict[str, F32]:
        return {name: np.empty((rows, *dims), np.float32) for name, dims in self.output_dims.items()}

    def _send(self, inputs: Mapping[str, F32], piece: slice, slot: Slot, *, timed: bool = False) -> float:
        """Stage rows and queue their copies and computation; the seconds that staging took."""
        rows = piece.stop - piece.start
        padded = self._padded(rows)
        began = perf_counter()
        for name, array in inputs.items():
            slot.host[name][:rows] = array[piece]
            slot.host[name][rows:padded] = 0
        staged = perf_counter() - began
        if timed:
            slot.events["sent"].record(slot.stream)
        for name in inputs:
            self._driver.memcpy_htod_async(slot.device[name], slot.host[name][:padded], slot.stream)
        if timed:
            slot.events["arrived"].record(slot.stream)
        self._enqueue(slot, padded)
        if timed:
            slot.events["computed"].record(slot.stream)
        return staged

    def _enqueue(self, slot: Slot, padded: int) -> None:
        taken = [
            slot.context.set_input_shape(name, (padded, *dims)) for name, dims in self.input_dims.items()
        ]
        taken += [slot.context.set_tensor_address(name, int(memory)) for name, memory in slot.device.items()]
        if not all(taken) or not slot.context.execute_async_v3(slot.stream.handle):
            raise BackendError(f"TensorRT failed on a batch padded to {padded}: {self._told()}")

    def _fetch(self, outputs: dict[str, F32], piece: slice, slot: Slot) -> float:
        """Queue the copies of what `_send` computes, wait for them, and take them out; the last's seconds."""
        rows = piece.stop - piece.start
        for name in outputs:
            self._driver.memcpy_dtoh_async(slot.host[name][:rows], slot.device[name], slot.stream)
        slot.wait()
        began = perf_counter()
        for name, output in outputs.items():
            output[piece] = slot.host[name][:rows]
        return perf_counter() - began

    def _keep_cache(self) -> None:
        """Write the compiled kernels; where that cannot be, the next load compiles them again."""
        content = None if self._cache is None else self._cache.serialize()
        if content is not None and self._cache_file is not None:
            with suppress(OSError):
                write_whole(self._cache_file, bytes(content))

    def _free(self) -> None:
        """The last made first. Nothing is under way."""
        with suppress(self._driver.Error), self._device.current():
            loaded = any(slot.context is not None for slot in self._slots)
            while self._slots:
                self._slots.pop().free()
            if loaded:
                self._keep_cache()
            self._cache = self._options = None
            self._engine = None
            self._runtime = None

    def _told(self) -> str:
        """The runtime's own first words; they name layers and devices, no rows."""
        said = self._log.of_this_thread or self._log.messages
        return str(said[0]) if said else "it gives no reason"
