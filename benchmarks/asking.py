"""How long the commands that ask a running daemon take, with a million jobs in the store.

    python benchmarks/asking.py [--jobs N] [--folder /var/tmp]

The wall-clock time of each command, process start included, the best and the worst of ten. The
daemon has a stand-in in the model's place, and its inbox is paused.
"""

from __future__ import annotations

import argparse
import contextlib
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from phi4d.store import Store  # noqa: E402

COMMANDS = ("status", "status --json", "pause", "rescan", "cancel {inbox}/500001.jpg")
TIMES = 10


def fill(path: Path, jobs: int) -> None:
    """A store in which half of so many jobs are done, and half wait."""
    Store(path).close()
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.executemany(
            "INSERT INTO job (inbox, path, kind, inode, size, mtime_ns, state, added)"
            " VALUES ('in', ?, 'image', ?, 1, 1, ?, 1)",
            ((b"%d.jpg" % n, n, "queued" if n % 2 else "done") for n in range(jobs)),
        )
    with Store(path) as store:
        store.pause("in", "benchmark")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"))  # noqa: S108 -- a disk
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        (folder / "in").mkdir()
        config = folder / "phi4d.toml"
        config.write_text('state_dir = "."\n[[inbox]]\npath = "in"\noutbox = "out"\n')
        fill(folder / "jobs.sqlite3", args.jobs)
        script = [sys.executable, str(ROOT / "tests" / "fake_daemon.py"), str(config)]
        with subprocess.Popen(script, stderr=subprocess.PIPE, text=True) as daemon:
            try:
                assert daemon.stderr
                next(line for line in daemon.stderr if "ready:" in line)
                for words in COMMANDS:
                    command = words.format(inbox=folder / "in").split()
                    taken = []
                    for _ in range(TIMES):
                        begun = time.monotonic()
                        subprocess.run(
                            [sys.executable, "-m", "phi4d", *command, "--config", str(config)],
                            capture_output=True, check=False, cwd=ROOT,
                        )  # fmt: skip
                        taken.append(time.monotonic() - begun)
                    print(f"{words:30} {min(taken):.3f} to {max(taken):.3f} s")
            finally:
                daemon.terminate()


if __name__ == "__main__":
    main()
