"""One daemon for one state folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from phi4d.errors import ConfigError
from phi4d.lock import Lock, age_seconds, holder

HOLD = "import sys; from pathlib import Path; from phi4d.lock import Lock; l = Lock(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"  # noqa: E501 -- one line for -c


def test_a_second_process_is_refused_and_told_by_whom(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        assert holder(path) == other.pid
        with pytest.raises(ConfigError, match=rf"another phi4d works here \(pid {other.pid}\)"):
            Lock(path)
        assert 0 <= age_seconds(other.pid) < age_seconds(os.getppid())
        other.kill()
    assert holder(path) is None
    Lock(path).release()


def test_how_long_nobody_has_run_cannot_be_told() -> None:
    assert age_seconds(0) == float("inf")


def test_nobody_holds_what_is_not_there(tmp_path: Path) -> None:
    assert holder(tmp_path / "none") is None


def test_release_is_idempotent(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "lock")
    lock.release()
    lock.release()
    os.close(os.open(tmp_path / "lock", os.O_RDONLY))


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="state_dir must be a folder"):
        Lock(tmp_path / "no" / "lock")
