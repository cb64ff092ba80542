"""Each line comes through, or is at DEBUG and counted."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
from kit import Clock

from phi4d import events
from phi4d.log.digest import BUSY_FILES, SUMMARY_SECONDS
from phi4d.log.funnel import FAILED_SINGLY, SINGLY, Funnel
from phi4d.log.repeats import WINDOW_SECONDS

Said = list[tuple[str, str]]


class Ears(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def said(self) -> Said:
        said = [(record.levelname, record.getMessage()) for record in self.records]
        self.records.clear()
        return said


class Hall:
    """A logger of its own, with a funnel."""

    def __init__(self, clock: Clock, level: int) -> None:
        self.ears = Ears()
        self.funnel = Funnel(clock)
        self.funnel.aim(self.ears, level)
        self.log = logging.Logger("phi4d.test", level)
        self.log.addHandler(self.funnel)

    def done(self, n: int, inbox: str = "in") -> None:
        self.log.info("done %s/%d.png: picture", inbox, n, extra=events.FILE_DONE(inbox=inbox))

    def failed(self, n: int, reason: str = "not a picture") -> None:
        extra = events.FILE_FAILED(reason=reason, fault="file")
        self.log.error("failed in/%d.png: %s", n, reason, extra=extra)


@pytest.fixture
def hall(clock: Clock) -> Callable[..., Hall]:
    return lambda level=logging.INFO: Hall(clock, level)


def test_a_warning_is_said_once_and_then_counted(hall: Callable[..., Hall], clock: Clock) -> None:
    h = hall()
    for _ in range(38):
        h.log.warning("%s: no room", "/out")
    assert h.ears.said() == [("WARNING", "/out: no room")]
    clock.advance(WINDOW_SECONDS)
    h.funnel.tick()
    (record,) = h.ears.records
    assert (record.levelno, record.getMessage()) == (
        logging.WARNING,
        "said 37 times more in the last 5 minutes: /out: no room",
    )
    assert vars(record)["MESSAGE_ID"] == events.SAID_OFTEN.id


def test_at_debug_every_line_is_there(hall: Callable[..., Hall]) -> None:
    h = hall(logging.DEBUG)
    for _ in range(2):
        h.log.warning("no room")
    assert h.ears.said() == [("WARNING", "no room"), ("DEBUG", "no room")]


def test_what_others_hear_is_not_touched(hall: Callable[..., Hall]) -> None:
    h, others = hall(), Ears()
    h.log.addHandler(others)
    for _ in range(2):
        h.log.warning("no room")
    assert others.said() == [("WARNING", "no room")] * 2


def test_lines_like_each_other_are_counted_after_some(hall: Callable[..., Hall]) -> None:
    h = hall()
    for n in range(SINGLY + 4):
        h.log.warning("%d cannot be read", n)
    assert len(h.ears.said()) == SINGLY
    h.funnel.settle()
    assert h.ears.said() == [
        ("WARNING", f"4 more like this in the last 1 s: {SINGLY + 3} cannot be read")
    ]


def test_how_things_are_is_said_each_time(hall: Callable[..., Hall]) -> None:
    # an inbox that pauses, works, and pauses again: the last line must be true
    h = hall()
    for _ in range(3):
        h.log.warning("pauses", extra=events.INBOX_PAUSED(inbox="in"))
        h.log.warning("works again", extra=events.INBOX_RESUMED(inbox="in"))
    assert h.ears.said() == [("WARNING", "pauses"), ("WARNING", "works again")] * 3


def test_plain_information_is_said_each_time(hall: Callable[..., Hall]) -> None:
    h = hall()
    for _ in range(2):
        h.log.info("3 files have their sidecars already")
    assert len(h.ears.said()) == 2


class TestFailures:
    def test_each_is_said(self, hall: Callable[..., Hall]) -> None:
        h = hall()
        for n in range(3 * FAILED_SINGLY):
            h.failed(n, reason=f"reason {n}")
        assert [level for level, _ in h.ears.said()] == ["ERROR"] * 3 * FAILED_SINGLY

    def test_one_that_was_tried_again_is_said_again(self, hall: Callable[..., Hall]) -> None:
        h = hall()
        for _ in range(2):
            h.failed(1)
        assert h.ears.said() == [("ERROR", "failed in/1.png: not a picture")] * 2

    def test_a_flood_of_equal_ones_is_counted(self, hall: Callable[..., Hall]) -> None:
        h = hall()
        for n in range(FAILED_SINGLY + 30):
            h.failed(n)
        assert len(h.ears.said()) == FAILED_SINGLY
        h.funnel.settle()
        last = f"failed in/{FAILED_SINGLY + 29}.png: not a picture"
        assert h.ears.said() == [("ERROR", f"30 more like this in the last 1 s: {last}")]


class TestSummary:
    def test_under_load_a_line_now_and_then(self, hall: Callable[..., Hall], clock: Clock) -> None:
        h = hall()
        for n in range(BUSY_FILES + 400):
            h.done(n, "photos" if n % 2 else "memos")
        h.failed(0)
        said = h.ears.said()
        assert said[-1] == ("ERROR", "failed in/0.png: not a picture")
        assert len(said) == BUSY_FILES + 1
        for _ in range(int(SUMMARY_SECONDS) - 1):
            clock.advance(1)
            h.done(0, "photos")
            h.funnel.tick(lambda: 1203)
        assert h.ears.said() == []
        clock.advance(1)
        h.funnel.tick(lambda: 1203)
        (record,) = h.ears.records
        assert record.getMessage() == (
            "done 429 files in 30 s (photos 229, memos 200), 1 failed, 858 files/min, 1,203 waiting"
        )
        fields = {key: value for key, value in vars(record).items() if key.startswith("PHI4D_")}
        assert fields == {
            "PHI4D_EVENT": "files-done",
            "PHI4D_DONE": 429,
            "PHI4D_FAILED": 1,
            "PHI4D_WAITING": 1203,
        }

    def test_at_debug_the_single_lines_are_there_too(self, hall: Callable[..., Hall]) -> None:
        h = hall(logging.DEBUG)
        for n in range(BUSY_FILES + 1):
            h.done(n)
        assert h.ears.said()[-1] == ("DEBUG", f"done in/{BUSY_FILES}.png: picture")

    def test_files_set_aside_are_part_of_it(self, hall: Callable[..., Hall], clock: Clock) -> None:
        h = hall()
        for n in range(BUSY_FILES + 5):
            h.log.info("set aside %d", n, extra=events.FILE_DROPPED(inbox="in"))
        assert len(h.ears.said()) == BUSY_FILES
        clock.advance(SUMMARY_SECONDS)
        h.funnel.tick()
        assert h.ears.said() == [("INFO", "done 0 files in 1 s, 5 set aside")]

    def test_it_is_information(self, hall: Callable[..., Hall]) -> None:
        h = hall(logging.WARNING)
        for _ in range(BUSY_FILES + 5):
            h.funnel.handle(
                h.log.makeRecord("x", 20, "", 0, "done", (), None, extra=events.FILE_DONE())
            )
        h.funnel.settle()
        assert h.ears.said() == []


def test_it_can_be_aimed_elsewhere_and_forgets_nothing(hall: Callable[..., Hall]) -> None:
    h, other = hall(), Ears()
    for _ in range(2):
        h.log.warning("no room")
    h.funnel.aim(other, logging.INFO)
    h.funnel.close()
    assert other.said() == [("WARNING", "said 1 time more in the last 1 s: no room")]
