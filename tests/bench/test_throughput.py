"""`phi4d bench throughput`, as a user calls it, and with engines that a test gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from benchkit import Timed
from clikit import daemon, invoke
from kit import Clock

from phi4d import bench, demo, loading
from phi4d.bench import work
from phi4d.config import Config
from phi4d.engine import Engine
from phi4d.errors import DeviceLost
from phi4d.job import Kind

FILES = [demo.SAMPLES / "shapes-448x448.png", demo.SAMPLES / "digits-16k.wav"]


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("HOME", str(tmp_path / "home"))
    environment.setenv("XDG_CONFIG_HOME", str(tmp_path / "home/.config"))
    environment.setenv("PHI4_STATE_DIR", str(tmp_path / "state"))


def call(*words: object) -> subprocess.CompletedProcess[str]:
    """One thread: beside other tests, several of them wait for each other."""
    return subprocess.run(
        [sys.executable, "-m", "phi4d", "bench", "throughput", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_files_are_answered_by_the_toy_and_the_figures_printed(tmp_path: Path):
    plot = tmp_path / "plot.svg"

    done = call(
        *FILES, "--demo", "--device", "cpu", "--batch-size", "1,2", "--threads", "1",
        "--seconds", "0.1", "--svg", plot,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"cpu  {demo.NAME}, float32, ")
    assert done.stdout.splitlines()[-2] in ("batch_size = 1", "batch_size = 2")
    assert done.stdout.splitlines()[-1] == "threads = 1"
    assert "phi4d: cpu, batch_size = 2: " in done.stderr
    assert plot.read_text().startswith("<svg")


@pytest.mark.parametrize("endless", [False, True])
def test_answers_go_to_their_limits_if_they_are_to(tmp_path: Path, endless: bool):
    # given noise, of which the toy says little
    config = Config(model_path="demo", device="cpu", state_dir=tmp_path)
    noise = work.generated(config, "cpu")[Kind.AUDIO][0]
    # when
    for engine in loading.make_in_turn(config, endless=endless, rows=None):
        (answer,) = engine.generate([noise])
    # then
    assert (answer.new_tokens == noise.max_new_tokens) is endless


def test_json_is_all_that_standard_output_has(tmp_path: Path):
    done = call(
        FILES[1], "--model-path", "demo", "--device", "cpu", "--batch-size", "1", "--threads", "1",
        "--seconds", "0.1", "--json",
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["config"] == {"batch_size": 1, "threads": 1}
    (point,) = told["devices"][0]["batch_size"]
    assert point["audio"]["times_real_time"] > 0
    assert point["audio"]["memory_bytes"] > 0
    assert "image" not in point


def test_beside_a_daemon_it_refuses_if_it_is_not_told_to(
    tmp_path: Path, make_recording: Callable[..., Path]
):
    (tmp_path / "in").mkdir()
    file = tmp_path / "phi4d.toml"
    file.write_text(
        f'model_path = "{tmp_path}/none"\nstate_dir = "state"\n'
        '[[inbox]]\npath = "in"\noutbox = "out"\n'
    )
    words = ["bench", "throughput", "--config", file, "--set", f"state_dir={tmp_path}/state"]
    with daemon(file):
        refused = invoke(*words)
        beside = invoke(*words, "--beside")

    assert refused.exit_code == os.EX_TEMPFAIL
    assert "phi4d: a daemon is at work (pid " in refused.stderr
    assert "--beside" in refused.stderr
    assert beside.exit_code == os.EX_CONFIG  # it went on, to a model that is not there
    assert f"{tmp_path}/none" in beside.stderr


@pytest.mark.parametrize("sizes", ["0", "1,x", "1,,2", "2000", "-1"])
def test_sizes_that_are_none_are_refused(sizes: str):
    done = invoke("bench", "throughput", "--demo", f"--batch-size={sizes}")

    assert done.exit_code == 2
    assert f"--batch-size {sizes}: expected whole numbers from 1 to 1024" in done.stderr


def test_a_file_that_is_none_ends_with_1(tmp_path: Path):
    done = invoke("bench", "throughput", "--demo", tmp_path / "none.jpg")

    assert done.exit_code == 1
    assert done.stderr == f"phi4d: {tmp_path}/none.jpg: cannot be read: No such file or directory\n"


class TestDevices:
    def test_each_is_measured_in_turn_and_closed_before_the_next(
        self, clock: Clock, tmp_path: Path
    ) -> None:
        # given two devices
        set_to: list[int] = []
        made = [Timed(clock, lambda rows: 0.1, device=name, rows=2) for name in ("cpu", "cuda:0")]

        def engines(config: Config, *, endless: bool, rows: int | None) -> Generator[Engine]:
            assert (endless, rows) == (True, 2)  # of media that are generated; for what is tried
            for n, engine in enumerate(made):
                assert all(before.closed for before in made[:n])
                yield engine
                engine.close()

        # when
        found = bench.throughput(
            Config(state_dir=tmp_path),
            lambda words: None,
            sizes=[1, 2],
            threads=[2, 1],
            engines=engines,
            set_threads=set_to.append,
            clock=clock,
        )
        # then
        assert set_to == [1, 2]
        assert [len(one.threads) for one in found] == [2, 0]  # of the CPU
        assert [one.device for one in found] == ["cpu", "cuda:0"]
        assert all([point.value for point in one.points] == [1, 2] for one in found)

    def test_one_that_is_lost_is_closed_and_told(self, clock: Clock, tmp_path: Path) -> None:
        engine = Timed(clock, lambda rows: 0.1, failures={1: DeviceLost("cpu: is lost")})

        def engines(config: Config, *, endless: bool, rows: int | None) -> Generator[Engine]:
            try:
                yield engine
            finally:
                engine.close()

        with pytest.raises(DeviceLost, match="is lost"):
            bench.throughput(
                Config(state_dir=tmp_path), lambda words: None, engines=engines, clock=clock
            )
        assert engine.closed


def test_two_slots_on_one_device_are_measured_once(tmp_path: Path):
    config = Config(model_path="demo", device="cpu,cpu", state_dir=tmp_path)

    loaded = [engine.device for engine in loading.make_in_turn(config, endless=True, rows=None)]

    assert loaded == ["cpu"]
