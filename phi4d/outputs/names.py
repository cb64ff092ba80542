"""The names of sidecars and of originals that have moved: pure, from bytes to bytes.

A name is any bytes that a file system takes: newlines, invalid UTF-8, up to `NAME_MAX` of them.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable

TEXT = b".txt"
RECORD = b".json"
ERROR = b".error.json"

NAME_MAX = 255
"""bytes of one name that Linux's file systems take (NAME_MAX of <linux/limits.h>)"""
PATH_MAX = 4095
"""bytes of one path that Linux takes (PATH_MAX of <linux/limits.h>, which counts a NUL)"""
ROOM = NAME_MAX - len(ERROR)
"""bytes that a name may have if each of its sidecars is to fit: ERROR is the longest suffix"""
_HASH_DIGITS = 12
_LONGEST_EXTENSION = 16
"""bytes; what follows the last dot of a name and is longer than this is no extension"""
# with .json and .txt, these names would be those of another file's sidecars
_AMBIGUOUS = re.compile(rb"(\.error|~[0-9a-f]{%d})\Z" % _HASH_DIGITS)


def sidecar(name: bytes, suffix: bytes) -> bytes:
    """The name of a file's sidecar: the file's own and a suffix.

    A name of more than `ROOM` bytes is cut at a character's boundary and gets a tilde and the
    first digits of its SHA-256, so that names which differ only at their end stay apart. So does a
    name that ends like the stem of another's sidecars. All sidecars of a file share one stem.

    Args:
        name: the file's name, without a folder.
        suffix: TEXT, RECORD or ERROR.
    """
    if len(name) > ROOM or _AMBIGUOUS.search(name):
        digits = hashlib.sha256(name).hexdigest()[:_HASH_DIGITS].encode()
        name = cut(name, ROOM - 1 - _HASH_DIGITS) + b"~" + digits
    return name + suffix


def source(written: bytes, neighbours: Callable[[], Iterable[bytes]]) -> bytes | None:
    """The name of the file that a sidecar is about; the other way round than `sidecar`.

    Args:
        written: the sidecar's name.
        neighbours: lists the names of the source's folder; asked only if the sidecar's does not
            hold the source's whole.

    Returns:
        None: it is not named like a sidecar, or what it is about is not there.
    """
    suffix = next((s for s in (ERROR, RECORD, TEXT) if written.endswith(s)), b"")
    stem = written.removesuffix(suffix)
    if not suffix or not stem:
        return None
    if not _AMBIGUOUS.search(stem):
        return stem if len(stem) <= ROOM else None
    return next((name for name in neighbours() if sidecar(name, suffix) == written), None)


def numbered(name: bytes, number: int) -> bytes:
    """A name's variant for when it is taken: ``stem-1.ext`` and so on; 0 is the name itself."""
    if number == 0:
        return name
    stem, extension = os.path.splitext(name)
    if len(extension) > _LONGEST_EXTENSION:
        stem, extension = name, b""
    end = b"-%d%s" % (number, extension)
    return cut(stem, NAME_MAX - len(end)) + end


def cut(name: bytes, length: int) -> bytes:
    """At most so many bytes of a name, with no character of UTF-8 cut in two."""
    if len(name) <= length:
        return name
    end = length
    # a character has at most three bytes after its first; where there are more, it is not UTF-8
    while end > length - 3 and name[end] & 0xC0 == 0x80:
        end -= 1
    return name[: end if name[end] & 0xC0 != 0x80 else length]
