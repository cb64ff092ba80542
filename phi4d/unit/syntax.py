"""How systemd's files are written: quoting, names of mount units, reading them back."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import PurePath

_PLAIN = re.compile(r"[^\s\"'\\%;#:]+")
_KEPT = re.compile(rb"[A-Za-z0-9:_.]")
_WORD = re.compile(r"""(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|\\.|[^\s"'\\])+""", re.DOTALL)
_PIECE = re.compile(
    r""""(?P<double>(?:[^"\\]|\\.)*)"|'(?P<single>(?:[^'\\]|\\.)*)'|(?P<bare>(?:\\.|[^"'\\])+)""",
    re.DOTALL,
)


def quoted(path: PurePath, prefix: str = "") -> str | None:
    """A path as one word of a setting that takes several; None: systemd cannot be told of it.

    Args:
        path: the path.
        prefix: what stands before it, within the quotes: ``-`` for one that may be missing.
    """
    text = str(path)
    try:
        text.encode()
    except UnicodeEncodeError:  # its files are in UTF-8
        return None
    if any(ord(character) < ord(" ") or character == "\x7f" for character in text):
        return None
    if _PLAIN.fullmatch(text):
        return prefix + text
    # specifiers begin with %
    text = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{prefix}{text}"'


def mount_unit(point: PurePath) -> str:
    """The name of the unit of a mount point, as `systemd-escape --path --suffix=mount` has it."""
    parts = [part for part in os.fsencode(point).split(b"/") if part]
    if not parts:
        return "-.mount"
    name = b"-".join(b"".join(_escaped(part)) for part in parts)
    if name.startswith(b"."):
        name = b"\\x2e" + name[1:]
    return name.decode("ascii") + ".mount"


def _escaped(part: bytes) -> Iterator[bytes]:
    for byte in part:
        each = bytes([byte])
        yield each if _KEPT.fullmatch(each) else b"\\x%02x" % byte


def words(value: str) -> list[str]:
    """The words of a setting, without quotes and escapes. Specifiers but %% stay as they are."""
    return [_unquoted(found[0]) for found in _WORD.finditer(value)]


def _unquoted(word: str) -> str:
    text = ""
    for piece in _PIECE.finditer(word):
        inner = piece["double"] or piece["single"] or piece["bare"] or ""
        text += re.sub(r"\\(.)", r"\1", inner, flags=re.DOTALL)
    return text.replace("%%", "%")


def assignments(text: str) -> Iterator[tuple[str, str, str]]:
    """What a unit or a drop-in sets: section, name and value, in order."""
    section = ""
    pending = ""
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith(("#", ";")) or not (stripped or pending):
            continue  # systemd passes comments over within a setting of several lines as well
        if stripped.endswith("\\"):
            pending += stripped[:-1] + " "
            continue
        whole, pending = pending + stripped, ""
        if whole.startswith("[") and whole.endswith("]"):
            section = whole[1:-1]
            continue
        name, equals, value = whole.partition("=")
        if equals:
            yield section, name.strip(), value.strip()
