"""Hooks that are commands: real programs, without a shell."""

from __future__ import annotations

import logging
import os
import select
import signal
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from phi4d.errors import HookFailed, Stopped
from phi4d.hooks import command

WORDS = {
    "path": b"/in/p\xe4\nth $(touch x).png",
    "name": b"in/a.png",
    "sidecars": b"/out/a.txt\n/out/a.json",
}
SIDECARS = [b"/out/a.txt", b"/out/a.json"]


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], str]:
    """Writes a shell script and returns its path."""

    def write(text: str) -> str:
        path = tmp_path / "hook"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return str(path)

    return write


def run(*words: str, seconds: float = 60.0, aborting: threading.Event | None = None) -> None:
    command.run(words, WORDS, SIDECARS, seconds=seconds, aborting=aborting or threading.Event())


def test_it_is_told_in_its_arguments(tmp_path: Path, script: Callable[[str], str]) -> None:
    # given a command that notes its arguments, one a line with an end
    hook = script(f'for word; do printf "%s|\\n" "$word"; done > {tmp_path}/told')
    # when it is run with words of a path that is no UTF-8 and would harm a shell
    run(hook, "-f", "{path}", "{sidecars}", "x{name}y", "{{name}}", "{other}", "", "{sidecars}!")
    # then each argument came as it was
    assert (tmp_path / "told").read_bytes().split(b"|\n") == [
        b"-f",
        WORDS["path"],
        *SIDECARS,
        b"xin/a.pngy",
        b"{name}",
        b"{other}",
        b"",
        WORDS["sidecars"] + b"!",
        b"",
    ]


def test_it_is_told_in_its_environment_and_learns_nothing_of_ours(
    tmp_path: Path, script: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = ("PHI4_DEVICE", "PHI4D_OLD", "NOTIFY_SOCKET", "WATCHDOG_USEC", "HF_TOKEN")
    for name in ours:
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("PLAIN", "kept")
    run(script(f"env -0 > {tmp_path}/told"))
    told = dict(
        entry.split(b"=", 1) for entry in (tmp_path / "told").read_bytes().split(b"\0") if entry
    )
    assert told[b"PHI4D_PATH"] == WORDS["path"]
    assert told[b"PHI4D_SIDECARS"] == WORDS["sidecars"]
    assert told[b"PLAIN"] == b"kept"
    assert not set(map(str.encode, ours)) & set(told)


def test_a_name_is_looked_for_in_the_path(tmp_path: Path) -> None:
    run("touch", f"{tmp_path}/there")
    assert (tmp_path / "there").exists()


def test_it_has_no_input_and_may_write_a_lot(script: Callable[[str], str]) -> None:
    # were its output not read, or its input ours, it would never end
    run(script("cat; head -c 300000 /dev/zero; head -c 300000 /dev/zero >&2"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("exit 3", "ended with exit code 3"),
        ("echo first >&2; echo 'no such recipient' >&2; exit 1", "exit code 1: no such recipient"),
        ("echo of the transcript; exit 1", "ended with exit code 1"),
        ("kill -SEGV $$", "was killed by SIGSEGV"),
    ],
)
def test_a_bad_end_is_told_with_the_last_line_of_its_errors(
    script: Callable[[str], str], words: str, expected: str
) -> None:
    with pytest.raises(HookFailed) as caught:
        run(script(words))
    assert str(caught.value).endswith(expected)
    assert not caught.value.again


def test_all_of_its_errors_are_in_the_log_at_debug(
    script: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "phi4d")
    run(script("echo one >&2; echo two >&2"))
    (line,) = [r for r in caplog.records if r.name.startswith("phi4d")]
    assert (line.levelname, line.getMessage().endswith(r"wrote: one\ntwo\n")) == ("DEBUG", True)


def test_what_is_no_program_is_told(tmp_path: Path) -> None:
    with pytest.raises(HookFailed, match="no-such-program is not found, or may not be run"):
        run("no-such-program")
    plain = tmp_path / "plain"
    plain.write_text("#!/bin/sh\n")
    plain.chmod(stat.S_IRUSR)
    with pytest.raises(HookFailed, match="not found, or may not be run"):
        run(str(plain))
    plain.chmod(0o755)
    plain.write_bytes(b"\x7fELF but no more")
    with pytest.raises(HookFailed, match="cannot be started: Exec format error"):
        run(str(plain))


class Noticed(threading.Event):
    """Set once there is something to read."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.descriptor = descriptor

    def is_set(self) -> bool:
        return bool(select.select([self.descriptor], [], [], 0)[0])


@pytest.mark.parametrize("how", ["late", "stopped", "ended"])
def test_whatever_it_started_ends_with_it(
    tmp_path: Path, script: Callable[[str], str], how: str
) -> None:
    # given a command with a child that has a pipe open, and would for ever
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    waits = "" if how == "ended" else "wait"
    hook = script(f"exec 3> {pipe}\nsleep 1000 &\nprintf x >&3\n{waits}")
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    begun, never = Noticed(reading), threading.Event()
    try:
        # when it ends, in whatever way
        if how == "late":
            with pytest.raises(HookFailed, match=r"took longer than 5 s \(hook_seconds\)"):
                command.run(
                    [hook], WORDS, seconds=5, aborting=never, clock=lambda: 9.0 * begun.is_set()
                )
        elif how == "stopped":
            with pytest.raises(Stopped):
                run(hook, aborting=begun)
        else:
            run(hook)
        # then nobody has the pipe open any more
        os.set_blocking(reading, True)
        assert os.read(reading, 10) == b"x"
        assert os.read(reading, 10) == b""
    finally:
        os.close(reading)


def test_signals_that_we_block_reach_it(script: Callable[[str], str]) -> None:
    # the daemon blocks SIGTERM in all its threads; a command must not inherit that
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        with pytest.raises(HookFailed, match="was killed by SIGTERM"):
            run(script("kill -TERM $$; exit 0"))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
