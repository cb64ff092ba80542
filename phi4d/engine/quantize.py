"""Linear layers with weights of 8 or 4 bits, by bitsandbytes; nothing else imports it."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any, cast

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

OUTLIER = 6.0
"""activations above it go past the 8-bit product: the value of the LLM.int8 paper"""


def quantized(weight: Tensor, bits: str, device: str, dtype: torch.dtype) -> nn.Module:
    """A linear layer without bias whose weight is quantized on its way to a device.

    Args:
        weight: (out, in) in floating point, on the CPU.
        bits: ``8bit`` (LLM.int8: one scale a row) or ``4bit`` (NF4: one scale for 64 weights).
        device: ``cpu`` or ``cuda:N``.
        dtype: what the layer computes in.
    """
    bnb = _library()
    rows, columns = weight.shape
    if bits == "4bit":
        layer = bnb.nn.Linear4bit(
            columns, rows, bias=False, compute_dtype=dtype, compress_statistics=False,
            quant_type="nf4", device="meta",
        )  # fmt: skip
        layer.weight = bnb.nn.Params4bit(
            weight, requires_grad=False, compress_statistics=False, quant_type="nf4"
        ).to(device)
    else:
        layer = bnb.nn.Linear8bitLt(
            columns, rows, bias=False, has_fp16_weights=False, threshold=OUTLIER, device="meta"
        )
        layer.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False).to(
            device
        )
    layer.eval()
    if device == "cpu":
        with torch.inference_mode():
            # bitsandbytes packs a weight for the CPU at its first use: here the copy is freed early
            layer(torch.zeros(1, columns, dtype=dtype))
    return cast("nn.Module", layer)


def _library() -> Any:  # it has no types
    # it warns of optional kernels that are not there
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import bitsandbytes
    return bitsandbytes
