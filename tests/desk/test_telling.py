"""What the daemon tells of itself: a real store and worker, and nothing that waits."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from deskkit import WAIT_SECONDS, Desk

from phi4d.config import Config, Inbox
from phi4d.desk import desk as desks
from phi4d.desk import telling
from phi4d.engine.fake import FakeEngine
from phi4d.engine.resident import Resident
from phi4d.media.pool import DecodePool
from phi4d.meter import Memory, Meter
from phi4d.reload import Reloader
from phi4d.scheduler import Pauses
from phi4d.status import Snapshot


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with DecodePool(1) as pool:
        desk = Desk(tmp_path, pool)
        yield desk
        desk.close()


def tell(desk: Desk, state: str = "ready", meter: Meter | None = None) -> dict[str, Any]:
    """What is told of a desk whose inbox is in a configuration."""
    folder = desk.inbox.parent
    box = Inbox(path=desk.inbox, outbox=desk.outbox, name="in", kinds=("image",))
    config = Config(state_dir=folder, inbox=(box,))
    told = telling.answer(state, config, meter or Meter(), desk.pauses, desk.workers, None)
    return json.loads(json.dumps(told))  # type: ignore[no-any-return]


def test_each_slot_tells_what_it_has_and_how(desk: Desk, make_picture: Callable[..., Path]) -> None:
    # given a slot that is in the midst of two answers, and has taken one file more
    desk.add(*(make_picture(desk.inbox / f"{n}.png") for n in range(3)))
    engine = FakeEngine(gate=threading.Event(), device="cuda:0", holds=Memory(80, 60, 50))
    meter = Meter()
    desk.start(engine, batch_size=2, meter=meter)
    while engine.most < 2 or len(desk.workers[0].at_work()) < 3:
        desk.workers[0].join(0.01)
    # then it says so
    told = tell(desk, meter=meter)
    (slot,) = told["slots"]
    assert (slot["device"], slot["model"], slot["state"]) == ("cuda:0", "fake", "loaded")
    assert slot["precision"] == engine.precision
    assert slot["memory"] == {"size_bytes": 80, "used_bytes": 60, "own_bytes": 50}
    assert [each["file"] for each in slot["files"]] == ["in/0.png", "in/1.png", "in/2.png"]
    assert all(each["seconds"] >= 0 for each in slot["files"])
    assert slot["tokens_per_second"] == 0
    assert told["pid"] == os.getpid()
    assert (told["hung"], told["dead"]) == ([], [])
    # and when it is through, that it has nothing, and how fast it was
    assert engine.gate
    engine.gate.set()
    desk.wait_for(3)
    (slot,) = tell(desk, meter=meter)["slots"]
    assert slot["files"] == []
    assert 1 <= slot["batch"] <= 2
    assert slot["tokens_per_second"] > 0


def test_a_model_that_is_not_loaded_is_told_and_held_up_by_memory_is_degraded(desk: Desk) -> None:
    resident = Resident(FakeEngine(), lambda step: FakeEngine(), idle_seconds=0.0)
    desk.start(resident)
    desk.workers[0].stop()
    desk.workers[0].join()
    resident.rest()
    told = tell(desk)
    assert told["slots"][0]["state"] == "unloaded (idle)"
    assert Snapshot.of(told["stored"], told | {"dead": []}, pid=1).health == "healthy"
    resident.state = "waits for memory or files"
    told = tell(desk)
    snapshot = Snapshot.of(told["stored"], told | {"dead": []}, pid=1)
    assert snapshot.troubles == ["cpu: the model waits for memory or files"]


def test_a_worker_that_has_ended_is_told(desk: Desk) -> None:
    desk.start(FakeEngine())
    desk.workers[0].stop()
    desk.workers[0].join()
    told = tell(desk)
    assert told["dead"] == ["worker cpu"]
    snapshot = Snapshot.of(told["stored"], told, pid=1)
    assert (snapshot.health, snapshot.troubles) == ("degraded", ["worker cpu: has ended"])
    assert tell(desk, "stopping")["dead"] == []  # then they are to end


def test_each_inbox_tells_what_it_takes_and_when_it_is_tried_again(desk: Desk) -> None:
    assert tell(desk)["inboxes"] == {
        "in": {
            "mode": None,
            "kinds": ["image"],
            "priority": "normal",
            "paused": None,
            "next_try": None,
        }
    }
    # when its outbox cannot be written
    desk.pauses.pause("in", "/out: cannot be written", time.monotonic() + 100)
    soon = tell(desk)["inboxes"]["in"]["next_try"]
    assert 90 < soon - time.time() < 110


def test_when_all_inboxes_are_paused_so_is_the_daemon_but_not_one_that_loads(desk: Desk) -> None:
    desk.pauses.hold({"in": "paused by ada"})
    assert tell(desk)["state"] == "paused"
    assert tell(desk, "loading")["state"] == "loading"
    desk.pauses.hold({})
    assert tell(desk)["state"] == "ready"


def test_while_it_reloads_it_says_so(desk: Desk) -> None:
    # given a daemon whose configuration takes a while to be read
    config = Config(state_dir=desk.inbox.parent)
    begun, go_on = threading.Event(), threading.Event()

    def read() -> Config:
        begun.set()
        assert go_on.wait(WAIT_SECONDS)
        return config

    reloader = Reloader(config, read, lambda changes: None)
    daemon = desks.Desk(
        config, desk.store, desk.pauses, Meter(), model=lambda: "m", reload=reloader
    )
    reloading = threading.Thread(target=reloader)
    reloading.start()
    # when it is asked meanwhile, and afterwards
    try:
        assert begun.wait(WAIT_SECONDS)
        assert daemon.handlers["status"]({})["state"] == "reloading"  # type: ignore[index]
    finally:
        go_on.set()
        reloading.join()
    assert daemon.handlers["status"]({})["state"] == "loading"  # type: ignore[index]


def test_without_a_store_it_tells_the_rest(tmp_path: Path) -> None:
    config = Config(state_dir=tmp_path / "none")
    told = telling.answer("loading", config, Meter(), Pauses(1.0), [], None)
    assert (told["stored"], told["eta_seconds"], told["slots"]) == (None, None, [])


def test_what_was_cancelled_is_no_failure(desk: Desk) -> None:
    for name in ("cancelled.png", "broken.png"):
        (desk.inbox / name).write_bytes(b"x")
        desk.add(desk.inbox / name)
    desk.store.cancel("in", b"cancelled.png", "cancelled by ada")
    desk.store.fail(desk.store.claim([2], "cpu")[0], "file", "is broken")
    stored = telling.read(desk.inbox.parent / "jobs.sqlite3")
    assert [name for name, _, _ in stored["failures"]] == ["in/broken.png"]
    assert (stored["counts"]["in"]["failed"], stored["cancelled"]) == (1, {"in": 1})
    assert desk.counts() == {"failed": 1}
    # and a million that were cancelled are not looked through, and soon counted
    for query, index in {
        "SELECT 1 FROM job WHERE state = 'failed' AND fault IS NOT 'operator'"
        " ORDER BY finished DESC LIMIT 10": "INDEX job_failure",
        "SELECT inbox, kind, count(*) FROM job WHERE state = 'failed' AND fault IS 'operator'"
        " GROUP BY inbox, kind": "COVERING INDEX job_cancelled",
    }.items():
        (plan,) = desk.store._db.execute(f"EXPLAIN QUERY PLAN {query}").fetchall()
        assert index in plan[-1]
