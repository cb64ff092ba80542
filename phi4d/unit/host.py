"""What this machine has that a drop-in depends on. Looks; changes nothing, and loads no torch."""

from __future__ import annotations

import grp
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from phi4d.engine import devices
from phi4d.engine.plan import Device

_ESCAPE = re.compile(r"\\([0-7]{3})")
_NOT_DISKS = ("/proc", "/sys", "/dev", "/run", "/tmp", "/var/tmp")  # noqa: S108  # names only
"""whose mounts are the system's own, and there before any service"""


@dataclass(frozen=True, slots=True)
class Host:
    """A machine, as far as it matters here."""

    cpu: Device
    """with main memory"""
    gpus: int = 0
    """of NVIDIA's, as their driver's device nodes have them"""
    rocm: bool = False
    """whether AMD's GPUs are to be used: their driver is there, and a torch that knows it"""
    gpu_groups: tuple[str, ...] = ()
    """the groups that may use AMD's GPUs"""
    mounts: frozenset[Path] = field(default=frozenset())
    """mount points, of what is mounted and of what /etc/fstab has"""

    def mount_of(self, path: Path) -> Path | None:
        """The mount point that a path lies below; None: it is on the root's own file system."""
        return next((each for each in (path, *path.parents) if each in self.mounts), None)


def look() -> Host:
    """This machine."""
    return Host(
        devices.cpu(),
        gpus=sum(1 for node in os.listdir("/dev") if re.fullmatch(r"nvidia\d+", node)),
        rocm=os.path.exists("/dev/kfd") and "rocm" in _torch(),
        gpu_groups=tuple(_groups()),
        mounts=frozenset(mounts(_text("/proc/self/mountinfo"), 4) | mounts(_text("/etc/fstab"), 1)),
    )


def mounts(table: str, column: int) -> set[Path]:
    """The mount points in a table of the kernel's or of /etc/fstab.

    Args:
        table: its text.
        column: where the mount points stand, counted from 0.
    """
    found = set()
    for line in table.splitlines():
        fields = line.split()
        if line.startswith("#") or len(fields) <= column:
            continue
        raw = os.fsencode(fields[column])
        point = _ESCAPE.sub(lambda match: chr(int(match[1], 8)), raw.decode("latin-1"))
        path = Path(os.fsdecode(point.encode("latin-1")))
        own = any(path.is_relative_to(each) for each in _NOT_DISKS)
        if path.is_absolute() and path != Path("/") and not own:
            found.add(path)
    return found


def _torch() -> str:
    try:
        return version("torch")
    except PackageNotFoundError:
        return ""


def _groups() -> Iterator[str]:
    nodes = [Path("/dev/kfd"), *sorted(Path("/dev/dri").glob("renderD*"))]
    names = set()
    for node in nodes:
        try:
            group = node.stat().st_gid
            names.add(grp.getgrgid(group).gr_name)
        except (OSError, KeyError):
            continue
    yield from sorted(names - {"root"})


def _text(path: str) -> str:
    try:
        return os.fsdecode(Path(path).read_bytes())
    except OSError:
        return ""
