"""A daemon's metrics as Prometheus and Grafana have them; and what the files for them ask for."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from daemonkit import running
from prometheus_client.parser import text_string_to_metric_families

from phi4d.metrics import FAMILIES

ROOT = Path(__file__).parents[2]
RULES = ROOT / "etc" / "prometheus" / "phi4d.rules.yml"
BOARD = ROOT / "etc" / "grafana.json"
promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)"
)


def ask(path: Path) -> str:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(30)
        sock.connect(str(path))
        sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        answer = b"".join(iter(lambda: sock.recv(1 << 16), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200 "), head
    return body.decode()


@pytest.fixture
def scrape(
    tmp_path: Path,
    make_picture: Callable[..., Path],
    make_recording: Callable[..., Path],
    environment: pytest.MonkeyPatch,
) -> str:
    """What a running daemon with a fake engine serves when it has done a few files."""
    make_picture(tmp_path / "in/a.png")
    make_recording(tmp_path / "in/b.wav")
    (tmp_path / "in/bad.jpg").write_bytes(b"this is no picture")
    place = tmp_path / "metrics.sock"
    config = tmp_path / "phi4d.toml"
    config.write_text(
        f'state_dir = "state"\nsettle_seconds = 0.05\nmetrics_listen = "unix:{place}"\n'
        'device = "cpu"\n[[inbox]]\npath = "in"\noutbox = "out"\n'
    )
    with running(config) as process:
        ended = 0
        for line in process.stderr:
            ended += " done in/" in line or " failed in/" in line
            if ended == 3:
                break
        text = ask(place)
        while has_ended(text) < 3:
            text = ask(place)  # what is logged is counted just after
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(30) == 0, rest
    assert not place.exists()
    return text


def has_ended(text: str) -> float:
    """How many jobs are counted as ended."""
    return sum(map(float, re.findall(r"\nphi4d_jobs_ended_total\{.*\} (.*)", text)))


def names(text: str) -> set[str]:
    """Every name that has a sample, and of histograms their parts."""
    return {s.name for family in text_string_to_metric_families(text) for s in family.samples}


def asked(expression: str) -> set[str]:
    return set(re.findall(r"\bphi4d_\w+", expression))


@promtool
def test_promtool_is_content_with_a_scrape(scrape: str) -> None:
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=scrape, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "phi4d_jobs_ended_total" in scrape


def test_what_a_daemon_has_done_is_there_and_what_the_files_ask_for(scrape: str) -> None:
    lines = scrape.splitlines()
    for line in (
        'phi4d_jobs{inbox="in",kind="audio",state="done"} 1.0',
        'phi4d_jobs_ended_total{inbox="in",kind="image",state="failed"} 1.0',
        'phi4d_faults_total{fault="file",inbox="in",outcome="failed"} 1.0',
        'phi4d_slot_info{device="cpu",model="fake",slot="0"} 1.0',
        'phi4d_inbox_watches{inbox="in"} 1.0',
        "phi4d_ready 1.0",
    ):
        assert line in lines, line
    assert "process_resident_memory_bytes" in names(scrape)
    # a fake engine has no device whose memory it could tell
    there = names(scrape) | {name for name in FAMILIES if "device_memory" in name}
    for expression in [*board_queries(), *re.findall(r"expr: (.*)", RULES.read_text("utf-8"))]:
        assert asked(expression) <= there, expression


def board_queries() -> list[str]:
    board = json.loads(BOARD.read_text("utf-8"))
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    return queries + [
        variable["query"]["query"]
        for variable in board["templating"]["list"]
        if variable["type"] == "query"
    ]


def test_the_dashboard_can_be_imported() -> None:
    board = json.loads(BOARD.read_text("utf-8"))

    assert board["uid"] == "phi4d"
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    used: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        assert panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        place = panel["gridPos"]
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert not cells & used, panel["title"]
        assert max(x for x, _ in cells) < 24
        used |= cells
        for target in panel["targets"]:
            assert asked(target["expr"]), panel["title"]
            variables_used = set(re.findall(r"\$(?!__)(\w+)", target["expr"]))
            assert variables_used <= set(variables), panel["title"]


def test_the_dashboard_shows_what_an_operator_asks_for() -> None:
    shown = set().union(*map(asked, board_queries()))

    for name in (
        "jobs", "backlog_seconds", "jobs_ended_total", "faults_total", "phase_seconds_bucket",
        "queue_age_seconds", "generated_tokens_total", "speech_seconds_total",
        "batch_requests_sum", "device_memory_used_bytes", "decode_restarts_total",
        "inbox_watches", "watch_overflows_total",
    ):  # fmt: skip
        assert f"phi4d_{name}" in shown


@promtool
def test_its_queries_and_the_alerts_are_promql(tmp_path: Path) -> None:
    rules = tmp_path / "board.yml"  # JSON is YAML
    queries = [
        query.replace("$__rate_interval", "5m")
        for query in board_queries()
        if not query.startswith("label_values")
    ]
    groups = [
        {
            "name": "board",
            "rules": [{"record": f"q{n}", "expr": query} for n, query in enumerate(queries)],
        }
    ]
    rules.write_text(json.dumps({"groups": groups}))
    for file in (rules, RULES):
        done = subprocess.run(
            ["promtool", "check", "rules", str(file)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_table_in_the_readme_is_the_code_s() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    rows = [
        f"| `{family.name}` | {', '.join(family.labels)} | {family.help} |"
        for family in FAMILIES.values()
    ]
    # a change of a metric wants the same change there: paste the expected table
    assert "\n".join(["| metric | labels | meaning |", "|---|---|---|", *rows]) in text
