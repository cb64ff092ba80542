"""torch's failures as ours: memory that ends is a `DeviceError`, a device that fails `DeviceLost`.

All else stays the bug that it is.
"""

from __future__ import annotations

import ctypes
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from phi4d.errors import DeviceError, DeviceLost

_NO_MEMORY = re.compile(
    r"out of memory|(can't|cannot|unable to) allocate memory|not enough memory"
    r"|ALLOC_FAILED|bad_alloc"
    # cuBLAS does not say that its workspace did not fit. Should the device be lost, the next and
    # smaller try tells.
    r"|CUBLAS_STATUS_NOT_INITIALIZED",
    re.IGNORECASE,
)
_BUG = re.compile(
    # A call was refused before it ran: the device is as well as before.
    r"error( \[CUDA\])?: (invalid (configuration )?argument|too many resources requested)"
    r"|_STATUS_(BAD_PARAM|INVALID_VALUE|NOT_SUPPORTED|ARCH_MISMATCH)",
    re.IGNORECASE,
)
_LOST = re.compile(
    r"(CUDA|CUDA driver|CUDA unknown|HIP|XPU|NCCL|cuDNN|cuFFT) error"
    r"|(CUBLAS|CUDNN|CUSOLVER)_STATUS_"
    # The same without such a beginning: from Triton, bitsandbytes, drivers. The words are those of
    # cudaGetErrorString for errors after which, as CUDA's manual has it, the process must end.
    r"|illegal memory access|illegal instruction|misaligned address|device-side assert"
    r"|unspecified launch failure|launch timed out|invalid program counter|hardware stack error"
    r"|uncorrectable (ECC|NVLink) error|busy or unavailable|no CUDA-capable device"
    r"|operation not supported on global/shared address space"
    r"|device[ _](is )?lost|GPU is lost|fallen off the bus",
    re.IGNORECASE,
)


@contextmanager
def device_faults(device: str, doing: str) -> Iterator[None]:
    """Raise `DeviceError` for what torch raises when memory ends or a GPU fails.

    Args:
        device: such as ``cuda:0``.
        doing: what was tried, for the message: ``answering 4 requests``.

    Raises:
        DeviceError: the device's memory is too small for this.
        DeviceLost: the device failed.
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
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        if kind == "memory":
            give_back(device)
            raise DeviceError(
                f"{device}: out of memory while {doing} ({first_line}). Smaller files need "
                'less, and so does quantization = "4bit"; see what else uses the device'
            ) from error
        raise DeviceLost(
            f"{device}: the device failed while {doing} ({first_line}). The process must start "
            "anew to use it again; see nvidia-smi and the kernel's log"
        ) from error


def give_back(device: str) -> None:
    """Return memory that is no longer used to the device's driver; a lost device has none."""
    if device.startswith("cuda"):
        with suppress(RuntimeError):
            torch.cuda.empty_cache()


def trim() -> None:
    """Hand freed main memory back to the kernel; glibc keeps what lies between pieces in use.

    Quantizing on the CPU left 0.6 GB so.
    """
    with suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _kind(error: Exception) -> str | None:
    """``memory``, ``lost``, or None for an error that is not the device's."""
    text = str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or _NO_MEMORY.search(text):
        return "memory"
    if _BUG.search(text):
        return None
    # torch 2.8 gave these a class of their own; before, only the text tells.
    lost = getattr(torch, "AcceleratorError", ())
    return "lost" if isinstance(error, lost) or _LOST.search(text) else None
