"""The vitals network: one recurrent step over a row of the patient window, in PyTorch.

    values, elapsed, counts --Inputs--> float32[batch, 4 * features]
    (+ state) --GRU cell--> state --Linear--> logit

Several members, trained apart, share one step graph (`Step`): their logits are averaged and calibrated.
The cell is written as matrix products so that any runtime can take the exported graph; training runs
the same weights through `torch.nn.GRU`, which is faster over whole stays.
"""

# mypy: allow-subclassing-any
# torch is an extra and is not type-checked: its classes are Any here.
import torch
from torch import Tensor, nn

from schemas.window import NEVER


class Inputs(nn.Module):
    """Row -> network input: z-score that decays towards the mean, mask, log time, log count.

    Skewed features are logged first. Values are limited to `LIMIT` standard deviations.
    """

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
        self.decay = nn.Parameter(torch.full_like(mean, -4.0))

    def forward(self, values: Tensor, elapsed: Tensor, counts: Tensor) -> Tensor:
        """float32[..., 4 * features], from three float32[..., features]."""
        return self.decayed(*self.scaled(values, elapsed, counts), elapsed)

    def scaled(self, values: Tensor, elapsed: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """The z-scores before their decay and the three other blocks: nothing here is learnt."""
        positive = torch.relu(values)
        x = self.logged * torch.log(positive + 1) + (1 - self.logged) * values
        z = torch.clamp((x - self.mean) / self.scale, -self.LIMIT, self.LIMIT)
        # NEVER is the greatest elapsed; a feature never seen sits at the mean.
        z = z * torch.clamp(NEVER - elapsed, 0, 1)
        mask = torch.clamp(1 - elapsed, 0, 1)
        return z, torch.cat([mask, torch.log(elapsed + 1) / 4, torch.log(counts + 1)], dim=-1)

    def decayed(self, z: Tensor, others: Tensor, elapsed: Tensor) -> Tensor:
        """All four blocks, with the learnt decay of old values towards the mean."""
        rate = torch.log(torch.exp(self.decay) + 1)
        return torch.cat([z * torch.exp(-rate * elapsed), others], dim=-1)


class Member(nn.Module):
    """One GRU with its input layer and its output."""

    def __init__(self, inputs: Inputs, hidden: int) -> None:
        super().__init__()
        features = len(inputs.mean)
        self.inputs = inputs
        self.hidden = hidden
        self.gru = nn.GRU(4 * features, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 1)

    def forward(self, values: Tensor, elapsed: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and states of every step of whole stays, from float32[stays, steps, features]."""
        states, _ = self.gru(self.inputs(values, elapsed, counts))
        return self.head(states)[..., 0], states

    def step(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Logit and state of one step; the same arithmetic as `forward`, as plain matrix products.

        Args:
            inputs: what `self.inputs` made of a row.
            state: float32[batch, hidden].
        """
        gru = self.gru
        h = self.hidden
        x = inputs @ gru.weight_ih_l0.T + gru.bias_ih_l0
        y = state @ gru.weight_hh_l0.T + gru.bias_hh_l0
        reset = torch.sigmoid(x[..., :h] + y[..., :h])
        update = torch.sigmoid(x[..., h : 2 * h] + y[..., h : 2 * h])
        new = torch.tanh(x[..., 2 * h :] + reset * y[..., 2 * h :])
        state = (1 - update) * new + update * state
        return self.head(state)[..., 0], state


class Step(nn.Module):
    """The graph that is served: one step of all members, averaged and calibrated.

    The members share one normalisation.
    """

    def __init__(self, members: list[Member], slope: float, intercept: float) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.slope = slope
        self.intercept = intercept

    @property
    def width(self) -> int:
        """Length of the state: the members' hidden states, one after the other."""
        return sum(member.hidden for member in self.members)

    def forward(
        self, values: Tensor, elapsed: Tensor, counts: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Calibrated risk float32[batch] and the next state."""
        logits, states, start = [], [], 0
        scaled = self.members[0].inputs.scaled(values, elapsed, counts)
        for member in self.members:
            part = state[:, start : start + member.hidden]
            logit, part = member.step(member.inputs.decayed(*scaled, elapsed), part)
            logits.append(logit)
            states.append(part)
            start += member.hidden
        mean = sum(logits[1:], logits[0]) / len(logits)
        return torch.sigmoid(mean * self.slope + self.intercept), torch.cat(states, dim=-1)
