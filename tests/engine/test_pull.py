from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from types import SimpleNamespace

import checkpoints
import pytest
from fake_hub import (
    COMMIT,
    ORIGINAL_NEEDED,
    contents,
    digest,
    original_layout,
    running,
)

from phi4d import demo
from phi4d.engine import hub as places
from phi4d.engine.checkpoint import read
from phi4d.engine.layout import Layout
from phi4d.engine.pull import pull
from phi4d.engine.remote import TRIES
from phi4d.errors import ConfigError, EnvironmentFault

SHARD = "model-00002-of-00002.safetensors"
TOKEN = "hf_of_nobody"  # noqa: S105 - lets nobody in anywhere
OTHER_COMMIT = "f" * 40


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """The demo checkpoint as the hub's main revision has the real one: adapters in the shards."""
    folder = tmp_path_factory.mktemp("hub") / "original"
    made = read(demo.CHECKPOINT)
    checkpoints.rewrite(made, folder, Layout.ORIGINAL, shard_bytes=2_500_000)  # two shards
    return original_layout() | contents(folder)


@pytest.fixture
def hub(original):
    with running(original) as hub:
        yield hub


@pytest.fixture
def converted():
    with running(contents(demo.CHECKPOINT)) as hub:
        yield hub


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    """The hub library's own cache, empty; and no setting of this machine."""
    cache = tmp_path / "own"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return cache


def get(hub, cache, revision="main", **options):
    return pull(
        hub.MODEL, revision, cache, endpoint=hub.endpoint, **{"pause_seconds": 0, **options}
    )


def names(hub):
    return [name for name, _ in hub.fetched]


def parts(cache):
    return [path.stat().st_size for path in cache.rglob("*.incomplete")]


class TestWhole:
    def test_the_original_layout_without_what_is_not_needed(self, hub, tmp_path):
        pulled = get(hub, tmp_path)

        assert set(contents(pulled.folder)) == ORIGINAL_NEEDED
        assert contents(pulled.folder).items() <= hub.files.items()
        assert sorted(names(hub)) == sorted(ORIGINAL_NEEDED)
        assert pulled.fetched_bytes == sum(len(hub.files[name]) for name in ORIGINAL_NEEDED)

    def test_the_converted_layout_with_its_adapters(self, converted, tmp_path):
        pulled = get(converted, tmp_path, "refs/pr/70")

        assert converted.files.keys() - contents(pulled.folder).keys() == {
            "README.md",
            "chat_template.jinja",
        }
        assert contents(pulled.folder).items() <= converted.files.items()

    def test_adapters_that_are_not_in_the_shards_are_needed(self, hub, tmp_path):
        hub.files["model.safetensors.index.json"] = (
            b'{"weight_map": {"a": "model-00001-of-00002.safetensors",'
            b'"b.lora_A.speech.weight": "model-00002-of-00002.safetensors"}}'
        )
        pulled = get(hub, tmp_path)

        adapter = {"vision-lora/adapter_config.json", "vision-lora/adapter_model.safetensors"}
        assert set(contents(pulled.folder)) == ORIGINAL_NEEDED | adapter

    @pytest.mark.parametrize("revision", ["main", "refs/pr/70", COMMIT])
    def test_it_is_then_found_without_a_network(self, hub, tmp_path, revision):
        pulled = get(hub, tmp_path, revision)

        assert places.resolve(hub.MODEL, revision, tmp_path) == pulled.folder
        assert pulled.folder.name == COMMIT

    def test_the_hub_s_own_library_finds_it_as_well(self, hub, tmp_path):
        from huggingface_hub import snapshot_download

        pulled = get(hub, tmp_path)

        found = snapshot_download(hub.MODEL, cache_dir=tmp_path, local_files_only=True)
        assert found == str(pulled.folder)

    def test_others_may_read_it_by_the_umask(self, hub, tmp_path):
        before = os.umask(0o022)
        try:
            pulled = get(hub, tmp_path / "new")
        finally:
            os.umask(before)

        assert all(path.stat().st_mode & 0o004 for path in pulled.folder.rglob("*"))

    def test_progress_goes_from_nothing_to_all(self, hub, tmp_path):
        told = []
        pulled = get(hub, tmp_path, progress=lambda *news: told.append(news))

        small = len(hub.files["config.json"]) + len(hub.files["model.safetensors.index.json"])
        assert told[0] == ("config.json", small, pulled.fetched_bytes)
        assert told[-1] == (SHARD, pulled.fetched_bytes, pulled.fetched_bytes)
        assert [here for _, here, _ in told] == sorted(here for _, here, _ in told)

    def test_where_there_are_no_links_the_files_move(self, hub, tmp_path, monkeypatch):
        def refuse(*_):
            raise PermissionError

        monkeypatch.setattr("pathlib.Path.symlink_to", refuse)
        pulled = get(hub, tmp_path)

        assert contents(pulled.folder).items() <= hub.files.items()
        assert places.resolve(hub.MODEL, "main", tmp_path) == pulled.folder
        assert get(hub, tmp_path).fetched_bytes == 0


class TestAgain:
    def test_a_branch_is_asked_for_and_nothing_fetched(self, hub, tmp_path):
        get(hub, tmp_path)
        hub.asked.clear()

        assert get(hub, tmp_path).fetched_bytes == 0
        assert hub.asked == [f"/api/models/{hub.MODEL}/revision/main"]

    def test_a_commit_is_not_even_asked_for(self, hub, tmp_path):
        get(hub, tmp_path)
        hub.asked.clear()

        assert get(hub, tmp_path, COMMIT).fetched_bytes == 0
        assert hub.asked == []

    def test_what_the_hub_s_library_has_is_taken(self, hub, tmp_path, own_cache):
        here = get(hub, own_cache)
        again = get(hub, tmp_path / "other")

        assert (again.folder, again.fetched_bytes) == (here.folder, 0)
        assert not (tmp_path / "other").exists()

    def test_a_branch_that_moved_costs_only_what_changed(self, hub, tmp_path):
        get(hub, tmp_path)
        hub.fetched.clear()
        hub.commit = OTHER_COMMIT
        hub.files[SHARD] = b"new" * 10_000

        pulled = get(hub, tmp_path)

        assert names(hub) == [SHARD]
        assert pulled.folder.name == OTHER_COMMIT
        assert contents(pulled.folder)[SHARD] == hub.files[SHARD]
        assert places.resolve(hub.MODEL, "main", tmp_path) == pulled.folder

    def test_the_old_version_is_used_until_the_new_one_is_whole(self, hub, tmp_path):
        old = get(hub, tmp_path).folder
        hub.commit = OTHER_COMMIT
        hub.files[SHARD] = b"new" * 10_000
        hub.break_offs = [(SHARD, 0)] * TRIES

        with pytest.raises(EnvironmentFault):
            get(hub, tmp_path)

        assert places.resolve(hub.MODEL, "main", tmp_path) == old

    def test_a_file_that_was_removed_comes_again(self, hub, tmp_path):
        folder = get(hub, tmp_path).folder
        (folder / SHARD).resolve().unlink()
        with pytest.raises(ConfigError, match="incomplete"):
            places.resolve(hub.MODEL, "main", tmp_path)
        hub.fetched.clear()

        assert get(hub, tmp_path).folder == folder
        assert names(hub) == [SHARD]


class TestDamage:
    @pytest.mark.parametrize("revision", ["main", COMMIT])
    @pytest.mark.parametrize(
        "spoil", [lambda content: content[:99], lambda content: bytes(len(content))]
    )
    @pytest.mark.parametrize("name", [SHARD, "tokenizer.json"])
    def test_what_cannot_be_read_comes_again(self, hub, tmp_path, name, spoil, revision):
        folder = get(hub, tmp_path, revision).folder
        (folder / name).write_bytes(spoil(hub.files[name]))
        hub.fetched.clear()

        assert get(hub, tmp_path, revision).folder == folder
        assert names(hub) == [name]
        assert contents(folder)[name] == hub.files[name]

    def test_a_damaged_copy_of_the_hub_s_library_is_left_alone(self, hub, tmp_path, own_cache):
        theirs = get(hub, own_cache).folder
        (theirs / SHARD).write_bytes(b"")

        pulled = get(hub, tmp_path / "cache")

        assert contents(pulled.folder)[SHARD] == hub.files[SHARD]
        assert (theirs / SHARD).read_bytes() == b""
        assert places.resolve(hub.MODEL, "main", tmp_path / "cache") == pulled.folder


class TestBreakingOff:
    def test_the_next_call_goes_on_in_the_middle_of_a_file(self, hub, tmp_path):
        hub.break_offs = [(SHARD, 7_000)] + [(SHARD, 0)] * (TRIES - 1)
        with pytest.raises(EnvironmentFault, match="go on with the same command"):
            get(hub, tmp_path)
        assert parts(tmp_path) == [7_000]
        with pytest.raises(ConfigError) as caught:
            places.resolve(hub.MODEL, "main", tmp_path)
        assert f"1 files are missing, {tmp_path}" in str(caught.value)
        assert str(caught.value).endswith(
            f"Go on with: phi4d model pull org/name --cache-dir {tmp_path}"
        )
        hub.fetched.clear()

        pulled = get(hub, tmp_path)

        assert hub.fetched == [(SHARD, "bytes=7000-")]
        assert pulled.fetched_bytes == len(hub.files[SHARD]) - 7_000
        assert contents(pulled.folder)[SHARD] == hub.files[SHARD]
        assert parts(tmp_path) == []

    def test_a_hub_that_knows_no_ranges_sends_it_all_again(self, hub, tmp_path):
        hub.ranges = False
        hub.break_offs = [(SHARD, 7_000)]
        told = []
        pulled = get(hub, tmp_path, progress=lambda *news: told.append(news))

        assert contents(pulled.folder)[SHARD] == hub.files[SHARD]
        assert told[-1][1] == told[-1][2]

    def test_what_does_not_fit_its_digest_is_thrown_away(self, hub, tmp_path):
        for name in (SHARD, "tokenizer.json"):
            hub.garble = {name}
            with pytest.raises(EnvironmentFault, match=f"{name} arrived damaged"):
                get(hub, tmp_path)
            assert parts(tmp_path) == []
            hub.garble = set()

            assert contents(get(hub, tmp_path).folder)[name] == hub.files[name]
            hub.commit = OTHER_COMMIT
            hub.files["tokenizer.json"] = b"another"

    def test_a_part_that_is_too_long_is_thrown_away(self, hub, tmp_path):
        blobs = tmp_path / "models--org--name" / "blobs"
        blobs.mkdir(parents=True)
        (blobs / f"{digest(hub.files[SHARD])}.incomplete").write_bytes(b"x" * 9_000_000)

        assert contents(get(hub, tmp_path).folder)[SHARD] == hub.files[SHARD]

    def test_two_at_once_are_one_too_many(self, hub, tmp_path):
        locks = tmp_path / ".locks"
        locks.mkdir()
        with (locks / "models--org--name.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(EnvironmentFault, match="another phi4d downloads org/name"):
                get(hub, tmp_path)
        assert get(hub, tmp_path).fetched_bytes > 0


class TestRoom:
    def test_too_little_is_told_before_anything_large_is_fetched(self, hub, tmp_path):
        hub.sizes[SHARD] = 10**18
        with pytest.raises(EnvironmentFault) as caught:
            get(hub, tmp_path)

        assert "1000000000.0 GB are to be downloaded, but its disk has " in str(caught.value)
        assert str(tmp_path) in str(caught.value)
        assert "Make room, or give another cache_dir" in str(caught.value)
        assert set(names(hub)) == {"config.json", "model.safetensors.index.json"}

    def test_what_is_here_needs_none(self, hub, tmp_path, monkeypatch):
        hub.break_offs = [(SHARD, 10_000)] + [(SHARD, 0)] * (TRIES - 1)
        with pytest.raises(EnvironmentFault):
            get(hub, tmp_path)
        lacking = len(hub.files[SHARD]) - 10_000
        monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=lacking))

        assert get(hub, tmp_path).fetched_bytes == lacking

    def test_a_cache_that_cannot_be_made(self, hub, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(EnvironmentFault, match=f"{tmp_path}/file.*: Not a directory"):
            get(hub, tmp_path / "file" / "cache")


class TestRefusals:
    def test_a_token_is_sent_and_taken(self, hub, tmp_path, monkeypatch):
        hub.token = TOKEN
        with pytest.raises(ConfigError, match=r"set HF_TOKEN to a token of the same account"):
            get(hub, tmp_path)
        monkeypatch.setenv("HF_TOKEN", TOKEN)

        assert get(hub, tmp_path).fetched_bytes > 0
        assert hub.tokens == {"", f"Bearer {TOKEN}"}

    def test_without_a_network_the_copy_that_is_here_stands(self, hub, tmp_path):
        here = get(hub, tmp_path).folder
        hub.status = 503

        pulled = get(hub, tmp_path)

        assert pulled.folder == here
        assert "answered 503" in pulled.unasked

    def test_another_kind_of_model(self, hub, tmp_path):
        hub.files["config.json"] = b'{"model_type": "llama"}'
        with pytest.raises(ConfigError, match="model_type 'llama', expected 'phi4_mult"):
            get(hub, tmp_path)
        assert SHARD not in names(hub)

    @pytest.mark.parametrize("config", [b"{", b"[]", b"{}"])
    def test_a_configuration_that_says_nothing(self, hub, tmp_path, config):
        hub.files["config.json"] = config
        with pytest.raises(ConfigError, match="model_type None"):
            get(hub, tmp_path)

    def test_a_model_that_is_not_whole_on_the_hub(self, hub, tmp_path):
        del hub.files["tokenizer.json"], hub.files[SHARD]
        with pytest.raises(ConfigError, match=f"the hub has no tokenizer.json, {SHARD}"):
            get(hub, tmp_path)

    @pytest.mark.parametrize(
        "index",
        [b"{", b"[]", b"{}", b'{"weight_map": {"a": "../x.safetensors"}}', b'{"weight_map": []}'],
    )
    def test_an_index_that_is_none(self, hub, tmp_path, index):
        hub.files["model.safetensors.index.json"] = index
        with pytest.raises(ConfigError, match=r"model\.safetensors\.index\.json is no index"):
            get(hub, tmp_path)

    def test_offline_by_the_environment(self, hub, tmp_path):
        def told(*revision):
            code = (
                "import sys; from pathlib import Path; from phi4d.engine.pull import pull\n"
                "model, cache, *revision = sys.argv[1:]\n"
                "try: print(pull(model, *revision, Path(cache)).unasked)\n"
                "except Exception as error: print(type(error).__name__, error)\n"
            )
            return subprocess.run(
                [sys.executable, "-c", code, hub.MODEL, tmp_path / "cache", *revision],
                env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": hub.endpoint},
                capture_output=True, text=True, check=True,
            ).stdout  # fmt: skip

        assert told("main").startswith("EnvironmentFault org/name: HF_HUB_OFFLINE is set")
        get(hub, tmp_path / "cache")
        hub.asked.clear()
        assert told("main").startswith("org/name: HF_HUB_OFFLINE is set")
        assert told(COMMIT) == "\n"
        assert hub.asked == []
