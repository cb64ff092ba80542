"""Where each value of a configuration was set, and what is said about a wrong one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from phi4d.config.places import KeyPath


@dataclass(frozen=True, slots=True)
class Origin:
    """What set a value."""

    kind: Literal["default", "file", "environment", "command line"] = "default"
    name: str = ""
    """the file's path, or the variable's name"""
    line: int = 0
    """of the file, from 1; 0: the file as a whole, or no file"""

    def __str__(self) -> str:
        if self.kind == "file":
            return f"{self.name}:{self.line}" if self.line else self.name
        return self.name or self.kind


DEFAULT = Origin()


@dataclass(frozen=True, slots=True)
class Origins:
    """The origins of a configuration's values, by their place in it.

    Two are always equal: configurations are the same if their values are, whatever set these.
    """

    set_by: Mapping[KeyPath, Origin] = field(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Origins)

    def __hash__(self) -> int:
        return 0

    def of(self, path: KeyPath) -> Origin:
        """What set a key; for a value within it, such as an inbox's key, see `Config.origin`."""
        return self.set_by.get(path, DEFAULT)


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with a source."""

    origin: Origin
    key: KeyPath
    """the key, as the source has it; empty: the source as a whole"""
    words: str
    """what was found, what was expected, what to do"""

    def __str__(self) -> str:
        key = dotted(self.key)
        if self.origin.kind == "environment":
            parts = ["environment", self.origin.name, key if len(self.key) > 1 else ""]
        else:
            parts = ["" if self.origin.kind == "default" else str(self.origin), key]
        return ": ".join([*(part for part in parts if part), self.words])


def dotted(path: KeyPath) -> str:
    """A place in words: ``inbox[0].kinds[1]``."""
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).lstrip(".")
