"""Looks through folders: what lies there, batch by batch, whatever their size."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from phi4d.inbox.rules import IGNORE_FILE, Rules, Verdict

STEP = 2_000
"""entries that are looked at between two yields: some 10 ms"""
IGNORE_BYTES = 1_000_000
"""largest .phi4dignore; git's own get to some kB"""


@dataclass(frozen=True, slots=True)
class Visitor:
    """What happens on a walk."""

    enter: Callable[[bytes], None]
    """a folder, below the root, is about to be listed"""
    refused: Callable[[bytes, OSError], None]
    """a folder could not be listed"""
    wrong: Callable[[bytes, list[str]], None]
    """lines of a folder's .phi4dignore that are no patterns; none: it is well"""
    wanted: Callable[[bytes], bool] | None
    """whether a file of that name is worth a look; None: only folders are visited"""


def walk(
    root: bytes, rules: Rules, below: bytes, visitor: Visitor
) -> Iterator[list[tuple[bytes, os.stat_result]]]:
    """Visit a folder below the root and all folders in it, each entered before it is listed.

    Links are not followed, and nothing but ``.phi4dignore`` is opened.

    Yields:
        Paths below the root of regular files that the rules take, with their status; after every
        `STEP` entries, and so often empty.
    """
    batch: list[tuple[bytes, os.stat_result]] = []
    left = STEP
    pending = [below]
    while pending:
        folder = pending.pop()
        visitor.enter(folder)
        try:
            entries = os.scandir(os.path.join(root, folder) if folder else root)
        except OSError as error:
            if not folder or not isinstance(error, (FileNotFoundError, NotADirectoryError)):
                visitor.refused(folder, error)
            continue
        visitor.wrong(folder, learn(root, rules, folder))
        sieve = rules.within(folder)
        above = folder + b"/" if folder else b""
        with entries:
            for entry in _until_it_fails(entries, folder, visitor):
                name = entry.name
                try:
                    if entry.is_dir(follow_symlinks=False):
                        if sieve.enters(name):
                            pending.append(above + name)
                    elif visitor.wanted and sieve.takes(name) and visitor.wanted(name):
                        status = entry.stat(follow_symlinks=False)
                        if stat.S_ISREG(status.st_mode):
                            batch.append((above + name, status))
                except OSError:
                    pass  # it is gone, or the next look finds it
                left -= 1
                if left <= 0:
                    yield batch
                    batch, left = [], STEP
        left -= 1
    yield batch


def _until_it_fails(
    entries: Iterator[os.DirEntry[bytes]], folder: bytes, visitor: Visitor
) -> Iterator[os.DirEntry[bytes]]:
    try:
        yield from entries
    except OSError as error:  # a disk or a server failed half-way
        visitor.refused(folder, error)


def learn(root: bytes, rules: Rules, folder: bytes) -> list[str]:
    """Give the rules the ``.phi4dignore`` of a folder as it is now.

    Returns:
        Its lines that are no patterns; or one in brackets, if it cannot be read.
    """
    try:
        text = _read(os.path.join(root, folder, IGNORE_FILE))
    except FileNotFoundError:
        return rules.set_ignore(folder, None)
    except OSError as error:
        rules.set_ignore(folder, None)
        return [f"({error.strerror})"]
    lines = text.decode("utf-8-sig", "surrogateescape").split("\n")
    return rules.set_ignore(folder, [line.removesuffix("\r") for line in lines])


def _read(path: bytes) -> bytes:
    # a link may lead out of the inbox, and a FIFO would block
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(0, "not a regular file")
        if status.st_size > IGNORE_BYTES:
            raise OSError(0, f"larger than {IGNORE_BYTES // 1_000_000} MB")
        return file.read(IGNORE_BYTES)


def explain(root: bytes, rules: Rules, relative: bytes, *, is_dir: bool = False) -> Verdict:
    """Whether the rules take a path below an inbox, which need not exist, and why.

    The ``.phi4dignore`` files of the folders on the way are read.
    """
    folder = b""
    learn(root, rules, folder)
    for name in relative.split(b"/")[:-1]:
        folder = os.path.join(folder, name)
        learn(root, rules, folder)
    return rules.verdict(relative, is_dir=is_dir)
