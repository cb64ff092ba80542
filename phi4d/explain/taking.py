"""What is at a path, and whether its inbox takes it, by which rule."""

from __future__ import annotations

import os
import stat

from phi4d import inbox
from phi4d.config import Config, Inbox
from phi4d.errors import FileChanged, SourceFault
from phi4d.explain.explanation import Explanation, size
from phi4d.job import Fingerprint, Inspection, printable
from phi4d.media.probe import inspect, kind_of
from phi4d.status import at

_ENTRIES = {
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a symbolic link, which is not followed",
    stat.S_IFIFO: "a FIFO, which is never opened",
    stat.S_IFSOCK: "a socket, which is never opened",
    stat.S_IFCHR: "a device, which is never opened",
    stat.S_IFBLK: "a device, which is never opened",
}
_NO_LINK = "put the file itself there; a hard link will do"


def say_found(told: Explanation) -> os.stat_result | None:
    """What is at the path."""
    try:
        status = os.lstat(told.path)
    except (FileNotFoundError, NotADirectoryError):
        told.say("file", "is not there")
        return None
    except OSError as error:
        told.say("file", f"cannot be looked at by this user: {error.strerror}")
        return None
    what = _ENTRIES.get(stat.S_IFMT(status.st_mode))
    told.say("file", what or f"{size(status.st_size)}, changed {at(status.st_mtime)}")
    return status


def say_taken(
    told: Explanation,
    config: Config,
    box: Inbox,
    relative: bytes,
    found: os.stat_result | None,
) -> None:
    """Whether the inbox takes it, by its name, by what it is, and by what it holds."""
    root = next(root for root in inbox.roots(config) if root.name == box.name)
    is_folder = found is not None and stat.S_ISDIR(found.st_mode)
    link = _link(root.path, relative)
    verdict = inbox.explain(root.path, root.rules, relative, is_dir=is_folder)
    name = os.path.basename(relative)
    if link is not None:
        told.refuse(f"{printable(link)} is a symbolic link, which is not followed", _NO_LINK)
    elif not verdict.taken:
        told.refuse(
            verdict.why,
            "if it is to be taken, rename or move it, or change the pattern (exclude and include "
            "of the inbox, .phi4dignore in its folders)",
        )
    elif is_folder:
        told.take(f"{verdict.why}: its files are taken one by one")
    elif found is not None and not stat.S_ISREG(found.st_mode):
        told.refuse("only regular files are taken", _NO_LINK)
    elif not inbox.worth_opening(name, kind_of):
        told.refuse(
            "by its name it is neither a picture nor a recording",
            "if it is one, give it its right extension",
        )
    elif found is None:
        told.say("rules", f"a file of this name may be taken: {verdict.why}")
    else:
        _say_content(told, Fingerprint.of(found), root, verdict.why)


def _link(root: bytes, relative: bytes) -> bytes | None:
    """The first folder on the way below the root that is a link."""
    path = root
    for name in relative.split(b"/")[:-1]:
        path = os.path.join(path, name)
        if os.path.islink(path):
            return path
    return None


def _say_content(told: Explanation, fingerprint: Fingerprint, root: inbox.Root, rule: str) -> None:
    """Whether a regular file whose name will do is taken for what it holds."""
    try:
        seen = inspect(told.path, fingerprint)
    except FileChanged as error:
        told.take(f"{rule}; it {error}, and is looked at again")
        return
    except SourceFault as fault:
        denied = isinstance(fault.__cause__, PermissionError)
        told.say("content", "may not be read by this user" if denied else str(fault))
        seen = Inspection(kind_of(told.path), True)
    else:
        told.say("content", seen.why)
    if seen.kind is None:
        told.refuse("it is neither a picture nor a recording")
    elif seen.kind not in root.kinds:
        takes = " and ".join(sorted(f"{kind.noun}s" for kind in root.kinds))
        told.refuse(
            f"it is a {seen.kind.noun}, and its inbox takes only {takes}",
            f'if it is to be taken, add "{seen.kind}" to kinds of inbox "{root.name}"',
        )
    elif not seen.whole:
        told.take(f"{rule}; not whole: only when it is, or is unchanged for settle_max")
    else:
        told.take(rule)
