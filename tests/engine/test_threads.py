from __future__ import annotations

import pytest

from phi4d.engine.plan import Slot
from phi4d.engine.threads import thread_count


@pytest.mark.parametrize(
    ("wanted", "devices", "cpus", "threads"),
    [
        (6, ["cpu"], 2, 6),
        ("auto", ["cpu"], 8, 8),
        ("auto", ["cpu", "cpu"], 9, 4),
        ("auto", ["cpu"] * 4, 2, 1),
        ("auto", ["cuda:0", "cuda:1"], 32, 4),
        ("auto", ["cuda:0"], 1, 1),
        ("auto", ["cuda:0", "cpu"], 8, 8),
    ],
)
def test_slots_on_the_cpu_share_it_and_gpus_need_few(wanted, devices, cpus, threads):
    assert thread_count(wanted, [Slot(device) for device in devices], cpus) == threads
