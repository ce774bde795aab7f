"""What a batch in flight has to itself on the GPU, so that two batches share nothing but the weights."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from engines.engine import F32

MARKS = ("sent", "arrived", "computed", "left")
"""In order of a batch's way: about to be copied in, copied in, computed, copied out. They tell time."""

NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: nothing that another library does on CUDA's default stream holds up a batch."""


class Slot:
    """An execution context, a stream, and a page-locked and a device buffer for every tensor.

    Asynchronous copies need page-locked memory. All is made once, when the engine is opened.

    Threads: made, used and freed where the CUDA context is current, by one thread at a time.

    Attributes:
        context: of the plan, set by the engine.
        stream: the batch's copies and its computation, in order.
        host: page-locked float32[rows, *dims], by tensor.
        device: allocations of the same sizes.
        events: by mark.
    """

    def __init__(self) -> None:
        self.context: Any = None
        self.stream: Any = None
        self.host: dict[str, F32] = {}
        self.device: dict[str, Any] = {}
        self.events: dict[str, Any] = {}

    def allocate(self, driver: Any, dims: Mapping[str, tuple[int, ...]], rows: int) -> None:
        """Make the stream, and room for so many rows.

        Raises:
            driver.Error: there is not enough memory; `free` frees what was made.
        """
        self.stream = driver.Stream(NON_BLOCKING)
        for name, each in dims.items():
            self.host[name] = driver.pagelocked_empty((rows, *each), np.float32)
            self.device[name] = driver.mem_alloc(self.host[name].nbytes)
        for mark in MARKS:
            # A thread that waits sleeps: two that spun would take two cores from whatever else runs.
            self.events[mark] = driver.Event(driver.event_flags.BLOCKING_SYNC)

    def wait(self) -> None:
        """Until all that was queued has been done."""
        self.events["left"].record(self.stream)
        self.events["left"].synchronize()

    def seconds(self, first: str, last: str) -> float:
        """Between two marks that were both recorded and have both passed."""
        return float(self.events[last].time_since(self.events[first])) / 1000

    def free(self) -> None:
        """Free everything, the last made first; nothing may be under way. May be called twice."""
        while self.events:
            self.events.popitem()
        while self.device:
            self.device.popitem()[1].free()
        while self.host:
            owner: Any = self.host.popitem()[1].base
            owner.free()
        self.stream = None
        self.context = None
