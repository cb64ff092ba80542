"""Patterns as in .gitignore: what is one, and what it matches. Only importer of pathspec."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from pathspec import GitIgnoreSpec
from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

EXPECTED = (
    'expected a pattern as in .gitignore, such as "*.bak", "/raw/" or "!keep.tmp"; begin with a '
    "backslash for a name with # or !"
)


@dataclass(frozen=True, slots=True)
class Pattern:
    """One line, as git understands it."""

    text: str
    regex: re.Pattern[str]
    takes_back: bool

    @property
    def body(self) -> str:
        """The pattern without its marks: no ``!``, no slash at the end."""
        text = self.text.removeprefix("!").rstrip("/")
        return text[1:] if text.startswith(("\\#", "\\!")) else text

    @property
    def only_dirs(self) -> bool:
        """Whether no file can match it."""
        return self.text.endswith("/")

    def matches(self, relative: str, is_dir: bool) -> bool:
        """Whether it matches this path itself, and not one of the folders that it is in."""
        if "ps_d" not in self.regex.groupindex:
            return self.regex.search(relative) is not None
        path = relative + "/" if is_dir else relative
        # pathspec marks the end of a folder's name with this group
        return any(found.end("ps_d") in (-1, len(path)) for found in self.regex.finditer(path))


def compiled(lines: Sequence[str]) -> tuple[tuple[Pattern, ...], list[str]]:
    """The patterns of a file like .gitignore, and the lines that are none; comments are neither."""
    found, wrong = [], []
    for line in lines:
        try:
            with warnings.catch_warnings():
                # [[:alpha:]] and the like: Python would read them otherwise than git
                warnings.simplefilter("error", FutureWarning)
                pattern = GitIgnoreSpecPattern(line)
        except (ValueError, re.error, FutureWarning):
            wrong.append(line)
            continue
        text = line if line.endswith("\\ ") else line.rstrip()
        if pattern.include is None or pattern.regex is None:
            if text and not text.startswith("#"):
                wrong.append(line)
            continue
        found.append(Pattern(text, pattern.regex, not pattern.include))
    return tuple(found), wrong


def is_one(line: str) -> bool:
    """Whether a line is a pattern, and no comment or nothing."""
    return bool(compiled([line])[0])


def together(lines: Sequence[str]) -> GitIgnoreSpec:
    """Several patterns as one question; a folder that one matches stands for all in it."""
    return GitIgnoreSpec.from_lines(lines)
