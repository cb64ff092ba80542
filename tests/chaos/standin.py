"""The daemon that the chaos scripts torment: all of phi4d, and a stand-in in the model's place.

    python tests/chaos/standin.py CONFIG [--once] [--asked FILE --life NAME] [--threads FILE]
                                  [--hold THREAD --go FILE] [--calls N] [--busy N]

The stand-in answers `number N` about a picture of `chaoskit.picture(N)`. With ``--asked`` it first
appends ``LIFE N NANOSECONDS`` (of CLOCK_MONOTONIC) to a file: that outlives a kill and tells what
was asked how often, and when. With ``--threads`` each thread appends its id and name. With
``--hold`` the thread of that name waits, before it does anything, until a file is there: so that
strace can be attached to it alone. With ``--calls`` hardly more requests than that are
answered, and the next one lasts. With ``--busy`` so many threads do nothing but hold up the others.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
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


def hold_up() -> None:
    """Use all the time that the interpreter gives."""
    while True:
        sum(range(1000))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("--once", action="store_true")
    parser.add_argument("--asked", type=Path)
    parser.add_argument("--life", default="")
    parser.add_argument("--threads", type=Path)
    parser.add_argument("--hold", default="")
    parser.add_argument("--go", type=Path)
    parser.add_argument("--calls", type=int)
    parser.add_argument("--busy", type=int, default=0)
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
    from phi4d.errors import EXIT_FAILURE, Phi4dError
    from phi4d.job import Kind, Request

    answered = 0

    def answer(engine: FakeEngine, request: Request) -> str:
        nonlocal answered
        answered += 1
        if args.calls is not None and answered >= args.calls:
            engine.gate = threading.Event()
        if request.kind is not Kind.IMAGE:
            return describe(request)
        number = int.from_bytes(request.media.reshape(-1)[:6].tobytes(), "big")
        if args.asked:
            append(args.asked, f"{args.life} {number} {time.monotonic_ns()}")
        return f"number {number}"

    def engines(settled: Config) -> Iterator[Engine]:
        for device in settled.device.split(","):
            engine = FakeEngine(device=device, gate=threading.Event() if args.calls == 0 else None)
            engine.answer = partial(answer, engine)
            yield engine

    for _ in range(args.busy):
        threading.Thread(target=hold_up, daemon=True).start()
    settled = config.load(config=args.config, environ={})
    log.configure(**settled.log_settings())
    try:
        return daemon.run(settled, once=args.once, daemon=daemon.Daemon(settled, engines=engines))
    except Phi4dError as error:  # as the command line does
        logging.getLogger("phi4d").error("%s", error)  # noqa: TRY400
        return EXIT_FAILURE


if __name__ == "__main__":
    sys.exit(main())
