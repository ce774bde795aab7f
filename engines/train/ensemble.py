"""Ensembles: which member learns from which stays, and the training of many members side by side.

Each member is trained by one thread, so that its weights do not depend on how many are trained at a time.
"""

import multiprocessing
import pickle
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from engines.errors import EngineError
from engines.train.data import Material
from engines.train.fit import Found, Recipe, Shape, Split, fit, found
from engines.train.network import Calibration, Member, Step
from schemas.window import Rows

POLL_S = 0.5
"""How often the progress of other processes is looked at."""


class Ensemble(NamedTuple):
    """Members trained on the same stays with the same normalisation."""

    form: Shape
    members: list[Member]

    def step(self, calibration: Calibration) -> Step:
        """The graph of these members."""
        return Step(self.form.inputs, self.members, self.form.series, self.form.target, calibration)

    def found(self, closed: Rows, stays: NDArray[np.intp]) -> Found:
        """Mean logits and mean changes of the members over whole stays."""
        all_found = [found(member, self.form, closed, stays) for member in self.members]
        return Found(*(np.mean(arrays, axis=0) for arrays in zip(*all_found, strict=True)))

    def forecasts(
        self, closed: Rows, stays: NDArray[np.intp], changes: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """What the changes make of the last values, as the graph does: float32[stays, steps, forecasts]."""
        target = self.form.target
        last = closed.values[stays][..., target.feature.numpy()]
        made = last + changes * target.change.numpy()
        return np.asarray(np.clip(made, target.low.numpy(), target.high.numpy()), dtype=np.float32)


class Job(NamedTuple):
    """One member to be trained."""

    recipe: Recipe
    form: Shape
    split: Split
    seed: int


def stratified(died: NDArray[np.floating], parts: int, seed: int) -> NDArray[np.int64]:
    """A part number for each stay, with equal shares of deaths."""
    rng = np.random.default_rng(seed)
    part = np.empty(len(died), dtype=np.int64)
    for outcome in (0, 1):
        index = np.flatnonzero(died == outcome)
        part[rng.permutation(index)] = np.arange(len(index)) % parts
    return part


def jobs(
    recipes: tuple[Recipe, ...],
    form: Shape,
    died: NDArray[np.float32],
    stays: NDArray[np.intp],
    parts: int,
    seed: int,
) -> list[Job]:
    """The members of one ensemble: each leaves out another of the `parts`, by which it is stopped.

    Args:
        recipes: one for each member.
        form: learnt from these stays.
        died: of all stays.
        stays: those that the ensemble may see.
        parts: into how many they are divided, at least two.
        seed: of the division, and with its number of each member.
    """
    part = stratified(died[stays], parts, seed)
    return [
        Job(recipe, form, Split(stays[part != number % parts], stays[part == number % parts]), seed + number)
        for number, recipe in enumerate(recipes)
    ]


def train_all(
    material: Material, work: list[Job], processes: int, on_epochs: Callable[[int], None]
) -> list[Member]:
    """Train the members, in the order of `work`.

    Args:
        material: all stays.
        work: the members.
        processes: how many are trained at a time; 1 trains them in this process.
        on_epochs: told how many epochs are done or were saved by stopping early.

    Raises:
        EngineError: a process was killed, as for want of memory.
    """
    if processes == 1:
        return _train_here(material, work, on_epochs)
    context = multiprocessing.get_context("spawn")
    done = context.Value("q", 0)
    with tempfile.TemporaryDirectory(prefix="riskstream-train-") as folder:
        material.save(Path(folder))
        pool = ProcessPoolExecutor(processes, context, initializer=_begin, initargs=(folder, done))
        with pool:
            try:
                # Plain bytes: torch would send tensors through shared memory, which ends with its process.
                futures = [pool.submit(_train, pickle.dumps(job)) for job in work]
                while wait(futures, POLL_S, "FIRST_EXCEPTION").not_done and not _failed(futures):
                    on_epochs(done.value)
                on_epochs(done.value)
                return [pickle.loads(future.result()) for future in futures]
            except BrokenProcessPool as error:
                raise EngineError(
                    "a training process was killed; train with fewer processes if memory was short"
                ) from error
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


def _failed(futures: list[Future[bytes]]) -> bool:
    return any(future.done() and future.exception() is not None for future in futures)


def _train_here(material: Material, work: list[Job], on_epochs: Callable[[int], None]) -> list[Member]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    members, done = [], 0
    try:
        for job in work:
            counter = _Counter(done, on_epochs)
            members.append(_fitted(material, job, counter))
            done += job.recipe.epochs
            on_epochs(done)
    finally:
        torch.set_num_threads(threads)
    return members


class _Counter:
    """Counts epochs on from those done before."""

    def __init__(self, done: int, on_epochs: Callable[[int], None]) -> None:
        self.done, self.on_epochs = done, on_epochs

    def __call__(self) -> None:
        self.done += 1
        self.on_epochs(self.done)


def _fitted(material: Material, job: Job, on_epoch: Callable[[], None]) -> Member:
    return fit(job.recipe, material, job.split, job.form, seed=job.seed, on_epoch=on_epoch)


class _Process:
    """What a training process holds: the material, and the count of epochs that all processes share."""

    material: Material
    done: "Synchronized[int]"


def _begin(folder: str, done: "Synchronized[int]") -> None:
    torch.set_num_threads(1)
    _Process.material = Material.load(Path(folder))
    _Process.done = done


def _train(job_bytes: bytes) -> bytes:
    job: Job = pickle.loads(job_bytes)
    epochs = 0

    def count(number: int = 1) -> None:
        nonlocal epochs
        epochs += number
        with _Process.done.get_lock():
            _Process.done.value += number

    member = _fitted(_Process.material, job, count)
    count(job.recipe.epochs - epochs)
    return pickle.dumps(member)
