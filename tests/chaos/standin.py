"""The daemon that the chaos scripts torment: all of phi4d, and a stand-in in the model's place.

    python tests/chaos/standin.py CONFIG [--once] [--asked FILE --life NAME] [--threads FILE]
                                  [--hold THREAD --go FILE]

The stand-in answers `number N` about a picture of `chaoskit.picture(N)`. With ``--asked`` it first
appends ``LIFE N`` to a file: that outlives a kill and tells what was asked how often. With
``--threads`` each thread appends its id and name. With ``--hold`` the thread of that name waits,
before it does anything, until a file is there: so that strace can be attached to it alone.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

HOLD_POLL_S = 0.005


def append(path: Path, line: str) -> None:
    """Add a line to a file in one write, which a kill does not tear."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(file, f"{line}\n".encode())
    os.close(file)


def enter_thread(threads: Path | None, hold: str, go: Path | None) -> None:
    """What each thread does first."""
    name = threading.current_thread().name
    if threads:
        append(threads, f"{threading.get_native_id()} {name}")
    while go and name == hold and not go.exists():
        time.sleep(HOLD_POLL_S)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("--once", action="store_true")
    parser.add_argument("--asked", type=Path)
    parser.add_argument("--life", default="")
    parser.add_argument("--threads", type=Path)
    parser.add_argument("--hold", default="")
    parser.add_argument("--go", type=Path)
    args = parser.parse_args()

    def at_first_event(_frame: FrameType, _event: str, _arg: object) -> None:
        sys.setprofile(None)
        enter_thread(args.threads, args.hold, args.go)

    if args.threads:
        threading.setprofile(at_first_event)
        enter_thread(args.threads, args.hold, args.go)

    from phi4d import config, daemon, log
    from phi4d.config import Config
    from phi4d.engine import Engine
    from phi4d.engine.fake import FakeEngine, describe
    from phi4d.job import Kind, Request

    def answer(request: Request) -> str:
        if request.kind is not Kind.IMAGE:
            return describe(request)
        number = int.from_bytes(request.media.reshape(-1)[:6].tobytes(), "big")
        if args.asked:
            append(args.asked, f"{args.life} {number}")
        return f"number {number}"

    def engines(settled: Config) -> Iterator[Engine]:
        for device in settled.device.split(","):
            yield FakeEngine(device=device, answer=answer)

    settled = config.load(config=args.config, environ={})
    log.setup(logging.DEBUG if settled.debug else logging.INFO)
    return daemon.run(settled, once=args.once, daemon=daemon.Daemon(settled, engines=engines))


if __name__ == "__main__":
    sys.exit(main())
