"""A real daemon with a fake engine, for tests to signal and to kill.

usage: python tests/fake_daemon.py CONFIG [once] [slow]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Event

from phi4d import config, daemon, log
from phi4d.config import Config
from phi4d.engine import Engine
from phi4d.engine.fake import FakeEngine


def engines(settled: Config) -> Iterator[Engine]:
    # "slow": the gate never opens, so that there is always work under way
    gate = Event() if "slow" in sys.argv else None
    for device in settled.device.split(","):
        yield FakeEngine(device=device, gate=gate)


if __name__ == "__main__":
    settled = config.load(config=Path(sys.argv[1]))
    log.setup()
    sys.exit(
        daemon.run(settled, once="once" in sys.argv, daemon=daemon.Daemon(settled, engines=engines))
    )
