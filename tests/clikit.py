"""The command line in a test: the real program, and a real daemon with a fake engine beside it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from daemonkit import read_until, running
from typer.testing import CliRunner

from phi4d import cli


def call(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "phi4d", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "100"},
    )


def invoke(*words: object) -> Any:
    """In this process, for what starts no daemon."""
    return CliRunner().invoke(cli.app, [str(word) for word in words])


@contextlib.contextmanager
def daemon(config_file: Path, *how: str) -> Iterator[Callable[[str], None]]:
    """A real one with a fake engine; what is yielded waits for words in its log."""
    with running(config_file, *how) as process:

        def wait_for(words: str) -> None:
            read_until(process, words)

        wait_for(" ready: ")
        yield wait_for
