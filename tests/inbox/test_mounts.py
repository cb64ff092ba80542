"""Which file systems are polled."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from phi4d.inbox.mounts import polled_type


def mount_id(folder: Path) -> str:
    descriptor = os.open(folder, os.O_RDONLY)
    info = Path(f"/proc/self/fdinfo/{descriptor}").read_text()
    os.close(descriptor)
    return next(line.split()[1] for line in info.splitlines() if line.startswith("mnt_id"))


def table(path: Path, *rows: tuple[str, str, str]) -> Path:
    """A mountinfo of (mount id, mount point, type)."""
    path.write_text(
        "".join(
            f"{number} 1 0:99 / {point} rw,relatime shared:1 - {kind} source rw\n"
            for number, point, kind in rows
        )
    )
    return path


@pytest.mark.parametrize(
    ("kind", "polled"),
    [
        *((kind, True) for kind in ("nfs4", "cifs", "smb3", "9p", "ceph", "virtiofs", "vboxsf")),
        *((kind, True) for kind in ("fuse", "fuse.sshfs", "fuse.mergerfs", "fuse.rclone")),
        *((kind, False) for kind in ("ext4", "btrfs", "tmpfs", "overlay", "fuseblk", "vfat")),
    ],
)
def test_by_type(tmp_path: Path, kind: str, polled: bool) -> None:
    mounts = table(tmp_path / "mountinfo", ("1", "/", "ext4"), (mount_id(tmp_path), "/x", kind))
    assert polled_type(os.fsencode(tmp_path), mounts) == (kind if polled else None)


def test_a_mount_below_counts_too(tmp_path: Path) -> None:
    inbox = tmp_path / "in box"
    (inbox / "share").mkdir(parents=True)
    (tmp_path / "in box too").mkdir()
    escaped = str(inbox).replace(" ", "\\040")
    mounts = table(
        tmp_path / "mountinfo", (mount_id(tmp_path), "/", "ext4"), ("9", f"{escaped}/share", "nfs4")
    )
    assert polled_type(os.fsencode(inbox), mounts) == "nfs4"
    assert polled_type(os.fsencode(tmp_path / "in box too"), mounts) is None


def test_as_this_machine_has_it(tmp_path: Path) -> None:
    assert polled_type(b"/proc") is None
    with pytest.raises(FileNotFoundError):
        polled_type(os.fsencode(tmp_path / "nothing"))
