"""The walk, and the .phi4dignore files that it reads on its way."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from inboxkit import write

from phi4d.inbox.rules import Rules
from phi4d.inbox.scan import STEP, Visitor, explain, learn, walk


class Diary:
    """Writes down what happens on a walk."""

    def __init__(self) -> None:
        self.entered: list[bytes] = []
        self.refused: list[bytes] = []
        self.wrong: list[tuple[bytes, list[str]]] = []

    def visitor(self, *, files: bool = True) -> Visitor:
        return Visitor(
            self.entered.append,
            lambda folder, _error: self.refused.append(folder),
            lambda folder, lines: self.wrong.append((folder, lines)) if lines else None,
            (lambda _name: True) if files else None,
        )


def paths(folder: Path, visitor: Visitor, below: bytes = b"") -> list[bytes]:
    steps = walk(os.fsencode(folder), Rules(), below, visitor)
    return sorted(path for batch in steps for path, _ in batch)


def test_each_folder_is_entered_before_it_is_listed(folder: Path) -> None:
    (folder / "a/b").mkdir(parents=True)
    write(folder / "a/b/x.jpg")
    diary = Diary()
    visitor = diary.visitor()

    def enter(path: bytes) -> None:
        diary.entered.append(path)
        write(folder / os.fsdecode(path) / "late.jpg")  # what comes before the listing is listed

    visitor = Visitor(enter, visitor.refused, visitor.wrong, visitor.wanted)
    assert paths(folder, visitor) == [b"a/b/late.jpg", b"a/b/x.jpg", b"a/late.jpg", b"late.jpg"]
    assert diary.entered == [b"", b"a", b"a/b"]


def test_a_part_of_it(folder: Path) -> None:
    (folder / "a/b").mkdir(parents=True)
    write(folder / "x.jpg")
    write(folder / "a/b/x.jpg")
    assert paths(folder, Diary().visitor(), b"a") == [b"a/b/x.jpg"]


def test_only_folders(folder: Path) -> None:
    (folder / "a").mkdir()
    write(folder / "x.jpg")
    diary = Diary()
    assert paths(folder, diary.visitor(files=False)) == []
    assert diary.entered == [b"", b"a"]


def test_it_pauses_after_so_many_entries_whatever_they_are(folder: Path) -> None:
    for n in range(STEP + 1):
        (folder / f"{n}.txt").touch()
    steps = walk(os.fsencode(folder), Rules(), b"", Diary().visitor())
    assert [len(batch) for batch in steps] == [0, 0]


def test_a_folder_that_is_gone_is_no_trouble_but_the_root_is(folder: Path) -> None:
    diary = Diary()
    assert paths(folder, diary.visitor(), b"gone") == []
    assert diary.refused == []
    assert paths(folder / "gone", diary.visitor()) == []
    assert diary.refused == [b""]


def test_a_listing_that_fails_half_way_keeps_what_it_had(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Listing:
        def __init__(self, path: bytes) -> None:
            self.entries = real(path)

        def __enter__(self) -> Listing:
            return self

        def __exit__(self, *_: object) -> None:
            self.entries.close()

        def __iter__(self) -> Listing:
            return self

        def __next__(self) -> os.DirEntry[bytes]:
            entry = next(self.entries, None)
            if entry is None:
                raise OSError(5, "Input/output error")
            return entry

    write(folder / "a.jpg")
    real = os.scandir
    monkeypatch.setattr("phi4d.inbox.scan.os.scandir", Listing)
    diary = Diary()
    assert paths(folder, diary.visitor()) == [b"a.jpg"]
    assert diary.refused == [b""]


class TestIgnoreFiles:
    def test_windows_has_written_it(self, folder: Path) -> None:
        (folder / ".phi4dignore").write_bytes(b"\xef\xbb\xbf*.png\r\nB\xc3\xbcro/\r\n")
        rules = Rules()
        assert learn(os.fsencode(folder), rules, b"") == []
        assert not rules.verdict(b"a.png").taken
        assert not rules.verdict("Büro/a.jpg".encode()).taken

    def test_bytes_that_are_no_utf_8_match_such_names(self, folder: Path) -> None:
        (folder / ".phi4dignore").write_bytes(b"B\xfcro/\n")
        rules = Rules()
        assert learn(os.fsencode(folder), rules, b"") == []
        assert not rules.verdict(b"B\xfcro/a.jpg").taken

    @pytest.mark.parametrize(
        ("what", "words"),
        [("fifo", "not a regular file"), ("link", "symbolic links"), ("large", "larger than 1 MB")],
    )
    def test_what_is_no_plain_small_file_is_told_and_never_waited_for(
        self, folder: Path, tmp_path: Path, what: str, words: str
    ) -> None:
        path = folder / ".phi4dignore"
        if what == "fifo":
            os.mkfifo(path)
        elif what == "link":
            write(tmp_path / "patterns", b"*.png\n")
            path.symlink_to(tmp_path / "patterns")
        else:
            path.write_bytes(b"#" * 1_000_001)
        rules = Rules()
        (line,) = learn(os.fsencode(folder), rules, b"")
        assert words in line
        assert rules.verdict(b"a.png").taken

    def test_explain_reads_those_on_the_way(self, folder: Path) -> None:
        (folder / "2024").mkdir()
        (folder / "2024/.phi4dignore").write_text("raw/\n")
        verdict = explain(os.fsencode(folder), Rules(), b"2024/raw/never/seen.jpg")
        assert not verdict.taken
        assert verdict.why == 'its folder 2024/raw is excluded by "raw/" in 2024/.phi4dignore'
        assert explain(os.fsencode(folder), Rules(), b"2024/other.jpg").taken
