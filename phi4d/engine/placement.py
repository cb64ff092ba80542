"""Which devices get a slot: the key `device` and its companions, pure. No torch, no I/O."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from phi4d.engine.plan import Device, Wishes


def wants_gpus(wishes: Wishes) -> bool:
    """Whether GPUs have to be looked for at all, which takes the seconds of importing torch."""
    return not wishes.force_cpu and any(name != "cpu" for name in _asked(wishes))


def finds_its_own(wishes: Wishes) -> bool:
    """Whether the devices are ours to find (``auto``, ``cuda``) rather than named one by one."""
    return _asked(wishes) in (["auto"], ["cuda"])


def place(gpus: Sequence[Device], wishes: Wishes) -> tuple[list[str], list[str]]:
    """The devices to load an engine on, one name for each engine, and what is wrong with the rest.

    - ``auto`` takes the GPUs, or the CPU where there is none; ``cuda`` the GPUs; ``cpu`` the CPU; a
      list such as ``cuda:0,cuda:2`` or ``cpu,cpu`` exactly these, a name that stands twice getting
      two engines.
    - ``force_cpu`` uses the CPU in place of any GPU.
    - ``disable_parallel`` makes one engine only: on the GPU with most free memory, or the first
      named.
    - ``multi_gpu_threshold_gb`` is free memory in 10⁹ bytes, asked of the GPUs that ``auto`` and
      ``cuda`` find, but not of the one with most: that one is used whatever it has, so that a
      crowded GPU is reported rather than replaced by the CPU in silence.

    Returns:
        Names, in the order asked or CUDA's; and a fault for each name that is none, or that of a
        GPU which is not there.
    """
    asked = _asked(wishes)
    if finds_its_own(wishes):
        found = [] if wishes.force_cpu else _roomy(gpus, wishes)
        if not found and asked == ["cuda"] and not wishes.force_cpu:
            return [], [
                "device: 'cuda' was asked for, but torch finds no GPU. Check nvidia-smi and that "
                "torch was installed with CUDA, or set device to 'auto' or 'cpu'"
            ]
        return found or ["cpu"], []
    faults = {name: fault for name in asked if (fault := _fault(name, gpus, wishes.force_cpu))}
    names = [name for name in asked if name not in faults]
    if wishes.force_cpu:
        names = ["cpu"] * max(1, names.count("cpu"))
    return names[:1] if wishes.disable_parallel else names, list(faults.values())


def _asked(wishes: Wishes) -> list[str]:
    return [name.strip().lower() for name in wishes.device.split(",")]


def _roomy(gpus: Sequence[Device], wishes: Wishes) -> list[str]:
    if not gpus:
        return []
    roomiest = max(gpus, key=lambda gpu: gpu.free_bytes).name
    if wishes.disable_parallel:
        return [roomiest]
    least = wishes.multi_gpu_threshold_gb * 1e9
    return [gpu.name for gpu in gpus if gpu.name == roomiest or gpu.free_bytes >= least]


def _fault(name: str, gpus: Sequence[Device], force_cpu: bool) -> str | None:
    """What is wrong with one name of a list, or None. GPUs need not be there on `force_cpu`."""
    if name == "cpu":
        return None
    if not re.fullmatch(r"cuda:\d+", name):
        return (
            f"device: {name!r} is no device. Use 'auto', 'cuda', 'cpu', or a list such as "
            "'cuda:0,cuda:1'"
        )
    if force_cpu or name in {gpu.name for gpu in gpus}:
        return None
    there = ", ".join(gpu.name for gpu in gpus) or "no GPU"
    return f"device: {name!r} is not there; torch finds {there}. Name one of these, or set 'auto'"
