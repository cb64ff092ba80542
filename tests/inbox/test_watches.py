"""Watches and what they stand for, when folders move about."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from inboxkit import write

from phi4d.inbox import watches as room
from phi4d.inbox.watches import Watches


@pytest.fixture
def watches() -> Iterator[Watches]:
    watches = Watches()
    yield watches
    watches.close()


def place(watches: Watches, folder: Path, *paths: bytes, turn: int = 1) -> None:
    for path in paths:
        watches.place("in", os.fsencode(folder), path, turn)


def told(watches: Watches) -> list[tuple[bytes, bytes]]:
    """Closed files, by folder and name."""
    return [
        (watch.path, name)
        for watch, mask, name in watches.read()
        if watch is not None and mask & room.CLOSE_WRITE
    ]


def test_what_happens_is_told_with_the_folder_and_the_name(folder: Path, watches: Watches) -> None:
    (folder / "a").mkdir()
    place(watches, folder, b"", b"a")
    write(os.path.join(os.fsencode(folder), b"a/\xff\n.jpg"))
    assert told(watches) == [(b"a", b"\xff\n.jpg")]


def test_our_own_reads_are_not_told(folder: Path, watches: Watches) -> None:
    write(folder / "a.jpg")
    place(watches, folder, b"")
    (folder / "a.jpg").read_bytes()
    os.listdir(folder)
    assert list(watches.read()) == []


def test_placing_again_is_the_same_watch(folder: Path, watches: Watches) -> None:
    place(watches, folder, b"", b"")
    assert watches.count("in") == 1


def test_a_folder_that_is_met_at_another_path(folder: Path, watches: Watches) -> None:
    (folder / "a/b").mkdir(parents=True)
    place(watches, folder, b"", b"a", b"a/b")
    (folder / "a").rename(folder / "z")
    place(watches, folder, b"z", b"z/b")
    write(folder / "z/b/x.jpg")
    assert told(watches) == [(b"z/b", b"x.jpg")]
    assert watches.count("in") == 3


def test_another_folder_at_the_same_path(folder: Path, watches: Watches) -> None:
    (folder / "a/b").mkdir(parents=True)
    place(watches, folder, b"", b"a", b"a/b")
    away = (folder / "a").rename(folder.with_name("away"))
    (folder / "a").mkdir()
    place(watches, folder, b"a")
    write(away / "b/x.jpg")
    write(folder / "a/y.jpg")
    assert told(watches) == [(b"a", b"y.jpg")]
    assert watches.count("in") == 2


def test_what_was_not_placed_again_is_forgotten(folder: Path, watches: Watches) -> None:
    for name in ("a/b", "c"):
        (folder / name).mkdir(parents=True)
    place(watches, folder, b"", b"a", b"a/b", b"c")
    place(watches, folder, b"", b"c", turn=2)
    watches.forget_older("in", 2)
    write(folder / "a/b/x.jpg")
    write(folder / "c/y.jpg")
    assert told(watches) == [(b"c", b"y.jpg")]


def test_a_folder_that_is_gone_leaves_the_books(folder: Path, watches: Watches) -> None:
    (folder / "a").mkdir()
    place(watches, folder, b"", b"a")
    (folder / "a").rmdir()
    list(watches.read())
    assert watches.count("in") == 1


def test_faults_have_their_number(folder: Path, watches: Watches) -> None:
    with pytest.raises(FileNotFoundError):
        place(watches, folder, b"nothing")
    write(folder / "file")
    with pytest.raises(NotADirectoryError):
        place(watches, folder, b"file")
    (folder / "link").symlink_to(folder)
    with pytest.raises(NotADirectoryError):
        place(watches, folder, b"link")


def test_before_the_first_and_after_the_end_there_is_nothing(
    folder: Path, watches: Watches
) -> None:
    assert watches.fileno() is None
    assert list(watches.read()) == []
    watches.forget("in")
    place(watches, folder, b"")
    watches.close()
    watches.close()
    assert watches.fileno() is None
    assert watches.count("in") == 0
