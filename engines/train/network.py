"""The vitals network: one recurrent step over a row of the patient window, in PyTorch.

    values, elapsed, counts --Inputs--> Scaled, five float32[batch, features]
    Scaled, state --summarise--> running highest, lowest, mean, ... of each feature --Dense--> Read
    Scaled, state --Recurrent--> hidden state                                               --> Read

A `Read` is a logit and the changes that the next hour is expected to bring. Several members of both kinds,
trained apart, share one step graph (`Step`): their logits are averaged and calibrated, their forecasts
averaged. The step is written as plain operators so that any runtime can take the exported graph; training
runs the same weights through `torch.nn.GRU`, which is faster over whole stays.
"""

# mypy: allow-subclassing-any
# torch is an extra and is not type-checked: its classes are Any here.
from math import log
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from schemas.window import NEVER


class Scaled(NamedTuple):
    """Rows as the members read them, each float32[..., features].

    A feature never seen is 0 in all but `elapsed`.

    z: last value as z-score, limited to `Inputs.LIMIT`.
    elapsed: as in the row.
    fresh: 1 where the value is of this hour (static features: where known).
    recency: 1 for a value of this hour, falling with the logarithm of its age.
    counts: log of one more than the measurements in this hour.
    """

    z: Tensor
    elapsed: Tensor
    fresh: Tensor
    recency: Tensor
    counts: Tensor


class Inputs(nn.Module):
    """Row -> `Scaled`; skewed features are logged first. Nothing here is learnt by descent."""

    LIMIT = 6.0

    def __init__(self, mean: Tensor, scale: Tensor, logged: Tensor) -> None:
        """Set the normalisation.

        Args:
            mean: float32[features], of the values, logged where `logged` is 1.
            scale: float32[features], their standard deviation.
            logged: float32[features], 1 where log1p of the value is used.
        """
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.register_buffer("logged", logged)

    def forward(self, values: Tensor, elapsed: Tensor, counts: Tensor) -> Scaled:
        """From three float32[..., features]."""
        positive = torch.relu(values)
        x = self.logged * torch.log(positive + 1) + (1 - self.logged) * values
        z = torch.clamp((x - self.mean) / self.scale, -self.LIMIT, self.LIMIT)
        # NEVER is the greatest elapsed; a feature never seen sits at the mean.
        return Scaled(
            z * torch.clamp(NEVER - elapsed, 0, 1),
            elapsed,
            torch.clamp(1 - elapsed, 0, 1),
            1 - torch.log(elapsed + 1) / log(NEVER + 1),
            torch.log(counts + 1),
        )


SUMMARIES = 5
"""Numbers that the running summary keeps of each series."""

_ABOVE = Inputs.LIMIT + 1
"""Added to z-scores before a running maximum, so that every value seen stands above the 0 of none."""


def summarise(row: Scaled, state: Tensor, series: Tensor) -> Tensor:
    """The running summary one row later.

    Args:
        row: each float32[..., features].
        state: float32[..., 5 * series]: of each series, over the hours in which it was measured, highest
            z-score + 7, 7 - lowest, number of hours, sum of z-scores, first; zeros before the first row.
        series: int64[series], which features are summarised.
    """
    highest, lowest, hours, total, first = torch.chunk(state, SUMMARIES, dim=-1)
    z, fresh = _of(row.z, series), _of(row.fresh, series)
    return torch.cat(
        [
            torch.maximum(highest, fresh * (_ABOVE + z)),
            torch.maximum(lowest, fresh * (_ABOVE - z)),
            hours + fresh,
            total + fresh * z,
            first + fresh * z * (1 - torch.clamp(hours, 0, 1)),
        ],
        dim=-1,
    )


def _of(array: Tensor, places: Tensor) -> Tensor:
    """Some places of the last axis; indexed by a tensor it would be an operator that fewer runtimes have."""
    return torch.index_select(array, -1, places)


def summaries(rows: Scaled, series: Tensor) -> Tensor:
    """`summarise` after every row of whole stays, float32[stays, steps, 5 * series]."""
    z, fresh = _of(rows.z, series), _of(rows.fresh, series)
    hours = torch.cumsum(fresh, dim=1)
    return torch.cat(
        [
            torch.cummax(fresh * (_ABOVE + z), dim=1).values,
            torch.cummax(fresh * (_ABOVE - z), dim=1).values,
            hours,
            torch.cumsum(fresh * z, dim=1),
            torch.cumsum(fresh * z * (1 - torch.clamp(hours - fresh, 0, 1)), dim=1),
        ],
        dim=-1,
    )


def delayed(states: Tensor) -> Tensor:
    """States before each step, from those after it: float32[stays, steps, width]."""
    return torch.cat([torch.zeros_like(states[:, :1]), states[:, :-1]], dim=1)


def at(stays: Scaled, hours: NDArray[np.intp]) -> Scaled:
    """The rows of these hours of whole stays."""
    return Scaled(*(array[:, hours] for array in stays))


class Read(NamedTuple):
    """What a member makes of a row: float32[..., 1] logit; float32[..., forecasts] changes.

    A change is in units of `Target.change`: what the next hour adds to the last value. It is read without
    dropout and noise, from the last values too: most of it is their way back to what is usual.
    """

    logit: Tensor
    changes: Tensor


class Dropout(nn.Module):
    """As `torch.nn.Dropout`, whose draws take six times as long on a processor."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        """Of any shape."""
        if not self.training:
            return x
        return x * (torch.rand_like(x) >= self.share) / (1 - self.share)


class Decayed(nn.Module):
    """`Scaled` -> float32[..., 4 * features], z-scores decaying towards the mean at learnt rates."""

    def __init__(self, features: int, noise: float) -> None:
        super().__init__()
        self.noise = noise
        self.decay = nn.Parameter(torch.full((features,), -4.0))

    def forward(self, row: Scaled) -> Tensor:
        """In training, with noise on the values that are known."""
        z = row.z
        if self.training:
            z = z + self.noise * torch.randn_like(z) * (row.recency > 0)
        rate = torch.log(torch.exp(self.decay) + 1)
        return torch.cat([z * torch.exp(-rate * row.elapsed), row.fresh, row.recency, row.counts], dim=-1)


class Recurrent(nn.Module):
    """A GRU; its state is its hidden state."""

    def __init__(self, features: int, forecasts: int, hidden: int, dropout: float, noise: float) -> None:
        super().__init__()
        self.width = hidden
        self.decayed = Decayed(features, noise)
        self.gru = nn.GRU(4 * features, hidden, batch_first=True)
        self.dropout = Dropout(dropout)
        self.head = nn.Linear(hidden, 1)
        self.forecast = nn.Linear(2 * features + hidden, forecasts)

    def over(self, stays: Scaled) -> tuple[Read, Tensor]:
        """What is read of every row of whole stays, and the states after each."""
        states, _ = self.gru(self.decayed(stays))
        return self._read(stays, states), states

    def step(self, row: Scaled, state: Tensor) -> tuple[Read, Tensor]:
        """One step from float32[..., hidden]; the same arithmetic as `over`, as plain matrix products."""
        gru, h = self.gru, self.width
        x = self.decayed(row) @ gru.weight_ih_l0.T + gru.bias_ih_l0
        y = state @ gru.weight_hh_l0.T + gru.bias_hh_l0
        reset = torch.sigmoid(x[..., :h] + y[..., :h])
        update = torch.sigmoid(x[..., h : 2 * h] + y[..., h : 2 * h])
        new = torch.tanh(x[..., 2 * h :] + reset * y[..., 2 * h :])
        state = (1 - update) * new + update * state
        return self._read(row, state), state

    def learn(self, closed: Scaled, opened: Scaled, hours: NDArray[np.intp]) -> tuple[Read, Read]:
        """What is read at these hours of whole stays, once they are complete and while in progress."""
        _, states = self.over(closed)
        before = delayed(states)[:, hours]
        return self._read(at(closed, hours), states[:, hours]), self.step(at(opened, hours), before)[0]

    def _read(self, row: Scaled, state: Tensor) -> Read:
        changes = self.forecast(torch.cat([row.z, row.recency, state], dim=-1))
        return Read(self.head(self.dropout(state)), changes)


class Dense(nn.Module):
    """A network of two layers over the row and the running summary, which all of its kind share."""

    width = 0

    def __init__(
        self, features: int, series: Tensor, forecasts: int, hidden: int, dropout: float, noise: float
    ) -> None:
        super().__init__()
        self.decayed = Decayed(features, noise)
        self.register_buffer("series", series)
        size = 4 * features + SUMMARIES * len(series)
        self.layers = nn.Sequential(
            nn.Linear(size, hidden),
            Swish(),
            Dropout(dropout),
            nn.Linear(hidden, hidden // 2),
            Swish(),
            Dropout(dropout),
        )
        self.head = nn.Linear(hidden // 2, 1)
        self.forecast = nn.Linear(2 * features + SUMMARIES * len(series) + hidden // 2, forecasts)

    def over(self, stays: Scaled) -> tuple[Read, Tensor]:
        """What is read of every row of whole stays, and the summaries after each."""
        after = summaries(stays, self.series)
        return self.read(stays, after), after

    def learn(self, closed: Scaled, opened: Scaled, hours: NDArray[np.intp]) -> tuple[Read, Read]:
        """As `Recurrent.learn`."""
        after = summaries(closed, self.series)
        row = at(opened, hours)
        begun = summarise(row, delayed(after)[:, hours], self.series)
        return self.read(at(closed, hours), after[:, hours]), self.read(row, begun)

    def read(self, row: Scaled, after: Tensor) -> Read:
        """From a row and the summary that counts it in."""
        highest, lowest, hours, total, first = torch.chunk(after, SUMMARIES, dim=-1)
        seen = torch.clamp(hours, 0, 1)
        mean = total / torch.clamp(hours, min=1)
        found = [seen * (highest - _ABOVE), seen * (_ABOVE - lowest), torch.log(hours + 1) / 2, mean, first]
        top = self.layers(torch.cat([self.decayed(row), *found], dim=-1))
        changes = self.forecast(torch.cat([row.z, row.recency, *found, top], dim=-1))
        return Read(self.head(top), changes)


class Swish(nn.Module):
    """x * sigmoid(x), in two operators that every runtime has."""

    def forward(self, x: Tensor) -> Tensor:
        """Of any shape."""
        return x * torch.sigmoid(x)


Member = Recurrent | Dense
"""Both read a row; one carries a hidden state of its own, the other reads the shared summary."""


class Target(NamedTuple):
    """What is forecast: arrays of [forecasts].

    feature: int64, its place among the features.
    change: float32, the unit of a member's changes, in the feature's unit.
    low, high: float32, what a forecast is limited to, in the feature's unit.
    """

    feature: Tensor
    change: Tensor
    low: Tensor
    high: Tensor


class Calibration(NamedTuple):
    """probability = sigmoid(slope * logit + intercept)"""

    slope: float
    intercept: float


class Step(nn.Module):
    """The graph that is served: one step of all members, averaged and calibrated."""

    def __init__(
        self,
        inputs: Inputs,
        members: list[Member],
        series: Tensor,
        target: Target,
        calibration: Calibration,
    ) -> None:
        """Put members together that were trained on these `inputs`.

        Args:
            inputs: normalisation.
            members: any number of either kind, one at the least.
            series: int64[series], features of the running summary.
            target: what is forecast.
            calibration: of the mean logit.
        """
        super().__init__()
        self.inputs = inputs
        self.members = nn.ModuleList(members)
        self.calibration = calibration
        self.register_buffer("series", series)
        for name, tensor in target._asdict().items():
            self.register_buffer(name, tensor)

    @property
    def summary_width(self) -> int:
        """Length of the running summary in the state, which comes first."""
        dense = any(isinstance(member, Dense) for member in self.members)
        return SUMMARIES * len(self.series) if dense else 0

    @property
    def width(self) -> int:
        """Length of the state: the summary, then the hidden states one after the other."""
        hidden: int = sum(member.width for member in self.members)
        return self.summary_width + hidden

    def forward(
        self, values: Tensor, elapsed: Tensor, counts: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Calibrated risk and spread float32[batch], forecast float32[batch, forecasts], the next state."""
        row = self.inputs(values, elapsed, counts)
        start = self.summary_width
        summary = summarise(row, state[:, :start], self.series) if start else state[:, :0]
        reads, states = [], [summary] if start else []
        for member in self.members:
            if isinstance(member, Dense):
                reads.append(member.read(row, summary))
                continue
            read, after = member.step(row, state[:, start : start + member.width])
            reads.append(read)
            states.append(after)
            start += member.width
        return *self.outputs(values, reads), torch.cat(states, dim=-1)

    def over(self, values: Tensor, elapsed: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The first three outputs after every step of whole stays, by the path that training takes."""
        stays = self.inputs(values, elapsed, counts)
        return self.outputs(values, [member.over(stays)[0] for member in self.members])

    def outputs(self, values: Tensor, reads: list[Read]) -> tuple[Tensor, Tensor, Tensor]:
        """Risk, spread and forecast from what the members read."""
        logits = torch.cat([read.logit for read in reads], dim=-1)
        risks = self._calibrated(logits)
        apart = risks - torch.mean(risks, dim=-1, keepdim=True)
        changes = sum((read.changes for read in reads[1:]), reads[0].changes) / len(reads)
        forecast = _of(values, self.feature) + changes * self.change
        return (
            self._calibrated(torch.mean(logits, dim=-1)),
            torch.sqrt(torch.mean(apart * apart, dim=-1)),
            torch.minimum(torch.maximum(forecast, self.low), self.high),
        )

    def _calibrated(self, logits: Tensor) -> Tensor:
        return torch.sigmoid(logits * self.calibration.slope + self.calibration.intercept)
