"""The service as it is installed, with all drop-ins, and what of a configuration it lacks."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from phi4d.config import Config
from phi4d.unit import memory, needs
from phi4d.unit.dropin import DROP_IN, HOMES, TEMPORARY, Setting, at_or_below, real
from phi4d.unit.host import Host
from phi4d.unit.needs import Folder, Network
from phi4d.unit.syntax import assignments, words

NAME = "phi4d.service"
FOLDERS = (
    "etc/systemd/system",
    "run/systemd/system",
    "usr/local/lib/systemd/system",
    "usr/lib/systemd/system",
    "lib/systemd/system",
)
"""where units are, the strongest first"""
_MADE = {
    "StateDirectory": Path("/var/lib"),
    "CacheDirectory": Path("/var/cache"),
    "LogsDirectory": Path("/var/log"),
    "RuntimeDirectory": Path("/run"),
}
_PASSING = ("MemoryMax=", "Wants=", "After=", "RequiresMountsFor=")
_NO = {"", "no", "false", "off", "0", "n", "f"}
_BYTES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True, slots=True)
class Service:
    """What systemd has read, or will when it is told to read again."""

    unit: Path
    drop_ins: tuple[Path, ...]
    values: Mapping[str, tuple[str, ...]]
    """of each setting all values that are in force: an empty one has taken those before it back"""
    ours: frozenset[str] = frozenset()
    """the lines of the drop-in that `phi4d unit` made"""

    @classmethod
    def find(cls, root: Path = Path("/")) -> Service | None:
        """The installed service; None if there is none, or it is masked.

        Args:
            root: the system's root folder.
        """
        places = [root / folder for folder in FOLDERS]
        unit = next((each / NAME for each in places if os.path.lexists(each / NAME)), None)
        if unit is None or not unit.is_file():
            return None
        drop_ins: dict[str, Path] = {}
        for place in reversed(places):
            for file in sorted((place / f"{NAME}.d").glob("*.conf")):
                drop_ins[file.name] = file
        files = [drop_ins[name] for name in sorted(drop_ins)]
        values: dict[str, list[str]] = defaultdict(list)
        for file in (unit, *files):
            for _, name, value in assignments(_text(file)):
                if value:
                    values[name].append(value)
                else:
                    values[name].clear()
        made = root / DROP_IN.relative_to("/")
        ours = frozenset(f"{name}={value}" for _, name, value in assignments(_text(made)))
        return cls(unit, tuple(files), {name: tuple(each) for name, each in values.items()}, ours)

    def lacks(self, config: Config, host: Host) -> list[str]:
        """What a configuration wants and the service may not, in words that name the keys."""
        return [
            *self._closed(needs.folders(config)),
            *self._cut_off(needs.networks(config)),
            *self._without_devices(config, host),
            *self._short_of_memory(config, host),
        ]

    def strays(self, wanted: list[Setting]) -> list[str]:
        """Lines of the drop-in that `phi4d unit` made, and would not make now.

        Mounts may be there at one moment and not at another, and a limit of memory may differ with
        the devices that are found; whether it is too low, `lacks` says.
        """
        now = {str(setting) for setting in wanted}
        return sorted(line for line in self.ours - now if not line.startswith(_PASSING))

    def value(self, name: str) -> str:
        """The value of a setting that takes one; empty if it is not set."""
        return (self.values.get(name) or ("",))[-1]

    def _words(self, name: str) -> list[str]:
        return [word for value in self.values.get(name, ()) for word in words(value)]

    def _closed(self, folders: list[Folder]) -> Iterator[str]:
        for each in folders:
            path = real(each.path)
            # a link may be hidden as well as what it leads to
            if not (self._shows(each.path) and self._shows(path)):
                yield f"{each.path} is hidden from it ({each.keys})"
            elif each.writes and not self._lets_write(path):
                yield f"{each.path} is read-only to it ({each.keys})"

    def _shows(self, path: Path) -> bool:
        bound = [*self._bound("BindPaths"), *self._bound("BindReadOnlyPaths")]
        if at_or_below(path, bound):
            return True
        if at_or_below(path, HOMES):
            return self.value("ProtectHome").lower() in _NO | {"read-only"}
        if at_or_below(path, TEMPORARY):
            return self.value("PrivateTmp").lower() in _NO
        return True

    def _lets_write(self, path: Path) -> bool:
        home = self.value("ProtectHome") == "read-only" and at_or_below(path, HOMES)
        if self.value("ProtectSystem") != "strict" and not home:
            return True
        open_ = [Path(word.lstrip("-+")) for word in self._words("ReadWritePaths")]
        open_ += self._bound("BindPaths")
        for name, base in _MADE.items():
            open_ += [base / word.partition(":")[0] for word in self._words(name)]
        return at_or_below(path, [*open_, *map(real, open_)])

    def _bound(self, name: str) -> list[Path]:
        """Where folders are bound to; a colon may divide source and place, or be part of a name."""
        found = []
        for word in self._words(name):
            path = word.lstrip("-")
            source, _, place = path.partition(":")
            found += [Path(path), Path(place.partition(":")[0] or source)]
        return found

    def _cut_off(self, networks: list[Network]) -> Iterator[str]:
        families = set(self._words("RestrictAddressFamilies"))
        allowed = self._words("IPAddressAllow")
        for each in networks:
            here = {"localhost", "127.0.0.0/8", "127.0.0.1", "::1"}
            reached = [word for word in allowed if each.local or word not in here]
            if (
                self.value("PrivateNetwork").lower() not in _NO
                or (families and not each.families <= families)
                or (self.values.get("IPAddressDeny") and not reached)
            ):
                yield f"it has no network ({each.keys})"

    def _without_devices(self, config: Config, host: Host) -> Iterator[str]:
        policy = self.value("DevicePolicy") in ("closed", "strict")
        kfd = {"char-kfd", "/dev/kfd"} & set(self._words("DeviceAllow"))
        if host.rocm and memory.slots(config, host)[0] and policy and not kfd:
            yield "it may not use AMD's GPUs (device)"

    def _short_of_memory(self, config: Config, host: Host) -> Iterator[str]:
        found = re.fullmatch(r"(\d+)([KMGT]?)", self.value("MemoryMax"))
        limit = int(found[1]) * _BYTES[found[2]] if found else 0
        bound = memory.bound(config, host)
        if limit and limit < bound.size:
            yield (
                f"MemoryMax={self.value('MemoryMax')} is less than the {bound.size / 1e9:.0f} GB "
                f"that it may want ({bound.why})"
            )


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8", "replace")
    except OSError:
        return ""
