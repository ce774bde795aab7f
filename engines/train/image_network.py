"""The image network: a small residual network whose logits are the means of its class-activation map.

    image -> z-score -> stem -> residual stages -> 1x1 convolution -> activation --mean--> logits

The map is the evidence itself: a class's logit is the mean of its map and a constant. Members trained
apart share one graph (`Ensemble`): their maps are averaged and calibrated by one factor.
"""

# mypy: allow-subclassing-any
# torch is an extra and is not type-checked: its classes are Any here.
from copy import deepcopy
from itertools import pairwise
from math import log2

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

WIDTHS = (24, 48, 96, 128)
"""Channels of the stages; each halves the one before."""

MAP = 7
"""Pixels: the least side of the last stage, and so of the activation map. Coarser maps point at nothing."""


class Convolution(nn.Module):
    """3x3 (or 1x1) convolution and batch normalisation, which `fold` makes one."""

    def __init__(self, inside: int, outside: int, *, stride: int = 1, size: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, size, stride, padding=size // 2, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(outside)

    def forward(self, x: Tensor) -> Tensor:
        """float32[batch, outside, height / stride, width / stride]."""
        return self.norm(self.conv(x))

    def fold(self) -> None:
        """Put the normalisation of a trained layer into its weights."""
        self.conv, self.norm = fuse_conv_bn_eval(self.conv, self.norm), nn.Identity()


class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.first = Convolution(inside, outside, stride=stride)
        self.second = Convolution(outside, outside)
        same = inside == outside and stride == 1
        self.shortcut = nn.Identity() if same else Convolution(inside, outside, stride=stride, size=1)

    def forward(self, x: Tensor) -> Tensor:
        """float32[batch, outside, height / stride, width / stride]."""
        return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))


class Member(nn.Module):
    """One network for one size of picture."""

    def __init__(
        self, channels: int, height: int, width: int, classes: int, norm: tuple[Tensor, Tensor]
    ) -> None:
        """Make a network with random weights.

        Args:
            channels: of the pictures.
            height: of the pictures, pixels.
            width: of the pictures, pixels.
            classes: number of classes.
            norm: mean and standard deviation of the pixels, float32[channels] each.
        """
        super().__init__()
        self.register_buffer("mean", norm[0][:, None, None])
        self.register_buffer("scale", norm[1][:, None, None])
        halvings = max(0, int(log2(min(height, width) / MAP)))
        stages = WIDTHS[: halvings + 1]
        stem = halvings + 1 - len(stages)
        widths = [channels, *([stages[0]] * max(stem, 1))]
        self.stem = nn.ModuleList(Convolution(a, b, stride=2 if stem else 1) for a, b in pairwise(widths))
        blocks = [Residual(stages[0], stages[0], 1)]
        blocks += [Residual(a, b, 2) for a, b in pairwise(stages)]
        self.blocks = nn.Sequential(*blocks, Residual(stages[-1], stages[-1], 1))
        self.dropout = nn.Dropout2d(0.2)
        self.head = nn.Conv2d(stages[-1], classes, 1)

    def activation(self, image: Tensor) -> Tensor:
        """float32[batch, classes, map height, map width]: the evidence for each class at each place."""
        x = (image - self.mean) / self.scale
        for convolution in self.stem:
            x = torch.relu(convolution(x))
        return self.head(self.dropout(self.blocks(x)))

    def forward(self, image: Tensor) -> Tensor:
        """Logits float32[batch, classes] of float32[batch, channels, height, width] in [0, 1]."""
        return self.activation(image).mean(dim=(2, 3))

    def folded(self) -> "Member":
        """A copy for serving, without normalisation layers: the same numbers to within rounding."""
        copy: Member = deepcopy(self)
        copy.eval()
        for module in copy.modules():
            if isinstance(module, Convolution):
                module.fold()
        return copy


class Ensemble(nn.Module):
    """The graph that is served: members averaged, calibrated by a factor on the logits."""

    def __init__(self, members: list[Member], factor: float) -> None:
        super().__init__()
        self.members = nn.ModuleList(member.folded() for member in members)
        self.factor = factor

    def map_dims(self, dims: tuple[int, int, int]) -> tuple[int, int]:
        """Height and width of the activation map for pictures of these channels, height and width."""
        with torch.no_grad():
            height, width = self.members[0].activation(torch.zeros(1, *dims)).shape[2:]
        return int(height), int(width)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Probability float32[batch, classes] and activation float32[batch, classes, height, width].

        The softmax of the activation's means is the probability.
        """
        maps = [member.activation(image) for member in self.members]
        activation = sum(maps[1:], maps[0]) * (self.factor / len(maps))
        return torch.softmax(activation.mean(dim=(2, 3)), dim=1), activation
