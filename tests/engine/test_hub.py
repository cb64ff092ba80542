from __future__ import annotations

import shutil

import pytest
from enginekit import CHECKPOINT
from fake_hub import COMMIT, ORIGINAL_NEEDED, original_layout
from kit import unprivileged

from phi4d.engine import hub
from phi4d.errors import ConfigError

SHARD = "model-00001-of-00002.safetensors"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    """The hub library's own cache, empty."""
    cache = tmp_path / "own"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return cache


def downloaded(cache, revision="main", model=hub.HUB_ID, files=None):
    """A cache that holds a model, by default the demo checkpoint, as a hub's model."""
    storage = hub.storage_of(model, cache)
    reference = storage / "refs" / revision
    reference.parent.mkdir(parents=True)
    reference.write_text(COMMIT)
    snapshot = storage / "snapshots" / COMMIT
    if files is None:
        shutil.copytree(CHECKPOINT, snapshot)
    for name, content in (files or {}).items():
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).write_bytes(content)
    return snapshot


def refusal(*arguments):
    with pytest.raises(ConfigError) as caught:
        hub.resolve(*arguments)
    return str(caught.value)


@pytest.mark.parametrize("text", ["/srv/model", "./model", "../model", "model", "a/b/c", "."])
def test_what_looks_like_a_path_is_one(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(hub.resolve(text)) == text.removeprefix("./")


def test_the_home_folder_is_put_in(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub.resolve("~/model") == tmp_path / "model"


def test_an_existing_folder_goes_before_the_hub(monkeypatch, tmp_path):
    (tmp_path / "microsoft" / "phi").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert str(hub.resolve("microsoft/phi")) == "microsoft/phi"


def test_a_downloaded_model_is_found_at_the_newest_revision(tmp_path):
    snapshot = downloaded(tmp_path)
    assert hub.resolve(hub.HUB_ID, cache_dir=tmp_path) == snapshot


@pytest.mark.parametrize("revision", ["v2", "refs/pr/70", COMMIT])
def test_a_revision_can_be_named(tmp_path, revision):
    snapshot = downloaded(tmp_path, "v2" if revision == COMMIT else revision)
    assert hub.resolve(hub.HUB_ID, revision, str(tmp_path)) == snapshot


def test_what_the_hub_s_library_has_is_found_as_well(tmp_path, own_cache):
    snapshot = downloaded(own_cache)
    assert hub.resolve(hub.HUB_ID) == snapshot
    assert hub.resolve(hub.HUB_ID, None, tmp_path / "empty") == snapshot


def test_a_working_folder_that_may_not_be_read_holds_no_model(tmp_path, monkeypatch):
    # given root's folder as `runuser -u phi4d` leaves it to be
    monkeypatch.chdir(tmp_path)
    with unprivileged(tmp_path):
        assert hub.is_remote("org/name")


def test_cache_dir_goes_first_unless_it_is_not_whole(tmp_path, own_cache):
    other = downloaded(own_cache)
    first = downloaded(tmp_path)
    assert hub.resolve(hub.HUB_ID, None, tmp_path) == first
    (first / "model.safetensors").unlink()
    assert hub.resolve(hub.HUB_ID, None, tmp_path) == other


def test_a_model_that_was_not_downloaded_names_the_command_and_where_it_looked(tmp_path, own_cache):
    told = refusal(hub.HUB_ID, None, tmp_path / "my cache")
    assert f"looked in {tmp_path / 'my cache'} and {own_cache}." in told
    assert told.endswith(f"with: phi4d model pull --cache-dir '{tmp_path}/my cache'")


def test_another_revision_than_the_downloaded_names_the_command(tmp_path):
    downloaded(tmp_path)
    told = refusal("org/name", "v2", tmp_path)
    assert told.endswith(f"phi4d model pull org/name --revision v2 --cache-dir {tmp_path}")


@pytest.mark.parametrize("commit", ["", "../..", "0123"])
def test_a_reference_that_names_no_commit_is_none(tmp_path, commit):
    downloaded(tmp_path)
    (hub.storage_of(hub.HUB_ID, tmp_path) / "refs" / "main").write_text(commit)
    assert "neither a folder nor downloaded" in refusal(hub.HUB_ID, None, tmp_path)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "preprocessor_config.json", SHARD]
)
def test_an_incomplete_download_names_what_is_missing(tmp_path, name):
    files = {key: value for key, value in original_layout().items() if key in ORIGINAL_NEEDED}
    snapshot = downloaded(tmp_path, files=files)
    assert hub.resolve(hub.HUB_ID, None, tmp_path) == snapshot

    (snapshot / name).unlink()
    (snapshot / "processor_config.json").unlink(missing_ok=True)

    told = refusal(hub.HUB_ID, None, tmp_path)
    assert f"download is incomplete, 1 files are missing, {snapshot / name} first" in told
    assert told.endswith(f"Go on with: phi4d model pull --cache-dir {tmp_path}")


def test_a_link_to_nothing_is_missing(tmp_path):
    snapshot = downloaded(tmp_path)
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to("../../blobs/gone")
    assert "model.safetensors first" in refusal(hub.HUB_ID, None, tmp_path)


def test_an_index_that_cannot_be_read_is_left_to_the_check(tmp_path):
    files = {**original_layout(), "model.safetensors.index.json": b"{"}
    snapshot = downloaded(tmp_path, files=files)
    assert hub.resolve(hub.HUB_ID, None, tmp_path) == snapshot


def test_a_cache_that_this_user_may_not_read_is_told(tmp_path, own_cache):
    # root, as whom tests may run, may read everything, but cannot follow a link to itself
    loop = tmp_path / "cache"
    loop.symlink_to(loop)
    told = refusal(hub.HUB_ID, None, loop)
    assert f"looked in {loop} (Too many levels of symbolic links) and {own_cache}." in told

    snapshot = downloaded(own_cache)
    assert hub.resolve(hub.HUB_ID, None, loop) == snapshot


def test_the_command_is_as_short_as_it_may_be():
    assert hub.pull_command() == "phi4d model pull"
    assert hub.pull_command(revision="refs/pr/70") == "phi4d model pull --revision refs/pr/70"
