"""What every test shares: the leak guard, and small real files."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from kit import Clock
from PIL import Image


@pytest.fixture(autouse=True)
def _no_leaks() -> Iterator[None]:
    """Fail a test that leaves a thread or a child process behind."""
    threads_before = set(threading.enumerate())
    children_before = _children()
    yield
    for thread in set(threading.enumerate()) - threads_before:
        thread.join(2)  # it may have been told to end and not be through yet
    threads = {t for t in threading.enumerate() if t.is_alive()} - threads_before
    assert not threads, f"the test left threads behind: {threads}"
    children = _children()  # a shared decode pool may have replaced some of its own
    assert len(children) <= len(children_before), f"the test left processes behind: {children}"


@pytest.fixture(autouse=True)
def _leave_logging_as_it_was() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("phi4d")
    before = (root.handlers[:], root.level, ours.level)
    hooks = (sys.excepthook, threading.excepthook, warnings.showwarning)
    yield
    sys.excepthook, threading.excepthook, warnings.showwarning = hooks
    for handler in set(root.handlers) - set(before[0]):
        handler.close()
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])


@pytest.fixture(autouse=True)
def _leave_signals_as_they_were() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _children() -> set[str]:
    tasks = Path("/proc/self/task")
    found: set[str] = set()
    for task in tasks.iterdir():
        try:
            found.update((task / "children").read_text().split())
        except OSError:  # the thread has just ended
            continue
    return found


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No setting of the machine that runs the tests plays a part."""
    for name in list(os.environ):
        if name.startswith(("PHI4_", "NOTIFY_SOCKET", "WATCHDOG_", "JOURNAL_STREAM")):
            monkeypatch.delenv(name)
    return monkeypatch


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make_picture() -> Callable[..., Path]:
    """Writes a small real picture and returns its path."""

    def make(path: Path, size: tuple[int, int] = (64, 48)) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (200, 30, 30)).save(path)
        return path

    return make


@pytest.fixture
def make_recording() -> Callable[..., Path]:
    """Writes a short real recording (a tone) and returns its path."""

    def make(path: Path, seconds: float = 1.0, rate: int = 16_000) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        t = np.arange(int(seconds * rate)) / rate
        soundfile.write(path, 0.3 * np.sin(2 * np.pi * 440 * t), rate)
        return path

    return make
