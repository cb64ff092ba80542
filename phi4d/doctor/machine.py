"""The machine: Python, its packages, the devices, SQLite, and whether phi4d runs already."""

from __future__ import annotations

import importlib.util
import platform
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import phi4d
from phi4d import lock
from phi4d.doctor.check import Check, fail, gb, ok, warn
from phi4d.doctor.folders import user
from phi4d.engine import devices
from phi4d.engine.plan import Device
from phi4d.store import SQLITE_VERSION

IMPORT_SECONDS = 120  # a package with kernels may import torch, from a cold disk
SAFE_SQLITE = (3, 51, 3)
"""the first without the loss of commits that two writing connections could cause"""
NVIDIA = Path("/dev/nvidiactl")
"""there where the driver of NVIDIA's GPUs is at work"""


def python() -> Check:
    """What runs this, and as whom: for a service the answer depends on the user."""
    return ok("python", f"{platform.python_version()}, phi4d {phi4d.__version__}, as {user()}")


def sqlite(found: tuple[int, ...] = SQLITE_VERSION) -> Check:
    """SQLite's version."""
    words = ".".join(map(str, found))
    if found < SAFE_SQLITE:
        words += " (phi4d keeps to one writer, as a version before 3.51.3 wants it)"
    return ok("sqlite", words)


def daemon_pid(state_dir: Path) -> int | None:
    """The process that works in the state folder, if any."""
    return lock.holder(state_dir / "lock")


def daemon(state_dir: Path) -> Check:
    """Whether another phi4d works in the state folder."""
    pid = daemon_pid(state_dir)
    return ok("daemon", f"runs, pid {pid}" if pid else "does not run")


@dataclass(frozen=True, slots=True)
class Gpus:
    """What looking for GPUs came to."""

    found: Sequence[Device] = ()
    trouble: str = ""
    """what torch said, if it could not look, or complained"""


def gpus(probe: Callable[[], list[Device]] = devices.probe) -> Gpus:
    """Look for GPUs; whatever goes wrong is a finding."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = probe()
        except Exception as error:  # a broken torch or driver may raise anything
            return Gpus(trouble=_line(error))
    return Gpus(found, "; ".join(_line(warning.message) for warning in caught if not found))


def hardware(found: Gpus | None, cpu: Device, *, driver: bool | None = None) -> Iterator[Check]:
    """A line for each device.

    Args:
        found: the GPUs; None if none is wanted.
        cpu: the CPU.
        driver: whether NVIDIA's driver is at work; None to look.
    """
    for gpu in found.found if found else ():
        major, minor = gpu.capability or (0, 0)
        driver_words = f", driver {gpu.driver}" if gpu.driver else ""
        yield ok(
            gpu.name,
            f"{gpu.product}, compute capability {major}.{minor}, {gb(gpu.free_bytes)} of "
            f"{gb(gpu.total_bytes)} free{driver_words}",
        )
    if found and not found.found:
        present = NVIDIA.exists() if driver is None else driver
        if found.trouble or present:
            yield warn(
                "gpu",
                f"torch {_version('torch')} finds none"
                + (f": {found.trouble}" if found.trouble else ", though NVIDIA's driver is there"),
                "see that nvidia-smi works for this user, and that torch was installed with CUDA "
                "for this driver; or set device to 'cpu'",
            )
        else:
            yield ok("gpu", "none")
    formats = "bfloat16" if cpu.bfloat16 else "no bfloat16 instructions"
    yield ok(
        cpu.name,
        f"{cpu.product}, {formats}, {gb(cpu.free_bytes)} of {gb(cpu.total_bytes)} free",
    )


def packages(run: Callable[[str], str] | None = None) -> Iterator[Check]:
    """The packages that compute, and what the optional ones say of themselves."""
    imported = run or _imported
    for name in ("torch", "transformers", "accelerate"):
        if importlib.util.find_spec(name):
            yield ok(name, _version(name))
        else:
            yield fail(name, "not installed", f"pip install {name}")
    for module, name, without in (
        ("flash_attn", "flash-attn", "torch's own attention is used"),
        ("bitsandbytes", "bitsandbytes", "there is no 4bit"),
    ):
        if not importlib.util.find_spec(module):
            yield ok(name, f"not installed: {without}")
        elif trouble := imported(module):
            yield fail(
                name,
                f"{_version(name)} cannot be imported: {trouble}",
                f"install one that fits torch {_version('torch')}, or pip uninstall {name}",
            )
        else:
            yield ok(name, _version(name))
    yield ok("systemd-python", _journal_library())


def _journal_library() -> str:
    if not importlib.util.find_spec("systemd"):
        return "not installed: log lines in the journal have no fields"
    try:
        importlib.import_module("systemd.journal")
    except ImportError as error:  # another library of that name, or built for another Python
        return f"cannot be used ({_line(error)}): log lines in the journal have no fields"
    try:
        return version("systemd-python")
    except PackageNotFoundError:
        return "Debian's"  # as `make install` links it


def _imported(module: str) -> str:
    """What goes wrong when a module is imported, in a process of its own; nothing if all is well.

    Kernels that were built for another torch end a process, or fill it with torch.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-c", f"import {module}"],
            capture_output=True,
            text=True,
            check=False,
            timeout=IMPORT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"not done after {IMPORT_SECONDS} s"
    if done.returncode == 0:
        return ""
    lines = done.stderr.strip().splitlines()
    return lines[-1][:300] if lines else f"exit code {done.returncode}"


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "of unknown version"


def _line(error: object) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
