"""A scrape: every metric, from a real store and a meter."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from kit import Clock
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read

from phi4d.engine.fake import FakeEngine
from phi4d.inbox import Health
from phi4d.job import Arrival, Completion, Fingerprint, Kind, State
from phi4d.meter import Memory, Meter, Phase
from phi4d.metrics import FAMILIES, Live, registry
from phi4d.scheduler import Pauses
from phi4d.store import Store

BOTH = (Kind.IMAGE, Kind.AUDIO)


@dataclass
class Heart:
    """A worker, as far as it is looked at."""

    last_beat: float


@dataclass
class Watcher:
    """The inboxes' thread, as far as it is looked at."""

    last_beat: float
    states: dict[str, Health] = field(default_factory=dict)

    def health(self) -> dict[str, Health]:
        return self.states


class House:
    """What there is to look at; the daemon has two inboxes."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self.clock = clock
        self.path = folder / "jobs.sqlite3"
        self.store = Store(self.path, lambda: clock.now)
        self.meter = Meter(clock)
        self.pauses = Pauses(5.0)
        self.engines: list[FakeEngine] = []
        self.workers: list[Heart] = []
        self.watcher: Watcher | None = None
        self.live = Live(
            self.path,
            self.meter,
            self.pauses,
            inboxes=lambda: {"in": BOTH, "scans": (Kind.IMAGE,)},
            engines=lambda: self.engines,
            workers=lambda: self.workers,
            watcher=lambda: self.watcher,
            clock=clock,
            wall_clock=clock,
            started=900.0,
        )

    def registry(self) -> CollectorRegistry:
        return registry(self.live)

    def scrape(self) -> dict[tuple[str, ...], float]:
        """Every sample: its name, then its labels' values in the order of their names."""
        text = generate_latest(self.registry()).decode()
        return {
            (s.name, *(s.labels[name] for name in sorted(s.labels))): s.value
            for family in read(text)
            for s in family.samples
        }


@pytest.fixture
def house(tmp_path: Path, clock: Clock) -> Iterator[House]:
    house = House(tmp_path, clock)
    yield house
    house.store.close()


def arrival(n: int, inbox: str = "in", kind: Kind = Kind.IMAGE) -> Arrival:
    return Arrival(inbox, b"%d" % n, kind, Fingerprint(n, n, n))


def test_while_the_model_is_loaded_it_is_not_ready(house: House) -> None:
    house.engines = [FakeEngine(), FakeEngine()]  # one is being loaded still
    seen = house.scrape()
    assert seen["phi4d_ready",] == 0
    assert seen["phi4d_start_time_seconds",] == 900
    assert seen["phi4d_store_readable",] == 1
    assert not [key for key in seen if key[0] in ("phi4d_slot_info", "phi4d_watcher_age_seconds")]


def test_jobs_are_the_stores(house: House, clock: Clock) -> None:
    house.store.add([arrival(1), arrival(2), arrival(3, kind=Kind.AUDIO), arrival(4, "former")])
    house.store.finish(house.store.claim([1], "cpu")[0])
    clock.advance(30)
    seen = house.scrape()
    assert seen["phi4d_jobs", "in", "image", "done"] == 1
    assert seen["phi4d_jobs", "in", "image", "queued"] == 1
    assert seen["phi4d_jobs", "in", "audio", "queued"] == 1
    assert seen["phi4d_jobs", "in", "audio", "failed"] == 0
    assert seen["phi4d_jobs", "former", "image", "queued"] == 1  # configured no more
    assert seen["phi4d_queue_age_seconds", "in"] == 30
    assert seen["phi4d_queue_age_seconds", "scans"] == 0
    assert seen["phi4d_jobs", "in", "image", "cancelled"] == 0


def test_what_was_cancelled_is_not_among_the_failed(house: House) -> None:
    house.store.add([arrival(1), arrival(2)])
    house.store.fail(house.store.claim([1], "cpu")[0], "file", "is empty")
    house.store.cancel("in", b"", "cancelled by ada")
    seen = house.scrape()
    assert seen["phi4d_jobs", "in", "image", "failed"] == 1
    assert seen["phi4d_jobs", "in", "image", "cancelled"] == 1


def test_what_may_happen_is_zero_before_it_does(house: House) -> None:
    seen = house.scrape()
    for key in (
        ("phi4d_jobs_ended_total", "in", "audio", "failed"),
        ("phi4d_faults_total", "file", "scans", "failed"),
        ("phi4d_audio_seconds_total", "in"),
        ("phi4d_hooks_total", "scans", "failed"),
        ("phi4d_decode_restarts_total", "died"),
        ("phi4d_watch_overflows_total",),
        ("phi4d_phase_seconds_count", "image", "write"),
        ("phi4d_inbox_paused", "operator", "in"),
    ):
        assert seen[key] == 0, key
    assert ("phi4d_audio_seconds_total", "scans") not in seen  # which takes pictures alone


def test_what_was_counted(house: House) -> None:
    meter = house.meter
    meter.ended("in", Kind.AUDIO, State.DONE, audio_seconds=12.5)
    meter.ended("in", Kind.IMAGE, State.DONE, copied=True)
    meter.fault("in", "file", failed=True)
    meter.fault("in", "environment", failed=False)
    meter.paused("in")
    meter.hook("in", failed=True)
    meter.hook("in", failed=False)
    meter.hook("in", failed=False)
    meter.restarted("broken off")
    meter.compared("in", 0.5)
    meter.overflowed()
    meter.spent(Phase.WRITE, Kind.IMAGE, 0.003)
    seen = house.scrape()
    assert seen["phi4d_jobs_ended_total", "in", "audio", "done"] == 1
    assert seen["phi4d_audio_seconds_total", "in"] == 12.5
    assert seen["phi4d_hooks_total", "in", "failed"] == 1
    assert seen["phi4d_hooks_total", "in", "ok"] == 2
    assert seen["phi4d_answers_copied_total", "in", "image"] == 1
    assert seen["phi4d_faults_total", "file", "in", "failed"] == 1
    assert seen["phi4d_faults_total", "environment", "in", "waits"] == 1
    assert seen["phi4d_inbox_pauses_total", "in"] == 1
    assert seen["phi4d_decode_restarts_total", "broken_off"] == 1
    assert seen["phi4d_inbox_comparisons_total", "in"] == 1
    assert seen["phi4d_inbox_comparison_seconds_total", "in"] == 0.5
    assert seen["phi4d_watch_overflows_total",] == 1
    buckets = {
        bound: seen["phi4d_phase_seconds_bucket", "image", bound, "write"]
        for bound in ("0.0025", "0.005", "+Inf")
    }
    assert buckets == {"0.0025": 0, "0.005": 1, "+Inf": 1}
    assert seen["phi4d_phase_seconds_sum", "image", "write"] == 0.003


def test_slots_and_their_devices(house: House, clock: Clock) -> None:
    house.engines = [FakeEngine("phi", "cuda:0"), FakeEngine("phi", "cuda:0")]
    house.workers = [Heart(clock.now), Heart(clock.now - 7)]
    house.meter.ran("cuda:0", {Kind.AUDIO: 2}, 0.5)
    house.meter.starved("cuda:0", 0.25)
    for _ in range(2):
        house.meter.answered(
            "cuda:0", Kind.AUDIO, Completion("x", 7, 20), seconds=0.5, speech_seconds=30.0, beside=2
        )
    house.meter.too_large("cuda:0", Kind.IMAGE)
    house.meter.holds("cuda:0", Memory(80, 30, 20))
    seen = house.scrape()
    assert seen["phi4d_ready",] == 1
    assert seen["phi4d_slot_info", "cuda:0", "phi", "1"] == 1
    assert seen["phi4d_slot_age_seconds", "cuda:0", "0"] == 0
    assert seen["phi4d_slot_age_seconds", "cuda:0", "1"] == 7
    assert seen["phi4d_batch_requests_sum", "cuda:0", "audio"] == 4
    assert seen["phi4d_batch_requests_count", "cuda:0", "audio"] == 2
    assert seen["phi4d_batch_requests_count", "cuda:0", "image"] == 0
    assert seen["phi4d_prompt_tokens_total", "cuda:0", "audio"] == 14
    assert seen["phi4d_generated_tokens_total", "cuda:0", "audio"] == 40
    assert seen["phi4d_answer_seconds_total", "cuda:0", "audio"] == 0.5
    assert seen["phi4d_starved_seconds_total", "cuda:0"] == 0.25
    assert seen["phi4d_speech_seconds_total", "cuda:0"] == 60
    assert seen["phi4d_real_time_ratio", "cuda:0"] == 120
    assert seen["phi4d_requests_too_large_total", "cuda:0", "image"] == 1
    memory = [seen[f"phi4d_device_memory_{name}bytes", "cuda:0"] for name in ("", "used_", "own_")]
    assert memory == [80, 30, 20]


def test_inboxes_and_how_they_are_watched(house: House, clock: Clock) -> None:
    house.watcher = Watcher(
        clock.now - 3,
        {"in": Health(True, False, True, 3), "scans": Health(False, True, False, 0)},
    )
    house.store.pause("scans", "ada", "")
    house.pauses.pause("in", "the disk is full", clock.now)
    seen = house.scrape()
    assert seen["phi4d_watcher_age_seconds",] == 3
    found = {
        name: [seen[f"phi4d_inbox_{name}", inbox] for inbox in ("in", "scans")]
        for name in ("usable", "polled", "watch_limited", "watches")
    }
    assert found == {
        "usable": [1, 0], "polled": [0, 1], "watch_limited": [1, 0], "watches": [3, 0],
    }  # fmt: skip
    paused = {key[1:] for key, on in seen.items() if key[0] == "phi4d_inbox_paused" and on}
    assert paused == {("operator", "scans"), ("surroundings", "in")}


def test_the_backlog_is_told_in_seconds_once_there_is_a_pace(house: House) -> None:
    house.engines, house.workers = [FakeEngine()], [Heart(house.clock.now)]
    assert house.scrape()["phi4d_backlog_seconds",] == 0
    house.store.add([arrival(n) for n in range(10)] + [arrival(n, "scans") for n in range(5)])
    assert ("phi4d_backlog_seconds",) not in house.scrape()
    house.meter.ended("in", Kind.IMAGE, State.DONE)
    house.meter.worked(Kind.IMAGE, 2.0)
    assert house.scrape()["phi4d_backlog_seconds",] == 30
    house.store.pause("scans", "ada", "")  # its files wait for somebody
    assert house.scrape()["phi4d_backlog_seconds",] == 20


def test_a_store_that_cannot_be_read_leaves_the_rest(house: House) -> None:
    house.store.close()
    house.path.write_bytes(b"this is no store at all, however long one looks at it")
    house.meter.ended("in", Kind.IMAGE, State.DONE)
    seen = house.scrape()
    assert seen["phi4d_store_readable",] == 0
    assert seen["phi4d_jobs_ended_total", "in", "image", "done"] == 1
    for name in ("phi4d_jobs", "phi4d_queue_age_seconds", "phi4d_backlog_seconds"):
        assert not [key for key in seen if key[0] == name]  # none is not known to wait
    house.path.unlink()
    assert house.scrape()["phi4d_store_readable",] == 0


def test_who_reads_waits_for_no_writer(house: House) -> None:
    house.store.add([arrival(1)])
    with house.store._write():  # as long as somebody is at it
        assert house.scrape()["phi4d_jobs", "in", "image", "queued"] == 1


def test_any_name_of_an_inbox_survives(house: House) -> None:
    name = 'a "quoted"\\name\nof two lines, \N{HEBREW LETTER ALEF}'
    house.meter.ended(name, Kind.IMAGE, State.DONE)
    assert house.scrape()["phi4d_jobs_ended_total", name, "image", "done"] == 1


def test_every_family_is_there_with_its_help_and_type_and_no_other(house: House) -> None:
    house.engines, house.workers = [FakeEngine()], [Heart(house.clock.now)]
    house.watcher = Watcher(house.clock.now, {"in": Health(True, False, False, 1)})
    house.meter.holds("cpu", Memory(80, 30, 20))
    families = {
        family.name + ("_total" if family.type == "counter" else ""): family
        for family in read(generate_latest(house.registry()).decode())
        if family.name.startswith("phi4d_")
    }
    assert list(families) == list(FAMILIES)
    for name, found in families.items():
        assert (found.type, found.documentation) == (FAMILIES[name].type, FAMILIES[name].help)
        assert found.samples, name
        for sample in found.samples:
            assert set(sample.labels) - {"le"} == set(FAMILIES[name].labels), name


def test_openmetrics_is_spoken_too(house: House) -> None:
    house.meter.spent(Phase.WRITE, Kind.IMAGE, 0.003)
    text = openmetrics.generate_latest(house.registry()).decode()
    assert text.endswith("# EOF\n")
    names = {family.name for family in read_openmetrics(text)}
    assert {name.removesuffix("_total") for name in FAMILIES} <= names


def test_the_defaults_are_the_system_s_clocks(tmp_path: Path) -> None:
    nothing: Callable[[], list[FakeEngine]] = list
    live = Live(
        tmp_path / "none", Meter(), Pauses(1.0), inboxes=dict, engines=nothing, workers=list,
        watcher=lambda: None,
    )  # fmt: skip
    assert abs(live.started - time.time()) < 60
    assert not live.look().readable
