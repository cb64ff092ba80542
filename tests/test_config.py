"""Configuration: where values come from, and what is said about wrong ones."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

from phi4d import config
from phi4d.config import loading
from phi4d.errors import ConfigError
from phi4d.job import Kind


def load(
    tmp_path: Path,
    toml: str | None = None,
    env: Mapping[str, str] | None = None,
    **options: Any,
) -> config.Config:
    file = None
    if toml is not None:
        file = tmp_path / "phi4d.toml"
        file.write_text(toml)
    return config.load(config=file, environ=env or {}, options=options)


def faults(tmp_path: Path, *args: Any, **options: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, *args, **options)
    return list(caught.value.faults)


@pytest.fixture(autouse=True)
def _no_files_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "SYSTEM_FILE", tmp_path / "etc.toml")
    monkeypatch.setattr(loading, "user_file", lambda: tmp_path / "user.toml")


class TestSources:
    def test_without_any_source_the_defaults_stand(self, tmp_path: Path) -> None:
        settled = load(tmp_path)
        assert settled.model_path == "microsoft/Phi-4-multimodal-instruct"
        assert settled.speech_prompt == "Transcribe the audio clip into text."
        assert settled.inbox == ()

    def test_the_users_file_wins_over_the_systems(self, tmp_path: Path) -> None:
        (tmp_path / "etc.toml").write_text('batch_size = 2\nmodel_path = "/m"\n')
        (tmp_path / "user.toml").write_text("batch_size = 3\n")
        settled = load(tmp_path)
        assert settled.batch_size == 3
        assert settled.model_path == "/m"

    def test_a_users_file_that_may_not_be_looked_at_counts_as_none(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # as when a service's user has the HOME of root, whom tests may run as: he may look anywhere
        monkeypatch.setattr(loading, "user_file", lambda: tmp_path / ("x" * 300))
        assert load(tmp_path).batch_size == "auto"

    def test_a_file_that_is_named_takes_the_place_of_both(self, tmp_path: Path) -> None:
        (tmp_path / "etc.toml").write_text("batch_size = 2\n")
        assert load(tmp_path, "max_new_tokens = 9\n").batch_size == "auto"

    def test_environment_wins_over_files_and_options_over_both(self, tmp_path: Path) -> None:
        toml = "batch_size = 2\nmax_new_tokens = 2\nmax_attempts = 2\n"
        env = {"PHI4_BATCH_SIZE": "3", "PHI4_MAX_NEW_TOKENS": "3", "HOME": "/x"}
        settled = load(tmp_path, toml, env, batch_size="4")
        assert (settled.batch_size, settled.max_new_tokens, settled.max_attempts) == (4, 3, 2)

    def test_an_option_that_was_not_given_changes_nothing(self, tmp_path: Path) -> None:
        assert load(tmp_path, "batch_size = 2\n", None, batch_size=None).batch_size == 2

    @pytest.mark.parametrize("key", sorted(config.Config.model_fields))
    def test_every_key_has_a_variable(self, tmp_path: Path, key: str) -> None:
        values: dict[type, str] = {bool: "true", int: "7", float: "1.5"}
        annotation = config.Config.model_fields[key].annotation or str
        text = values.get(annotation, "/some/text")
        if get_origin(annotation) is Literal:
            text = get_args(annotation)[-1]
        if key in ("batch_size", "threads"):
            text = "7"
        if key == "device":
            text = "cuda:0, cpu"
        if key == "inbox":
            text = '[{"path": "/in", "outbox": "/out"}]'
        if key == "metrics_listen":
            text = "[::1]:9464"
        settled = load(tmp_path, None, {f"PHI4_{key.upper()}": text})
        assert key in settled.model_fields_set

    def test_the_old_scripts_file_is_understood(self, tmp_path: Path) -> None:
        old = tmp_path / "config.json"
        values = {
            "model_path": "/models/phi4",
            "image_url": "https://example.org/a.jpg",
            "audio_url": "https://example.org/a.flac",
            "cache_dir": None,
            "results_dir": "/results",
            "user_prompt": "<|user|>",
            "assistant_prompt": "<|assistant|>",
            "prompt_suffix": "<|end|>",
            "force_cpu": True,
            "disable_parallel": False,
            "multi_gpu_threshold_gb": 8,
            "debug": True,
            "image_prompt": "What is this?",
            "speech_prompt": "Write it down.",
        }
        old.write_text(json.dumps(values))
        settled = config.load(config_file=old, environ={})
        for key, value in values.items():
            if key not in ("results_dir", "cache_dir"):
                assert getattr(settled, key) == value
        assert settled.results_dir == Path("/results")

    @pytest.mark.parametrize(
        ("text", "words"),
        [("[1]", r":1: found \[1\]; expected an object"), ("{", ":1: is no JSON: ")],
    )
    def test_a_broken_old_file_is_named(self, tmp_path: Path, text: str, words: str) -> None:
        old = tmp_path / "config.json"
        old.write_text(text)
        with pytest.raises(ConfigError, match=words):
            config.load(config_file=old, environ={})


class TestDropins:
    """The folder conf.d beside a TOML file."""

    def test_they_are_read_after_the_file_in_the_order_of_their_names(self, tmp_path: Path) -> None:
        (tmp_path / "conf.d").mkdir()
        (tmp_path / "conf.d/10.toml").write_text("batch_size = 3\nseed = 3\n")
        (tmp_path / "conf.d/20.toml").write_text("seed = 4\n")
        (tmp_path / "conf.d/.30.toml").write_text("seed = 5\n")
        (tmp_path / "conf.d/30.toml~").write_text("seed = 6\n")
        settled = load(tmp_path, "batch_size = 2\nseed = 2\nmax_attempts = 2\n")
        assert (settled.max_attempts, settled.batch_size, settled.seed) == (2, 3, 4)

    def test_the_file_itself_may_be_missing_if_nobody_named_it(self, tmp_path: Path) -> None:
        (tmp_path / "conf.d").mkdir()
        (tmp_path / "conf.d/a.toml").write_text("seed = 3\n")
        assert load(tmp_path).seed == 3

    def test_their_inboxes_are_added(self, tmp_path: Path) -> None:
        (tmp_path / "conf.d").mkdir()
        (tmp_path / "conf.d/b.toml").write_text('[[inbox]]\npath = "b"\noutbox = "o"\n')
        settled = load(tmp_path, '[[inbox]]\npath = "/a"\noutbox = "/p"\n')
        assert [box.path for box in settled.inbox] == [Path("/a"), tmp_path / "conf.d/b"]

    @pytest.mark.parametrize(
        "table", ['path = "/a"\noutbox = "/q"\n', 'path = "/c"\noutbox = "/q"\nname = "a"\n']
    )
    def test_one_that_is_the_same_takes_the_place_of_the_other(
        self, tmp_path: Path, table: str
    ) -> None:
        (tmp_path / "conf.d").mkdir()
        (tmp_path / "conf.d/b.toml").write_text(f"[[inbox]]\n{table}")
        settled = load(
            tmp_path,
            '[[inbox]]\npath = "/a"\noutbox = "/p"\nkinds = ["audio"]\n'
            '[[inbox]]\npath = "/b"\noutbox = "/r"\n',
        )
        assert [box.name for box in settled.inbox] == ["a", "b"]
        assert settled.inbox[0].outbox == Path("/q")
        assert settled.inbox[0].kinds == ("image", "audio")
        assert str(settled.origin("inbox", 0, "outbox")) == f"{tmp_path}/conf.d/b.toml:3"

    def test_one_whose_folder_has_the_same_name_by_chance_does_not(self, tmp_path: Path) -> None:
        (tmp_path / "conf.d").mkdir()
        (tmp_path / "conf.d/b.toml").write_text('[[inbox]]\npath = "/x/a"\noutbox = "/q"\n')
        (found,) = faults(tmp_path, '[[inbox]]\npath = "/a"\noutbox = "/p"\n')
        assert found == (
            f'{tmp_path}/conf.d/b.toml:1: inbox[0].name: inbox: two are named "a" (/a and /x/a); '
            "give one of them another name"
        )

    @pytest.mark.parametrize("source", ["user", "variable", "option"])
    def test_inboxes_of_a_stronger_source_replace_them_all(
        self, tmp_path: Path, source: str
    ) -> None:
        (tmp_path / "etc.toml").write_text('[[inbox]]\npath = "/a"\noutbox = "/p"\n')
        env, options = {}, {}
        if source == "user":
            (tmp_path / "user.toml").write_text('[[inbox]]\npath = "/b"\noutbox = "/q"\n')
        elif source == "variable":
            env["PHI4_INBOX"] = '[{"path": "/b", "outbox": "/q"}]'
        else:
            options["inbox"] = [{"path": "/b", "outbox": "/q"}]
        settled = load(tmp_path, None, env, **options)
        assert [box.path for box in settled.inbox] == [Path("/b")]

    def test_a_broken_one_hides_the_faults_of_no_other(self, tmp_path: Path) -> None:
        (tmp_path / "conf.d").mkdir()
        (tmp_path / "conf.d/1.toml").write_text("seed = [\n")
        (tmp_path / "conf.d/2.toml").write_text("seed = -1\n")
        (tmp_path / "conf.d/3.toml").mkdir()
        found = faults(tmp_path, '[[inbox]]\npath = "/a"\n')  # results_dir may be in a broken one
        assert [fault.split(": ")[0] for fault in found] == [
            f"{tmp_path}/conf.d/1.toml:1",
            f"{tmp_path}/conf.d/2.toml:1",
            f"{tmp_path}/conf.d/3.toml",
        ]


class TestOrigins:
    def test_every_value_tells_what_set_it(self, tmp_path: Path) -> None:
        settled = load(
            tmp_path,
            '\nbatch_size = 2\nseed = 2\n\n[[inbox]]\npath = "/a"\noutbox = "/p"\n',
            {"PHI4_MAX_ATTEMPTS": "3", "PHI4_SEED": "3"},
            debug=True,
        )
        file = tmp_path / "phi4d.toml"
        assert str(settled.origin("batch_size")) == f"{file}:2"
        assert str(settled.origin("seed")) == "PHI4_SEED"
        assert str(settled.origin("max_attempts")) == "PHI4_MAX_ATTEMPTS"
        assert str(settled.origin("debug")) == "command line"
        assert str(settled.origin("dtype")) == "default"
        assert str(settled.origin("inbox", 0, "path")) == f"{file}:6"
        assert str(settled.origin("inbox", 0, "kinds")) == "default"
        assert str(settled.origin("inbox", 0, "name")) == "default"

    def test_what_set_a_value_makes_no_other_configuration_of_it(self, tmp_path: Path) -> None:
        assert load(tmp_path, "seed = 2\n") == load(tmp_path, None, {"PHI4_SEED": "2"})


class TestFolders:
    def test_folders_in_a_file_are_meant_from_the_file(self, tmp_path: Path) -> None:
        settled = load(
            tmp_path,
            'state_dir = "state"\n[[inbox]]\npath = "in"\noutbox = "out"\n'
            '[[inbox]]\npath = "~/in"\noutbox = "beside"\nname = "home"\n',
        )
        assert settled.state_dir == tmp_path / "state"
        assert settled.store_path == tmp_path / "state/jobs.sqlite3"
        first, second = settled.inboxes()
        assert (first.path, first.outbox_root()) == (tmp_path / "in", tmp_path / "out")
        assert second.path == Path.home() / "in"
        assert second.outbox_root() == second.path

    def test_an_inbox_without_outbox_gets_a_folder_in_results_dir(self, tmp_path: Path) -> None:
        settled = load(tmp_path, 'results_dir = "/r"\n[[inbox]]\npath = "/photos"\n')
        (box,) = settled.inboxes()
        assert box.outbox_root() == Path("/r/photos")

    def test_prompts_come_from_the_inbox_or_from_above(self, tmp_path: Path) -> None:
        settled = load(
            tmp_path,
            'image_prompt = "general"\nspeech_prompt = "write"\n'
            '[[inbox]]\npath = "/a"\noutbox = "/o/a"\n'
            '[[inbox]]\npath = "/b"\noutbox = "/o/b"\nimage_prompt = "special"\n',
        )
        a, b = settled.inboxes()
        assert settled.prompt(a, Kind.IMAGE) == "general"
        assert settled.prompt(b, Kind.IMAGE) == "special"
        assert settled.prompt(b, Kind.AUDIO) == "write"

    def test_root_keeps_its_state_where_services_do(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        assert load(tmp_path).state_dir == Path("/var/lib/phi4d")
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        assert load(tmp_path).state_dir.name == "phi4d"
        assert load(tmp_path).state_dir != Path("/var/lib/phi4d")


class TestFaults:
    def test_all_faults_are_told_at_once_with_source_and_key(self, tmp_path: Path) -> None:
        toml = """
            batchsize = 3
            max_attempts = "8"
            max_new_tokens = 0
            device = ""
            force_cpu = "yes"
            cache_dir = 3
            [[inbox]]
            path = "in"
            outbox = 5
            kinds = ["image", "video"]
            spelling = 3
            [[inbox]]
            outbox = "x"
        """
        env = {"PHI4_BATCHSIZ": "1", "PHI4_BATCH_SIZE": "x", "PHI4_DEBUG": "maybe"}
        found = faults(tmp_path, toml, env, rescan_seconds="soon", nonsense="1")
        file = tmp_path / "phi4d.toml"
        assert found == [
            f"{file}:2: batchsize: unknown key; did you mean batch_size?",
            f'{file}:3: max_attempts: found "8"; expected a whole number from 1 to 100',
            f"{file}:4: max_new_tokens: found 0; expected a whole number of tokens from 1 to 4096",
            f'{file}:5: device: found ""; expected "auto", "cuda", "cpu", or a list such as '
            '"cuda:0,cuda:1" or "cpu,cpu"',
            f'{file}:6: force_cpu: found "yes"; expected true or false',
            f"{file}:7: cache_dir: found 3; expected the path of a folder",
            f'{file}:10: inbox[0].outbox: found 5; expected the path of a folder, or "beside"',
            f'{file}:11: inbox[0].kinds[1]: found "video"; expected "image" or "audio"',
            f"{file}:12: inbox[0].spelling: unknown key; `phi4d config default` prints those that "
            "there are",
            f"{file}:13: inbox[1].path: missing; every inbox needs one",
            "environment: PHI4_BATCHSIZ: unknown key; did you mean PHI4_BATCH_SIZE?",
            'environment: PHI4_BATCH_SIZE: found "x"; expected "auto" or a whole number from 1 to '
            "1024",
            'environment: PHI4_DEBUG: found "maybe"; expected true or false',
            'command line: rescan_seconds: found "soon"; expected a number of seconds above 0, at '
            "most 86400",
            "command line: nonsense: unknown key; `phi4d config default` prints those that there "
            "are",
        ]

    def test_a_key_of_an_inbox_that_is_misspelt_is_set_right(self, tmp_path: Path) -> None:
        (found,) = faults(tmp_path, '[[inbox]]\npath = "/a"\noutbox = "/o"\nimage_promt = "x"\n')
        assert found.endswith("inbox[0].image_promt: unknown key; did you mean image_prompt?")

    @pytest.mark.parametrize(
        ("toml", "words"),
        [
            ("x = [", r":1: x: found x = \[, which does not end"),
            (None, "cannot be read: no such file"),
        ],
    )
    def test_a_file_that_cannot_be_read_is_named(
        self, tmp_path: Path, toml: str | None, words: str
    ) -> None:
        file = tmp_path / "c.toml"
        if toml:
            file.write_text(toml)
        with pytest.raises(ConfigError, match=words) as caught:
            config.load(config=file, environ={})
        assert str(file) in str(caught.value)

    def test_an_inbox_variable_that_is_no_json_is_shown_how(self, tmp_path: Path) -> None:
        (found,) = faults(tmp_path, None, {"PHI4_INBOX": "/in"})
        assert "expected JSON such as" in found

    @pytest.mark.parametrize(
        ("toml", "words"),
        [
            ('[[inbox]]\npath = "/a"\n', "no outbox; give it a folder"),
            (
                '[[inbox]]\npath = "/a"\noutbox = "/o"\n[[inbox]]\npath = "/a/b"\noutbox = "/p"\n',
                "hold the same files",
            ),
            (
                '[[inbox]]\npath="/x/a"\noutbox="/o"\n[[inbox]]\npath="/y/a"\noutbox="/p"\n',
                'two are named "a"',
            ),
            (
                '[[inbox]]\npath = "/a"\noutbox = "/o"\n[[inbox]]\npath = "/b"\noutbox = "/o"\n',
                "share the outbox /o",
            ),
        ],
    )
    def test_inboxes_that_cannot_stand_together_are_refused(
        self, tmp_path: Path, toml: str, words: str
    ) -> None:
        (found,) = faults(tmp_path, toml)
        assert words in found

    def test_they_are_refused_together_with_other_faults(self, tmp_path: Path) -> None:
        found = faults(tmp_path, 'batch_size = 0\n[[inbox]]\npath = "/a"\n')
        assert len(found) == 2

    @pytest.mark.parametrize("value", ["nan", "inf", "-1", "0"])
    def test_times_are_positive_and_finite(self, tmp_path: Path, value: str) -> None:
        assert len(faults(tmp_path, f"rescan_seconds = {value}\n")) == 1

    def test_a_configuration_cannot_be_changed(self, tmp_path: Path) -> None:
        settled = load(tmp_path)
        with pytest.raises(ValueError, match="frozen"):
            settled.batch_size = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        ({"originals": "move"}, 'inbox "a": originals = "move" needs done_dir'),
        ({"originals": "move", "done_dir": "/a"}, 'inbox "a": done_dir is the inbox itself'),
        ({"failed_dir": "/a"}, 'inbox "a": failed_dir is the inbox itself'),
        ({"watch": "sometimes"}, 'expected "auto", "inotify" or "poll"'),
        ({"exclude": [" "]}, 'inbox[0].exclude[0]: found " "; expected a pattern'),
        ({"on_done": "mail ada"}, 'found "mail ada"; expected a command as a list, such as ['),
        ({"on_done": True}, "inbox[0].on_done: found true; expected a command as a list, such as"),
        ({"on_done": []}, "inbox[0].on_done: found []; expected a command as a list, such as ["),
        ({"on_failed": ["mail", 3]}, "inbox[0].on_failed: found "),
        ({"on_failed": ["./mine"]}, "expected a program first: its name, to be found in PATH, or"),
        ({"on_failed": "https:///x"}, "or the URL of a webhook, such as"),
        ({"on_failed": "https://[::1/x"}, "or the URL of a webhook, such as"),
        ({"on_done": "https://h/#x"}, "expected a URL without spaces, control characters and a"),
        ({"on_done": "https://a:b@h/"}, "expected no user and password in it: webhook_secret_file"),
        ({"webhook_hours": -1}, "expected a number of hours from 0 to 8760"),
        ({"webhook_secret_file": 3}, "found 3; expected the path of a file"),
    ],
)
def test_rules_of_an_inbox_that_cannot_be_are_refused(
    tmp_path: Path, keys: dict[str, object], fault: str
):
    (told,) = faults(tmp_path, inbox=[{"path": "/a", "outbox": "/o", **keys}])

    assert fault in told


def test_a_hook_is_a_command_or_a_webhook(tmp_path: Path):
    table = {"path": "/a", "outbox": "/o", "on_done": ["mail", "-s", "{name}", "ada"]}
    other = {"path": "/b", "outbox": "/p", "on_failed": "https://example.com:8443/x?y=z"}

    with_command, both = load(tmp_path, inbox=[table]), load(tmp_path, inbox=[table, other])

    assert with_command.inbox[0].on_done == ("mail", "-s", "{name}", "ada")
    assert both.inbox[1].on_failed == "https://example.com:8443/x?y=z"
    assert (with_command.has_webhook, both.has_webhook) == (False, True)


def test_originals_may_be_moved_below_the_inbox(tmp_path: Path):
    table = {"path": "/a", "outbox": "/o", "originals": "move", "done_dir": "/a/done"}

    (box,) = load(tmp_path, inbox=[table]).inboxes()

    assert box.done_dir == Path("/a/done")


def test_an_inbox_is_named_by_its_folder_in_one_printable_line(tmp_path: Path):
    odd = os.fsdecode(b"/in/a\n\xff")

    settled = load(tmp_path, inbox=[{"path": odd, "outbox": "/o"}])

    assert settled.inbox[0].name == r"a\n\xff"
    assert os.fsencode(settled.inbox[0].path) == b"/in/a\n\xff"


def test_a_fault_at_work_has_what_set_its_key(tmp_path: Path):
    settled = load(tmp_path, 'model_path = "/m"\n', {"PHI4_LOG_FILE": "/l"})

    assert settled.placed("/m: no such folder") == (
        f"{tmp_path}/phi4d.toml:1: model_path: /m: no such folder"
    )
    assert settled.placed("log_file: no") == "PHI4_LOG_FILE: log_file: no"
    assert settled.placed("state_dir: no") == "state_dir: no"
    assert settled.placed("the store: no") == "the store: no"
