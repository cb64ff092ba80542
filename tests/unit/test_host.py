"""What a machine has, as the kernel and /etc/fstab tell it."""

from __future__ import annotations

from pathlib import Path

from unitkit import machine

from phi4d.unit.host import look, mounts


def test_mount_points_are_those_of_disks_by_their_true_names():
    mountinfo = "\n".join(
        f"36 35 98:0 / {point} rw,noatime - ext4 /dev/x rw"
        for point in ("/", "/srv/na\\040s", "/srv/\\303\\251t\\303\\251", "/proc", "/run/lock")
    )
    assert mounts(mountinfo, 4) == {Path("/srv/na s"), Path("/srv/été")}


def test_fstab_has_those_that_are_not_mounted_now():
    fstab = (
        "# /dev/x /comment ext4\n\nUUID=1 / ext4\nnas:/x\t/mnt/nas nfs noauto\nUUID=2 none swap\n"
    )

    assert mounts(fstab, 1) == {Path("/mnt/nas")}


def test_the_innermost_mount_is_a_path_s():
    host = machine(mounts=frozenset({Path("/srv"), Path("/srv/a")}))

    assert host.mount_of(Path("/srv/a/b")) == Path("/srv/a")
    assert host.mount_of(Path("/srv/a")) == Path("/srv/a")
    assert host.mount_of(Path("/srv/ab")) == Path("/srv")
    assert host.mount_of(Path("/home")) is None


def test_this_machine_is_looked_at():
    assert look().cpu.total_bytes > 0
