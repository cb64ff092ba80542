"""The short form of the floods."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_nothing_is_missed(tmp_path: Path) -> None:
    script = Path(__file__).with_name("arrivals.py")
    done = subprocess.run(
        [sys.executable, script, "--short", "--folder", tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("nothing was missed\n")
