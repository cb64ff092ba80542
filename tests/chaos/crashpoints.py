"""Crash at each syscall of a job's life that changes a file, one by one; then start again.

    python tests/chaos/crashpoints.py [--short] [--only kills|errors] [--folder F]

strace (Debian package of that name) is attached to one thread of a daemon that works off a handful
of files, and kills it at the N-th fsync, fdatasync, rename, write, pwrite64, unlink, ftruncate or
mkdir of that thread, for each N until a run is over before it is hit. A second daemon then works
off what is left, and the invariants of `chaoskit.verdict` must hold. The main thread is gone
through twice: at a first start, and at a start after a kill, which has something to recover.

Then the same with errors in place of kills: the syscall fails with EIO or ENOSPC, once. The daemon
goes on, or ends and is started again; no job may fail or get lost. ``--short`` takes a sample.
Exits 1 if an invariant is violated.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from chaoskit import STRACE, Memory, Running, Scene, Sender, report, verdict

SYSCALLS = (
    "fsync,fdatasync,rename,renameat,renameat2,write,pwrite64,unlink,unlinkat,ftruncate,mkdir,"
    "mkdirat,link,linkat"
)
"""of which each thread makes some; strace counts each name apart"""
KILL = "signal=KILL"
ERRORS = ("error=EIO", "error=ENOSPC")
FILES = 6
WORKER = "worker auto"
"""the name of the thread that makes sidecars"""
SHORT_KILLS, SHORT_ERRORS = 7, 4
PATIENCE_S = 30.0
"""until a daemon that met an error must have all done"""
_LINE = re.compile(r"(\d+) +(\w+)\(")


@dataclass(frozen=True)
class Point:
    """The when-th call of a syscall by a thread.

    With `recovering`, of a daemon that follows one that was killed at work.
    """

    thread: str
    syscall: str
    when: int
    recovering: bool = False

    def __str__(self) -> str:
        after = ", after a kill" if self.recovering else ""
        return f"{self.syscall} {self.when} of {self.thread}{after}"


class Bench:
    """Makes scenes, and runs daemons in them with strace attached to one thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._scenes = 0

    def scene(self, *, recovering: bool) -> tuple[Scene, Sender]:
        """A scene with a handful of files; if wanted, as a daemon left it that was killed."""
        self._scenes += 1
        # one worker with one decode process: a thread's calls are much the same in each run
        keys = "decode_processes = 1\nbatch_size = 3\nmax_attempts = 100"
        # what could not be put into the store is found again by the next comparison
        scene = Scene(self._folder / str(self._scenes), keys=keys, rescan_seconds=1)
        sender = Sender(scene.inbox, seed=5, replaced=0, recordings=0.3)
        for _ in range(FILES):
            sender.send()
        if recovering:
            point = Point(WORKER, "fsync", 5)
            if self.attack(scene, point, KILL, Running.wait, "before") != (-9, True):
                raise AssertionError("the daemon that is to leave something was not killed")
        return scene, sender

    def survey(self, *, recovering: bool) -> dict[tuple[str, str], int]:
        """How often each thread makes each syscall, in an undisturbed run."""
        scene, _ = self.scene(recovering=recovering)
        record, threads = scene.folder / "strace", scene.folder / "threads"
        threads.unlink(missing_ok=True)
        strace = [STRACE, "-f", "--detach-on=execve", "-qq", "-s0", f"-etrace={SYSCALLS}"]
        words = ["--once", "--threads", str(threads)]
        with scene.start(*words, before=[*strace, "-o", str(record)]) as running:
            code = running.wait()
        if code:
            raise AssertionError(f"an undisturbed run ended with exit code {code}")
        # a child between fork and exec is in no list: it is no thread of the daemon
        name_of = dict(line.split(" ", 1) for line in threads.read_text().splitlines())
        calls = [_LINE.match(line) for line in record.read_text().splitlines()]
        shutil.rmtree(scene.folder)
        return dict(Counter((name_of[c[1]], c[2]) for c in calls if c and c[1] in name_of))

    def attack(
        self, scene: Scene, point: Point, what: str, end: Callable[[Running], int], life: str
    ) -> tuple[int, bool]:
        """Run a daemon with a fault at a point.

        Returns:
            What `end` does, which is to wait for its end; whether the point was come by.
        """
        threads, go, record = (scene.folder / name for name in ("threads", "go", "strace"))
        for leftover in (threads, go):
            leftover.unlink(missing_ok=True)
        words = ["--threads", str(threads), "--hold", point.thread, "--go", str(go)]
        once = ["--once"] if what == KILL else []
        with scene.start(*once, *words, life=life) as running:
            running.until(lambda: thread_id(threads, point.thread) != "", point.thread)
            trace, number = f"-etrace={point.syscall}", thread_id(threads, point.thread)
            inject = f"-einject={point.syscall}:{what}:when={point.when}"
            with subprocess.Popen(
                [STRACE, "-s0", trace, inject, "-o", str(record), "-p", number],
                stderr=subprocess.PIPE,
                text=True,
            ) as strace:
                try:
                    assert strace.stderr
                    if "attached" not in (line := strace.stderr.readline()):
                        raise AssertionError(f"strace: {line}")
                    go.touch()
                    code = end(running)
                finally:
                    running.kill(children=True)
                    strace.wait()
        return code, "INJECTED" in record.read_text() or code == -9


def thread_id(threads: Path, name: str) -> str:
    """Of the first thread of a name; empty if it has not begun yet."""
    if threads.exists():
        for line in threads.read_text().splitlines():
            number, _, of = line.partition(" ")
            if of == name:
                return number
    return ""


def crash(bench: Bench, point: Point) -> list[str] | None:
    """Kill at a point and start again: what is wrong then; None if the point was not come by."""
    scene, sender = bench.scene(recovering=point.recovering)
    memory = Memory(scene, sender)
    code, hit = bench.attack(scene, point, KILL, Running.wait, "attacked")
    memory.look_back()
    again = scene.once(life="again")
    memory.look_back()
    wrong = [*verdict(scene, sender.newest), *memory.wrong]
    if code not in ((-9,) if hit else (0,)):
        wrong.append(f"the attacked daemon ended with exit code {code}")
    if again:
        wrong.append(f"the second daemon ended with exit code {again}")
    return tidied(scene, wrong) if hit else None


def fail(bench: Bench, point: Point, error: str, ends: Counter[str]) -> list[str] | None:
    """Let a call fail: what is wrong then; None if the point was not come by.

    Args:
        bench: where to.
        point: the call.
        error: of strace's.
        ends: counts how the daemon took it.
    """
    scene, sender = bench.scene(recovering=point.recovering)

    def end(running: Running) -> int:
        deadline = time.monotonic() + PATIENCE_S
        while not running.ended() and scene.states().get("done", 0) < FILES:
            if time.monotonic() > deadline:
                return 1000
            time.sleep(0.02)
        return running.wait() if running.ended() else running.stop()

    code, hit = bench.attack(scene, point, error, end, "attacked")
    wrong = []
    if not hit:
        how = "was not come by"
    elif code == 0:
        how = "went on, and all was done"
    elif code == 1000:
        how = "went on, and not all was done"
        wrong.append(f"{scene.states()} after {PATIENCE_S:.0f} s")
    else:
        how = f"ended with exit code {code}"
        if "Traceback" in scene.log.read_text():
            how += " and a traceback"
    ends[how] += 1
    with scene.start("--once", life="again", fresh_log=False) as running:
        again = running.wait()
    if again:
        wrong.append(f"the second daemon ended with exit code {again}")
    wrong += verdict(scene, sender.newest)
    return tidied(scene, wrong) if hit else None


def tidied(scene: Scene, wrong: list[str]) -> list[str]:
    """Remove a scene in which nothing is wrong."""
    if not wrong:
        shutil.rmtree(scene.folder)
    return wrong


def points(bench: Bench) -> Iterator[tuple[Point, int]]:
    """The first point of each thread and syscall, and about how many follow, itself included."""
    for (thread, syscall), n in sorted(bench.survey(recovering=False).items()):
        yield Point(thread, syscall, 1), n
    for (thread, syscall), n in sorted(bench.survey(recovering=True).items()):
        if thread == "MainThread":  # the others do the same as after any other start
            yield Point(thread, syscall, 1, recovering=True), n


def sample(found: list[tuple[Point, int]], size: int, seed: int) -> list[Point]:
    """Some points, of each syscall one before any has two."""
    chance = random.Random(seed)
    every = [Point(p.thread, p.syscall, k, p.recovering) for p, n in found for k in range(1, n + 1)]
    chance.shuffle(every)
    seen: Counter[str] = Counter()
    order = []
    for point in every:
        seen[point.syscall] += 1
        order.append((seen[point.syscall], point))
    return [point for _, point in sorted(order, key=lambda each: each[0])][:size]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="a sample of the points")
    parser.add_argument("--only", choices=["kills", "errors"])
    parser.add_argument("--syscall", help="only this one")
    parser.add_argument("--thread", help="only this one")
    parser.add_argument("--seed", type=int, default=1, help="of the sample")
    parser.add_argument("--folder", type=Path, help="keep everything there that went wrong")
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp(prefix="phi4d-crash-"))
    begun = time.monotonic()
    bench = Bench(folder)
    tried: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    wrong: list[str] = []

    def attempt(name: str, point: Point, what: Callable[[], list[str] | None]) -> bool:
        try:
            found = what()
        except AssertionError as error:
            found = [str(error)]
        if found is not None:
            tried[f"{name}: {point.syscall}, {point.thread}"] += 1
            wrong.extend(f"{name} at {point}: {each}" for each in found)
            for each in found:
                print(f"  {name} at {point}: {each}", flush=True)
        return found is not None

    found = [
        (point, n)
        for point, n in points(bench)
        if args.syscall in (None, point.syscall) and args.thread in (None, point.thread)
    ]
    runs: list[tuple[str, int]] = []
    if args.only != "errors":
        runs.append((KILL, SHORT_KILLS))
    if args.only != "kills":
        runs += [(error, SHORT_ERRORS // len(ERRORS)) for error in ERRORS]

    for what, size in runs:

        def strike(point: Point, what: str = what) -> bool:
            if what == KILL:
                return attempt("kill", point, lambda: crash(bench, point))
            name = what.removeprefix("error=")
            return attempt(name, point, lambda: fail(bench, point, what, ends))

        if args.short:
            for point in sample(found, size, args.seed):
                strike(point)
            continue
        for first, _ in found:
            when = 1
            while strike(Point(first.thread, first.syscall, when, first.recovering)):
                when += 1
            print(f"  {what}: {when - 1} points at {first.syscall} of {first.thread}", flush=True)

    rows: list[tuple[str, object]] = [
        ("points tried", sum(tried.values())),
        *((f"  {name}", n) for name, n in sorted(tried.items())),
        *((f"a daemon that met an error {how}", n) for how, n in sorted(ends.items())),
        ("seconds", round(time.monotonic() - begun)),
    ]
    code = report(rows, wrong)
    if code == 0 and not args.folder:
        shutil.rmtree(folder)
    else:
        print(f"what went wrong is in {folder}")
    return code


if __name__ == "__main__":
    sys.exit(main())
