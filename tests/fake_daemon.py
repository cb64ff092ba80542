"""A real daemon with a fake engine, for tests to signal and to kill.

usage: python tests/fake_daemon.py CONFIG [once] [slow] [lost]
"""

from __future__ import annotations

# ruff: noqa: E402 -- signals are blocked before numpy starts threads
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from threading import Event

from phi4d import signals

signals.block()

from phi4d import config, daemon, log
from phi4d.config import Config
from phi4d.engine import Engine
from phi4d.engine.fake import FakeEngine, describe
from phi4d.errors import DeviceLost
from phi4d.job import Request


def answer(engine: FakeEngine, request: Request) -> str:
    # nobody can ask another process for its engine's calls, and they hold all media
    engine.calls.clear()
    # "lost": there is a picture that no device survives
    if "lost" in sys.argv and request.media.shape[1:2] == (13,):
        raise DeviceLost("cpu: an illegal memory access was encountered")
    return describe(request)


def engines(settled: Config) -> Iterator[Engine]:
    # "slow": the gate never opens, so that there is always work under way
    gate = Event() if "slow" in sys.argv else None
    for device in settled.device.split(","):
        engine = FakeEngine(device=device, gate=gate)
        engine.answer = partial(answer, engine)
        yield engine


if __name__ == "__main__":
    read = partial(config.load, config=Path(sys.argv[1]))
    settled = read()
    log.configure(**settled.log_settings())
    whole = daemon.Daemon(settled, engines=engines, read=read)
    sys.exit(daemon.run(settled, once="once" in sys.argv, daemon=whole))
