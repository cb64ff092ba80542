"""What each part goes by, from the configuration; the daemon hands it out, at a reload anew."""

from __future__ import annotations

import os
import sys
from typing import Any

from phi4d.config import Config, Inbox
from phi4d.job import Kind
from phi4d.task import Rule


def of_decoding(config: Config) -> dict[str, Any]:
    """The limits of `phi4d.media.pool.DecodePool`."""
    return {
        "timeout_s": config.decode_seconds,
        "cpu_s": config.decode_seconds,
        "max_pixels": int(config.max_megapixels * 1e6),
        "max_frames": config.max_frames,
        "max_duration_s": config.max_duration_hours * 3600,
        "max_file_bytes": int(config.max_file_mb * 1e6),
        "memory_bytes": int(config.decode_memory_gb * 1e9),
    }


def of_work(config: Config) -> dict[str, Any]:
    """What `phi4d.worker.Worker.change` takes."""
    return {
        "batch_size": sys.maxsize if config.batch_size == "auto" else config.batch_size,
        "max_new_tokens": config.max_new_tokens,
        "sampling": config.sampling,
        "max_attempts": config.max_attempts,
        "retry_seconds": config.retry_seconds,
        "reuse": config.reuse,
        "ahead": config.decode_processes,
    }


def of_watching(config: Config) -> dict[str, Any]:
    """The times of `phi4d.inbox.Watcher`."""
    return {
        "settle_seconds": config.settle_seconds,
        "settle_max": config.settle_max,
        "rescan_seconds": config.rescan_seconds,
        "poll_seconds": config.poll_seconds,
    }


def rules(config: Config) -> dict[str, Rule]:
    """What workers must know of each inbox, by its name."""
    return {box.name: _rule(config, box) for box in config.inboxes()}


def _rule(config: Config, box: Inbox) -> Rule:
    return Rule(
        os.fsencode(box.path),
        os.fsencode(box.outbox_root()),
        {kind: config.prompt(box, kind) for kind in Kind},
        box.priority,
        box.originals,
        os.fsencode(box.done_dir) if box.done_dir else None,
        os.fsencode(box.failed_dir) if box.failed_dir else None,
        box.on_done,
        box.on_failed,
        box.hook_seconds,
        os.fsencode(box.webhook_secret_file) if box.webhook_secret_file else None,
        box.webhook_hours * 3600,
        box.webhook_text,
    )
