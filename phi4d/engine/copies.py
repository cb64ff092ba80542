"""From main memory to a device, without waiting for what the device does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


def to_device(tensor: Tensor, device: str) -> Tensor:
    """A tensor on a device.

    To a GPU it goes by way of pinned memory: a copy from any other would have this thread wait
    until the device has done all that it was given before.

    Args:
        tensor: in main memory.
        device: such as ``cuda:0``; on ``cpu`` nothing is copied.
    """
    if device.startswith("cuda"):
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor


def brought(array: NDArray[Any], device: str) -> Tensor:
    """An array on a device, which may be read-only memory; copied once on the way there."""
    to_gpu = device.startswith("cuda")
    kind = torch.from_numpy(np.empty(0, array.dtype)).dtype
    staged = torch.empty(array.shape, dtype=kind, pin_memory=to_gpu)
    staged.numpy()[...] = array
    return staged.to(device, non_blocking=True) if to_gpu else staged
