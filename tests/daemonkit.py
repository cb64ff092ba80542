"""A real daemon with a fake engine, in a process of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("fake_daemon.py")


@contextlib.contextmanager
def running(config: Path, *words: str, env: dict[str, str] | None = None) -> Iterator[Any]:
    """A daemon that is certain to end; its log is to be read from ``stderr``."""
    with subprocess.Popen(
        [sys.executable, str(SCRIPT), str(config), *words],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: Any, words: str) -> list[str]:
    """The log up to a line with these words."""
    lines = []
    for line in process.stderr:
        lines.append(line)
        if words in line:
            return lines
    raise AssertionError(f"{words!r} never came:\n" + "".join(lines))
