"""The one interface of every backend: rows in, risks out."""

import abc
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engines.errors import InputError
from engines.precision import Precision
from schemas.model_config import ModelConfig

F32 = NDArray[np.float32]

ANSWERS = frozenset({"risk", "probability"})
"""What alerts are decided by: `risk` of a series model, `probability` of an image model."""

ANSWER_SHARE = 0.1
"""Of `golden_tolerance_fp16`, what is left to `ANSWERS`. That is sized for forecasts and activation maps,
which fp16 moves ten times further than it moves risks; as much on a risk would change decisions."""


class Parts(NamedTuple):
    """Seconds of one batch: bringing its inputs to where they are computed, computing, taking outputs out."""

    copy_in: float
    compute: float
    copy_out: float


class Engine(abc.ABC):
    """A loaded model, ready to run.

    Row i of a batch gives the same bytes in any batch of any size: alerts must not depend on how rows
    happened to be batched. ONNX Runtime keeps that promise, and the contract tests hold it to it; of
    TensorRT it is not proven.

    Threads: `in_flight` threads at a time call `run`; any thread may make or close an engine.
    Ownership: returned arrays are the caller's and are never written again; inputs are only read.

    Attributes:
        config: the model's config.json.
        backend: the runtime and device that computes, for example `onnxruntime-cpu`.
        one_by_one: a batch's rows are computed alone, one after the other.
        in_flight: batches that it gains by having at once; more than it computes at once, if copying one to
            a device overlaps computing another.
        precision: what it computes in.
    """

    one_by_one = False
    in_flight = 1
    precision: Precision = "fp32"

    def __init__(self, config: ModelConfig, backend: str) -> None:
        self.config = config
        self.backend = backend
        self.input_dims = {tensor.name: tensor.dims for tensor in config.input} | {
            pair.input: pair.dims for pair in config.state
        }
        self.output_dims = {tensor.name: tensor.dims for tensor in config.output} | {
            pair.output: pair.dims for pair in config.state
        }

    def golden_tolerance(self, output: str) -> float:
        """How far an output may lie from the golden data: the config's, for what the engine computes in."""
        if self.precision == "fp32":
            return self.config.golden_tolerance
        share = ANSWER_SHARE if output in ANSWERS else 1.0
        return share * self.config.golden_tolerance_fp16

    def run(self, inputs: Mapping[str, F32]) -> dict[str, F32]:
        """Compute one batch.

        Args:
            inputs: every input and state of the config, float32[batch, *dims], finite; batch from 1 to
                the config's max_batch_size.

        Returns:
            Every output and state of the config, float32[batch, *dims].

        Raises:
            InputError: the inputs do not fit the config.
            BackendError: the runtime failed; the batch may be tried again.
        """
        rows = self._check(inputs)
        return self._execute(inputs, rows)

    def run_in_each(self, inputs: Mapping[str, F32]) -> Iterator[dict[str, F32]]:
        """Compute one batch as `run` does, in each place that batches are computed in, one after the other.

        What proves an engine has to prove all of it. It waits for a place that is in use.

        Yields:
            What `run` returns, of each place.

        Raises:
            InputError, BackendError: as `run`.
        """
        yield from self._execute_in_each(inputs, self._check(inputs))

    def run_in_parts(self, inputs: Mapping[str, F32]) -> tuple[dict[str, F32], Parts | None]:
        """Compute one batch as `run` does, and say how long its parts took.

        For measurements: nothing that serves calls it, so that serving pays for no clock.

        Returns:
            What `run` returns, and the parts; None where the backend cannot tell them apart.

        Raises:
            InputError, BackendError: as `run`.
        """
        return self._execute_in_parts(inputs, self._check(inputs))

    @abc.abstractmethod
    def _execute(self, inputs: Mapping[str, F32], rows: int) -> dict[str, F32]:
        """Compute inputs that were checked; `rows` is their batch size."""

    def _execute_in_each(self, inputs: Mapping[str, F32], rows: int) -> Iterator[dict[str, F32]]:
        """`_execute` in each place; a backend with more than one has its own."""
        yield self._execute(inputs, rows)

    def _execute_in_parts(self, inputs: Mapping[str, F32], rows: int) -> tuple[dict[str, F32], Parts | None]:
        """`_execute` with its parts timed; a backend that can tell them apart has its own."""
        return self._execute(inputs, rows), None

    @abc.abstractmethod
    def close(self) -> None:
        """Free the device's memory; `run` must not be called again. May be called twice."""

    def _check(self, inputs: Mapping[str, F32]) -> int:
        if inputs.keys() != self.input_dims.keys():
            raise InputError(
                f"{self.config.name} takes the inputs {sorted(self.input_dims)}, came {sorted(inputs)}"
            )
        sizes = {len(array) if array.ndim else 0 for array in inputs.values()}
        limit = self.config.dynamic_batching.max_batch_size
        if len(sizes) != 1 or not 1 <= min(sizes) <= limit:
            raise InputError(f"all inputs must have one batch size from 1 to {limit}, came {sorted(sizes)}")
        for name, dims in self.input_dims.items():
            array = inputs[name]
            if array.dtype != np.float32 or array.shape[1:] != dims:
                raise InputError(
                    f"input {name} must be float32[batch, {', '.join(map(str, dims))}], "
                    f"came {array.dtype}{list(array.shape)}"
                )
        return sizes.pop()
