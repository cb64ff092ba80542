"""The metrics by name: what each is, its type and its labels. The README has the same table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Family:
    """A metric with all its label values."""

    name: str
    """as Prometheus has it; of a histogram, without _bucket, _sum and _count"""
    type: Literal["gauge", "counter", "histogram"]
    labels: tuple[str, ...]
    help: str
    """one line; a unit is the name's"""


def _gauge(name: str, labels: str, words: str) -> Family:
    return Family(f"phi4d_{name}", "gauge", tuple(labels.split()), words)


def _counter(name: str, labels: str, words: str) -> Family:
    return Family(f"phi4d_{name}_total", "counter", tuple(labels.split()), words)


def _histogram(name: str, labels: str, words: str) -> Family:
    return Family(f"phi4d_{name}", "histogram", tuple(labels.split()), words)


_ALL = (
    # the daemon
    _gauge("build_info", "version python", "Always 1; the labels tell what runs."),
    _gauge("start_time_seconds", "", "When the daemon began, since the epoch."),
    _gauge("ready", "", "1 once the model is loaded and the inboxes are watched, else 0."),
    _gauge("store_readable", "", "1 if the store could be read for this scrape, else 0."),
    # jobs, from the store: they outlast the daemon
    _gauge(
        "jobs",
        "inbox kind state",
        "Jobs in the store; those that somebody cancelled are not among the failed.",
    ),
    _gauge(
        "queue_age_seconds",
        "inbox",
        "How long the longest waiting job has waited for its turn; 0 if none waits.",
    ),
    _gauge(
        "backlog_seconds",
        "",
        "Until all that waits in inboxes that are not paused is done, at the last hour's pace; "
        "missing while that cannot be told.",
    ),
    # jobs, since the start
    _counter("jobs_ended", "inbox kind state", "Jobs that ended: done, failed or dropped."),
    _counter(
        "answers_copied", "inbox kind", "Jobs done without the model: their answer was known."
    ),
    _counter(
        "faults",
        "inbox fault outcome",
        "Faults met with jobs, by whose they were; the job failed, or waits for its next try.",
    ),
    _counter(
        "audio_seconds",
        "inbox",
        "Length of the recordings that were transcribed, copied answers left out.",
    ),
    _counter(
        "hooks",
        "inbox outcome",
        "Tries of commands and webhooks at the end of a file: ok, or failed.",
    ),
    _histogram(
        "phase_seconds",
        "phase kind",
        "Time by phase: queue, decode (the worker's wait for it) and write once a job, answer "
        "once a request to the model.",
    ),
    # the inboxes
    _gauge("inbox_usable", "inbox", "1 if the inbox's folder is there and can be read, else 0."),
    _gauge(
        "inbox_paused",
        "inbox by",
        "1 if the inbox waits: for its operator, or for its surroundings, such as a full disk.",
    ),
    _counter(
        "inbox_pauses", "inbox", "How often the inbox had to wait for its surroundings, anew."
    ),
    _gauge("inbox_watches", "inbox", "Folders of the inbox that have a watch of the kernel's."),
    _gauge("inbox_polled", "inbox", "1 if the inbox is polled in place of events, else 0."),
    _gauge(
        "inbox_watch_limited",
        "inbox",
        "1 if the kernel has no watches for some of the inbox's folders, else 0.",
    ),
    _counter("inbox_comparisons", "inbox", "Comparisons of the inbox with the store."),
    _counter("inbox_comparison_seconds", "inbox", "Time spent comparing the inbox."),
    _counter("watch_overflows", "", "How often the kernel dropped events of the inboxes."),
    _gauge("watcher_age_seconds", "", "Since the inboxes' thread last gave a sign of life."),
    # the slots
    _gauge("slot_info", "slot device model", "Always 1; the labels tell what each slot holds."),
    _gauge("slot_age_seconds", "slot device", "Since the slot's worker last gave a sign of life."),
    _histogram(
        "batch_requests",
        "device kind",
        "Requests that the model had beside each other, seen when one was answered.",
    ),
    _counter("prompt_tokens", "device kind", "Tokens of prompts that the model read."),
    _counter("generated_tokens", "device kind", "Tokens that the model generated."),
    _counter(
        "answer_seconds",
        "device kind",
        "Time that the model was at work; kinds that it has at once share it.",
    ),
    _counter(
        "starved_seconds",
        "device",
        "Time that the model had nothing to answer though files were at hand.",
    ),
    _counter("speech_seconds", "device", "Length of the stretches of speech that were answered."),
    _gauge(
        "real_time_ratio",
        "device",
        "Seconds of speech answered in a second of answering, over the last minute; 0 if none.",
    ),
    _counter("requests_too_large", "device kind", "Requests that the device had no memory for."),
    _gauge("device_memory_bytes", "device", "Size of the device's memory."),
    _gauge("device_memory_used_bytes", "device", "What all programs use of the device's memory."),
    _gauge("device_memory_own_bytes", "device", "What phi4d holds of the device's memory."),
    # the decode processes
    _counter(
        "decode_restarts",
        "reason",
        "Decode processes replaced: died, broken_off with their file, or worn_out by many.",
    ),
)
FAMILIES = {family.name: family for family in _ALL}
