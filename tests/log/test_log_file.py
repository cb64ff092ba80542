"""A log file: rotated by us or by others; a full disk stops nobody, and no line is lost."""

from __future__ import annotations

import logging
import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kit import unprivileged

from phi4d import events
from phi4d.errors import ConfigError, EnvironmentFault
from phi4d.log import targets
from phi4d.log.targets import LogFile


class Ears(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.closed = False

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def close(self) -> None:
        self.closed = True
        super().close()


@pytest.fixture
def ears() -> Ears:
    return Ears()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "phi4d.log"


@pytest.fixture
def open_log(path: Path, ears: Ears) -> Iterator[Callable[..., LogFile]]:
    opened = []

    def make(max_bytes: int = 0, count: int = 3) -> LogFile:
        opened.append(LogFile(path, max_bytes, count, ears))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def write(log: LogFile, *words: str) -> None:
    for word in words:
        log.handle(logging.makeLogRecord({"msg": word, "levelno": logging.INFO}))


def test_lines_are_added(open_log: Callable[..., LogFile], path: Path) -> None:
    path.write_text("before\n")
    write(open_log(), "käse", "bad \udcff name")
    assert path.read_text() == "before\nkäse\nbad \\udcff name\n"


def test_it_is_rotated_by_its_size(open_log: Callable[..., LogFile], path: Path) -> None:
    write(open_log(max_bytes=10, count=2), *(f"line {n}" for n in range(4)))
    names = {p.name: p.read_text() for p in path.parent.iterdir()}
    assert names == {
        "phi4d.log": "line 3\n",
        "phi4d.log.1": "line 2\n",
        "phi4d.log.2": "line 1\n",
    }


def test_a_line_longer_than_the_size_is_whole(open_log: Callable[..., LogFile], path: Path) -> None:
    write(open_log(max_bytes=10), "x" * 30, "y" * 30)
    assert path.read_text() == "y" * 30 + "\n"
    assert path.with_name("phi4d.log.1").read_text() == "x" * 30 + "\n"


@pytest.mark.parametrize("how", ["moved", "removed", "replaced"])
def test_it_may_be_rotated_by_others(
    open_log: Callable[..., LogFile], path: Path, how: str
) -> None:
    log = open_log(max_bytes=1000)
    write(log, "one")
    aside = path.with_name("aside")
    if how == "removed":
        path.unlink()
    else:
        path.rename(aside)
    if how == "replaced":
        path.touch()
    write(log, "two")
    assert path.read_text() == "two\n"
    assert how == "removed" or aside.read_text() == "one\n"


def test_it_may_be_truncated_by_others(open_log: Callable[..., LogFile], path: Path) -> None:
    log = open_log()
    write(log, "one")
    os.truncate(path, 0)  # logrotate's copytruncate
    write(log, "two")
    assert path.read_text() == "two\n"


def test_a_full_disk_is_said_once_elsewhere_and_its_lines_too(
    open_log: Callable[..., LogFile], path: Path, ears: Ears
) -> None:
    # given a disk that takes no more than a few bytes of the third line
    log = open_log()
    write(log, "one")
    room = len("one\nt")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
        write(log, "two", "three")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    # when there is room again
    write(log, "four", "five")
    # then no line is lost, and none is glued to another
    assert path.read_text() == "one\nt\nfour\nfive\n"
    assert [record.getMessage() for record in ears.records] == [
        f"log_file: {path} cannot be written: File too large; until it can, the log goes here",
        "two",
        "three",
        f"log_file: {path} is written again",
    ]
    ids = [vars(record).get("MESSAGE_ID") for record in ears.records]
    assert ids == [events.LOG_TROUBLED.id, None, None, events.LOG_HEALED.id]


def test_one_that_cannot_be_rotated_grows_on_and_says_so_once(
    open_log: Callable[..., LogFile], path: Path, ears: Ears
) -> None:
    path.with_name("phi4d.log.1").mkdir()  # in the way
    write(open_log(max_bytes=5, count=1), "one", "two", "three")
    assert path.read_text() == "one\ntwo\nthree\n"
    (record,) = ears.records
    assert "cannot be rotated: Is a directory; it grows on" in record.getMessage()


def test_a_line_that_cannot_be_formatted_ends_nothing(
    open_log: Callable[..., LogFile], path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = open_log()
    log.handle(logging.makeLogRecord({"msg": "%d", "args": ("x",)}))
    write(log, "on")
    assert path.read_text() == "on\n"
    assert "Logging error" in capsys.readouterr().err


def test_closing_closes_what_took_its_lines(open_log: Callable[..., LogFile], ears: Ears) -> None:
    log = open_log()
    log.close()
    log.close()
    assert ears.closed


class TestAtTheStart:
    @pytest.mark.parametrize("what", ["no folder", "a folder", "a pipe", "no permission"])
    def test_a_place_that_cannot_be_written_is_refused(self, tmp_path: Path, what: str) -> None:
        path = tmp_path / "there/log"
        if what != "no folder":
            path.parent.mkdir()
        if what == "a folder":
            path.mkdir()
        if what == "a pipe":
            os.mkfifo(path)
        with (
            unprivileged(tmp_path, 0o755),
            pytest.raises(ConfigError, match=r"log_file: .* cannot be written: .*; name a file"),
        ):
            targets.make("plain", path, 0, 1)

    def test_a_full_disk_passes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(LogFile, "_opened", full)
        with pytest.raises(EnvironmentFault, match="No space left"):
            targets.make("plain", tmp_path / "log", 0, 1)

    def test_it_may_be_a_device(self) -> None:
        log = targets.make("json", Path("/dev/null"), 10, 1)
        write(log, "x" * 100)  # type: ignore[arg-type]
        log.close()
        assert Path("/dev/null").is_char_device()
