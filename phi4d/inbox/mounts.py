"""Which file systems are polled, because changes that others make to them send no events here."""

from __future__ import annotations

import os
import re
from pathlib import Path

_NETWORK = "9p afpfs afs ceph cifs coda exafs glusterfs kafs ncpfs nfs nfs4 smb3 smbfs"
_CLUSTER = "acfs beegfs beegfs_nodev gfs2 gpfs lustre ocfs2 orangefs panfs pvfs2 wekafs"
_GUEST = "prl_fs vboxsf virtiofs vmhgfs"
POLLED = frozenset(f"{_NETWORK} {_CLUSTER} {_GUEST} fuse".split())
"""types as ``/proc/self/mountinfo`` has them: others change such a file system behind the kernel's
back. Each ``fuse.NAME`` is polled too: sshfs, rclone, mergerfs and the like. ``fuseblk`` (ntfs-3g,
exfat) is not: it is a disk of this machine, which this machine alone changes"""

_ESCAPE = re.compile(rb"\\([0-7]{3})")


def polled_type(folder: bytes, mountinfo: Path = Path("/proc/self/mountinfo")) -> str | None:
    """The type of a file system at or below a folder that has to be polled, or None.

    Raises:
        OSError: the folder cannot be opened.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        info = Path(f"/proc/self/fdinfo/{descriptor}").read_text()
        real = os.readlink(b"/proc/self/fd/%d" % descriptor)
    finally:
        os.close(descriptor)
    mount = re.search(r"^mnt_id:\s*(\d+)", info, re.MULTILINE)
    below = real.rstrip(b"/") + b"/"
    for line in mountinfo.read_bytes().splitlines():
        before, _, after = line.partition(b" - ")
        fields, kind = before.split(b" "), after.split(b" ", 1)[0].decode()
        point = _ESCAPE.sub(lambda m: bytes([int(m[1], 8)]), fields[4])
        here = (mount and fields[0].decode() == mount[1]) or point.startswith(below)
        if here and (kind in POLLED or kind.startswith("fuse.")):
            return kind
    return None
