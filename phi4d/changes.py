"""What differs between two configurations, and what of it a running daemon can take up. Pure.

Every key is in one class, and a test fails for one that is in none. A new key of `Config` is live
if who reads it asks the configuration in force each time, or the daemon hands its new value on at a
reload; it belongs to the start where a restart is the only way, as with what the model was loaded
by. A new key of an inbox has to be live: a job keeps the rule that it was begun under, and the next
has the new one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from phi4d.config import Config, Inbox

LIVE = frozenset(
    {
        # what is asked, and how
        "image_prompt",
        "speech_prompt",
        "batch_size",
        "max_new_tokens",
        "temperature",
        "repetition_penalty",
        "seed",
        "reuse",
        # inboxes, and how they are looked after
        "inbox",
        "results_dir",
        "settle_seconds",
        "settle_max",
        "rescan_seconds",
        "poll_seconds",
        "pause_seconds",
        "retry_seconds",
        "stop_seconds",
        "hang_seconds",
        "max_attempts",
        # decoding
        "decode_processes",
        "decode_seconds",
        "decode_memory_gb",
        "max_file_mb",
        "max_megapixels",
        "max_frames",
        "max_duration_hours",
        # the log
        "debug",
        "log_level",
        "log_format",
        "log_file",
        "log_file_mb",
        "log_file_count",
        # where metrics are served
        "metrics_listen",
        # nothing is to be done for these: only `phi4d process` reads them
        "image_url",
        "audio_url",
    }
)
"""Keys whose new value a running daemon takes up."""
AT_START = frozenset(
    {
        # what the model is, and how it was loaded
        "model_path",
        "revision",
        "cache_dir",
        "device",
        "force_cpu",
        "disable_parallel",
        "multi_gpu_threshold_gb",
        "dtype",
        "attention",
        "quantization",
        "merge_adapters",
        "offload",
        "threads",
        "on_idle",
        "idle_unload_seconds",
        "user_prompt",
        "prompt_suffix",
        "assistant_prompt",
        # where the store, the lock and the control socket are
        "state_dir",
        "runtime_dir",
    }
)
"""Keys that are read once, when the daemon starts."""
OF_INBOX = frozenset(
    {
        "path",
        "outbox",
        "name",
        "kinds",
        "watch",
        "include",
        "exclude",
        "priority",
        "originals",
        "done_dir",
        "failed_dir",
        "on_done",
        "on_failed",
        "hook_seconds",
        "webhook_secret_file",
        "webhook_hours",
        "webhook_text",
        "image_prompt",
        "speech_prompt",
    }
)
"""Keys of an inbox, all live: they reach the watcher as a `Root`, or the workers as a `Rule`."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What a new configuration changes."""

    config: Config
    """what is in force when they are made: the new values of live keys, the old ones of others"""
    keys: tuple[str, ...] = ()
    """live keys with other values, but for the inboxes, which follow"""
    added: tuple[str, ...] = ()
    """names of new inboxes"""
    removed: tuple[str, ...] = ()
    """names of inboxes that are left out"""
    changed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """names of inboxes that are otherwise now, and their keys"""
    at_start: tuple[str, ...] = ()
    """keys with other values that are taken up at the next start"""

    def words(self) -> str:
        """What is made live, in a line for people; empty: nothing."""
        some = [*self.keys]
        some += [f'inbox "{name}" added' for name in self.added]
        some += [f'inbox "{name}" removed' for name in self.removed]
        some += [f'inbox "{name}" ({", ".join(keys)})' for name, keys in self.changed.items()]
        return ", ".join(some)


def compare(old: Config, new: Config) -> Changes:
    """What a running daemon changes when a new configuration takes the place of an old one.

    Args:
        old: what is in force.
        new: what was loaded.
    """
    differ = [key for key in Config.model_fields if getattr(old, key) != getattr(new, key)]
    at_start = tuple(key for key in differ if key in AT_START)
    kept = {key: getattr(old, key) for key in at_start}
    before, after = _by_name(old.inbox), _by_name(new.inbox)
    return Changes(
        new.model_copy(update=kept),
        tuple(key for key in differ if key in LIVE and key != "inbox"),
        tuple(name for name in after if name not in before),
        tuple(name for name in before if name not in after),
        {
            name: keys
            for name, box in after.items()
            if name in before and (keys := _differing(before[name], box))
        },
        at_start,
    )


def _by_name(boxes: Sequence[Inbox]) -> dict[str, Inbox]:
    return {box.name: box for box in boxes}


def _differing(old: Inbox, new: Inbox) -> tuple[str, ...]:
    return tuple(key for key in Inbox.model_fields if getattr(old, key) != getattr(new, key))
