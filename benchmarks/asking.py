"""How long the commands that ask a running daemon take, with a million jobs in the store.

    python benchmarks/asking.py [--jobs N] [--folder /var/tmp]

The wall-clock time of each command, process start included, the best and the worst of ten; then
that of the orders about all jobs, once, and of short ones beside them. The daemon has a stand-in in
the model's place, and its inbox is paused.
"""

from __future__ import annotations

import argparse
import contextlib
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from phi4d.store import Store  # noqa: E402

SHORT = (
    "status",
    "status --json",
    "pause",
    "rescan",
    "cancel {inbox}/{n}.jpg",
    "retry {inbox}/{n}.jpg",
    "resume other",
    "pause other",
)
LONG = ("cancel --waiting", "retry --failed")
TIMES = 10


def fill(path: Path, jobs: int, *, done: bool) -> None:
    """A store in which so many jobs wait; or half of them, if the others are done."""
    Store(path).close()
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.executemany(
            "INSERT INTO job (inbox, path, kind, inode, size, mtime_ns, state, added)"
            " VALUES ('in', ?, 'image', ?, 1, 1, ?, 1)",
            ((b"%d.jpg" % n, n, "done" if done and n % 2 else "queued") for n in range(jobs)),
        )
    with Store(path) as store:
        store.pause("in", "benchmark")


class Asked:
    """A daemon in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.inbox = folder / "in"
        self._config = folder / "phi4d.toml"

    def command(self, words: str, n: int = 0) -> list[str]:
        """A command of phi4d, about the n-th file."""
        given = words.format(inbox=self.inbox, n=n).split()
        return [sys.executable, "-m", "phi4d", *given, "--config", str(self._config)]

    def seconds(self, words: str, n: int = 0) -> float:
        """How long a command takes."""
        begun = time.monotonic()
        subprocess.run(self.command(words, n), capture_output=True, check=False, cwd=ROOT)
        return time.monotonic() - begun


@contextlib.contextmanager
def asked(parent: str, jobs: int, *, done: bool) -> Iterator[Asked]:
    """A daemon that has so many jobs."""
    with tempfile.TemporaryDirectory(dir=parent) as name:
        folder = Path(name)
        for inbox in ("in", "other"):
            (folder / inbox).mkdir()
        config = folder / "phi4d.toml"
        config.write_text(
            'state_dir = "."\nruntime_dir = "."\n[[inbox]]\npath = "in"\noutbox = "out"\n'
            '[[inbox]]\npath = "other"\noutbox = "out2"\n'
        )
        fill(folder / "jobs.sqlite3", jobs, done=done)
        script = [sys.executable, str(ROOT / "tests" / "fake_daemon.py"), str(config)]
        with subprocess.Popen(script, stderr=subprocess.PIPE, text=True) as daemon:
            try:
                assert daemon.stderr
                next(line for line in daemon.stderr if "ready:" in line)
                yield Asked(folder)
            finally:
                daemon.terminate()


def tell(words: str, taken: Sequence[float]) -> None:
    """Print the best and the worst."""
    print(f"{words:45} {min(taken):.3f} to {max(taken):.3f} s", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--folder", default="/var/tmp")  # noqa: S108 -- a disk
    args = parser.parse_args()
    with asked(args.folder, args.jobs, done=True) as daemon:
        for words in SHORT:
            tell(words, [daemon.seconds(words, 2 * n) for n in range(TIMES)])
    with asked(args.folder, args.jobs, done=False) as daemon:
        for words in LONG:
            begun = time.monotonic()
            beside: dict[str, list[float]] = {"status": [], "pause other": [], "resume other": []}
            one = "retry {inbox}/{n}.jpg" if "cancel" in words else "cancel {inbox}/{n}.jpg"
            beside[one] = []
            with subprocess.Popen(
                daemon.command(words), stdout=subprocess.PIPE, cwd=ROOT, text=True
            ) as long:
                while long.poll() is None:
                    for short, taken in beside.items():
                        taken.append(daemon.seconds(short, len(taken)))
                print(f"{words:45} {time.monotonic() - begun:.1f} s: ", end="")
                print((long.stdout.read() if long.stdout else "").partition("\n")[0])
            for short, taken in beside.items():
                tell(f"  beside it: {short}", taken)


if __name__ == "__main__":
    main()
