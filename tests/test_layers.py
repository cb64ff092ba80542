"""The house keeps its floors: imports point strictly down. docs/architecture.md has the map."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

import phi4d

PACKAGE = Path(phi4d.__file__).parent
FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"__init__", "errors", "events", "job", "demo", "patterns"}),
    frozenset(
        {
            "config",
            "control",
            "ladder",
            "lock",
            "log",
            "meter",
            "notices",
            "notify",
            "prepared",
            "signals",
            "slots",
        }
    ),
    frozenset(
        {
            "changes",
            "engine",
            "inbox",
            "media",
            "outputs",
            "paths",
            "scheduler",
            "status",
            "store",
            "task",
        }
    ),
    frozenset({"hooks", "loading", "metrics", "reload", "settings", "vigil", "worker"}),
    frozenset({"desk"}),
    frozenset({"daemon", "unit"}),
    frozenset({"bench", "doctor", "explain", "oneshot", "orders", "trial", "model"}),
    frozenset({"cli"}),
    frozenset({"__main__"}),
)
"""Rooms, a file or a package each, from the ground up."""
FENCES = {
    "engine": {
        "torch",
        "transformers",
        "accelerate",
        "bitsandbytes",
        "tokenizers",
        "safetensors",
        "huggingface_hub",
    },
    "prepared": {"PIL"},
    "media": {"PIL", "pillow_heif", "av", "soundfile", "soxr", "onnxruntime"},
    "inbox": {"inotify_simple"},
    "patterns": {"pathspec"},
    "store": {"sqlite3"},
    "config": {"pydantic", "platformdirs"},
    "metrics": {"prometheus_client"},
    "oneshot": {"httpx"},
    "hooks": {"httpx"},
    "log": {"systemd"},
}
"""Libraries that one room alone may know, or those that are named with it."""
HEAVY = {
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "numpy",
    "PIL",
    "av",
    "onnxruntime",
}


NO_DAEMON = ("status", "retry", "rescan", "cancel")
"""Commands whose exit code says that no daemon runs, or that there was nothing to do."""


def floor_of(room: str) -> int:
    return next(n for n, rooms in enumerate(FLOORS) if room in rooms)


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imports(tree: ast.Module) -> Iterator[str]:
    """Dotted names of everything imported, early or late, but not for type checkers alone."""
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute in phi4d"
            assert node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            pending += node.orelse
        else:
            pending += ast.iter_child_nodes(node)


def imported_by(file: Path) -> set[str]:
    return set(imports(ast.parse(file.read_bytes())))


def rooms_imported_by(file: Path) -> set[str]:
    known = set(chain.from_iterable(FLOORS))
    rooms = set()
    for name in imported_by(file):
        package, _, rest = name.partition(".")
        if package == "phi4d":
            room = rest.partition(".")[0]
            rooms.add(room if room in known else "__init__")
    return rooms


def test_every_room_has_a_floor_and_every_floor_its_rooms():
    rooms = list(chain.from_iterable(FLOORS))
    assert len(rooms) == len(set(rooms))
    assert {room_of(file) for file in files()} == set(rooms)


def test_the_map_in_the_docs_has_the_same_floors():
    text = (PACKAGE.parent / "docs" / "architecture.md").read_text("utf-8")
    (drawing,) = re.findall(r"^phi4d/\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    drawn: dict[str, int] = {}
    floor = 0
    for number, room in re.findall(r"^ ([ \d]) (\w+)(?:\.py|/) ", drawing, re.MULTILINE):
        floor = int(number.strip() or floor)
        drawn[room] = floor

    dunder = {"__init__", "__main__"}
    assert drawn == {room: n for n, rooms in enumerate(FLOORS) for room in rooms - dunder}


def test_the_table_for_contributors_has_the_same_floors():
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text("utf-8")
    rows = re.findall(r"^\| (\d) \| (.*?) \|", text, re.MULTILINE)
    told = {int(floor): set(re.findall(r"`(\w+)/?`", rooms)) for floor, rooms in rows}

    assert told == {n: rooms - {"__init__"} for n, rooms in enumerate(FLOORS)}


@pytest.mark.parametrize("file", files(), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_point_strictly_down(file: Path):
    room = room_of(file)
    others = rooms_imported_by(file) - {room}  # siblings in a package may import each other
    assert [other for other in sorted(others) if floor_of(other) >= floor_of(room)] == []


@pytest.mark.parametrize("file", files(), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_heavy_library_is_known_to_its_rooms_alone(file: Path):
    room = room_of(file)
    libraries = {name.partition(".")[0] for name in imported_by(file)}
    fenced = set(chain.from_iterable(FENCES.values()))
    assert libraries & fenced <= FENCES.get(room, set())


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import a.b as c", {"a.b"}),
        ("from a import b", {"a.b"}),
        ("def f():\n    from a import b", {"a.b"}),
        ("if TYPE_CHECKING:\n    import a\nelse:\n    import b", {"b"}),
    ],
)
def test_the_reader_of_imports_sees_late_ones_and_leaves_out_those_for_types(
    source: str, expected: set[str]
):
    assert set(imports(ast.parse(source))) == expected


def loaded_by(*arguments: str) -> set[str]:
    """Top-level modules that a phi4d command line loads. It must end well, or say it did not."""
    code = (
        "import sys, runpy\n"
        f"NO_DAEMON = {NO_DAEMON}\n"
        "sys.argv = ['phi4d', *sys.argv[1:]]\n"
        "try:\n"
        "    runpy.run_module('phi4d', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert not end.code or sys.argv[1] in NO_DAEMON, end.code\n"
        "print(*{name.partition('.')[0] for name in sys.modules})\n"
    )
    return modules_after(code, *arguments)


def modules_after(code: str, *arguments: str) -> set[str]:
    """What a program prints in its last line, without what measuring coverage would load."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={k: v for k, v in os.environ.items() if not k.startswith(("COV", "PHI4_"))},
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_the_command_line_is_light_to_import():
    loaded = modules_after("import sys, phi4d.cli; print(*sys.modules)")
    assert "phi4d.cli" in loaded
    assert loaded & (HEAVY | {"pydantic", "inotify_simple", "httpx", "sqlite3"}) == set()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["run", "--help"],
        ["process", "--help"],
        ["model", "--help"],
        ["bench", "--help"],
    ],
)
def test_help_loads_nothing_heavy(arguments: list[str]):
    assert loaded_by(*arguments) & (HEAVY | {"inotify_simple", "httpx"}) == set()


@pytest.mark.parametrize("command", [["check"], ["show"], ["default"], ["explain", "device"]])
def test_what_asks_the_configuration_loads_nothing_heavy(tmp_path: Path, command: list[str]):
    file = tmp_path / "phi4d.toml"
    file.write_text('[[inbox]]\npath = "in"\noutbox = "out"\ninclude = ["*.jpg"]\n')
    with_file = [] if command == ["default"] else ["--config", str(file)]

    loaded = loaded_by("config", *command, *with_file)

    assert loaded & (HEAVY | {"inotify_simple", "httpx", "sqlite3"}) == set()


def test_the_drop_in_is_worked_out_with_nothing_heavy(tmp_path: Path):
    (tmp_path / "phi4d.toml").write_text('[[inbox]]\npath = "/in"\noutbox = "/out"\n')

    loaded = loaded_by("unit", "--config", str(tmp_path / "phi4d.toml"))

    assert loaded & (HEAVY | {"inotify_simple", "httpx", "sqlite3"}) == set()


@pytest.mark.parametrize(
    "arguments",
    [
        ["status"],
        ["status", "--json"],
        ["regenerate", "--stale"],
        ["retry", "--failed"],
        ["explain", "in/a.jpg"],
        ["pause"],
        ["resume"],
        ["rescan"],
        ["cancel", "--waiting"],
    ],
)
def test_what_asks_the_store_loads_nothing_heavy(tmp_path: Path, arguments: list[str]):
    # given a store that some daemon made, with a file that is done
    from phi4d.job import Arrival, Fingerprint, Kind
    from phi4d.store import Store

    (tmp_path / "phi4d.toml").write_text(
        'state_dir = "."\nmodel_path = "demo"\n[[inbox]]\npath = "in"\noutbox = "out"\n'
    )
    with Store(tmp_path / "jobs.sqlite3") as store:
        store.add([Arrival("in", b"a.jpg", Kind.IMAGE, Fingerprint(1, 1, 1))])
        store.finish(store.claim([1], "cpu")[0])
    arguments = [word.replace("in/", f"{tmp_path}/in/") for word in arguments]
    # when
    loaded = loaded_by(*arguments, "--config", str(tmp_path / "phi4d.toml"))
    # then
    watching = {"inotify_simple"} if arguments[0] == "explain" else set()  # asks for the rules
    assert loaded & (HEAVY | {"inotify_simple", "httpx"}) == watching
    assert {"phi4d", "sqlite3"} <= loaded
