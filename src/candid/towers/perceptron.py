"""The output layers of towers that combine vectors: a linear map plus a perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from candid.towers.dropout import Dropout
from candid.towers.protocol import MAX_WIDTH

Activation = Literal["gelu", "relu"]
Hidden = tuple[Annotated[int, Field(ge=1, le=MAX_WIDTH)], ...]
"""A config field with the widths of hidden layers."""

ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU}


class Perceptron(nn.Module):
    """The sum of a linear map and a perceptron with hidden layers.

    The linear path models additive effects from the first step, as the sum of feature vectors
    does in LightFM (Kula, 2015); the hidden layers model the rest. This is the wide and deep model
    of Cheng et al. (2016).

    Args:
        width: of the input.
        dim: D, width of the output.
        hidden: widths of the hidden layers; empty for the linear map alone.
        activation: after each hidden layer.
        dropout: after each activation.
        scale: of the initial output, relative to the initialisation of PyTorch.
    """

    def __init__(
        self,
        width: int,
        *,
        dim: int,
        hidden: Sequence[int],
        activation: Activation,
        dropout: float,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(width, dim)
        layers: list[nn.Module] = []
        for inner, outer in pairwise((width, *hidden)):
            layers += [nn.Linear(inner, outer), ACTIVATIONS[activation](), Dropout(dropout)]
        if hidden:
            layers.append(nn.Linear(hidden[-1], dim, bias=False))
        self.deep = nn.Sequential(*layers) if layers else None
        with torch.no_grad():
            for last in (self.linear, *layers[-1:]):
                for parameter in last.parameters():
                    parameter.mul_(scale)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map [n, width] to [n, D]."""
        linear: Tensor = self.linear(inputs)
        return linear if self.deep is None else linear + self.deep(inputs)
