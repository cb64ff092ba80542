"""The main events of the daemon's log: each has a name, and the id by which the journal knows it.

A line of the log that tells of an event takes it as ``extra``:

    log.info("%s: loaded", device, extra=events.MODEL_LOADED(device=device))

systemd/phi4d.catalog explains each to whoever reads `journalctl -x`; a test holds the two together.
An id is never changed and never used again: people search for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Event:
    """One kind of thing that happens. Called with fields, it gives the ``extra`` of a log line."""

    name: str
    """PHI4D_EVENT in the journal, ``event`` in JSON lines"""
    id: str
    """MESSAGE_ID: 128 random bits, 32 hexadecimal digits"""
    folds: bool = False
    """many in a row may be counted in place of said; never so where the last one said is how
    things are"""

    def __call__(self, **fields: Any) -> Mapping[str, Any]:
        """The fields of a line about it.

        Args:
            fields: such as inbox, file, device and fault; PHI4D_INBOX and so on in the journal.
                What is empty or None is left out.
        """
        told = {f"PHI4D_{key.upper()}": value for key, value in fields.items()}
        kept = {key: value for key, value in told.items() if value is not None and value != ""}
        return {"MESSAGE_ID": self.id, "PHI4D_EVENT": self.name, **kept}


# the daemon
READY = Event("ready", "99e0d72ea0444ada8657ada5c75ff87a")
STOPPING = Event("stopping", "58a9b11714da4a5d9560b9e956e6903f")
STOPPED = Event("stopped", "e53006263958442e95689d930d7d90ea")
RELOADED = Event("reloaded", "78e0aa0c158743928824ece2ea43cf4a")
RELOAD_REFUSED = Event("reload-refused", "96390aaf97cd4d07b3b861a1d13db04d")
ENDED_BADLY = Event("ended-badly", "ece575cbbc7244889440a698df37298a")

# the model and its devices
MODEL_LOADING = Event("model-loading", "18652d84071146c683d7d452ae602c34")
MODEL_LOADED = Event("model-loaded", "b8ccb0a335d141fd9e68316083ec082b")
MODEL_UNLOADED = Event("model-unloaded", "3bf71b466f7d47f58bdacd9882d1a652")
MEMORY_WAITED_FOR = Event("memory-waited-for", "faf074704af34965801ed6c0b84f53ca")
DEVICE_FULL = Event("device-full", "5e72beeabe69462a9fc9aa842bd7dc19")
DEVICE_LOST = Event("device-lost", "660b59581bf7405292faca4eeb52d5ce")
WORKER_HUNG = Event("worker-hung", "d2eda17afff947e881e94c48cf2fd1c4")

# files
FILE_DONE = Event("file-done", "47b78eab47034b56b327458c5fec609d")
FILE_FAILED = Event("file-failed", "42da8fb54280408798ad4cf8b6367bd2", folds=True)
FILE_PUT_OFF = Event("file-put-off", "1293b04c1e07488da632014acc236d80", folds=True)
FILE_DROPPED = Event("file-dropped", "3ded8c8938a74e4d90977c548f211355")
FILES_DONE = Event("files-done", "ced2894e384a419d97e24f8322d70d64")
HOOK_FAILED = Event("hook-failed", "5ebb4e0f8ca84caf8afd683c3862fd20", folds=True)

# inboxes
INBOX_PAUSED = Event("inbox-paused", "8f1f5dfe91f640908f5a150b1ca5567d")
INBOX_RESUMED = Event("inbox-resumed", "bd94e33271914e1ba94503d15492047f")
INBOX_TROUBLED = Event("inbox-troubled", "ed148925058e4e2f80def61a7fbf4b87")
INBOX_HEALED = Event("inbox-healed", "83e29eb1bbbe4e2da0ac7f85d5a89dfb")
EVENTS_OVERFLOWED = Event("events-overflowed", "ecb5ca3becbe415d8e9cf6ace60e09ef", folds=True)
ORIGINALS_STAY = Event("originals-stay", "2bf679ab711541e687d5912b60497e71")
ORIGINALS_GO = Event("originals-go", "b2aa7a0192f14c8f969198295620ed57")

# the store and the log itself
STORE_SET_ASIDE = Event("store-set-aside", "2552d0af6639474483c837f84947f3bf")
WORK_RECOVERED = Event("work-recovered", "8a3c2f53eefe451d9e864b0f5468be08")
SAID_OFTEN = Event("said-often", "e9e869874d6d4fd58501ea6f064c39c5")
LOG_TROUBLED = Event("log-troubled", "fb68952e2df54d61aa60a6cbaca13899")
LOG_HEALED = Event("log-healed", "95b84fff41c7488c88a564e1c1a41b40")

ALL: tuple[Event, ...] = tuple(value for value in globals().values() if isinstance(value, Event))
