"""Linear layers with weights of 8 or 4 bits.

They compute in floating point, so that an answer does not depend on what else is in its batch.
"""

from __future__ import annotations

import logging
import threading
import warnings
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor


_importing = threading.Lock()


def quantized(weight: Tensor, bits: str, device: str, dtype: torch.dtype) -> nn.Module:
    """A linear layer without bias whose weight is quantized on its way to a device.

    Args:
        weight: (out, in) in floating point, on the CPU.
        bits: ``8bit`` (`Int8Linear`) or ``4bit`` (bitsandbytes' NF4: one scale for 64 weights).
        device: ``cpu`` or ``cuda:N``.
        dtype: what the layer computes in.
    """
    if bits == "8bit":
        return Int8Linear(weight.to(device), dtype).eval()
    bnb = _bitsandbytes()
    rows, columns = weight.shape
    layer: nn.Module = bnb.nn.Linear4bit(
        columns, rows, bias=False, compute_dtype=dtype, compress_statistics=False,
        quant_type="nf4", device="meta",
    )  # fmt: skip
    layer.weight = bnb.nn.Params4bit(
        weight, requires_grad=False, compress_statistics=False, quant_type="nf4"
    ).to(device)
    layer.eval()
    if device == "cpu":
        with torch.inference_mode():
            # bitsandbytes packs a weight for the CPU at its first use: here the copy is freed early
            layer(torch.zeros(1, columns, dtype=dtype))
    return layer


class Int8Linear(nn.Module):
    """A linear layer with a weight of 8 bits, and a scale for each row: its largest value / 127.

    bitsandbytes' LLM.int8() quantizes the activations as well, and takes those apart that are large
    in any row of the batch: an answer then depends on its neighbours (docs/decisions/0004).

    Args:
        weight: (out, in) in floating point.
        dtype: what the layer computes in.
    """

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        scale = weight.float().abs().amax(1, keepdim=True) / 127
        # the steps are those of the scale as it is kept; one of no size is that of a row of zeros
        scale = scale.to(dtype).clamp(min=torch.finfo(dtype).smallest_normal)
        steps = (weight.float() / scale.float()).round_().clamp_(-127, 127).to(torch.int8)
        self.weight = nn.Parameter(steps, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out)."""
        return functional.linear(x, self.weight * self.scale)


def _bitsandbytes() -> Any:  # it has no types
    # it warns of optional kernels that are not there; a filter of warnings is the whole process's
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    with _importing, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import bitsandbytes
    return cast("Any", bitsandbytes)
