"""`phi4d config`: what an operator sees of the configuration."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from phi4d import cli
from phi4d.config import Config, Inbox, load, telling

SAMPLE = Path(__file__).parents[1] / "etc/phi4d.toml"
EXAMPLE = """\
batch_size = 4
results_dir = "/results"

[[inbox]]
path = "in"
image_prompt = "What is \\"it\\"?\\u007f"

[[inbox]]
path = "/b"
outbox = "beside"
kinds = ["audio"]
"""


@pytest.fixture(autouse=True)
def _no_configuration_of_this_machine(
    tmp_path: Path, environment: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    from phi4d.config import loading

    monkeypatch.setattr(loading, "SYSTEM_FILE", tmp_path / "etc/phi4d.toml")
    monkeypatch.setattr(loading, "user_file", lambda: tmp_path / "home/phi4d.toml")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "phi4d.toml"
    path.write_text(EXAMPLE)
    (tmp_path / "in").mkdir()
    return path


def config(*words: object, **environ: str) -> Result:
    return CliRunner().invoke(cli.app, ["config", *map(str, words)], env=environ)


def flat(done: Result) -> str:
    """What was printed, without the breaks of its lines."""
    return " ".join(done.stdout.split())


class TestCheck:
    def test_it_tells_what_was_read_and_that_it_is_well(self, file: Path, tmp_path: Path) -> None:
        (tmp_path / "conf.d").mkdir()
        (tmp_path / "conf.d/a.toml").write_text("seed = 3\n")
        (tmp_path / "old.json").write_text('{"debug": null}')
        (tmp_path / "b").mkdir()

        done = config(
            "check", "--config", file, "--config-file", tmp_path / "old.json",
            "--set", f'inbox=[{{"path": "{tmp_path}/in"}}]', PHI4_DTYPE="float32",
        )  # fmt: skip

        assert done.stdout.splitlines() == [
            f"read  {file}: 2 keys, 2 inboxes",
            f"read  {tmp_path}/conf.d/a.toml: 1 key",
            f"read  {tmp_path}/old.json: nothing",
            "read  environment: PHI4_DTYPE",
            "read  command line: inbox",
            "ok",
        ]
        assert done.exit_code == os.EX_OK

    def test_without_any_file(self) -> None:
        done = config("check")

        assert done.stdout.splitlines() == [
            "read  no file: there is none in /etc/phi4d, nor one of your own",
            "warn  inbox: there is none, so `phi4d run` does not start; add an [[inbox]]",
            "ok",
        ]

    def test_every_fault_and_exit_code_78(self, file: Path) -> None:
        file.write_text("seed = -1\nbatchsize = 3\n")

        done = config("check", "--config", file)

        assert done.exit_code == os.EX_CONFIG
        assert done.stderr.splitlines() == [
            f"phi4d: {file}:1: seed: found -1; expected a whole number from 0 to "
            "9223372036854775807",
            f"phi4d: {file}:2: batchsize: unknown key; did you mean batch_size?",
        ]
        assert "ok" not in done.stdout

    def test_what_is_allowed_and_probably_not_meant(self, tmp_path: Path) -> None:
        # given a file with all of it, each in the line that is to be named
        (tmp_path / "conf.d").mkdir()
        for name in ("a.conf", "b.toml", ".c", "d.toml~", "README", "e.toml.dpkg-old"):
            (tmp_path / "conf.d" / name).touch()
        file = tmp_path / "phi4d.toml"
        lines = [
            'device = "cuda:0,cuda:1"',
            "force_cpu = true",
            "disable_parallel = true",
            "settle_max = 1",
            'model_path = "/not/there"',
            'results_dir = "a.txt"',
            "[[inbox]]",
            'path = "missing"',
            'done_dir = "/done"',
            'kinds = ["image"]',
            'speech_prompt = "Write."',
            'include = ["*.jpg"]',
            'exclude = ["*.jpg"]',
            'on_done = ["no-such-program", "{path}"]',
            'webhook_secret_file = "secret"',
            "[[inbox]]",
            'path = "a.txt"',
            'outbox = "b.txt"',
            'on_failed = "https://example.com/"',
            'webhook_secret_file = "secret"',
        ]
        file.write_text("\n".join(lines))
        (tmp_path / "a.txt").touch()
        (tmp_path / "b.txt").touch()

        done = config("check", "--config", file, PHI4D_SEED="3", PHI4D_JOB="3")

        warned = [line for line in done.stdout.splitlines() if line.startswith("warn")]
        assert warned[:2] == [
            f"warn  {tmp_path}/conf.d/a.conf: is not read; expected a name that ends with .toml",
            "warn  environment: PHI4D_SEED: is not looked at; did you mean PHI4_SEED?",
        ]
        places = [line.split(": ")[:2] for line in warned[2:]]
        assert [place for place, _ in places] == [
            f"warn  {file}:{n}" for n in (1, 1, 4, 5, 6, 8, 9, 15, 14, 11, 13, 17, 18, 20)
        ]
        assert [key for _, key in places] == [
            "device", "device", "settle_max", "model_path", "results_dir", "inbox[0].path",
            "inbox[0].done_dir", "inbox[0].webhook_secret_file", "inbox[0].on_done",
            "inbox[0].speech_prompt", "inbox[0].exclude", "inbox[1].path", "inbox[1].outbox",
            "inbox[1].webhook_secret_file",
        ]  # fmt: skip
        assert done.exit_code == os.EX_OK

    def test_a_secret_that_everybody_can_read(self, tmp_path: Path) -> None:
        secret = tmp_path / "secret"
        secret.write_text("open sesame")
        file = tmp_path / "phi4d.toml"
        file.write_text(
            f'[[inbox]]\npath = "{tmp_path}"\noutbox = "beside"\non_done = "http://127.0.0.1/"\n'
            'webhook_secret_file = "secret"\n'
        )
        for mode, said in ((0o644, True), (0o640, False), (0o600, False)):
            secret.chmod(mode)
            told = flat(config("check", "--config", file))
            assert ("can be read by every user; chmod o-r" in told) is said, oct(mode)
            assert "sesame" not in told

    @pytest.mark.parametrize("other", ["high", "normal"])
    def test_a_priority_that_is_before_none(self, tmp_path: Path, other: str) -> None:
        file = tmp_path / "phi4d.toml"
        tables = ""
        for name, priority in (("a", "high"), ("b", other)):
            (tmp_path / name).mkdir()
            tables += f'[[inbox]]\npath = "{name}"\noutbox = "beside"\npriority = "{priority}"\n'
        file.write_text(tables)
        said = "priority: is the same for all inboxes, and has no effect"
        assert flat(config("check", "--config", file)).count(said) == (2 if other == "high" else 0)

    def test_a_word_in_a_hooks_arguments_that_is_none(self, tmp_path: Path) -> None:
        file = tmp_path / "phi4d.toml"
        command = '["true", "{pth}/{name} {{path}}", "{x}", "{pth}"]'
        file.write_text(f'[[inbox]]\npath = "."\noutbox = "out"\non_done = {command}\n')

        done = config("check", "--config", file)

        assert [line for line in done.stdout.splitlines() if line.startswith("warn")] == [
            f"warn  {file}:4: inbox[0].on_done: {{pth}} is no word that is replaced, and stays as "
            "it is; did you mean {path}?",
            f"warn  {file}:4: inbox[0].on_done: {{x}} is no word that is replaced, and stays as "
            "it is",
        ]


class TestShow:
    def test_every_value_has_its_source(self, file: Path) -> None:
        done = config("show", "--config", file, "--set", "seed=3", PHI4_DTYPE="float32")

        lines = [line.split() for line in done.stdout.splitlines()]
        assert ["batch_size", "=", "4", "#", f"{file}:1"] in lines
        assert ["seed", "=", "3", "#", "command", "line"] in lines
        assert ["dtype", "=", '"float32"', "#", "PHI4_DTYPE"] in lines
        assert ["reuse", "=", "true", "#", "default"] in lines
        assert ["outbox", "=", '"/results/in"', "#", "results_dir", f"({file}:2)"] in lines
        assert ["kinds", "=", '["audio"]', "#", f"{file}:11"] in lines

    def test_what_it_prints_is_the_same_configuration(self, file: Path, tmp_path: Path) -> None:
        shown = tmp_path / "shown.toml"
        shown.write_text(config("show", "--config", file).stdout)

        was, now = (load(config=path, environ={}) for path in (file, shown))

        assert now.inboxes() == was.inboxes()
        assert now.model_copy(update={"inbox": ()}) == was.model_copy(update={"inbox": ()})

    def test_as_json(self, file: Path) -> None:
        told: Any = json.loads(config("show", "--json", "--config", file).stdout)

        assert set(told) == set(Config.model_fields)
        assert told["batch_size"] == {"value": 4, "set_by": f"{file}:1"}
        assert [set(box) for box in told["inbox"]] == [set(Inbox.model_fields)] * 2
        assert told["inbox"][1]["kinds"] == {"value": ["audio"], "set_by": f"{file}:11"}
        assert told["inbox"][0]["path"]["value"] == str(file.parent / "in")

    def test_faults_and_exit_code_78(self, file: Path) -> None:
        done = config("show", "--config", file, "--set", "seed=x")

        assert (done.exit_code, done.stdout) == (os.EX_CONFIG, "")
        assert "phi4d: command line: seed: found" in done.stderr

    def test_a_path_that_is_no_utf_8(self, file: Path) -> None:
        done = config("show", "--config", file, PHI4_STATE_DIR=os.fsdecode(b"/\xff"))

        assert done.exit_code == os.EX_OK
        assert '"/\\udcff"' in done.stdout


class TestDefault:
    def test_it_is_the_sample(self) -> None:
        assert config("default").stdout == SAMPLE.read_text("utf-8")


class TestExplain:
    def test_all_about_a_key(self, file: Path) -> None:
        done = config("explain", "settle_seconds", "--config", file)

        words = flat(done)
        assert words.startswith(
            "settle_seconds takes a number of seconds above 0, at most 86400 default 2.0 "
            "now 2.0, the default meaning how long a file must stay unchanged when no event tells "
            "that it is complete why Seconds that a file must stay unchanged when no event tells "
        )
        assert words.endswith(
            " set it in a file, above the first [[inbox]]; PHI4_SETTLE_SECONDS=…; --set "
            "settle_seconds=… changed a running daemon takes it up at a reload"
        )

    @pytest.mark.parametrize(
        ("key", "when"),
        [
            ("device", "restart"),
            ("seed", "reload"),
            ("inbox.outbox", "reload"),
            ("inbox", "reload"),
        ],
    )
    def test_whether_a_change_wants_a_restart(self, key: str, when: str) -> None:
        assert flat(config("explain", key)).endswith(f"a running daemon takes it up at a {when}")

    @pytest.mark.parametrize(
        ("key", "now"),
        [
            ("batch_size", "now 4, set in {file}:1"),
            ("PHI4_SEED", "now 3, set by PHI4_SEED"),
            ("dtype", 'now "float32", set by the command line'),
            ("image-url", "now not set"),
            ("inbox.kinds", 'now inbox "in": ["image", "audio"], the default'),
            ("kinds", 'inbox "b": ["audio"], set in {file}:11'),
            ("inbox[1].outbox", 'inbox "b": "beside", set in {file}:10'),
            ("inbox.outbox", 'inbox "in": "/results/in", by results_dir ({file}:2)'),
            ("inbox", 'now "in", {file.parent}/in, set in {file}:4'),
        ],
    )
    def test_what_it_is_now(self, file: Path, key: str, now: str) -> None:
        done = config("explain", key, "--config", file, "--set", "dtype=float32", PHI4_SEED="3")

        assert done.exit_code == os.EX_OK
        assert now.format(file=file) in flat(done)

    def test_of_a_configuration_that_is_wrong(self, file: Path) -> None:
        file.write_text("batch_size = 0\n")

        own = flat(config("explain", "batch_size", "--config", file))
        other = flat(config("explain", "seed", "--config", file))

        assert f'now {file}:1: batch_size: found 0; expected "auto" or a whole number' in own
        assert "now not known: the configuration is wrong elsewhere" in other

    def test_without_an_inbox(self) -> None:
        assert "there is no inbox" in config("explain", "inbox.path").stdout
        assert "now none" in flat(config("explain", "inbox"))

    @pytest.mark.parametrize(
        ("key", "words"),
        [
            ("batchsize", "did you mean batch_size?"),
            ("orginals", "did you mean inbox.originals?"),
            ("inbox.orginals", "did you mean inbox.originals?"),
            ("inbox.batch_size", "unknown key"),
            ("zzz", "`phi4d config explain` lists them"),
        ],
    )
    def test_one_that_there_is_not(self, key: str, words: str) -> None:
        done = config("explain", key)

        assert done.exit_code == 2
        assert done.stderr.startswith(f"phi4d: {key}: unknown key; ")
        assert words in done.stderr

    def test_without_a_key_all_are_listed(self) -> None:
        listed = [line.split()[0] for line in config("explain").stdout.splitlines()]

        assert listed == [*Config.model_fields, *(f"inbox.{name}" for name in Inbox.model_fields)]

    def test_the_sample_has_a_reason_for_every_key(self) -> None:
        keys = {(False, name) for name in Config.model_fields} - {(False, "inbox")}
        keys |= {(True, name) for name in Inbox.model_fields}

        assert set(telling.reasons()) == keys
        assert all(telling.reasons().values())


def test_a_secret_is_not_shown() -> None:
    shown = telling.Setting("webhook_secret", "abc", "default").shown

    assert shown == '"(hidden)"'
    assert telling.Setting("secret_file", "/a", "default").shown == '"/a"'
