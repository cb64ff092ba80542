"""What status says."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

from phi4d.job import State, display_name
from phi4d.status import Snapshot, line, render, span, totals

COUNTS = {
    "photos": {State.QUEUED: 128, State.RUNNING: 3, State.DONE: 1000, State.FAILED: 2},
    "memos": {State.QUEUED: 1, State.DROPPED: 4},
}
NOON = time.mktime((2026, 11, 22, 12, 0, 0, 0, 0, -1))
SLOT = {
    "device": "cuda:0",
    "model": "a model",
    "precision": "bfloat16, sdpa",
    "state": "loaded",
    "next_try": None,
    "memory": {"size_bytes": 80e9, "used_bytes": 23.4e9, "own_bytes": 20e9},
    "files": [{"file": f"photos/{n}.jpg", "seconds": n} for n in range(5)],
    "tokens_per_second": 412.4,
    "batch": 7.5,
    "times_real_time": 0.0,
    "silent_seconds": 0.1,
}
LIVE: dict[str, Any] = {
    "state": "ready",
    "pid": 42,
    "version": "1.2",
    "uptime_seconds": 11_530.0,
    "files_per_minute": 41.2,
    "times_real_time": 8.25,
    "eta_seconds": 840.0,
    "slots": [SLOT],
    "inboxes": {
        "photos": {
            "mode": "inotify",
            "kinds": ["image", "audio"],
            "priority": "normal",
            "paused": None,
            "next_try": None,
        },
        "memos": {
            "mode": "poll (NFS)",
            "kinds": ["audio"],
            "priority": "low",
            "paused": None,
            "next_try": None,
        },
    },
    "hung": [],
    "dead": [],
}


def test_totals_are_over_all_inboxes() -> None:
    assert totals(COUNTS)[State.QUEUED] == 129
    assert totals(COUNTS)[State.DROPPED] == 4
    assert totals({})[State.DONE] == 0


def test_the_line_for_the_service_manager() -> None:
    assert line(COUNTS) == "3 running, 129 waiting, 2 failed"
    assert line(COUNTS, ["memos"]) == "3 running, 129 waiting, 2 failed; paused: memos"


def test_everything_for_people() -> None:
    snapshot = Snapshot(
        42,
        COUNTS,
        notices=[("photos", "/out: cannot be written: disk full", NOON)],
        paused=[("memos", "paused by ada: a move", NOON)],
        put_off=[("photos/c.jpg", "cannot be read now", NOON + 60)],
        failures=[("photos/b.jpg", "is empty", NOON + 120)],
        oldest={"photos": NOON - 245},
        live=LIVE
        | {"inboxes": LIVE["inboxes"] | {"photos": {"mode": "inotify", "next_try": NOON + 30}}},
    )
    assert render(snapshot, now=NOON).splitlines() == [
        "phi4d 1.2, pid 42, up 3 h 12 min: ready",
        "41 files/min, speech at 8.2 × real time, "  # noqa: RUF001 -- the sign is meant
        "all done in 14 min but for what is paused or held up",
        "",
        "cuda:0  a model, bfloat16, sdpa",
        "  23.4 of 80.0 GB in use, 412 tokens/s, 7.5 at a time",
        "  photos/0.jpg, 0 s",
        "  photos/1.jpg, 1 s",
        "  photos/2.jpg, 2 s",
        "  … and 2 more",
        "",
        "inbox   mode     waiting  running  done  failed  oldest",
        "memos   paused         1        0     0       0",
        "photos  held up      128        3  1000       2   4 min",
        "all                  129        3  1000       2",
        "",
        "paused since",
        "  2026-11-22 12:00  memos: paused by ada: a move",
        "",
        "held up since",
        "  2026-11-22 12:00  photos: /out: cannot be written: disk full (next try in 30 s)",
        "",
        "next try at",
        "  2026-11-22 12:01  photos/c.jpg: cannot be read now",
        "",
        "last failures",
        "  2026-11-22 12:02  photos/b.jpg: is empty",
    ]


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"mode": "inotify", "kinds": ["image", "audio"], "priority": "high"}, "watch, high"),
        ({"mode": "poll (NFS)", "kinds": ["audio"], "priority": "low"}, "poll audio, low"),
        ({"mode": "poll (NFS)", "kinds": ["audio"], "priority": "normal"}, "poll audio"),
        ({"mode": None, "kinds": ["image", "audio"], "priority": "low"}, "low"),
    ],
)
def test_how_an_inbox_is_looked_after_and_whether_it_goes_first(
    told: dict[str, Any], words: str
) -> None:
    snapshot = Snapshot(42, {}, live=LIVE | {"inboxes": {"in": told}})
    (row,) = (line for line in render(snapshot).splitlines() if line.startswith("in  "))
    assert row == f"in     {words.ljust(max(4, len(words)))}        0        0     0       0"


def test_what_a_store_tells_without_a_daemon() -> None:
    snapshot = Snapshot(None, COUNTS, running=[("photos/a.jpg", "cuda:0", NOON - 3.4)])
    lines = render(snapshot, now=NOON).splitlines()
    assert lines[0] == "phi4d is not running"
    assert lines[2].split() == ["inbox", "waiting", "running", "done", "failed", "oldest"]
    assert lines[3].split() == ["memos", "1", "0", "0", "0"]
    assert lines[4].split() == ["photos", "128", "3", "1000", "2"]
    assert lines[5].split() == ["all", "129", "3", "1000", "2"]
    assert lines[6:] == ["", "running", "  photos/a.jpg  on cuda:0, 3 s"]


@pytest.mark.parametrize("columns", [72, 80, 81, 132])
def test_nothing_is_wider_than_the_terminal_and_no_column_breaks(columns: int) -> None:
    long = "scans of the years before the great move " * 3
    wide = "写真" * 30
    name = "a-very-long-name-without-any-blank-" * 6 + ".jpg"
    counts = {inbox: {State.QUEUED: 1_000_000, State.DONE: 12} for inbox in (long, wide, "x")}
    snapshot = Snapshot(
        42,
        counts,
        notices=[(wide, "cannot be written " * 9, NOON)],
        failures=[(f"x/{name}", "is empty (0 bytes): copy it again from its source", NOON)],
        oldest={"x": NOON - 100_000},
        live=LIVE | {"slots": [SLOT | {"files": [{"file": f"x/{name}", "seconds": 3}]}]},
    )
    lines = render(snapshot, columns, NOON).splitlines()
    assert max(map(shown, lines)) <= columns
    # every row of the table has its numbers where the heading has its words
    (top,) = (n for n, each in enumerate(lines) if each.startswith("inbox"))
    ends = [lines[top].index(word) + len(word) for word in ("waiting", "done", "failed")]
    for row in lines[top + 1 : top + 7]:
        seen = "".join(c + "·" * (shown(c) - 1) for c in row)
        for end in ends:
            assert seen[end - 1].isdigit()
            assert seen[end : end + 1] in ("", " ")
    assert "all" in lines[top + 6]
    # and nothing is lost but the ends of inboxes' names in the table
    assert name in "".join(part.strip() for part in lines)


def shown(text: str) -> int:
    return sum(2 if "一" <= c <= "鿿" else 1 for c in text)


def test_a_slot_that_was_unloaded_or_has_nothing_to_do() -> None:
    idle = SLOT | {"files": [], "memory": None, "tokens_per_second": 0, "batch": 0}
    main = idle | {"device": "cpu", "memory": SLOT["memory"]}
    waits = {"state": "waits for memory or files", "next_try": NOON + 25}
    slots = [main, idle | {"state": "unloaded (idle)"}, idle | waits]
    snapshot = Snapshot(42, {}, live=LIVE | {"slots": slots, "times_real_time": 0.0})
    assert render(snapshot, now=NOON).splitlines()[1:10] == [
        "41 files/min, nothing waits",
        "cuda:0: the model waits for memory or files",
        "",
        "cpu  a model, bfloat16, sdpa",
        "  20.0 GB of main memory",
        "  has nothing to do",
        "cuda:0  a model, bfloat16, sdpa: unloaded (idle)",
        "cuda:0  a model, bfloat16, sdpa: waits for memory or files (next try in 25 s)",
        "",
    ]


class TestHealth:
    def test_that_of_one_that_works_loads_its_model_or_is_paused(self) -> None:
        for state in ("ready", "loading", "paused", "reloading", "stopping"):
            snapshot = Snapshot(42, {}, live=LIVE | {"state": state}, paused=[("in", "x", 1.0)])
            assert (snapshot.health, snapshot.state, snapshot.troubles) == ("healthy", state, [])
        assert (Snapshot(42, {}, starting=True).health, "") == ("healthy", "")
        assert Snapshot(42, {}, starting=True).state == "loading"

    def test_that_of_one_that_does_not_run(self) -> None:
        assert (Snapshot(None, {}).health, Snapshot(None, {}).state) == ("down", "down")

    @pytest.mark.parametrize(
        ("how", "trouble"),
        [
            ({"live": None}, "it does not answer"),
            ({"live": LIVE | {"hung": ["worker cpu"]}}, "worker cpu: no sign of life"),
            ({"live": LIVE | {"dead": ["inbox"]}}, "inbox: has ended"),
            (
                {"live": LIVE | {"slots": [SLOT | {"state": "waits for memory or files"}]}},
                "cuda:0: the model waits for memory or files",
            ),
            ({"live": LIVE, "notices": [("in", "no room", 1.0)]}, "in: no room"),
        ],
    )
    def test_what_is_wrong_is_told(self, how: dict[str, Any], trouble: str) -> None:
        snapshot = Snapshot(42, {}, **how)
        assert (snapshot.health, snapshot.troubles) == ("degraded", [trouble])
        assert trouble.partition(": ")[2] in render(snapshot) or how["live"] is None


def test_everything_for_programs() -> None:
    stored = {
        "counts": {"photos": {"queued": 2, "failed": 1}},
        "cancelled": {"photos": 7},
        "oldest": {"photos": 5.0},
        "running": [["photos/a", "cpu", 1.0]],
        "paused": [["memos", "paused by ada", 2.0]],
        "notices": [["photos", "no room", 3.0]],
        "put_off": [["photos/b", "later", 4.0]],
        "failures": [["photos/c", "is empty", 6.0]],
    }
    fields = Snapshot.of(stored, LIVE | {"stored": stored}, pid=42).fields()
    assert (fields["schema"], fields["health"], fields["state"]) == (2, "degraded", "ready")
    assert fields["troubles"] == ["photos: no room"]
    assert fields["daemon"]["slots"] == [SLOT]
    assert "stored" not in fields["daemon"]
    assert fields["inboxes"] == {
        "memos": {
            "waiting": 0, "running": 0, "done": 0, "failed": 0, "cancelled": 0,
            "oldest_waiting": None,
            "mode": "poll (NFS)", "kinds": ["audio"], "priority": "low", "next_try": None,
            "paused": "paused by ada", "held_up": [],
        },
        "photos": {
            "waiting": 2, "running": 0, "done": 0, "failed": 1, "cancelled": 7,
            "oldest_waiting": 5.0,
            "mode": "inotify", "kinds": ["image", "audio"], "priority": "normal", "next_try": None,
            "paused": None, "held_up": ["no room"],
        },
    }  # fmt: skip
    assert fields["running"] == [{"file": "photos/a", "device": "cpu", "since": 1.0}]
    assert fields["failures"] == [{"file": "photos/c", "why": "is empty", "when": 6.0}]


def test_what_was_cancelled() -> None:
    text = render(Snapshot(None, COUNTS, cancelled={"photos": 12_345, "memos": 1}))
    assert text.splitlines()[-1] == (
        "cancelled: memos 1, photos 12,345; phi4d retry takes them up again"
    )


def test_nothing_yet() -> None:
    assert render(Snapshot(None, {})) == "phi4d is not running\n\nno file has come in yet"


def test_one_inbox_needs_no_sum() -> None:
    assert "all" not in render(Snapshot(None, {"in": {State.DONE: 1}}))


def test_names_are_printable() -> None:
    assert display_name("in", b"a\nb.jpg") == r"in/a\nb.jpg"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-1, "0 s"), (3.4, "3 s"), (119, "119 s"), (120, "2 min"), (3600, "1 h"),
     (7500, "2 h 5 min"), (86_400, "1 d"), (97_200, "1 d 3 h")],
)  # fmt: skip
def test_how_long_something_takes(seconds: float, words: str) -> None:
    assert span(seconds) == words


def test_the_docs_name_every_field() -> None:
    told = Path(__file__).parents[1].joinpath("docs/status.md").read_text()
    named = set(re.findall(r"`(\w+)`", told))
    fields = Snapshot(42, COUNTS, live=LIVE).fields()
    keys = {*fields, *fields["daemon"], *fields["inboxes"]["memos"], *SLOT, *SLOT["memory"]}
    assert keys - named == set()
