"""Low-rank adapters on the language model's linear layers: beside the weights, or merged into them.

peft can do this and much more; these few lines are the part that the model needs, without its seven
seconds of import.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor


class Switch:
    """Which adapter works, for all layers of a model at once."""

    def __init__(self) -> None:
        self.adapter = ""


class Adapted(nn.Module):
    """A linear layer with adapters beside it, of which one works.

    Args:
        base: the layer, quantized or not.
        switch: tells the adapter.
        low_rank: adapter's name to its A, (rank, in), and B, (out, rank).
        scales: adapter's name to the factor of its contribution.
    """

    def __init__(
        self,
        base: nn.Module,
        switch: Switch,
        low_rank: Mapping[str, tuple[Tensor, Tensor]],
        scales: Mapping[str, float],
    ) -> None:
        super().__init__()
        self.base = base
        self.switch = switch
        self.scales = dict(scales)
        frozen = {
            name: (nn.Parameter(a, requires_grad=False), nn.Parameter(b, requires_grad=False))
            for name, (a, b) in low_rank.items()
        }
        self.lora_A = nn.ParameterDict({name: a for name, (a, _) in frozen.items()})
        self.lora_B = nn.ParameterDict({name: b for name, (_, b) in frozen.items()})

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out): the base's output and the working adapter's, if it has a part."""
        y = cast("Tensor", self.base(x))
        adapter = self.switch.adapter
        if adapter not in self.lora_A:
            return y
        down = functional.linear(x, self.lora_A[adapter])
        # in place: for a long prompt each of these has hundreds of megabytes
        return functional.linear(down, self.lora_B[adapter]).mul_(self.scales[adapter]).add_(y)


def merged(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """The weight with an adapter added in; worked out in float32, on the weight's device.

    Args:
        weight: (out, in).
        a: (rank, in).
        b: (out, rank).
        scale: alpha / rank.
    """
    delta = torch.mm(b.float(), a.float()).mul_(scale)
    return delta.add_(weight).to(weight.dtype)
