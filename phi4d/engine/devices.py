"""What this machine has to load a model on. torch is imported only to look for GPUs."""

from __future__ import annotations

import importlib.util
import math
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path

from phi4d.engine.plan import Device
from phi4d.engine.rungs import BFLOAT16_CAPABILITY, PACKAGES
from phi4d.meter import Memory

_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""of /proc/cpuinfo: the first two of x86's, the last of ARM's; each multiplies bfloat16 matrices.
AVX-512 alone, or AVX2, would widen every number to float32 first"""


def probe() -> list[Device]:
    """The GPUs of this machine in CUDA's order; empty without any.

    Asking for a GPU's free memory makes a CUDA context there, of some hundred MB.
    """
    import torch

    if not torch.cuda.is_available():
        return []
    driver = _text(Path("/sys/module/nvidia/version")).strip()
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        try:
            free, total = torch.cuda.mem_get_info(index)
        except RuntimeError:  # no room for a context even, or somebody has it for himself
            free, total = 0, properties.total_memory
        capability = (properties.major, properties.minor)
        found.append(
            Device(
                f"cuda:{index}",
                product=properties.name,
                total_bytes=total,
                free_bytes=free,
                capability=capability,
                bfloat16=capability >= BFLOAT16_CAPABILITY,
                driver=driver,
            )
        )
    return found


def cpu(root: Path = Path("/")) -> Device:
    """The CPU, with main memory: what the kernel calls available, or less by a cgroup's limit.

    Args:
        root: where ``/proc`` and ``/sys`` are.
    """
    facts = _text(root / "proc/cpuinfo")
    product = re.search(r"^model name\s*:\s*(.+)", facts, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)", facts, re.MULTILINE)
    total, free = _main_memory(root)
    return Device(
        "cpu",
        product=product[1].strip() if product else platform.machine(),
        total_bytes=total,
        free_bytes=free,
        bfloat16=bool(_BFLOAT16_FLAGS & set(flags[1].split() if flags else ())),
    )


def cpu_count(root: Path = Path("/")) -> int:
    """How many CPUs this process may use: by its affinity, or less by a cgroup's limit."""
    count = float(len(os.sched_getaffinity(0)))
    for folder in _groups(root):
        quota, _, period = _text(folder / "cpu.max").strip().partition(" ")
        if quota.isdigit() and period.isdigit():
            count = min(count, int(quota) / int(period))
    return max(1, math.floor(count))


def installed() -> frozenset[str]:
    """Which of the optional packages that a plan asks for are there; none is imported."""
    return frozenset(name for name in PACKAGES if importlib.util.find_spec(name))


def used_bytes(device: str) -> int:
    """What torch holds on a GPU, or what this process holds in main memory, mapped files too."""
    if device == "cpu":
        status = _text(Path("/proc/self/status"))
        resident = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
        return int(resident[1]) * 1024 if resident else 0
    import torch

    return torch.cuda.memory_allocated(device)


def memory(device: str) -> Memory | None:
    """What the memory of a device holds; None: it cannot be told, as when it is lost.

    Of a GPU to be asked between two calls, by the thread that makes them. It takes microseconds.
    """
    if device == "cpu":
        size, free = _main_memory(Path("/"))
        own = used_bytes(device)
    else:
        import torch

        try:
            free, size = torch.cuda.mem_get_info(device)
            own = torch.cuda.memory_reserved(device)
        except RuntimeError:
            return None
    return Memory(size, size - free, own)


def forget_peak(device: str) -> None:
    """`peak_bytes` counts from now on."""
    if device != "cpu":
        import torch

        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: str) -> int:
    """The most that torch held on a GPU since `forget_peak`; of the CPU nobody keeps account."""
    if device == "cpu":
        return 0
    import torch

    return torch.cuda.max_memory_allocated(device)


def free_bytes(device: str) -> int:
    """What could be allocated on a device: what nobody has, and what torch keeps without using."""
    if device == "cpu":
        return _main_memory(Path("/"))[1]
    import torch

    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def set_threads(count: int) -> None:
    """Have torch compute with so many threads of the CPU, in all of this process."""
    import torch

    torch.set_num_threads(count)


def _main_memory(root: Path) -> tuple[int, int]:
    """Total and free bytes of main memory: what the kernel says, or less by a cgroup's limit."""
    memory = {
        key: int(kib) * 1024
        for key, kib in re.findall(r"^(\w+):\s+(\d+) kB", _text(root / "proc/meminfo"), re.M)
    }
    total, free = memory.get("MemTotal", 0), memory.get("MemAvailable", 0)
    for limit, used in _cgroups(root):
        total, free = min(total, limit), min(free, max(0, limit - used))
    return total, free


def _cgroups(root: Path) -> list[tuple[int, int]]:
    """(limit, used) in bytes, for this process's cgroup and all above it that have a limit.

    Of cgroup v2: https://docs.kernel.org/admin-guide/cgroup-v2.html. Cached files count as used
    there, but make room when memory is short; so they are taken off again.
    """
    found = []
    for folder in _groups(root):
        limit = _text(folder / "memory.max").strip()
        if limit.isdigit():
            stat = dict(re.findall(r"^(\w+) (\d+)$", _text(folder / "memory.stat"), re.M))
            files = int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0))
            used = int(_text(folder / "memory.current").strip() or 0)
            found.append((int(limit), max(0, used - files)))
    return found


def _groups(root: Path) -> Iterator[Path]:
    """The folders of this process's cgroup and of all above it."""
    unified = re.search(r"^0::/(.*)$", _text(root / "proc/self/cgroup"), re.MULTILINE)
    if not unified:
        return
    top = root / "sys/fs/cgroup"
    group = top / unified[1]
    for folder in [group, *group.parents]:
        yield folder
        if folder == top:
            break


def _text(path: Path) -> str:
    """A file of the kernel's, or nothing where this kernel has none such."""
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError:
        return ""
