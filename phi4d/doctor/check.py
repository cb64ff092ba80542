"""What a look at one thing has found: a value, and how it is told."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """How it is with a thing."""

    OK = "ok"
    WARN = "warn"
    """it works, but not as well as it could, or not for long"""
    FAIL = "fail"
    """phi4d does not start with it, or its work stands still"""


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report."""

    check: str
    """what was looked at: ``python``, ``inbox photos``"""
    status: Status
    found: str
    advice: str = ""
    """what to do; nothing if all is well"""


def ok(check: str, found: str) -> Check:
    """All is well."""
    return Check(check, Status.OK, found)


def warn(check: str, found: str, advice: str) -> Check:
    """It works, but."""
    return Check(check, Status.WARN, found, advice)


def fail(check: str, found: str, advice: str) -> Check:
    """It does not work."""
    return Check(check, Status.FAIL, found, advice)


def gb(size: float) -> str:
    """Bytes in words, in units of 10⁹, or 10⁶ for a few."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"


def faulty(check: str, fault: str) -> Check:
    """A fault as the rest of phi4d words it: what was found, then what to do."""
    parts = re.fullmatch(r"(.+)(?:\. |; )(.+)", fault, re.DOTALL)
    if parts:
        return fail(check, parts[1], parts[2])
    return fail(check, fault, "see the README's tables of keys")
