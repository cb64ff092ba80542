"""The folders that phi4d reads and writes: whether this user can, and whether there is room."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from phi4d.config import Config, Inbox
from phi4d.doctor.check import Check, Status, fail, gb, ok, warn
from phi4d.errors import Phi4dError
from phi4d.job import printable
from phi4d.outputs import atomic

LOW_BYTES, NO_BYTES = 10**9, 50 * 10**6
"""of disk; a sidecar has a few kB, the store a kB for each file"""
LOW_INODES = 10_000
LOW_INSTANCES = 16
"""of inotify, which all of a user's programs share; a desktop takes some dozens"""
INOTIFY = Path("/proc/sys/fs/inotify")


@dataclass(frozen=True, slots=True)
class Tree:
    """What is below an inbox, itself included."""

    folders: int = 0
    closed: tuple[bytes, ...] = ()
    """folders that this user cannot read"""


def walk(root: Path) -> Tree:
    """Count the folders of an inbox as the watcher sees them. Links are not followed."""
    closed: list[bytes] = []

    def refused(error: OSError) -> None:
        if isinstance(error, PermissionError):
            closed.append(os.fsencode(error.filename))

    # as bytes: names of any encoding
    folders = sum(1 for _ in os.walk(os.fsencode(root), onerror=refused))
    return Tree(folders, tuple(closed))


def inboxes(boxes: Sequence[Inbox], trees: Sequence[Tree]) -> Iterator[Check]:
    """Whether each inbox can be read, with everything below it."""
    for box, tree in zip(boxes, trees, strict=True):
        name = f"inbox {box.name}"
        if not os.path.lexists(box.path):
            yield warn(
                name,
                f"{box.path} is not there",
                "make or mount it; a running phi4d takes it up by itself",
            )
        elif not box.path.is_dir():
            yield fail(name, f"{box.path} is not a folder", "name a folder in [[inbox]] path")
        elif not os.access(box.path, os.R_OK | os.X_OK):
            yield fail(name, f"{box.path} cannot be read", f"give {user()} access to it")
        elif tree.closed:
            yield warn(
                name,
                f"{box.path}: {len(tree.closed)} of {tree.folders} folders cannot be read, "
                f"{printable(tree.closed[0])} first",
                f"give {user()} access to them; until then their files wait",
            )
        else:
            yield ok(name, f"{box.path}, {_count(tree.folders, 'folder')}")
    if not boxes:
        yield warn(
            "inbox",
            "none is configured, so `phi4d run` has nothing to watch",
            "add an [[inbox]] table with path and outbox to the configuration, or give "
            "`phi4d run` --inbox and --outbox",
        )


def outboxes(boxes: Sequence[Inbox]) -> Iterator[Check]:
    """Whether sidecars can be written for each inbox."""
    for box in boxes:
        root = box.outbox_root()
        if root != box.path or os.path.lexists(root):  # an inbox that is missing is not made
            yield writable(f"outbox {box.name}", root, "outbox")


def originals(boxes: Sequence[Inbox]) -> Iterator[Check]:
    """Whether source files can be moved and deleted, where an inbox wants it."""
    for box in boxes:
        for key in ("done_dir", "failed_dir"):
            folder = getattr(box, key)
            if folder is not None:
                yield writable(f"{key} {box.name}", folder, key)
        if (box.originals != "leave" or box.failed_dir) and box.path.is_dir():
            check = writable(f"originals {box.name}", box.path, "path")
            if check.status is not Status.OK:
                yield check


def writable(name: str, folder: Path, key: str) -> Check:
    """Whether a folder can be written, or made; nothing is left there."""
    if folder.is_dir():
        try:
            atomic.probe(os.fsencode(folder))
        except Phi4dError as fault:
            found, _, advice = str(fault).rpartition("; ")
            return fail(name, found, f"{advice} ({user()}{_its_owner(folder)})")
        return ok(name, f"{folder} can be written")
    parent = folder if os.path.lexists(folder) else _nearest(folder)
    if not parent.is_dir():
        return fail(name, f"{parent} is not a folder", f"move it away, or name a folder in {key}")
    if not os.access(parent, os.W_OK | os.X_OK):
        return fail(
            name,
            f"{folder} is not there, and {user()} cannot make it in {parent}",
            f"make it, or give {user()} access to {parent}",
        )
    return ok(name, f"{folder} will be made in {parent}")


def watches(trees: Sequence[Tree], limits: Path = INOTIFY) -> Check:
    """Whether the kernel's limits allow a watch on each folder below the inboxes.

    Args:
        trees: the inboxes'; each folder takes a watch, all together an instance.
        limits: the folder of the kernel's files.
    """
    name = "inotify"
    wanted = sum(tree.folders for tree in trees)
    try:
        most = int((limits / "max_user_watches").read_text())
        instances = int((limits / "max_user_instances").read_text())
    except (OSError, ValueError) as error:
        return warn(
            name,
            f"{limits} cannot be read ({error}), so folders may go unwatched",
            "use a Linux with inotify; without it files are found every poll_seconds",
        )
    found = f"{_count(wanted, 'folder')} to watch; {most} watches and {instances} instances allowed"
    # each user's programs share the limits: an editor or a file synchroniser takes thousands
    if wanted > most // 2:
        return warn(name, found, f"sysctl -w fs.inotify.max_user_watches={max(4 * wanted, 524288)}")
    if instances < LOW_INSTANCES:
        return warn(name, found, f"sysctl -w fs.inotify.max_user_instances={LOW_INSTANCES}")
    return ok(name, found)


def disks(
    config: Config, statvfs: Callable[[Path], os.statvfs_result] = os.statvfs
) -> Iterator[Check]:
    """Room on the file systems of the outboxes, the store and the models, each once."""
    roles = [
        *((f"outbox {box.name}", box.outbox_root()) for box in config.inboxes()),
        ("state_dir", config.state_dir),
        ("cache_dir", config.cache_dir),
    ]
    uses: dict[int, tuple[Path, list[str]]] = {}
    for role, folder in roles:
        place = _nearest(folder)
        uses.setdefault(place.stat().st_dev, (place, []))[1].append(role)
    for place, used_by in uses.values():
        status = statvfs(place)
        free = status.f_bavail * status.f_frsize
        # btrfs and others have no fixed number of inodes, and say 0 of 0
        inodes = status.f_favail if status.f_files else LOW_INODES
        found = f"{gb(free)} free at {place} ({', '.join(used_by)})"
        if inodes < LOW_INODES:
            found += f", {inodes} inodes"
        if free < NO_BYTES or not inodes:
            yield fail("disk", found, "free some space or inodes")
        elif free < LOW_BYTES or inodes < LOW_INODES:
            yield warn("disk", found, "free some space or inodes soon")
        else:
            yield ok("disk", found)


def user() -> str:
    """The user that this process runs as."""
    name = _name(os.geteuid())
    return f"user {name}" if name else f"user id {os.geteuid()}"


def _its_owner(folder: Path) -> str:
    """Who may be meant to run phi4d in place of this user: members of its group ask, too."""
    owner = folder.stat().st_uid
    name = _name(owner)
    if not name or os.geteuid() in (0, owner):
        return ""
    return f"; if {name} runs phi4d, as {name}: sudo -u {name} phi4d doctor"


def _name(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


def _nearest(folder: Path) -> Path:
    """The folder, or the closest one above it that is there."""
    return next(path for path in (folder, *folder.parents) if os.path.exists(path))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
