from __future__ import annotations

import os
import subprocess
import sys

import pytest

from phi4d.engine.plan import Slot
from phi4d.engine.threads import WAITING, thread_count, wait_asleep


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


SHOWN = """
from phi4d.engine.threads import wait_asleep
wait_asleep()
import torch
"""


@pytest.mark.parametrize(("given", "policy"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_torchs_threads_sleep_while_they_wait_unless_somebody_says_otherwise(given, policy):
    # given a process that has not imported torch, and an OpenMP that tells how it is set
    environment = {name: value for name, value in os.environ.items() if name not in WAITING}
    environment["OMP_DISPLAY_ENV"] = "TRUE"
    if given:
        environment["OMP_WAIT_POLICY"] = given
    # when
    done = subprocess.run(
        [sys.executable, "-c", SHOWN], env=environment, capture_output=True, text=True, check=True
    )
    # then
    assert f"OMP_WAIT_POLICY = '{policy}'" in done.stderr


def test_how_long_threads_spin_is_left_as_somebody_set_it(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")
    wait_asleep()
    assert "OMP_WAIT_POLICY" not in os.environ
