"""On which line of a TOML or JSON text each key and value stands: the parsers do not tell.

Only for texts that the parser has taken: what is not valid is not noticed here.
"""

from __future__ import annotations

import bisect
import json
import re
import tomllib
from dataclasses import dataclass, field

KeyPath = tuple[str | int, ...]
"""the way to a value: ``("inbox", 0, "kinds", 1)``"""

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"""+'  # a text may end with quotes of its own
    r"|'''.*?'''+"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)
_SCALAR = re.compile(r"[^,\]}\n#]*")
_KEY_END = re.compile(r"[ \t]*")


@dataclass(frozen=True, slots=True)
class Places:
    """Lines of keys and values, counted from 1."""

    lines: dict[KeyPath, int] = field(default_factory=dict)
    headers: list[tuple[int, KeyPath]] = field(default_factory=list)
    """lines of ``[table]`` and ``[[table]]``, in order, and what they begin"""
    twice: list[tuple[KeyPath, int, int]] = field(default_factory=list)
    """keys that stand twice, with the lines of both; JSON takes the last without a word"""

    def line(self, path: KeyPath) -> int:
        """The line of a value, or of the nearest that it is in or that implies it; 0: not known."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.lines:
                return self.lines[path[:length]]
        # [a.b] has a line, and a is only implied by it
        return next((line for line, table in self.headers if table[: len(path)] == path), 0)

    def table_at(self, line: int) -> KeyPath:
        """The table that a line belongs to."""
        found: KeyPath = ()
        for begin, path in self.headers:
            if begin <= line:
                found = path
        return found


def of_toml(text: str) -> Places:
    """The places of a valid TOML text."""
    return _scanned(text, "=")


def of_json(text: str) -> Places:
    """The places of a valid JSON text."""
    return _scanned(text, ":")


def _scanned(text: str, assigns: str) -> Places:
    scanner = _Scanner(text, assigns)
    try:
        if assigns == ":":
            scanner.value(())
        else:
            scanner.document()
    except RecursionError:  # nested beyond reason; what was found until there stands
        pass
    return scanner.places


class _Scanner:
    """One walk through a text. In JSON a colon stands between key and value, in TOML ``=``."""

    def __init__(self, text: str, assigns: str) -> None:
        self.places = Places()
        self._text = text
        self._assigns = assigns
        self._at = 0
        self._newlines = [n for n, character in enumerate(text) if character == "\n"]
        self._tables: dict[KeyPath, int] = {}  # how many of each [[table]] there were

    def document(self) -> None:
        """All statements of a TOML text."""
        table: KeyPath = ()
        while self._blank() < len(self._text):
            line = self._line()
            if self._text.startswith("[[", self._at):
                table = self._resolved(self._between("[[", "]]"), begins=True)
            elif self._text.startswith("[", self._at):
                table = self._resolved(self._between("[", "]"), begins=False)
            else:
                self._pair(table)
                continue
            self.places.lines.setdefault(table, line)
            self.places.headers.append((line, table))

    def value(self, path: KeyPath) -> None:
        """A value, and all that is in it."""
        self._blank()
        self.places.lines.setdefault(path, self._line())
        string = _STRING.match(self._text, self._at)
        if string:
            self._at = string.end()
        elif self._text.startswith("[", self._at):
            self._at += 1
            n = 0
            while not self._ended("]"):
                self.value((*path, n))
                n += 1
        elif self._text.startswith("{", self._at):
            self._at += 1
            while not self._ended("}"):
                self._pair(path)
        else:
            scalar = _SCALAR.match(self._text, self._at)
            self._at = scalar.end() if scalar else len(self._text)

    def _pair(self, table: KeyPath) -> None:
        line = self._line()
        keys = self._key()
        path = (*table, *keys)
        for length in range(len(table) + 1, len(path)):
            self.places.lines.setdefault(path[:length], line)
        if path in self.places.lines:
            self.places.twice.append((path, self.places.lines[path], line))
        self.places.lines[path] = line
        self._blank()
        if self._text.startswith(self._assigns, self._at):
            self._at += 1
            self.value(path)
        else:  # no valid text: go on behind it, so that this ends
            self._at += 1

    def _key(self) -> list[str]:
        """The parts of a dotted key."""
        parts: list[str] = []
        while True:
            self._blank()
            string = _STRING.match(self._text, self._at)
            found = string or _BARE_KEY.match(self._text, self._at)
            if not found:
                return parts
            parts.append(self._unquoted(found[0]) if string else found[0])
            self._at = found.end()
            after = _KEY_END.match(self._text, self._at)
            end = after.end() if after else self._at
            if not self._text.startswith(".", end):
                return parts
            self._at = end + 1

    def _unquoted(self, text: str) -> str:
        if self._assigns == ":":
            return str(json.loads(text))
        return str(tomllib.loads(f"x = {text}")["x"])

    def _between(self, opening: str, closing: str) -> list[str]:
        self._at += len(opening)
        keys = self._key()
        self._blank()
        self._at += len(closing)
        return keys

    def _resolved(self, keys: list[str], *, begins: bool) -> KeyPath:
        """The way to a table; where tables of a list are on it, through the last of each."""
        path: KeyPath = ()
        for n, key in enumerate(keys):
            path = (*path, key)
            last = n == len(keys) - 1
            if begins and last:
                self._tables[path] = self._tables.get(path, 0) + 1
            if path in self._tables:
                path = (*path, self._tables[path] - 1)
        return path

    def _ended(self, closing: str) -> bool:
        """Step over commas; whether the array or the object ends here."""
        self._blank()
        while self._text.startswith(",", self._at):
            self._at += 1
            self._blank()
        if self._at >= len(self._text):
            return True
        if self._text.startswith(closing, self._at):
            self._at += 1
            return True
        return False

    def _blank(self) -> int:
        blank = _BLANK.match(self._text, self._at)
        self._at = blank.end() if blank else self._at
        return self._at

    def _line(self) -> int:
        return bisect.bisect_left(self._newlines, self._at) + 1
