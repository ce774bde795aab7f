"""Trains image members side by side, each in a process of its own with one thread.

A member's bytes depend on its pictures, recipe and seed alone, so the number of processes changes nothing
but the time.
"""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.queues import SimpleQueue
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from engines.engine import F32
from engines.errors import EngineError
from engines.train.image_fit import Recipe, fit, normalisation
from engines.train.image_network import Member

Weights = dict[str, NDArray[np.generic]]


class Task(NamedTuple):
    """A member to train: how, on which pictures, and the seed of its draws."""

    recipe: Recipe
    learn: NDArray[np.intp]
    seed: int


class Pictures(NamedTuple):
    """What tasks number: float32[images, channels, height, width] and int64[images]."""

    tensors: F32
    labels: NDArray[np.int64]
    classes: int


def train_members(
    pictures: Pictures, tasks: list[Task], processes: int, on_epoch: Callable[[], None]
) -> list[Member]:
    """The members of the tasks, in their order.

    Args:
        pictures: copied to every process.
        tasks: what to train.
        processes: how many at a time; with one, all are trained here.
        on_epoch: called after each epoch of each member.

    Raises:
        EngineError: a training process was killed.
    """
    if processes == 1 or len(tasks) == 1:
        torch.set_num_threads(1)
        return [_trained(pictures, task, on_epoch) for task in tasks]
    context = multiprocessing.get_context("spawn")
    epochs: SimpleQueue[None] = context.SimpleQueue()
    with ProcessPoolExecutor(
        min(processes, len(tasks)), context, initializer=_start, initargs=(pictures, epochs)
    ) as pool:
        futures = [pool.submit(_weights, task) for task in tasks]
        pending = set(futures)
        while pending:
            pending = wait(pending, timeout=0.5).not_done
            while not epochs.empty():
                epochs.get()
                on_epoch()
        try:
            found = [future.result() for future in futures]
        except BrokenProcessPool as error:
            raise EngineError(
                "a training process was killed, perhaps for want of memory: train with --threads 1"
            ) from error
    return [_member(pictures, task, weights) for task, weights in zip(tasks, found, strict=True)]


_pictures: Pictures
_epochs: "SimpleQueue[None]"


def _start(pictures: Pictures, epochs: "SimpleQueue[None]") -> None:
    global _pictures, _epochs
    _pictures, _epochs = pictures, epochs
    torch.set_num_threads(1)


def _weights(task: Task) -> Weights:
    """A member as arrays: torch would hand tensors over by open files, which end with the process."""
    member = _trained(_pictures, task, lambda: _epochs.put(None))
    return {name: tensor.numpy().copy() for name, tensor in member.state_dict().items()}


def _trained(pictures: Pictures, task: Task, on_epoch: Callable[[], None]) -> Member:
    return fit(
        task.recipe,
        pictures.tensors[task.learn],
        pictures.labels[task.learn],
        pictures.classes,
        seed=task.seed,
        on_epoch=on_epoch,
    )


def _member(pictures: Pictures, task: Task, weights: Weights) -> Member:
    channels, height, width = pictures.tensors.shape[1:]
    norm = normalisation(pictures.tensors[task.learn[:1]])
    member = Member(channels, height, width, pictures.classes, norm)
    member.eval()
    member.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    return member
