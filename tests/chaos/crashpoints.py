"""Crash at each syscall of a job's life that changes a file, one by one; then start again.

    python tests/chaos/crashpoints.py [--short] [--only kills|errors] [--folder F]

strace (Debian package of that name) is attached to one thread of a daemon that works off a handful
of files, some of them new, some newer than their sidecars, and kills it at the N-th fsync,
fdatasync, rename, write, pwrite64, unlink, ftruncate or mkdir of that thread, for each N until a
run is over before it is hit. A second daemon then works off what is left, and the invariants of
`chaoskit.verdict` must hold. Each point is gone through twice: the second time, what was being
worked on is replaced before the second daemon starts. The main thread is killed at a first start,
and at a start after a kill, which has something to recover.

Then the same with errors in place of kills: the syscall fails with EIO or ENOSPC, once. The daemon
goes on, or ends and is started again; no job may fail or get lost. ``--short`` takes a sample.
Exits 1 if an invariant is violated.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from chaoskit import STRACE, TEMP_PREFIX, Memory, Running, Scene, Sender, report, verdict

SYSCALLS = (
    "fsync,fdatasync,rename,renameat,renameat2,write,pwrite64,unlink,unlinkat,ftruncate,mkdir,"
    "mkdirat,link,linkat"
)
"""of which each thread makes some; strace counts each name apart"""
KILL = "signal=KILL"
ERRORS = ("error=EIO", "error=ENOSPC")
FILES = 6
MAIN, WORKER = "MainThread", "worker auto"
"""names of threads: the one that starts and stops, and the one that makes sidecars"""
IMPATIENT = 1000
"""stands for the exit code of a daemon that did not get all done"""
SHORT_KILLS, SHORT_ERRORS = 8, 4
PATIENCE_S = 30.0
"""until a daemon that met an error must have all done"""
_LINE = re.compile(r"(\d+) +(\w+)\(")


FRESH, USED, KILLED = "a first start", "a later start", "a start after a kill"


@dataclass(frozen=True)
class Point:
    """The when-th call of a syscall by a thread, at one of three kinds of starts."""

    start: str
    thread: str
    syscall: str
    when: int

    def __str__(self) -> str:
        return f"{self.syscall} {self.when} of {self.thread} at {self.start}"


class Bench:
    """Makes scenes, and runs daemons in them with strace attached to one thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._scenes = 0
        self._templates: dict[str, tuple[Scene, Sender]] = {}
        self._prepare()

    def _prepare(self) -> None:
        """One scene of each kind, of which copies are made."""
        scene = self._scene()
        sender = Sender(scene.inbox, seed=5, replaced=0, recordings=0.3)
        for _ in range(FILES - 2):
            sender.send()
        if code := scene.once():
            raise AssertionError(f"an undisturbed run ended with exit code {code}")
        for name, way in zip(
            sender.newest, ("replaced in place", "replaced by a rename"), strict=False
        ):
            sender.put(name, way)
        for _ in range(2):
            sender.send()
        self._templates[USED] = scene, sender
        fresh = self._scene()
        self._templates[FRESH] = fresh, sender.into(fresh.inbox)
        killed, of_killed = self.scene(USED)
        point = Point(USED, WORKER, "fsync", 5)
        if self.attack(killed, point, KILL, Running.wait, "before")[0] != -9:
            raise AssertionError("the daemon that is to leave something was not killed")
        self._templates[KILLED] = killed, of_killed

    def _scene(self) -> Scene:
        self._scenes += 1
        # one worker with one decode process: a thread's calls are much the same in each run
        keys = "decode_processes = 1\nbatch_size = 3\nmax_attempts = 100"
        # what could not be put into the store is found again by the next comparison
        return Scene(self._folder / str(self._scenes), keys=keys, rescan_seconds=1)

    def scene(self, start: str) -> tuple[Scene, Sender]:
        """A fresh scene of a kind."""
        template, sender = self._templates[start]
        scene = self._scene()
        for folder in ("out", "state"):
            if (template.folder / folder).exists():
                shutil.copytree(
                    template.folder / folder,
                    scene.folder / folder,
                    ignore=shutil.ignore_patterns("control"),  # a socket is not copied
                )
        return scene, sender.into(scene.inbox)

    def survey(self, start: str) -> dict[tuple[str, str], int]:
        """How often each thread makes each syscall, in an undisturbed run."""
        scene, _ = self.scene(start)
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
    ) -> tuple[int, str]:
        """Run a daemon with a fault at a point.

        Returns:
            What `end` does, which is to wait for its end; the call as strace tells it, or nothing
            if it was not come by.
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
                [STRACE, "-y", "-s500", trace, inject, "-o", str(record), "-p", number],
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
        told = record.read_text(errors="replace").splitlines()
        return code, next((line for line in told if "INJECTED" in line or "killed" in line), "")


def thread_id(threads: Path, name: str) -> str:
    """Of the first thread of a name; empty if it has not begun yet."""
    if threads.exists():
        for line in threads.read_text().splitlines():
            number, _, of = line.partition(" ")
            if of == name:
                return number
    return ""


def crash(bench: Bench, point: Point, *, replaced: bool) -> list[str] | None:
    """Kill at a point and start again: what is wrong then; None if the point was not come by.

    Args:
        bench: where to.
        point: the call.
        replaced: in between, there come newer versions of what was being worked on.
    """
    scene, sender = bench.scene(point.start)
    memory = Memory(scene, sender)
    memory.look_back()
    code, _ = bench.attack(scene, point, KILL, Running.wait, "attacked")
    memory.look_back()
    if replaced:
        for (path,) in scene.jobs("path", "state = 'running'"):
            sender.put(os.fsdecode(path), "replaced by a rename")
    again = scene.once(life="again")
    memory.look_back()
    wrong = [*verdict(scene, sender.newest), *memory.wrong]
    if code not in (0, -9):
        wrong.append(f"the attacked daemon ended with exit code {code}")
    if again:
        wrong.append(f"the second daemon ended with exit code {again}")
    wrong = tidied(scene, wrong)
    return wrong if code else None


def fail(bench: Bench, point: Point, error: str, ends: Counter[str]) -> list[str] | None:
    """Let a call fail: what is wrong then; None if the point was not come by.

    Args:
        bench: where to.
        point: the call.
        error: of strace's.
        ends: counts how the daemon took it.
    """
    scene, sender = bench.scene(point.start)

    def end(running: Running) -> int:
        deadline = time.monotonic() + PATIENCE_S
        while not running.ended() and scene.states().get("done", 0) < len(sender.newest):
            if time.monotonic() > deadline:
                return IMPATIENT
            time.sleep(0.02)
        return running.wait() if running.ended() else running.stop()

    code, call = bench.attack(scene, point, error, end, "attacked")
    wrong = []
    if not call:
        how = "was not come by"
    elif str(scene.folder) not in call or f"{scene.log}>" in call or f"{scene.asked}>" in call:
        how = "of its log, its sockets and such: not looked at"
    elif code == 0:
        how = "went on, and all was done"
    elif code == IMPATIENT:
        how = "went on, and not all was done"
        wrong.append(f"{scene.states()} after {PATIENCE_S:.0f} s")
    else:
        how = f"ended with exit code {code}"
        if "Traceback" in scene.log.read_text():
            wrong.append("it ended with a traceback")
    ends[how] += 1
    with scene.start("--once", life="again", fresh_log=False) as running:
        again = running.wait()
    if again:
        wrong.append(f"the second daemon ended with exit code {again}")
    wrong += verdict(scene, sender.newest)
    if point.syscall.startswith("unlink"):  # what cannot be removed stays
        wrong = [each for each in wrong if TEMP_PREFIX not in each]
    if "not looked at" in how:
        wrong = []
    wrong = tidied(scene, wrong)
    return wrong if call else None


def tidied(scene: Scene, wrong: list[str]) -> list[str]:
    """Remove a scene in which nothing is wrong."""
    if not wrong:
        shutil.rmtree(scene.folder)
    return wrong


def points(bench: Bench) -> Iterator[tuple[Point, int]]:
    """The first point of each thread and syscall, and about how many follow, itself included."""
    for start in (FRESH, USED, KILLED):
        for (thread, syscall), n in sorted(bench.survey(start).items()):
            # what the others do at a first start they do at a later one, and more
            if (thread == MAIN) == (start != USED):
                yield Point(start, thread, syscall, 1), n


def sample(found: list[tuple[Point, int]], size: int, seed: int) -> list[Point]:
    """Some points, of each syscall one before any has two."""
    chance = random.Random(seed)
    every = [replace(point, when=k) for point, n in found for k in range(1, n + 1)]
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

    def strike(point: Point, what: str, *, replaced: bool = False) -> bool:
        if what != KILL:
            name = what.removeprefix("error=")
            return attempt(name, point, lambda: fail(bench, point, what, ends))
        name = "kill, then newer versions" if replaced else "kill"
        return attempt(name, point, lambda: crash(bench, point, replaced=replaced))

    for what, size in runs:
        if what != KILL:  # what the others write is little but the log and wake-up calls
            found = [(p, n) for p, n in found if p.syscall != "write" or p.thread == WORKER]
        if args.short:
            for number, point in enumerate(sample(found, size, args.seed)):
                strike(point, what, replaced=number % 2 == 1)
            continue
        for first, _ in found:
            when = 1
            while strike(point := replace(first, when=when), what):
                if what == KILL:
                    strike(point, what, replaced=True)
                when += 1
            where = f"{first.syscall} of {first.thread} at {first.start}"
            print(f"  {what}: {when - 1} points at {where}", flush=True)

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
