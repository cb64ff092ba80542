"""What is taken, by its name: patterns as in .gitignore, in layers. Pure; no file is looked at.

Three layers of patterns, each stronger than the one before: the usual litter, the inbox's
``exclude``, and the ``.phi4dignore`` of every folder from the inbox down. In the strongest layer
that knows a name at all, the last pattern that matches it decides; ``!`` takes it back. As with
git, what is in an excluded folder cannot be taken back.

A million names are judged in a second or two, so a name that no pattern could match costs three
comparisons of bytes; only the few others are matched pattern by pattern.
"""

from __future__ import annotations

import functools
import mimetypes
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from phi4d.errors import ConfigError
from phi4d.job import Kind, printable
from phi4d.patterns import EXPECTED, Pattern, compiled, together

IGNORE_FILE = b".phi4dignore"
LITTER: tuple[str, ...] = (
    # hidden: macOS's ._*, .DS_Store and .Trashes, .stfolder, and what is on its way by rsync
    # (.NAME.XXXXXX), Syncthing (.syncthing.NAME.tmp) and Nextcloud (.NAME.~hex, ._sync_*)
    ".*",
    # folders that systems and network disks keep for themselves
    "@eaDir",
    "@Recycle",
    "@Recently-Snapshot",
    "\\#recycle",
    "\\#snapshot",
    "$RECYCLE.BIN",
    "System Volume Information",
    "lost+found",
    "__MACOSX",
    "Thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    # copies of editors and office programs
    "*~",
    "~$*",
    "*.swp",
    # what is on its way: browsers, downloaders, FTP and SFTP programs, Syncthing on Windows
    "*.part",
    "*.partial",
    "*.crdownload",
    "*.download",
    "*.opdownload",
    "*.filepart",
    "*.!qB",
    "*.!ut",
    "*.aria2",
    "*.tmp",
    "*.temp",
    "~syncthing~*",
)
SIDECARS = (b".txt", b".json")
"""how the names end of what phi4d writes; never an input, whatever the patterns say"""
_SIEVES = 4_096  # folders whose sieve is remembered


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a path is taken by its name."""

    taken: bool
    why: str
    """in words, with the pattern and where it stands"""


@functools.lru_cache(maxsize=4_096)
def worth_opening(name: bytes, by_name: Callable[[bytes], Kind | None]) -> bool:
    """Whether a file of that name may be a picture or a recording.

    Args:
        name: the file's name.
        by_name: the kind that a name promises.
    """
    if by_name(name) is not None:
        return True
    stem, _, extension = name.rpartition(b".")
    return not stem or not heard_of(extension)


def heard_of(extension: bytes) -> bool:
    """Whether an extension, without its dot, stands for something, whatever that is.

    Those of no standing (none at all, a date, a serial number) say nothing about the content.
    """
    return "." + os.fsdecode(extension).lower() in _HEARD_OF


# without the machine's own tables, so that the same names are taken everywhere
_HEARD_OF = {
    extension
    for table in (mimetypes.MimeTypes().types_map[True], mimetypes.MimeTypes().encodings_map)
    for extension in table
} | {".log", ".md", ".ini", ".db", ".xmp", ".docx", ".xlsx", ".pptx", ".odt", ".toml", ".yaml"}


class Rules:
    """What is taken of one inbox.

    Args:
        root: the inbox's folder.
        include: if there are any, only files that one of them matches, or that lie in a folder
            which one of them matches.
        exclude: passed over, besides `LITTER`.
        apart: folders that are passed over where they lie below the root, absolute, and what each
            is, such as an outbox.
        inbox: the inbox's name, for messages.

    Raises:
        ConfigError: a pattern that git would not understand.
    """

    def __init__(
        self,
        root: bytes = b"/",
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        apart: Mapping[bytes, str] | None = None,
        inbox: str = "",
    ) -> None:
        self._given = (root, tuple(include), tuple(exclude), dict(apart or {}), inbox)
        above = root.rstrip(b"/") + b"/"
        self._apart = {
            folder.removeprefix(above): what
            for folder, what in (apart or {}).items()
            if folder.startswith(above)
        }
        own = _Layer("exclude", b"", _configured(f'inbox "{inbox}": exclude', exclude))
        litter = _Layer("usual litter", b"", _configured("litter", LITTER))
        self._base = (own, litter) if exclude else (litter,)
        self._include = (
            _Include(_configured(f'inbox "{inbox}": include', include), include)
            if include
            else None
        )
        self._ignores: dict[bytes, _Layer] = {}
        self._sieves: dict[bytes, Sieve] = {}

    def says_the_same(self, other: Rules) -> bool:
        """Whether other rules were made of the same, whatever ``.phi4dignore`` either has met."""
        return self._given == other._given

    def inherit(self, older: Rules) -> None:
        """Take over what older rules of the same inbox learned of ``.phi4dignore``."""
        self._ignores.update(older._ignores)
        self._sieves.clear()

    def set_ignore(self, folder: bytes, lines: Sequence[str] | None) -> list[str]:
        """Give the ``.phi4dignore`` of a folder; None: it has none.

        Returns:
            The lines that are no patterns, and so are passed over.
        """
        if lines is None and folder not in self._ignores:
            return []
        self._sieves.clear()
        if lines is None:
            del self._ignores[folder]
            return []
        patterns, wrong = compiled(lines)
        where = printable(os.path.join(folder, IGNORE_FILE))
        self._ignores[folder] = _Layer(where, folder, patterns)
        return wrong

    def within(self, folder: bytes) -> Sieve:
        """The rules for the names in a folder that is itself taken; ``b""`` is the inbox."""
        sieve = self._sieves.get(folder)
        if sieve is None:
            if len(self._sieves) >= _SIEVES:
                self._sieves.clear()
            sieve = Sieve(folder, self._layers(folder), self._include, self._apart)
            self._sieves[folder] = sieve
        return sieve

    def verdict(self, relative: bytes, *, is_dir: bool = False) -> Verdict:
        """Whether a path below the inbox is taken, and why; all its parent folders count.

        Args:
            relative: the path below the inbox; it need not exist.
            is_dir: whether it is a folder.
        """
        names = [name for name in relative.split(b"/") if name not in (b"", b".")]
        taken = Verdict(True, "no pattern excludes it")
        folder = b""
        for n, name in enumerate(names, 1):
            last = n == len(names)
            sieve = self.within(folder)
            taken = sieve.verdict(name, is_dir=is_dir or not last)
            folder = os.path.join(folder, name)
            if not taken.taken:
                what = "" if last else f"its folder {printable(folder)} is "
                return Verdict(False, what + taken.why)
        return taken

    def _layers(self, folder: bytes) -> tuple[_Layer, ...]:
        """Strongest first."""
        if not self._ignores:
            return self._base
        found = []
        while True:
            layer = self._ignores.get(folder)
            if layer is not None:
                found.append(layer)
            if not folder:
                return (*found, *self._base)
            folder = folder.rpartition(b"/")[0]


class Sieve:
    """The rules for the names in one folder."""

    __slots__ = ("_all", "_apart", "_folder", "_include", "_layers")

    def __init__(
        self,
        folder: bytes,
        layers: tuple[_Layer, ...],
        include: _Include | None,
        apart: Mapping[bytes, str],
    ) -> None:
        self._folder = folder
        self._layers = layers
        self._include = include
        self._all = include is None or include.covers(folder)
        self._apart = apart

    def takes(self, name: bytes) -> bool:
        """Whether a file of that name is taken."""
        if name.endswith(SIDECARS) or self._excluded(name, is_dir=False):
            return False
        return self._all or self._include is None or self._include.takes(self._folder, name)

    def enters(self, name: bytes) -> bool:
        """Whether a folder of that name is looked into."""
        if self._apart and os.path.join(self._folder, name) in self._apart:
            return False
        return not self._excluded(name, is_dir=True)

    def verdict(self, name: bytes, *, is_dir: bool) -> Verdict:
        """The same in words."""
        path = os.path.join(self._folder, name)
        if is_dir and path in self._apart:
            return Verdict(False, f"passed over: {self._apart[path]}")
        if not is_dir and name.endswith(SIDECARS):
            return Verdict(False, "named like what phi4d writes itself (.txt, .json)")
        found = self._decisive(name, is_dir)
        if found is not None:
            layer, pattern = found
            words = f'by "{pattern.text}" {layer.place}'
            if not pattern.takes_back:
                return Verdict(False, f"excluded {words}")
        if not is_dir and self._include is not None:
            by = self._include.match(path)
            if by is None:
                return Verdict(False, "none of the include patterns matches")
            return Verdict(True, f'included by "{by}"')
        return Verdict(True, f"taken back {words}" if found else "no pattern excludes it")

    def _excluded(self, name: bytes, *, is_dir: bool) -> bool:
        found = self._decisive(name, is_dir)
        return found is not None and not found[1].takes_back

    def _decisive(self, name: bytes, is_dir: bool) -> tuple[_Layer, Pattern] | None:
        for layer in self._layers:
            if not (layer.dirs if is_dir else layer.files).may_match(name):
                continue
            path = os.path.join(self._folder, name)
            relative = os.fsdecode(path[len(layer.base) + 1 if layer.base else 0 :])
            for pattern in reversed(layer.patterns):
                if pattern.matches(relative, is_dir):
                    return layer, pattern
        return None


class _Layer:
    """Patterns that stand in one place.

    Args:
        where: the place, in words.
        base: the folder that the patterns are meant from, below the inbox.
        patterns: the later the stronger.
    """

    __slots__ = ("base", "dirs", "files", "patterns", "where")

    def __init__(self, where: str, base: bytes, patterns: tuple[Pattern, ...]) -> None:
        self.where = where
        self.base = base
        self.patterns = patterns
        self.files = _Guess.of([pattern for pattern in patterns if not pattern.only_dirs])
        self.dirs = _Guess.of(patterns)

    @property
    def place(self) -> str:
        return f"in {self.where}" if self.where.endswith(".phi4dignore") else f"({self.where})"


@dataclass(frozen=True, slots=True)
class _Guess:
    """Names that patterns could match; of those without a slash it says it exactly."""

    exact: frozenset[bytes] = frozenset()
    starts: tuple[bytes, ...] = ()
    ends: tuple[bytes, ...] = ()
    others: tuple[re.Pattern[str], ...] = ()
    always: bool = False
    """a pattern with a slash wants the whole path"""

    @classmethod
    def of(cls, patterns: Sequence[Pattern]) -> _Guess:
        exact, starts, ends, others = set(), [], [], []
        always = False
        for pattern in patterns:
            body = pattern.body
            if "/" in body:
                always = True
            elif not _special(body):
                exact.add(os.fsencode(body))
            elif body.startswith("*") and not _special(body[1:]):
                ends.append(os.fsencode(body[1:]))
            elif body.endswith("*") and not _special(body[:-1]):
                starts.append(os.fsencode(body[:-1]))
            else:
                others.append(pattern.regex)
        return cls(frozenset(exact), tuple(starts), tuple(ends), tuple(others), always)

    def may_match(self, name: bytes) -> bool:
        if name in self.exact or name.startswith(self.starts) or name.endswith(self.ends):
            return True
        if self.others:
            text = os.fsdecode(name)
            return self.always or any(regex.search(text + "/") for regex in self.others)
        return self.always


class _Include:
    """The include patterns; unlike the others, one that matches a folder holds for all in it."""

    def __init__(self, patterns: Sequence[Pattern], lines: Sequence[str]) -> None:
        self._lines = tuple(lines)
        self._spec = together(lines)
        self._can_refuse = any(pattern.takes_back for pattern in patterns)
        self._guess = _Guess.of([pattern for pattern in patterns if not pattern.only_dirs])

    def covers(self, folder: bytes) -> bool:
        """Whether everything in a folder is included."""
        if self._can_refuse or not folder:
            return False
        return self._spec.match_file(os.fsdecode(folder) + "/")

    def takes(self, folder: bytes, name: bytes) -> bool:
        """Whether a file is included whose folder is not covered."""
        if not self._can_refuse:
            if not self._guess.may_match(name):
                return False
            if not self._guess.always:
                return True
        return self.match(os.path.join(folder, name)) is not None

    def match(self, path: bytes) -> str | None:
        """The pattern that includes a file, or None."""
        result = self._spec.check_file(os.fsdecode(path))
        return self._lines[result.index] if result.include and result.index is not None else None


def _special(text: str) -> bool:
    return not _PLAIN.fullmatch(text)


_PLAIN = re.compile(r"[^*?\[\\]+")


def _configured(key: str, lines: Sequence[str]) -> tuple[Pattern, ...]:
    patterns, wrong = compiled(lines)
    wrong += [line for line in lines if line.startswith("#") and line not in LITTER]
    if wrong:
        raise ConfigError(*(f"{key}: found {line!r}; {EXPECTED}" for line in wrong))
    return patterns
