"""How long a scrape of the metrics takes, with a million jobs in the store.

    python benchmarks/scrape.py [--jobs N] [--folder /var/tmp]

The wall-clock time from the connection to the last byte, the best, the middle and the worst of a
hundred, over a socket. The daemon has a stand-in in the model's place. It is paused, and measured
again while it drops one job after another, since none of the files is there.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from asking import fill  # noqa: E402

TIMES = 100


WAITING = re.compile(rb'phi4d_jobs{[^}]*state="queued"} (\S+)')


def scrape(path: str) -> tuple[float, int, float]:
    """Of one, the seconds, the bytes, and the jobs that wait."""
    begun = time.monotonic()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(65_536), b""))
    seconds = time.monotonic() - begun
    assert answer.startswith(b"HTTP/1.0 200"), answer[:200]
    return seconds, len(answer), sum(map(float, WAITING.findall(answer)))


def measure(what: str, path: str) -> None:
    """Measure and print."""
    taken, sizes, waiting = zip(*(scrape(path) for _ in range(TIMES)), strict=True)
    ms = [f"{value * 1e3:.1f}" for value in (min(taken), statistics.median(taken), max(taken))]
    print(
        f"{what:10} best {ms[0]}, middle {ms[1]}, worst {ms[2]} ms; {sizes[-1] / 1e3:.0f} kB; "
        f"{waiting[0]:,.0f} to {waiting[-1]:,.0f} wait"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"))  # noqa: S108 -- a disk
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        (folder / "in").mkdir()
        listen = f"{folder}/metrics.sock"
        config = folder / "phi4d.toml"
        config.write_text(
            f'state_dir = "."\nmetrics_listen = "unix:{listen}"\n'
            '[[inbox]]\npath = "in"\noutbox = "out"\n'
        )
        fill(folder / "jobs.sqlite3", args.jobs)
        script = [sys.executable, str(ROOT / "tests" / "fake_daemon.py"), str(config)]
        with subprocess.Popen(
            script, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
        ) as daemon:
            try:
                assert daemon.stderr
                next(line for line in daemon.stderr if "ready:" in line)
                measure("paused", listen)
                resume = [sys.executable, "-m", "phi4d", "resume", "--config", str(config)]
                subprocess.run(resume, check=True, capture_output=True, cwd=ROOT)
                measure("dropping", listen)
            finally:
                daemon.terminate()


if __name__ == "__main__":
    main()
