"""`riskstream bench explain`: what the contributions in alerts cost, and how far other ways agree.

    served      as alerts carry them: the window stepped again for each measured feature, in lockstep
    reference   the same definition, slowly, feature by feature (`engines.explain.contributions`)
    newest row  only the newest row is made ordinary; what the state remembers stays. Cheap
    shapley     sampled Shapley values: features judged in company rather than alone. Slow

Alerts are those of the path over a recording. Costs are CPU time of the whole process for each alert.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from engines import repository
from engines.engine import F32, Engine
from engines.explain import contributions, ordinary, shapley
from engines.steps import SeriesModel
from schemas.window import NEVER, Rows
from worker.batch import Batcher
from worker.bench import report
from worker.bench.pipeline import PACKAGES, PLACE, records_of
from worker.change import Change
from worker.config import Settings
from worker.infer import window_of
from worker.intake import limits_of
from worker.partition import Partition
from worker.pipeline import Pipeline
from worker.plan import Scored
from worker.policies import shipped
from worker.publish import Outgoing
from worker.recording import Recording, SourceError
from worker.served import Alone, Served

TOP = 3
"""Inputs that a reader of an alert looks at."""

PERMUTATIONS = 10
"""Orders for each Shapley value, each taken both ways: enough for the three greatest to settle."""


class Explained(NamedTuple):
    """One alerting score: what it rests on, and what was served."""

    scored: Scored
    risk: float
    served: F32


class Listening(Pipeline):
    """The path, which keeps what it explains and how long that takes."""

    explained: list[Explained]
    seconds: float

    async def _explain(self, change: Change, risks: F32, served: Served) -> dict[int, F32]:
        started = time.process_time()
        found = await super()._explain(change, risks, served)
        self.seconds += time.process_time() - started
        self.explained += [
            Explained(change.plan.scored[i], float(risks[i]), parts) for i, parts in found.items()
        ]
        return found


def run(
    source: str,
    recording: Recording,
    alerts: int,
    settings: Settings,
    *,
    on_progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure, and give the report.

    Args:
        source: names the recording in the report.
        recording: what to run through the path.
        alerts: how many, evenly over the recording, the slow ways are tried on.
        settings: model, limits and chunk size.
        on_progress: told what goes on, in a few words.
    """
    engine = repository.load(
        settings.model_repository,
        settings.model,
        settings.backend,
        settings.plans,
        precision=settings.precision,
    )
    on_progress("running the path")
    path, number = asyncio.run(_path(recording, engine, settings))
    if not path.explained:
        raise SourceError(f"{source} gives no alert to explain; take more patients")
    every = max(len(path.explained) // alerts, 1)
    chosen = path.explained[::every][:alerts]
    served = np.stack([one.served for one in chosen])
    ways: dict[str, dict[str, float]] = {
        "served": {"cpu_ms_per_alert": round(1000 * path.seconds / len(path.explained), 3)}
    }
    windows = [_window(one) for one in chosen]
    newest = [_newest(engine, one) for one in chosen]
    others: dict[str, Callable[[int], F32]] = {
        "reference": lambda i: contributions(engine, windows[i]),
        "newest row": lambda i: _newest_row(engine, *newest[i], chosen[i].risk),
        "shapley": lambda i: shapley(engine, windows[i], PERMUTATIONS),
    }
    for name, way in others.items():
        on_progress(f"{name}, {len(chosen)} alerts")
        started = time.process_time()
        found = np.stack([way(i) for i in range(len(chosen))])
        cost = (time.process_time() - started) / len(chosen)
        ways[name] = {"cpu_ms_per_alert": round(1000 * cost, 3), **agreement(served, found)}
    engine.close()
    return {
        "benchmark": "explain",
        **report.circumstances(PACKAGES),
        "source": source,
        "model": {"name": engine.config.name, "version": engine.config.version, "backend": engine.backend},
        "records": number,
        "alerts": len(path.explained),
        "compared": len(chosen),
        "measured_features": round(float(np.isfinite(served).sum(axis=1).mean()), 1),
        "served_cpu_us_per_record": round(1e6 * path.seconds / number, 2),
        "ways": ways,
    }


def agreement(served: F32, other: F32) -> dict[str, float]:
    """How far two ways agree over alerts: float32[alerts, features] each, NaN in the same places.

    Returns:
        `top_3`: how many of the three greatest, by size, are the same.
        `rank`: mean rank correlation (Spearman) over an alert's inputs.
        `same_sign`: share of the three greatest served ones that have the same sign the other way.
        `largest_difference`: in probability.
    """
    top, rank, sign = [], [], []
    for a, b in zip(served, other, strict=True):
        measured = np.flatnonzero(np.isfinite(a))
        x, y = a[measured], b[measured]
        first, second = (np.argsort(-np.abs(array), kind="stable")[:TOP] for array in (x, y))
        top.append(len(set(first) & set(second)))
        sign.append(np.mean(np.sign(x[first]) == np.sign(y[first])))
        ranks = np.array([np.argsort(np.argsort(array)) for array in (x, y)], dtype=np.float64)
        if len(measured) > 2:
            rank.append(float(np.corrcoef(ranks[0], ranks[1])[0, 1]))
    return {
        "top_3": round(float(np.mean(top)), 2),
        "rank": round(float(np.mean(rank)), 3) if rank else 1.0,
        "same_sign": round(float(np.mean(sign)), 3),
        "largest_difference": round(float(np.nanmax(np.abs(served - other))), 7),
    }


def _window(one: Explained) -> Rows:
    assert one.scored.window is not None
    return one.scored.window.rows()


def _newest(engine: Engine, one: Explained) -> tuple[Rows, F32]:
    """What the model reads of the window, float32[1, ..., features], and its state before the newest row.

    A worker carries the state, so it is no part of the cost.
    """
    model = SeriesModel(engine.config)
    window = window_of(one.scored, model)
    states = np.zeros((1, model.width), dtype=np.float32)
    if model.whole:
        return Rows(*(array[None] for array in window)), states
    for k in range(len(window.values) - 1):
        outputs = engine.run(model.inputs(Rows(*(array[k : k + 1] for array in window)), states))
        states = model.states(outputs)
    return Rows(*(array[-1:] for array in window)), states


def _newest_row(engine: Engine, rows: Rows, states: F32, risk: float) -> F32:
    """Contributions where the newest row alone is made ordinary: one engine call."""
    model = SeriesModel(engine.config)
    last = rows.elapsed.reshape(-1, len(model.columns))[-1]
    measured = np.flatnonzero(last < NEVER)
    variants = Rows(*(np.repeat(array, len(measured), axis=0) for array in rows))
    changed = ordinary(variants, measured, model)
    if model.whole:
        values = variants.values.copy()
        values[:, -1] = changed.values[:, -1]
        changed = changed._replace(values=values)
    outputs = engine.run(model.inputs(changed, np.repeat(states, len(measured), axis=0)))
    found = np.full(len(model.columns), np.nan, dtype=np.float32)
    found[measured] = risk - outputs["risk"]
    return found


async def _path(recording: Recording, engine: Engine, settings: Settings) -> tuple[Listening, int]:
    """The path after the recording, and the number of its records."""
    batcher = Batcher(engine, lambda: None, settings.infer_timeout_s, settings.engine_patience_s)
    policies = shipped(settings, engine.config)

    async def nowhere(messages: Sequence[Outgoing]) -> None:
        return

    path = Listening(
        Alone(Served(engine.config, engine.backend, batcher.infer)),
        policies,
        nowhere,
        settings.output_topics,
        limits_of(settings),
        publish_scores=False,
    )
    path.explained, path.seconds = [], 0.0
    partition, records = Partition(PLACE, 0, 0), list(records_of(recording, None))
    for at in range(0, len(records), settings.chunk_records):
        await path.process(partition, records[at : at + settings.chunk_records])
    await batcher.close()
    return path, len(records)
