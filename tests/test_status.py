"""What status says."""

from __future__ import annotations

import time

from phi4d.job import State, display_name
from phi4d.status import Snapshot, line, render, totals

COUNTS = {
    "photos": {State.QUEUED: 128, State.RUNNING: 3, State.DONE: 1000, State.FAILED: 2},
    "memos": {State.QUEUED: 1, State.DROPPED: 4},
}


def test_totals_are_over_all_inboxes() -> None:
    assert totals(COUNTS)[State.QUEUED] == 129
    assert totals(COUNTS)[State.DROPPED] == 4
    assert totals({})[State.DONE] == 0


def test_the_line_for_the_service_manager() -> None:
    assert line(COUNTS) == "3 running, 129 waiting, 2 failed"
    assert line(COUNTS, ["memos"]) == "3 running, 129 waiting, 2 failed; paused: memos"


def test_the_table_for_people() -> None:
    noon = time.mktime((2026, 11, 22, 12, 0, 0, 0, 0, -1))
    text = render(
        Snapshot(
            daemon_pid=42,
            counts=COUNTS,
            running=[("photos/a.jpg", "cuda:0", 3.4)],
            notices=[("photos", "/out: cannot be written: disk full", noon)],
            put_off=[("photos/c.jpg", "cannot be read now", noon + 60)],
            failures=[("photos/b.jpg", "is empty", noon + 120)],
        )
    )
    lines = text.splitlines()
    assert lines[0] == "phi4d is running, pid 42"
    assert lines[2].split() == ["inbox", "waiting", "running", "done", "failed"]
    assert lines[3].split() == ["memos", "1", "0", "0", "0"]
    assert lines[4].split() == ["photos", "128", "3", "1000", "2"]
    assert lines[5].split() == ["all", "129", "3", "1000", "2"]
    assert len({len(row) for row in lines[2:6]}) == 1
    assert lines[6:] == [
        "",
        "running",
        "  photos/a.jpg  on cuda:0, 3 s",
        "",
        "held up since",
        "  2026-11-22 12:00  photos: /out: cannot be written: disk full",
        "",
        "next try at",
        "  2026-11-22 12:01  photos/c.jpg: cannot be read now",
        "",
        "last failures",
        "  2026-11-22 12:02  photos/b.jpg: is empty",
    ]


def test_nothing_yet() -> None:
    assert render(Snapshot(None, {})) == "phi4d is not running\nno file has come in yet"


def test_one_inbox_needs_no_sum() -> None:
    assert "all" not in render(Snapshot(None, {"in": {State.DONE: 1}}))


def test_names_are_printable() -> None:
    assert display_name("in", b"a\nb.jpg") == r"in/a\nb.jpg"
