"""From a file that settled to one that is handed on: the store is asked, the content looked at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from inboxkit import SETTLE, SETTLE_MAX, Bench, by_name, write

from phi4d.errors import FileChanged, SourceFault
from phi4d.inbox import Inspection
from phi4d.job import Kind


class TestContent:
    def test_the_kind_is_what_the_inspection_says(self, bench: Bench) -> None:
        bench.hands.sees = lambda _: Inspection(Kind.AUDIO, True)
        write(bench.folder / "a.jpg")
        bench.run()
        assert [f.kind for f in bench.hands.found] == [Kind.AUDIO]

    @pytest.mark.parametrize("name", ["photo", "scan.xyz", "recording.2024"])
    def test_names_that_promise_nothing_are_looked_into(self, bench: Bench, name: str) -> None:
        bench.hands.sees = lambda _: Inspection(Kind.IMAGE, True)
        write(bench.folder / name)
        assert bench.run() == [name.encode()]

    @pytest.mark.parametrize("name", ["a.pdf", "a.html", "a.zip", "a.jpg.txt", "a.jpg.json"])
    def test_names_that_promise_something_else_are_never_opened(
        self, bench: Bench, name: str
    ) -> None:
        bench.hands.sees = lambda _: Inspection(Kind.IMAGE, True)
        write(bench.folder / name)
        bench.run()
        bench.rescan()
        assert bench.after(SETTLE) == []
        assert bench.hands.inspected == []

    def test_what_is_none_of_ours_is_looked_into_once(self, bench: Bench) -> None:
        bench.hands.sees = lambda _: Inspection(None, True)
        write(bench.folder / "data")
        bench.run()
        bench.aged = SETTLE
        bench.rescan()
        assert len(bench.hands.inspected) == 1
        write(bench.folder / "data", b"another version")
        bench.run()
        assert len(bench.hands.inspected) == 2

    def test_files_of_a_kind_that_the_inbox_does_not_take(
        self, make_bench: Callable[..., Bench]
    ) -> None:
        bench = make_bench(kinds=frozenset({Kind.AUDIO}))
        write(bench.folder / "a.jpg")
        write(bench.folder / "b.wav")
        assert bench.run() == [b"b.wav"]

    def test_what_changed_while_it_was_looked_into_is_looked_at_again(self, bench: Bench) -> None:
        def changed(path: bytes) -> Inspection:
            bench.hands.sees = lambda _: Inspection(Kind.IMAGE, True)
            raise FileChanged("changed")

        bench.hands.sees = changed
        write(bench.folder / "a.jpg")
        assert bench.run() == []
        assert bench.after(2 * SETTLE) == [b"a.jpg"]

    def test_what_cannot_be_read_now_is_handed_on_by_its_name(self, bench: Bench) -> None:
        def refuse(_path: bytes) -> Inspection:
            raise SourceFault("no permission")

        bench.hands.sees = refuse
        write(bench.folder / "a.jpg")
        write(bench.folder / "nameless")
        assert bench.run() == [b"a.jpg"]
        assert bench.waiting == 0


class TestIncomplete:
    def test_it_waits_until_it_is_whole(self, bench: Bench) -> None:
        bench.hands.sees = lambda path: Inspection(by_name(path), False)
        write(bench.folder / "a.jpg")
        assert bench.after(SETTLE_MAX / 2) == []
        inspected = len(bench.hands.inspected)
        assert bench.after(SETTLE) == []
        assert len(bench.hands.inspected) == inspected  # nothing new, so it is not opened
        bench.hands.sees = lambda path: Inspection(by_name(path), True)
        with (bench.folder / "a.jpg").open("ab") as file:
            file.write(b"the rest")
        assert bench.run() == [b"a.jpg"]

    def test_it_is_handed_on_as_it_is_in_the_end(self, bench: Bench) -> None:
        bench.hands.sees = lambda path: Inspection(by_name(path), False)
        write(bench.folder / "a.jpg")
        assert bench.after(SETTLE_MAX + 2 * SETTLE) == [b"a.jpg"]
        assert bench.waiting == 0

    def test_one_that_was_cut_off_long_ago_does_not_wait(
        self, folder: Path, make_bench: Callable[..., Bench]
    ) -> None:
        write(folder / "a.jpg")
        bench = make_bench(begin=False)
        bench.hands.sees = lambda path: Inspection(by_name(path), False)
        bench.aged = SETTLE_MAX
        bench.begin()
        assert bench.hands.paths() == [b"a.jpg"]
        assert bench.waiting == 0


class TestStore:
    def test_what_it_knows_is_not_opened(
        self, folder: Path, make_bench: Callable[..., Bench]
    ) -> None:
        for n in range(20):
            write(folder / f"{n}.jpg")
        bench = make_bench(begin=False)
        bench.aged = SETTLE
        bench.begin()
        assert len(bench.hands.inspected) == 20
        bench.rescan()
        assert len(bench.hands.inspected) == 20
        assert len(bench.hands.found) == 20

    def test_a_close_without_a_change_is_nothing_new(self, bench: Bench) -> None:
        write(bench.folder / "a.jpg")
        bench.run()
        with (bench.folder / "a.jpg").open("ab"):
            pass
        assert bench.run() == [b"a.jpg"]
        assert len(bench.hands.inspected) == 1
        assert bench.waiting == 0

    @pytest.mark.parametrize("calls", [1, 2])
    def test_what_it_refused_is_found_again(
        self,
        make_bench: Callable[..., Bench],
        caplog: pytest.LogCaptureFixture,
        calls: int,
    ) -> None:
        # given a store that fails when it is asked, or when it is given a file
        bench = make_bench(poll_seconds=10.0)
        known = bench.hands.known
        if calls == 2:
            bench.watcher._intake._known = lambda files: [False for _ in files]
        bench.hands.refuse = 1
        # when
        write(bench.folder / "a.jpg")
        assert bench.run() == []
        bench.watcher._intake._known = known
        # then
        assert not bench.watcher.caught_up.is_set()
        assert "the store's disk is full; new files wait" in str(bench.hands.notices["in"])
        bench.aged = SETTLE
        assert bench.after(11.0) == [b"a.jpg"]
        assert bench.hands.notices["in"] is None
        assert caplog.text.count("the store's disk is full") == 1
        assert bench.watcher.caught_up.is_set()
