"""Memory of one batch on the host and on the GPU, and the events that mark the batch's way."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from engines.engine import F32

MARKS = ("sent", "arrived", "begun", "computed", "fetched", "left")
"""In order of a batch's way. `arrived`, `computed` and `left` order the streams; the others tell time."""


class Buffers:
    """A page-locked and a device buffer for every tensor, allocated once; asynchronous copies need the first.

    Threads: made, used and freed where the CUDA context is current, by one thread at a time.

    Attributes:
        host: page-locked float32[rows, *dims], by tensor.
        device: allocations of the same sizes.
        events: by mark.
    """

    def __init__(self, driver: Any, dims: Mapping[str, tuple[int, ...]], rows: int) -> None:
        """Allocate room for so many rows.

        Raises:
            driver.Error: there is not enough memory; what was allocated is freed.
        """
        self.host: dict[str, F32] = {}
        self.device: dict[str, Any] = {}
        self.events: dict[str, Any] = {}
        try:
            for name, each in dims.items():
                self.host[name] = driver.pagelocked_empty((rows, *each), np.float32)
                self.device[name] = driver.mem_alloc(self.host[name].nbytes)
            for mark in MARKS:
                self.events[mark] = driver.Event()
        except driver.Error:
            self.free()
            raise

    def free(self) -> None:
        """Free everything, the last made first; nothing may be under way in it. May be called twice."""
        while self.events:
            self.events.popitem()
        while self.device:
            self.device.popitem()[1].free()
        while self.host:
            owner: Any = self.host.popitem()[1].base
            owner.free()

    def seconds(self, first: str, last: str) -> float:
        """Between two marks that were both recorded and have both passed."""
        return float(self.events[last].time_since(self.events[first])) / 1000
