"""torch's failures as ours: what the device did becomes a `DeviceError`, all else stays a bug."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from phi4d.errors import DeviceError

_LOST = re.compile(r"CUDA|cuDNN|CUBLAS|NCCL|HIP error|device-side assert", re.IGNORECASE)
_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|ALLOC_FAILED", re.IGNORECASE)


@contextmanager
def device_faults(device: str, doing: str) -> Iterator[None]:
    """Raise `DeviceError` for what torch raises when memory ends or a GPU fails.

    Args:
        device: such as ``cuda:0``.
        doing: what was tried, for the message: ``answering 4 requests``.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        kind = _kind(error)
        if kind is None:
            raise
        # The frames of the failed call hold its tensors; without this the next, smaller try would
        # find the memory still taken for as long as someone keeps the error.
        traceback.clear_frames(error.__traceback__)
        if device.startswith("cuda") and kind == "memory":
            torch.cuda.empty_cache()
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        advice = (
            "Fewer requests at a time, fewer crops a picture or shorter segments need less; "
            "so does whatever else uses the device"
            if kind == "memory"
            else "The process must start anew to use it again; see nvidia-smi and the kernel's log"
        )
        what = "out of memory" if kind == "memory" else "the device failed"
        raise DeviceError(f"{device}: {what} while {doing} ({first_line}). {advice}") from error


def _kind(error: Exception) -> str | None:
    """``memory``, ``lost``, or None for an error that is not the device's."""
    text = str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or _NO_MEMORY.search(text):
        return "memory"
    # torch 2.8 gave these a class of their own; before, only the text tells.
    lost = getattr(torch, "AcceleratorError", ())
    return "lost" if isinstance(error, lost) or _LOST.search(text) else None
