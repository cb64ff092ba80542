from __future__ import annotations

import pytest
from fake_hub import COMMIT, FakeHub, digest, running

from phi4d.engine.remote import TRIES, File, Remote, size
from phi4d.errors import ConfigError, EnvironmentFault

NAME = "model.safetensors"
CONTENT = bytes(range(250)) * 100
WHOLE = File(NAME, len(CONTENT), digest(CONTENT))


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    """No setting of this machine plays a part."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def hub():
    with running({NAME: CONTENT, "config.json": b"{}"}) as hub:
        yield hub


def remote(hub, model=FakeHub.MODEL):
    return Remote(model, hub.endpoint, 0)


def fetch(hub, part, arrived=lambda _: None):
    remote(hub).fetch(WHOLE, COMMIT, part, arrived)
    return part.read_bytes()


class TestListing:
    @pytest.mark.parametrize("revision", ["main", "refs/pr/70", COMMIT])
    def test_a_revision_is_a_commit_with_files(self, hub, revision):
        assert remote(hub).list(revision) == (
            COMMIT,
            {NAME: WHOLE, "config.json": File("config.json", 2, digest(b"{}"))},
        )

    @pytest.mark.parametrize(
        ("status", "code", "said"),
        [
            (401, "RepoNotFound", "no such model, or it is private"),
            (401, "", r"answered 401 .*HF_TOKEN"),
            (404, "RepoNotFound", "no such model, or it is private"),
            (403, "GatedRepo", "gives it to those who asked"),
            (403, "", r"answered 403 .*HF_TOKEN"),
            (404, "EntryNotFound", "answered 404"),
            (400, "", "answered 400"),
        ],
    )
    def test_what_trying_again_does_not_help(self, hub, status, code, said):
        hub.status, hub.error_code = status, code
        with pytest.raises(ConfigError, match=said) as caught:
            remote(hub).list("main")
        assert str(caught.value).startswith("org/name: ")

    def test_a_revision_that_there_is_not(self, hub):
        with pytest.raises(ConfigError, match=r"no revision 'mian' .*'main' is the newest"):
            remote(hub).list("mian")

    def test_a_name_that_cannot_be(self, hub):
        with pytest.raises(ConfigError, match=r"a--b/c: not the name of a model"):
            remote(hub, "a--b/c").list("main")

    @pytest.mark.parametrize("status", [500, 503, 429])
    def test_a_hub_that_does_not_work(self, hub, status):
        hub.status = status
        with pytest.raises(EnvironmentFault, match=f"answered {status} .*Try again later"):
            remote(hub).list("main")

    def test_no_network(self, hub):
        hub.endpoint = "http://127.0.0.1:1"  # where nothing listens
        with pytest.raises(EnvironmentFault, match=r"127\.0\.0\.1:1\) cannot be reached: ") as told:
            remote(hub).list("main")
        assert len(str(told.value).splitlines()) == 1

    @pytest.mark.parametrize("answer", [b"<html>Please log in</html>", b"{}", b"3"])
    def test_something_else_that_answers(self, hub, answer):
        hub.listing = answer
        with pytest.raises(EnvironmentFault, match="is not the hub"):
            remote(hub).list("main")


class TestFetching:
    def test_it_goes_on_in_the_middle_of_a_file(self, hub, tmp_path):
        hub.break_offs = [(NAME, 7_000), (NAME, 5_000)]

        assert fetch(hub, tmp_path / "part") == CONTENT
        assert hub.fetched == [(NAME, ""), (NAME, "bytes=7000-"), (NAME, "bytes=12000-")]

    def test_what_came_stays_when_it_is_given_up(self, hub, tmp_path):
        hub.break_offs = [(NAME, 7_000)] + [(NAME, 0)] * (TRIES - 1)
        with pytest.raises(EnvironmentFault, match="go on with the same command"):
            fetch(hub, tmp_path / "part")
        assert (tmp_path / "part").read_bytes() == CONTENT[:7_000]

    def test_connections_that_bring_something_are_not_counted(self, hub, tmp_path):
        hub.break_offs = [(NAME, 1_000)] * (2 * TRIES)
        assert fetch(hub, tmp_path / "part") == CONTENT

    def test_a_hub_that_knows_no_ranges_sends_it_all_again(self, hub, tmp_path):
        hub.ranges = False
        hub.break_offs = [(NAME, 7_000)]
        came = []
        assert fetch(hub, tmp_path / "part", came.append) == CONTENT
        assert sum(came) == len(CONTENT)

    def test_a_hub_that_does_not_work_is_asked_again(self, hub, tmp_path):
        hub.status = 503
        with pytest.raises(EnvironmentFault, match="answered 503"):
            fetch(hub, tmp_path / "part")
        assert len(hub.asked) == TRIES

    def test_what_trying_again_does_not_help_is_not(self, hub, tmp_path):
        hub.status = 403
        with pytest.raises(ConfigError, match="answered 403"):
            fetch(hub, tmp_path / "part")
        assert len(hub.asked) == 1

    def test_a_file_that_is_shorter_than_it_was_said_to_be(self, hub, tmp_path):
        hub.files[NAME] = CONTENT[:-1]
        with pytest.raises(EnvironmentFault, match=f"{NAME} ended at 0.0 MB of 0.0 MB"):
            fetch(hub, tmp_path / "part")


def test_sizes_in_words():
    assert [size(11_244_000_000), size(99_000_000), size(0)] == ["11.2 GB", "99.0 MB", "0.0 MB"]
