"""What the README says of keys, options, exit codes and commands is what the code does."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Collection
from pathlib import Path

import pytest
import typer.main
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from phi4d import cli, demo, errors, signals
from phi4d.config import Config, Inbox, load, user_file
from phi4d.config.words import meanings
from phi4d.engine import hub
from phi4d.engine.plan import PUBLISHED, Device, Wishes, plan
from phi4d.engine.rungs import PACKAGES

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
OLD_KEYS = {
    "model_path", "image_url", "audio_url", "cache_dir", "results_dir", "user_prompt",
    "assistant_prompt", "prompt_suffix", "force_cpu", "disable_parallel",
    "multi_gpu_threshold_gb", "debug", "image_prompt", "speech_prompt",
}  # fmt: skip


def section(title: str) -> str:
    """The text below a heading, down to the next of its rank or higher."""
    found = re.search(
        rf"^(##+) {re.escape(title)}\n(.*?)(?=^(?!\1#)##+ |\Z)", README, re.MULTILINE | re.DOTALL
    )
    assert found, f"no heading {title!r}"
    return found[2]


def default(model: type[BaseModel], name: str) -> str:
    """A field's default as TOML, or why there is none."""
    value = model.model_fields[name].default
    if name == "state_dir":
        return "`~/.local/state/phi4d`; as root `/var/lib/phi4d`"
    if name == "cache_dir":
        return "`~/.cache/phi4d`; as root `/var/cache/phi4d`"
    if value is PydanticUndefined:
        return "needed"
    if value is None or value in ("", ()):
        return ""
    if isinstance(value, tuple):
        value = list(value)
    return f"`{json.dumps(value)}`"


def table(model: type[BaseModel]) -> str:
    """The README's table of a model's keys."""
    words = meanings(model)
    rows = [
        f"| `{name}` | {default(model, name)} | {words[name]} |".replace("<|", r"<\|").replace(
            "|>", r"\|>"
        )
        for name in model.model_fields
    ]
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *rows])


@pytest.mark.parametrize("model", [Config, Inbox])
def test_the_tables_of_keys_are_the_code_s(model: type[BaseModel]):
    # a change of a key wants the same change there: paste the expected table
    assert table(model) in section("Configuration")


def test_every_key_of_the_old_script_is_a_key_and_has_its_row():
    rows = re.findall(r"^\| (`.+?`) \|", section("Moving from the old script"), re.MULTILINE)
    keys = {key for row in rows for key in re.findall(r"`(\w+)`", row)}

    assert keys == OLD_KEYS
    assert set(Config.model_fields) >= OLD_KEYS


def test_the_exit_codes_are_the_daemon_s():
    codes = re.findall(r"^\| (\d+) \|", section("Exit codes"), re.MULTILINE)

    assert {int(code) for code in codes} == {
        errors.EXIT_OK,
        errors.EXIT_FAILURE,
        2,
        errors.EXIT_DOWN,
        errors.EXIT_DEVICE,
        errors.EXIT_LATER,
        errors.EXIT_CONFIG,
    }


def test_the_signals_are_the_daemon_s():
    named = set(re.findall(r"`(SIG\w+)`", section("Signals")))

    assert named - {"SIGKILL"} == {
        number.name for number in (*signals.STOP_SIGNALS, signals.RELOAD_SIGNAL)
    }


def test_the_command_that_downloads_the_model_is_the_one_that_the_loader_names():
    assert hub.pull_command() in README


def test_every_command_and_option_exists():
    commands = dict(typer.main.get_command(cli.app).commands)  # type: ignore[attr-defined]
    groups = [name for name, command in commands.items() if hasattr(command, "commands")]
    for group in groups:
        for name, command in commands.pop(group).commands.items():
            commands[f"{group} {name}"] = command
    words = "|".join(
        [name for name in commands if " " not in name] + [f"{group} [a-z]+" for group in groups]
    )
    lines = re.findall(rf"(?:^|[ `/\n])phi4d ((?:{words})\b)([^`\n]*)", README)
    assert {name for name, _ in lines} == set(commands)
    for name, rest in lines:
        options = {option for parameter in commands[name].params for option in parameter.opts}
        used = set(re.findall(r"(?<![\w-])--[a-z-]+", rest))
        assert used <= options | {"--help"}, name + rest


def test_the_table_of_what_fits_where_is_the_plan_s():
    text = section("What fits where")
    numbers = re.findall(r"^\| ([\d.]+) \|", text, re.MULTILINE)
    without = re.findall(r"4 bits cannot be had, .*? from ([\d.]+) GB on", text)

    assert [rung_from(number) for number in numbers] == [
        "merged",
        "unmerged",
        "8bit",
        "4bit",
        "4bit, tight",
        "offloaded",
    ]
    assert [rung_from(number, {"accelerate"}) for number in without] == ["8bit, tight"]


def rung_from(number: str, installed: Collection[str] = PACKAGES) -> str:
    """The rung that begins at so many GB, which were rounded up to a tenth."""
    gpu = Device("cuda:0", "GPU", 10**11, int(float(number) * 1e9), (8, 0))
    less = dataclasses.replace(gpu, free_bytes=gpu.free_bytes - 10**8)
    found = rung(gpu, installed)
    assert rung(less, installed) != found, number
    return found


def rung(gpu: Device, installed: Collection[str]) -> str:
    """What the plan makes of a GPU, in a word."""
    cpu = Device("cpu", "CPU", 2 * 10**10, 81 * 10**8)
    try:
        (slot,) = plan([gpu], cpu, PUBLISHED, Wishes(), installed)
    except (errors.ConfigError, errors.EnvironmentFault):
        return "refused"
    if slot.offload_bytes:
        return "offloaded"
    if slot.quantization == "none":
        return "merged" if slot.merged else "unmerged"
    return slot.quantization + (", tight" if "little room" in slot.why else "")


def test_the_answers_shown_are_those_of_the_samples():
    expected = json.loads((demo.SAMPLES / "expected.json").read_text("utf-8"))
    shown = re.findall(r"^\$ phi4d process .*/samples/(\S+)\n(.+)$", README, re.MULTILINE)
    shown += re.findall(r"^\$ cat \S+/(\S+)\.txt\n(.+)$", README, re.MULTILINE)
    record = json.loads(re.search(r"```json\n(.*?)```", README, re.DOTALL)[1])  # type: ignore[index]
    shown.append((Path(record["source"]).name, record["text"]))

    assert len(shown) == 3
    assert record["model"] == demo.NAME
    assert shown == [(name, expected[name]) for name, _ in shown]
    for name in re.findall(r"phi4d/demo/samples/([\w.-]+)", README):
        assert (demo.SAMPLES / name).exists()


def test_links_within_the_project_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)|src=\"([^\"]+)\"", README):
        path = target[0] or target[1]
        assert (Path(__file__).parents[1] / path).exists(), path


def test_the_example_of_a_user_s_own_service_keeps_off_the_machine_s_folders(
    tmp_path: Path, environment: pytest.MonkeyPatch
):
    example = re.search(r"<<'END'\n(.*?)END", section("Without root"), re.DOTALL)
    assert example
    environment.setenv("HOME", str(tmp_path))
    environment.setenv("XDG_CONFIG_HOME", str(tmp_path / ".config"))
    file = user_file()
    file.parent.mkdir(parents=True)
    file.write_text(example[1])

    config = load(environ={})

    assert config.control_path == tmp_path / ".local/state/phi4d/control"
    assert config.store_path.parent == config.control_path.parent
    assert [(box.path, box.outbox) for box in config.inbox] == [
        (tmp_path / "inbox", tmp_path / "outbox")
    ]


def test_the_example_of_a_configuration_is_valid(tmp_path: Path):
    example = re.search(r"```toml\n(.*?)```", section("Configuration"), re.DOTALL)
    assert example
    file = tmp_path / "phi4d.toml"
    file.write_text(example[1])

    config = load(config=file, environ={})

    assert [box.name for box in config.inbox] == ["inbox", "signs"]
