"""How fast files go from the inbox to their sidecars, with a stand-in in the model's place.

    python benchmarks/spool.py [--million] [--files N] [--folder /var/tmp]

- scan and enqueue: files that were there before the start, until all are queued; a rescan of them;
- the durable cycle: claim, decode, answer, sidecars with their syncs, finish; how fast decoding and
  writing are by themselves; beside it one file at a time, written without any sync, as the old
  script did;
- latency: from the close of a file, dropped alone, to the engine's start; and the same with two
  busy threads in the daemon;
- ``--million``: an inbox of a million files: READY, the first job, memory over an empty start, and
  a rescan that finds nothing new; and what a worker that looks for its next files takes of the
  processor, with so many pictures and recordings in two inboxes, and with a thousand.

Everything is on the disk of ``--folder``, which should not be a tmpfs. Prints a table with the
targets; the last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import sqlite3
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "chaos")]

from chaoskit import ASKED_B, Running, Scene, picture  # noqa: E402

from phi4d import control  # noqa: E402

LINKS = 50_000
"""names of one file: ext4 takes 65,000"""
IN_FOLDER = 1_000
DROPS = 300
LOOKS = 1_000
DURABLE = 1_500
"""files of the durable cycle"""
LONG_S = 900.0
_COMPARED = re.compile(r": compared in ([\d.]+) s")
TARGETS: dict[str, tuple[float, bool]] = {
    "durable cycles a second": (150, True),
    "latency idle, p99, ms": (150, False),
    "million: first job after, s": (30, False),
    "million: memory over an empty start, MB": (150, False),
    "million: rescan, s": (15, False),
}
"""number, and whether more is better"""


def make_files(inbox: Path, count: int) -> None:
    """So many names, a thousand in a folder; hard links, because only the names are looked at."""
    original = inbox.parent / "original"
    for number in range(count):
        if number % LINKS == 0:
            original.unlink(missing_ok=True)
            original.write_bytes(picture(number))
        folder = inbox / str(number // IN_FOLDER)
        if number % IN_FOLDER == 0:
            folder.mkdir(parents=True)
        os.link(original, folder / f"{number}.png")
    # files that have just come have to settle
    time.sleep(0.5)


def memory_mb(pid: int, what: str) -> float:
    """VmRSS or VmHWM of a process, in 10^6 bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    (kib,) = re.findall(rf"^{what}:\s+(\d+) kB", status, re.MULTILINE)
    return int(kib) * 1024 / 1e6


def cpu_s(pid: int) -> float:
    """Processor time of a process so far, in seconds; of use where others share the machine."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def queued(scene: Scene) -> int:
    """Jobs that the store knows; none has ever left it."""
    rows = scene.jobs("max(id)")
    return rows[0][0] or 0 if rows else 0


def compared(scene: Scene) -> list[float]:
    """Seconds of each look through the inbox, from the debug log."""
    return [float(s) for s in _COMPARED.findall(scene.log.read_text(errors="replace"))]


def rescan_s(running: Running) -> float:
    """Seconds of a look through the inbox that finds nothing new."""
    scene = running.scene
    running.until(lambda: len(compared(scene)) > 0, "the end of the first look", LONG_S)
    before = len(compared(scene))
    control.ask(scene.state / "control", "rescan")
    running.until(lambda: len(compared(scene)) > before, "the end of a second look", LONG_S)
    return compared(scene)[-1]


def scan(folder: Path, files: int) -> dict[str, float | None]:
    """Files that were there before the start."""
    scene = Scene(folder, keys="debug = true")
    make_files(scene.inbox, files)
    with scene.start("--calls", "0") as running:
        running.until_ready()
        begun = time.monotonic()
        running.until(lambda: queued(scene) >= files, "the last file", LONG_S)
        seconds = time.monotonic() - begun
        rescan = rescan_s(running)
    return {
        "files": files,
        "enqueued a second": files / seconds,
        "rescanned a second": files / rescan,
        "polled by watchdog a second": polled_by_watchdog(scene.inbox, files),
    }


def polled_by_watchdog(inbox: Path, files: int) -> float | None:
    """What one look of watchdog's PollingObserver takes; None if it is not installed."""
    try:
        from watchdog.utils.dirsnapshot import DirectorySnapshot
    except ImportError:
        return None
    begun = time.monotonic()
    DirectorySnapshot(str(inbox))
    return files / (time.monotonic() - begun)


def cycle(folder: Path) -> dict[str, float]:
    """Claim to finish, by a daemon that works off what is there; and its parts by themselves."""
    scene = Scene(folder / "daemon")
    for number in range(DURABLE):
        (scene.inbox / f"{number}.png").write_bytes(picture(number))
    time.sleep(0.5)
    if code := scene.once():
        raise AssertionError(f"the daemon ended with exit code {code}")
    ((done, seconds),) = scene.jobs("count(*), max(finished) - min(started)", "state = 'done'")
    if done != DURABLE:
        raise AssertionError(f"{done} of {DURABLE} are done")
    return {
        "files": DURABLE,
        "durable a second": DURABLE / seconds,
        "decoded a second": decoding(scene.inbox),
        "claimed, written and finished a second": writing(scene.inbox, folder / "writing"),
        "one at a time, no sync, a second": old_way(scene.inbox, folder / "old"),
        "one sync of a new file, ms": sync_ms(folder / "sync"),
    }


def decoding(inbox: Path) -> float:
    """The decode pool alone, two files at a time as a worker has them."""
    from phi4d.job import Kind
    from phi4d.media.pool import DecodePool, Decoding

    with DecodePool(2) as pool:
        for _ in range(2):  # warm
            list(pool.decode(os.fsencode(inbox / "0.png"), Kind.IMAGE))
        begun = time.monotonic()
        streams = deque[Decoding]()
        for path in inbox.iterdir():
            if len(streams) == 2:
                list(streams.popleft())
            streams.append(pool.decode(os.fsencode(path), Kind.IMAGE))
        while streams:
            list(streams.popleft())
        return DURABLE / (time.monotonic() - begun)


def writing(inbox: Path, folder: Path) -> float:
    """The store and the sidecars alone, eight jobs a claim as a worker has them."""
    from phi4d import outputs
    from phi4d.job import Arrival, Fingerprint, Kind, Result
    from phi4d.store import Store

    outbox = os.fsencode(folder / "out")
    os.makedirs(outbox)
    result = Result(Kind.IMAGE, "number 1", "Describe the image.", "fake", "cpu")
    with Store(folder / "jobs.sqlite3") as store:
        store.add(
            Arrival("in", os.fsencode(path.name), Kind.IMAGE, Fingerprint.of(path.stat()))
            for path in inbox.iterdir()
        )
        begun = time.monotonic()
        while waiting := store.waiting(8, ["in"]):
            for job in store.claim([job.id for job in waiting], "cpu"):
                outputs.write(job, result, outbox)
                store.finish(job)
        return DURABLE / (time.monotonic() - begun)


def old_way(inbox: Path, outbox: Path) -> float:
    """One file after the other, decoded in place, its text written with a plain open and write."""
    from PIL import Image

    outbox.mkdir()
    begun = time.monotonic()
    for path in inbox.iterdir():
        with Image.open(path) as image:
            number = int.from_bytes(image.convert("RGB").tobytes()[:6], "big")
        with open(outbox / f"{path.name}.txt", "w") as file:
            file.write(f"number {number}\n")
    return DURABLE / (time.monotonic() - begun)


def sync_ms(folder: Path) -> float:
    """Milliseconds that fsync of a small new file takes; a job has three such, and a commit."""
    folder.mkdir()
    taken = []
    for number in range(200):
        with open(folder / str(number), "wb", buffering=0) as file:
            file.write(bytes(500))
            begun = time.monotonic()
            os.fsync(file.fileno())
            taken.append(time.monotonic() - begun)
    return 1000 * statistics.mean(taken)


def latency(folder: Path, *busy: str) -> dict[str, float]:
    """Milliseconds from the close of a file to the engine's start."""
    chance = random.Random(1)
    scene = Scene(folder)
    closed: dict[int, int] = {}
    with scene.start(*busy) as running:
        running.until_ready()
        for number in range(DROPS + 20):
            size = scene.asked_bytes()
            with open(scene.inbox / f"{number}.png", "wb") as file:
                file.write(picture(number))
            closed[number] = time.monotonic_ns()
            running.until(lambda size=size: scene.asked_bytes() >= size + ASKED_B // 2, "an answer")
            time.sleep(chance.uniform(0.03, 0.1))
        running.stop()
    ms = []
    for line in scene.asked.read_text().splitlines()[20:]:  # the first ones warm it up
        _, number, at = line.split()
        ms.append((int(at) - closed[int(number)]) / 1e6)
    ms.sort()
    return {
        "files": len(ms),
        "p50": statistics.median(ms),
        "p99": ms[len(ms) * 99 // 100],
        "most": ms[-1],
    }


def million(folder: Path, files: int) -> dict[str, float]:
    """An inbox of very many files, and one daemon that starts upon it."""
    with Scene(folder / "empty").start() as running:
        running.until_ready()
        time.sleep(1)
        empty, empty_most = memory_mb(running.pid, "VmRSS"), memory_mb(running.pid, "VmHWM")
    scene = Scene(folder / "full", keys="debug = true")
    make_files(scene.inbox, files)
    begun = time.monotonic()
    with scene.start("--calls", "1") as running:

        def seconds_until(done: Callable[[], bool], what: str) -> float:
            running.until(done, what, LONG_S)
            return time.monotonic() - begun

        ready = seconds_until(lambda: running.said("ready: "), "readiness")
        first = seconds_until(lambda: scene.asked_bytes() > 0, "the first job")
        every = seconds_until(lambda: queued(scene) >= files, "the last file")
        after = memory_mb(running.pid, "VmRSS") - empty
        used = cpu_s(running.pid)
        rescan = rescan_s(running)
        used = cpu_s(running.pid) - used
        most = memory_mb(running.pid, "VmHWM") - empty_most
    with scene.start("--calls", "0") as running:
        begun = time.monotonic()
        again = seconds_until(lambda: running.said("ready: "), "readiness")
    return {
        "files": files,
        "READY after, s": ready,
        "first job after, s": first,
        "all queued after, s": every,
        "memory over an empty start, MB": after,
        "at its most, MB": most,
        "rescan, s": rescan,
        "rescan, s of processor time": used,
        "started again, READY after, s": again,
    }


def looks(folder: Path, jobs: int) -> dict[str, float]:
    """Processor time of a worker's look for eight files, however many wait; nothing is synced."""
    folder.mkdir()
    return {
        "with a thousand, µs": _look_us(folder / "few.sqlite3", 1_000),
        f"with {jobs:,}, µs": _look_us(folder / "many.sqlite3", jobs),
    }


def _look_us(path: Path, jobs: int) -> float:
    from phi4d.job import Kind
    from phi4d.scheduler import Turns
    from phi4d.store import Store

    chance = random.Random(1)
    kinds, boxes = tuple(Kind), ("in", "other")
    with Store(path):
        pass
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.executemany(
            "INSERT INTO job (inbox, path, kind, inode, size, mtime_ns, state, added)"
            " VALUES (?, ?, ?, ?, ?, 1, 'queued', ?)",
            (
                (
                    boxes[n % 2],
                    b"%d" % n,
                    kinds[n // 2 % 2],
                    n,
                    chance.randrange(10**8),
                    1e9 + n / 1e3,
                )
                for n in range(jobs)
            ),
        )
    taken = []
    with Store(path) as store:
        turns = Turns()
        for _ in range(LOOKS):
            begun = time.thread_time()
            chosen = turns.pick(store.waiting(8, boxes), 8)
            taken.append(time.thread_time() - begun)
            if len(chosen) != 8:
                raise AssertionError(f"{len(chosen)} files were chosen of {jobs:,}, expected 8")
    return 1e6 * statistics.median(taken)


def target(name: str, value: float | None) -> str:
    """What was wanted, and whether it is so."""
    if name not in TARGETS or value is None:
        return ""
    wanted, more = TARGETS[name]
    met = value >= wanted if more else value <= wanted
    return f"{'at least' if more else 'at most'} {wanted:g}: {'met' if met else 'MISSED'}"


def disk_of(folder: Path) -> str:
    """The type of the file system that a folder is on."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    own = folder.resolve()
    _, kind = max((m for m in mounts if own.is_relative_to(m[0])), key=lambda m: len(m[0]))
    return kind


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--million", action="store_true", help="also an inbox of a million files")
    parser.add_argument("--only", choices=["scan", "cycle", "latency", "million", "looks"])
    parser.add_argument("--files", type=int, default=1_000_000, help="how many a million are")
    parser.add_argument("--scan", type=int, default=100_000, help="files that are scanned")
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"))  # noqa: S108 -- a disk
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="phi4d-spool-", dir=args.folder))
    disk = disk_of(folder)
    results: dict[str, dict[str, float | None]] = {}
    try:
        if args.only in (None, "scan"):
            results["scan"] = scan(folder / "scan", args.scan)
            shutil.rmtree(folder / "scan")
        if args.only in (None, "cycle"):
            results["cycle"] = dict(cycle(folder / "cycle"))
        if args.only in (None, "latency"):
            results["latency idle, ms"] = dict(latency(folder / "idle"))
            results["latency busy, ms"] = dict(latency(folder / "busy", "--busy", "2"))
        if args.million or args.only == "million":
            results["million"] = dict(million(folder / "million", args.files))
            shutil.rmtree(folder / "million")
        if args.million or args.only == "looks":
            results["a look for the next eight files"] = dict(looks(folder / "looks", args.files))
    finally:
        shutil.rmtree(folder)

    print(f"{os.cpu_count()} cores, {args.folder} is {disk}")
    names = {
        ("cycle", "durable a second"): "durable cycles a second",
        ("latency idle, ms", "p99"): "latency idle, p99, ms",
    }
    for part, values in results.items():
        print(part)
        for name, value in values.items():
            key = names.get((part, name), f"{part}: {name}")
            shown = "not told" if value is None else f"{value:,.1f}"
            print(f"  {name:40} {shown:>12}  {target(key, value)}")
    print(json.dumps({"disk": disk, "cores": os.cpu_count(), **results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
