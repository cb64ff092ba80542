"""Which devices get an engine. A pure choice over what was found, and the finding of it.

Nothing here loads a model. torch is imported only to look for GPUs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from phi4d.errors import ConfigError

GB = 1e9
"""bytes; GPUs are sold and reported in decimal gigabytes"""


def probe() -> list[tuple[str, int]]:
    """The GPUs of this machine: (name, free bytes), in CUDA's order; empty without any."""
    import torch

    if not torch.cuda.is_available():
        return []
    return [
        (f"cuda:{index}", torch.cuda.mem_get_info(index)[0])
        for index in range(torch.cuda.device_count())
    ]


def choose(
    device: str,
    found: Sequence[tuple[str, int]],
    *,
    force_cpu: bool = False,
    disable_parallel: bool = False,
    multi_gpu_threshold_gb: float = 8.0,
) -> list[str]:
    """The devices to load an engine on, one name for each engine.

    Args:
        device: ``auto`` takes the GPUs, or the CPU where there is none; ``cuda`` the GPUs; ``cpu``
            the CPU; a list such as ``cuda:0,cuda:2`` or ``cpu,cpu`` exactly these, a name that
            stands twice getting two engines.
        found: from `probe`.
        force_cpu: use the CPU in place of any GPU.
        disable_parallel: one engine only: on the GPU with most free memory, or the first named.
        multi_gpu_threshold_gb: free memory in 10⁹ bytes that a GPU must have to get an engine of
            its own. It is asked of GPUs that ``auto`` and ``cuda`` find, and not of the one with
            most: that one is used whatever it has, so that a crowded GPU is reported rather than
            replaced by the CPU in silence.

    Raises:
        ConfigError: a name that is none, or a GPU that is not there.
    """
    names = [name.strip().lower() for name in device.split(",")]
    if names in (["auto"], ["cuda"]):
        chosen = [] if force_cpu else _gpus(found, multi_gpu_threshold_gb * GB, disable_parallel)
        if not chosen and names == ["cuda"] and not force_cpu:
            raise ConfigError(
                "device: 'cuda' was asked for, but torch finds no GPU. Check nvidia-smi and that "
                "torch was installed with CUDA, or set device to 'auto' or 'cpu'"
            )
        return chosen or ["cpu"]
    if faults := [fault for name in names if (fault := _fault(name, found, force_cpu))]:
        raise ConfigError(*faults)
    if force_cpu:
        names = ["cpu"] * max(1, names.count("cpu"))
    return names[:1] if disable_parallel else names


def _gpus(found: Sequence[tuple[str, int]], least: float, one: bool) -> list[str]:
    if not found:
        return []
    roomiest, _ = max(found, key=lambda gpu: gpu[1])
    if one:
        return [roomiest]
    return [name for name, free in found if name == roomiest or free >= least]


def _fault(name: str, found: Sequence[tuple[str, int]], force_cpu: bool) -> str | None:
    """What is wrong with one name of a list, or None. GPUs need not be there on `force_cpu`."""
    if name == "cpu":
        return None
    if not re.fullmatch(r"cuda:\d+", name):
        return (
            f"device: {name!r} is no device. Use 'auto', 'cuda', 'cpu', or a list such as "
            "'cuda:0,cuda:1'"
        )
    if force_cpu or name in {gpu for gpu, _ in found}:
        return None
    there = ", ".join(gpu for gpu, _ in found) or "no GPU"
    return f"device: {name!r} is not there; torch finds {there}"
