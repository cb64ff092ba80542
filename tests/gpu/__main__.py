"""Runs the checks without pytest: ``python tests/gpu [NAME…]``."""

from __future__ import annotations

import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import gpukit
import test_gpu

if not gpukit.HERE:
    sys.exit("no GPU here; PHI4D_GPU=cpu PHI4D_GPU_SIZE=small tries the checks themselves")
failed = passed = 0
for name, check in vars(test_gpu).items():
    if not name.startswith("test_") or (sys.argv[1:] and name not in sys.argv[1:]):
        continue
    print(name, flush=True)
    begun = time.monotonic()
    try:
        check()
    except Exception:  # the next check may still tell something
        failed += 1
        traceback.print_exc()
    else:
        passed += 1
    print(f"  {time.monotonic() - begun:.1f} s", flush=True)
print(f"{passed} passed, {failed} failed")
sys.exit(failed > 0)
