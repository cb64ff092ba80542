"""A scrape: every metric with its values at one moment."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import product
from typing import Any

from prometheus_client import CollectorRegistry, Metric, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from phi4d import __version__
from phi4d.job import Kind, State
from phi4d.meter import BUCKETS_BATCH, BUCKETS_SECONDS, Phase, Spread, Work
from phi4d.metrics.families import FAMILIES, Family
from phi4d.metrics.live import Live, Snapshot

Values = Mapping[Any, Any]
"""labels, in the order of the family's, to a number; of a histogram, to a `Spread`"""

# what may happen is 0 from the start, so that a rate sees the first time it does
_FAULTS = (
    ("file", "failed"),
    ("file", "waits"),
    ("environment", "waits"),
    ("device", "failed"),
    ("internal", "failed"),
    ("internal", "waits"),
)
_CANCELLED = "cancelled"
_STATES = (*State, _CANCELLED)
_ENDS = (State.DONE, State.FAILED, State.DROPPED)
_RESTARTS = ("broken off", "died", "worn out")


def registry(live: Live) -> CollectorRegistry:
    """Our metrics, and the usual ones of the process, such as its memory and open files."""
    found = CollectorRegistry()
    found.register(_Scrape(live))
    ProcessCollector(registry=found)
    return found


class _Scrape(Collector):
    """Looks anew at each scrape."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def describe(self) -> Iterable[Metric]:
        """What there is; nobody has to look for that."""
        return [_metric(family, {}) for family in FAMILIES.values()]

    def collect(self) -> Iterator[Metric]:
        """Every metric, those without a value too."""
        seen = self._live.look()
        values: dict[str, Values] = {
            "build_info": {(__version__, platform.python_version()): 1},
            "start_time_seconds": {(): self._live.started},
            **_of_jobs(seen),
            **_of_inboxes(seen),
            **_of_slots(seen),
        }
        for name, family in FAMILIES.items():
            yield _metric(family, values[name.removeprefix("phi4d_").removesuffix("_total")])


def _of_jobs(seen: Snapshot) -> dict[str, Values]:
    numbers = seen.numbers
    pairs = [(inbox, kind) for inbox, kinds in seen.inboxes.items() for kind in kinds]
    eta = seen.eta
    failed = {(*pair, State.FAILED): n for pair, n in seen.cancelled.items()}
    return {
        "ready": {(): bool(seen.slots)},
        "store_readable": {(): seen.readable},
        "jobs": {
            **({(*pair, state): 0 for pair in pairs for state in _STATES} if seen.readable else {}),
            **{
                (inbox, kind, state): n - failed.get((inbox, kind, state), 0)
                for (inbox, kind, state), n in seen.tally.items()
            },
            **{(*pair, _CANCELLED): n for pair, n in seen.cancelled.items()},
        },
        "queue_age_seconds": {
            **({(inbox,): 0.0 for inbox in seen.inboxes} if seen.readable else {}),
            **_alone(seen.ages),
        },
        "backlog_seconds": {} if eta is None else {(): eta},
        "jobs_ended": {
            **{(*pair, state): 0 for pair in pairs for state in _ENDS},
            **numbers.ended,
        },
        "answers_copied": {**dict.fromkeys(pairs, 0), **numbers.copied},
        "faults": {
            **{(inbox, *fault): 0 for inbox in seen.inboxes for fault in _FAULTS},
            **{
                (inbox, fault, "failed" if failed else "waits"): n
                for (inbox, fault, failed), n in numbers.faults.items()
            },
        },
        "hooks": {
            (inbox, outcome): numbers.hooks.get((inbox, outcome == "failed"), 0)
            for inbox, outcome in product(seen.inboxes, ("ok", "failed"))
        },
        "audio_seconds": {
            **{(inbox,): 0.0 for inbox, kind in pairs if kind is Kind.AUDIO},
            **_alone(numbers.audio_seconds),
        },
        "phase_seconds": {
            **{
                (phase, kind): _none(BUCKETS_SECONDS[phase]) for phase, kind in product(Phase, Kind)
            },
            **numbers.phases,
        },
        "decode_restarts": {
            (reason.replace(" ", "_"),): numbers.restarts.get(reason, 0)
            for reason in sorted({*_RESTARTS, *numbers.restarts})
        },
    }


def _of_inboxes(seen: Snapshot) -> dict[str, Values]:
    numbers = seen.numbers

    def each(value: Callable[[str], float]) -> Values:
        return {(inbox,): value(inbox) for inbox in seen.inboxes}

    def watched(value: str) -> Values:
        return {(inbox,): getattr(health, value) for inbox, health in seen.health.items()}

    return {
        "inbox_usable": watched("usable"),
        "inbox_watches": watched("watches"),
        "inbox_polled": watched("polled"),
        "inbox_watch_limited": watched("limited"),
        "inbox_paused": {
            **{(inbox, "operator"): inbox in seen.paused_by_operator for inbox in seen.inboxes},
            **{
                (inbox, "surroundings"): inbox in seen.paused_by_surroundings
                for inbox in seen.inboxes
            },
        },
        "inbox_pauses": each(lambda inbox: numbers.pauses.get(inbox, 0)),
        "inbox_comparisons": each(lambda inbox: numbers.comparisons.get(inbox, (0, 0))[0]),
        "inbox_comparison_seconds": each(lambda inbox: numbers.comparisons.get(inbox, (0, 0))[1]),
        "watch_overflows": {(): numbers.overflows},
        "watcher_age_seconds": {} if seen.watcher_age is None else {(): seen.watcher_age},
    }


def _of_slots(seen: Snapshot) -> dict[str, Values]:
    numbers = seen.numbers
    devices = list(dict.fromkeys(device for device, _, _ in seen.slots))
    both = list(product(devices, Kind))
    work = {**dict.fromkeys(both, Work()), **numbers.work}
    rates = seen.rates.devices
    return {
        "slot_info": {
            (str(n), device, model): 1 for n, (device, model, _) in enumerate(seen.slots)
        },
        "slot_age_seconds": {
            (str(n), device): age for n, (device, _, age) in enumerate(seen.slots)
        },
        "batch_requests": {**dict.fromkeys(both, _none(BUCKETS_BATCH)), **numbers.batches},
        "prompt_tokens": {key: of_it.prompt_tokens for key, of_it in work.items()},
        "generated_tokens": {key: of_it.new_tokens for key, of_it in work.items()},
        "answer_seconds": {key: of_it.seconds for key, of_it in work.items()},
        "starved_seconds": {(device,): numbers.starved.get(device, 0.0) for device in devices},
        "speech_seconds": {
            (device,): of_it.speech_seconds
            for (device, kind), of_it in work.items()
            if kind is Kind.AUDIO
        },
        "real_time_ratio": {
            (device,): rates[device].times_real_time if device in rates else 0.0
            for device in devices
        },
        "requests_too_large": {**dict.fromkeys(both, 0), **numbers.too_large},
        "device_memory_bytes": {(d,): memory.size_bytes for d, memory in numbers.memory.items()},
        "device_memory_used_bytes": {
            (d,): memory.used_bytes for d, memory in numbers.memory.items()
        },
        "device_memory_own_bytes": {(d,): memory.own_bytes for d, memory in numbers.memory.items()},
    }


def _alone(values: Mapping[str, float]) -> Values:
    """Values by their only label."""
    return {(label,): value for label, value in values.items()}


def _none(bounds: Iterable[float]) -> Spread:
    bounds = tuple(bounds)
    return Spread(bounds, (0,) * (len(bounds) + 1), 0.0)


def _metric(family: Family, values: Values) -> Metric:
    if family.type == "histogram":
        histogram = HistogramMetricFamily(family.name, family.help, labels=family.labels)
        for labels, spread in values.items():
            bounds = [*map(floatToGoString, spread.bounds), "+Inf"]
            histogram.add_metric(
                labels, list(zip(bounds, spread.counts, strict=True)), sum_value=spread.sum
            )
        return histogram
    kind = GaugeMetricFamily if family.type == "gauge" else CounterMetricFamily
    found = kind(family.name, family.help, labels=family.labels)
    for labels, value in values.items():
        found.add_metric(labels, value)
    return found
