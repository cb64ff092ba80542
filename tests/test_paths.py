"""Which inbox or outbox a path is in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from phi4d.config import BESIDE, Inbox
from phi4d.paths import as_configured, below, inbox_of, outboxes_of


@pytest.fixture
def boxes(tmp_path: Path) -> list[Inbox]:
    found = []
    for name, outbox in [("a", tmp_path / "out"), ("b", BESIDE), ("c", tmp_path / "out/c")]:
        (tmp_path / name).mkdir()
        found.append(Inbox(path=tmp_path / name, outbox=outbox, name=name))
    return found


@pytest.mark.parametrize(
    ("path", "folder", "found"),
    [
        (b"/in", b"/in", b""),
        (b"/in/a", b"/in", b"a"),
        (b"/in/a/b", b"/in", b"a/b"),
        (b"/in/\xff\n", b"/in", b"\xff\n"),
        (b"/inn/a", b"/in", None),
        (b"/", b"/in", None),
        (b"/a", b"/", b"a"),
    ],
)
def test_below_a_folder(path: bytes, folder: bytes, found: bytes | None) -> None:
    assert below(path, folder) == found


def test_each_inbox_is_found(boxes: list[Inbox], tmp_path: Path) -> None:
    root = os.fsencode(tmp_path)
    assert inbox_of(root + b"/a/x/y.jpg", boxes) == (boxes[0], b"x/y.jpg")
    assert inbox_of(root + b"/b", boxes) == (boxes[1], b"")
    assert inbox_of(root + b"/d/x.jpg", boxes) is None


def test_the_innermost_outbox_comes_first(boxes: list[Inbox], tmp_path: Path) -> None:
    root = os.fsencode(tmp_path)
    assert outboxes_of(root + b"/out/c/x.txt", boxes) == [
        (boxes[2], b"x.txt"),
        (boxes[0], b"c/x.txt"),
    ]
    assert outboxes_of(root + b"/b/x.txt", boxes) == [(boxes[1], b"x.txt")]
    assert outboxes_of(root + b"/a/x.txt", boxes) == []


class TestAsConfigured:
    def test_relative_paths_are_meant_from_the_current_folder(
        self, boxes: list[Inbox], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path / "a")
        root = os.fsencode(tmp_path)
        assert as_configured("x.jpg", boxes) == root + b"/a/x.jpg"
        assert as_configured("./-x", boxes) == root + b"/a/-x"
        assert as_configured(".", boxes) == root + b"/a"
        assert as_configured("../b/x/../y.jpg", boxes) == root + b"/b/y.jpg"
        assert as_configured("\udcff.jpg", boxes) == root + b"/a/\xff.jpg"

    def test_links_to_an_inbox_and_from_its_name_are_followed(self, tmp_path: Path) -> None:
        # given an inbox whose folder is itself a link, and another link to it
        (tmp_path / "real/sub").mkdir(parents=True)
        (tmp_path / "in").symlink_to("real")
        (tmp_path / "short").symlink_to("real/sub")
        box = Inbox(path=tmp_path / "in", outbox=tmp_path / "out", name="in")
        for given in ("real/sub/x.jpg", "short/x.jpg", "in/sub/x.jpg"):
            assert as_configured(str(tmp_path / given), [box]) == os.fsencode(
                tmp_path / "in/sub/x.jpg"
            )

    def test_a_link_is_itself(self, boxes: list[Inbox], tmp_path: Path) -> None:
        (tmp_path / "a/real.jpg").touch()
        (tmp_path / "link.jpg").symlink_to("a/real.jpg")
        link = tmp_path / "link.jpg"
        assert as_configured(str(link), boxes) == os.fsencode(link)

    def test_what_is_in_none_stays_as_it_is(self, boxes: list[Inbox], tmp_path: Path) -> None:
        assert as_configured("/none/x.jpg", boxes) == b"/none/x.jpg"
        assert as_configured(str(tmp_path / "none/x.jpg"), boxes) == os.fsencode(
            tmp_path / "none/x.jpg"
        )
