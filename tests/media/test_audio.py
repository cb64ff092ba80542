from __future__ import annotations

import struct
from pathlib import Path

import mediakit
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from phi4d.errors import FileError
from phi4d.media import audio, readers
from phi4d.media.audio import Recording


def decode(path: Path, **limits: float) -> tuple[NDArray[np.float32], dict[str, float]]:
    with path.open("rb") as file:
        recording = Recording(file, **limits)
        blocks = list(recording.blocks())
        assert all(block.dtype == np.float32 and block.ndim == 1 for block in blocks)
        assert all(len(block) <= 2 * 16_000 for block in blocks)  # it is a stream
        return np.concatenate(blocks), recording.facts


def fault(path: Path, **limits: float) -> str:
    with pytest.raises(FileError) as caught:
        decode(path, **limits)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def check_tone(samples: NDArray[np.float32], seconds: float) -> None:
    assert len(samples) / 16_000 == pytest.approx(seconds, abs=0.1)
    middle = samples[4000:-4000]
    assert mediakit.loudest_hz(middle) == pytest.approx(440, abs=3)
    assert np.abs(middle).max() == pytest.approx(0.5, abs=0.08)


SNDFILE = [
    ("wav", "WAV", "PCM_U8"),
    ("wav", "WAV", "PCM_16"),
    ("wav", "WAV", "PCM_24"),
    ("wav", "WAV", "PCM_32"),
    ("wav", "WAV", "FLOAT"),
    ("wav", "WAV", "DOUBLE"),
    ("wav", "WAV", "ULAW"),
    ("wav", "WAV", "MS_ADPCM"),
    ("wav", "WAVEX", "PCM_16"),
    ("wav", "RF64", "PCM_16"),
    ("w64", "W64", "PCM_16"),
    ("flac", "FLAC", "PCM_16"),
    ("flac", "FLAC", "PCM_24"),
    ("ogg", "OGG", "VORBIS"),
    ("opus", "OGG", "OPUS"),
    ("mp3", "MP3", "MPEG_LAYER_III"),
    ("aiff", "AIFF", "PCM_16"),
    ("au", "AU", "PCM_16"),
    ("caf", "CAF", "ALAC_16"),
]


@pytest.mark.parametrize(("extension", "container", "codec"), SNDFILE)
def test_every_format_gives_the_same_tone(
    tmp_path: Path, extension: str, container: str, codec: str
) -> None:
    rate = 48_000 if codec == "OPUS" else 44_100
    path = tmp_path / f"tone.{extension}"
    soundfile.write(path, mediakit.tone(2, rate, channels=2), rate, codec, format=container)

    samples, facts = decode(path)

    check_tone(samples, 2)
    assert facts["rate"] == rate
    assert facts["channels"] == 2
    assert facts["duration"] == len(samples) / 16_000


FFMPEG = [
    ("a.m4a", "aac", "ipod", 44_100, 2),
    ("a.m4a", "alac", "ipod", 44_100, 1),
    ("a.webm", "libopus", "webm", 48_000, 2),
    ("a.mka", "flac", "matroska", 44_100, 2),
    ("a.mka", "aac", "matroska", 48_000, 6),
    ("a.mka", "aac", "matroska", 48_000, 8),
    ("a.mp4", "aac", "mp4", 48_000, 16),
    ("a.aac", "aac", "adts", 44_100, 2),
    ("a.wma", "wmav2", "asf", 44_100, 2),
    ("a.amr", "libopencore_amrnb", "amr", 8_000, 1),
    ("a.mp3", "libmp3lame", "mp3", 44_100, 2),
    ("a.ac3", "ac3", "ac3", 48_000, 2),
]


@pytest.mark.parametrize(("name", "codec", "container", "rate", "channels"), FFMPEG)
def test_what_libsndfile_cannot_read_ffmpeg_does(
    tmp_path: Path, name: str, codec: str, container: str, rate: int, channels: int
) -> None:
    options = {"b": "128000"} if codec == "wmav2" else {}
    path = mediakit.encoded(
        tmp_path / name,
        codec,
        container,
        mediakit.tone(2, rate, channels=channels),
        rate,
        codec_options=options,
    )

    samples, facts = decode(path)

    check_tone(samples, 2)
    assert facts["rate"] == rate
    assert facts["channels"] == channels


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 96_000, 192_000])
@pytest.mark.parametrize("channels", [1, 3, 8])
def test_any_rate_and_channels(tmp_path: Path, rate: int, channels: int) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, mediakit.tone(1.5, rate, channels=channels), rate)

    samples, facts = decode(path)

    assert len(samples) == pytest.approx(24_000, abs=1)
    check_tone(samples, 1.5)
    assert facts["channels"] == channels


@pytest.mark.parametrize("reader", ["libsndfile", "ffmpeg"])
def test_channels_are_averaged_and_not_added(tmp_path: Path, reader: str) -> None:
    # given full scale on the left, and the same on the right, or nothing
    left = 2 * mediakit.tone(1, 48_000)
    for right, peak in ((left, 1.0), (0 * left, 0.5)):
        both = np.concatenate((left, right), axis=1)
        if reader == "libsndfile":
            path = tmp_path / "a.wav"
            soundfile.write(path, both, 48_000, "FLOAT")
        else:
            path = mediakit.encoded(tmp_path / "a.mka", "flac", "matroska", both, 48_000)

        samples, _ = decode(path)

        assert np.abs(samples[1000:-1000]).max() == pytest.approx(peak, abs=0.02)


def test_content_counts_and_not_the_extension(tmp_path: Path) -> None:
    path = mediakit.encoded(tmp_path / "a.m4a", "aac", "ipod", mediakit.tone(1, 44_100), 44_100)
    samples, _ = decode(path.rename(tmp_path / "really.wav"))
    check_tone(samples, 1)


def test_the_sound_of_a_video_is_taken(tmp_path: Path) -> None:
    path = mediakit.encoded(
        tmp_path / "a.mp4", "aac", "mp4", mediakit.tone(2, 44_100), 44_100, video=True
    )
    samples, _ = decode(path)
    check_tone(samples, 2)


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_a_video_without_sound_is_a_file_error(tmp_path: Path, container: str) -> None:
    path = mediakit.encoded(
        tmp_path / "a.mp4", "", container, mediakit.tone(1), 16_000, video=True, sound=False
    )
    assert "is a video without sound: there is nothing to transcribe" in fault(path)


def test_a_variable_bit_rate_without_a_length_is_read_to_its_end(tmp_path: Path) -> None:
    # given an MP3 without a Xing header whose quiet beginning suggests a wrong length:
    # libsndfile would stop at two fifths of it
    noise = np.random.default_rng(0).standard_normal((44_100 * 10, 1)).astype(np.float32)
    noise[: 44_100 * 5] *= 0.001
    path = mediakit.encoded(
        tmp_path / "a.mp3",
        "libmp3lame",
        "mp3",
        noise * 0.2,
        44_100,
        container_options={"write_xing": "0"},
        codec_options={"compression_level": "5", "flags": "+qscale", "global_quality": "236"},
    )
    samples, _ = decode(path)
    assert len(samples) / 16_000 == pytest.approx(10, abs=0.2)


def test_a_cover_before_the_sound_does_not_hide_its_length(tmp_path: Path) -> None:
    # given a cut-off MP3 with a large ID3 tag
    path = tmp_path / "a.mp3"
    soundfile.write(path, mediakit.tone(5, 44_100), 44_100)
    data = path.read_bytes()
    size = 20_000
    sevens = bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0))
    path.write_bytes(b"ID3\x04\0\0" + sevens + bytes(size) + data[: len(data) // 2])

    assert "declares 5.0 s" in fault(path)


@pytest.mark.parametrize(
    ("name", "container", "codec"),
    [
        ("a.wav", "WAV", "PCM_16"),
        ("a.w64", "W64", "PCM_16"),
        ("a.aiff", "AIFF", "PCM_16"),
        ("a.au", "AU", "PCM_16"),
        ("a.flac", "FLAC", "PCM_16"),
        ("a.mp3", "MP3", "MPEG_LAYER_III"),
    ],
)
def test_a_cut_off_recording_is_an_error_with_both_durations(
    tmp_path: Path, name: str, container: str, codec: str
) -> None:
    path = tmp_path / name
    noise = np.random.default_rng(0).standard_normal(44_100 * 5) * 0.1
    soundfile.write(path, noise, 44_100, codec, format=container)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])

    words = fault(path)

    assert "cut off" in words
    assert "5.0 s" in words  # declared
    assert ("3.0 s" in words) or ("1.0 s of" in words)  # decoded; FLAC loses a block
    assert "copy it again" in words


@pytest.mark.parametrize(
    ("name", "codec", "container", "options", "words"),
    [
        ("a.m4a", "aac", "ipod", {}, "begins as an M4A recording but is damaged or cut off"),
        ("a.m4a", "aac", "ipod", {"movflags": "faststart"}, "declares 5.0 s and holds"),
        ("a.webm", "libopus", "webm", {}, "declares 5.0 s and holds"),
        ("a.mka", "flac", "matroska", {}, "declares 5.0 s and holds"),
    ],
)
def test_a_cut_off_container_is_an_error(
    tmp_path: Path, name: str, codec: str, container: str, options: dict[str, str], words: str
) -> None:
    noise = (np.random.default_rng(0).standard_normal((48_000 * 5, 1)) * 0.1).astype(np.float32)
    path = mediakit.encoded(
        tmp_path / name, codec, container, noise, 48_000, container_options=options
    )
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])

    assert words in fault(path)


def test_a_length_that_a_pipe_could_not_know_is_no_fault(tmp_path: Path) -> None:
    # given a WAV as ffmpeg writes it to a pipe: all sizes are the greatest number
    path = tmp_path / "a.wav"
    soundfile.write(path, mediakit.tone(2), 16_000)
    data = bytearray(path.read_bytes())
    data[4:8] = data[40:44] = struct.pack("<I", 0xFFFFFFFF)
    assert data[36:40] == b"data"
    path.write_bytes(data)

    samples, _ = decode(path)

    check_tone(samples, 2)


def test_an_unknown_coding_is_said_to_be_one(tmp_path: Path) -> None:
    # given a WAV whose format tag nobody has
    path = tmp_path / "a.wav"
    soundfile.write(path, mediakit.tone(2), 16_000)
    data = bytearray(path.read_bytes())
    data[20:22] = b"\x99\x99"
    path.write_bytes(data)
    assert "holds sound in a coding that is not known: convert it" in fault(path)


def test_ten_samples_are_too_short_and_said_so(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(10), 16_000)
    assert "holds 0.0006 s of sound; at least 0.1 s are needed" in fault(path)


def test_a_header_without_sound_is_too_short(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(0), 16_000)
    assert "holds 0.0000 s of sound" in fault(path)


def test_silence_is_sound_like_any_other(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(16_000), 16_000)
    samples, _ = decode(path)
    assert len(samples) == 16_000
    assert not samples.any()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"Dear diary,\n" * 50, "it holds text"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n/etc/passwd\n", "it holds text"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "it holds text"),
        (bytes(5000), "nothing but zeros"),
        (b"%PDF-1.7 stuff", "a PDF document"),
        (b"\xff\xd8\xff\xe0 and so on", "a JPEG picture"),
        (b"RIFF", "not a recording"),
        (b"fLaC", "begins as a FLAC recording but is damaged"),
        (b"ID3\x04\0\0\0\0\0\x0a" + bytes(600), "begins as an MP3 recording but is damaged"),
    ],
)
def test_what_is_no_recording_is_named(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(data)
    assert words in fault(path)


def test_a_playlist_cannot_open_another_file(tmp_path: Path) -> None:
    # given a real recording, and a playlist that names it
    soundfile.write(tmp_path / "secret.mp3", mediakit.tone(2, 44_100), 44_100)
    for text in (
        f"#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:2,\n{tmp_path}/secret.mp3\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile '{tmp_path}/secret.mp3'\n",
    ):
        path = tmp_path / "list.m4a"
        path.write_text(text)
        assert "is not a recording" in fault(path)


def test_a_recording_that_declares_too_much_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, np.zeros(16_000 * 5), 16_000)
    with path.open("rb") as file, pytest.raises(FileError, match=r"lasts 5\.0 s .* at most 4\.0 s"):
        Recording(file, max_duration_s=4)


def test_a_recording_that_unfolds_to_too_much_is_broken_off(tmp_path: Path) -> None:
    # given a stream that declares no length
    samples = mediakit.tone(5, 44_100)
    path = mediakit.encoded(tmp_path / "a.aac", "aac", "adts", samples, 44_100)
    assert "at most 2.0 s are read: cut it into parts" in fault(path, max_duration_s=2)


def test_hours_are_said_as_hours(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, np.zeros(1000 * 3600 * 2), 1000)
    assert "lasts 2.0 h or more; at most 1.0 h are read" in fault(path, max_duration_s=3600)


def test_a_rate_that_is_none_is_a_damaged_header(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(1000), 3)
    assert "declares 3 samples a second" in fault(path)


def test_values_that_are_no_numbers_and_too_great_ones_are_tamed(tmp_path: Path) -> None:
    samples = mediakit.tone(1)
    samples[100], samples[200], samples[300], samples[400] = np.nan, np.inf, -np.inf, 7.0
    path = tmp_path / "a.wav"
    soundfile.write(path, samples, 16_000, "FLOAT")

    decoded, _ = decode(path)

    assert np.isfinite(decoded).all()
    assert np.abs(decoded).max() <= 1.0
    assert decoded[100] == 0
    assert decoded[400] == 1


def adts_packets(data: bytes) -> list[tuple[int, int]]:
    """Begin and end of each packet: 13 bits of its header are its size (ISO 13818-7, 6.2)."""
    found, at = [], 0
    while at + 7 <= len(data):
        size = (data[at + 3] & 3) << 11 | data[at + 4] << 3 | data[at + 5] >> 5
        found.append((at, at + size))
        at += size
    return found


@pytest.mark.parametrize(("broken", "readable"), [(1, True), (60, False)])
def test_a_bad_packet_is_passed_over_and_many_are_not(
    tmp_path: Path, broken: int, readable: bool
) -> None:
    # given an AAC stream in which some packets keep their headers and lose their sense
    path = mediakit.encoded(tmp_path / "a.aac", "aac", "adts", mediakit.tone(5, 44_100), 44_100)
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    for begin, end in adts_packets(data)[50 : 50 + broken]:
        data[begin + 7 : end] = rng.bytes(end - begin - 7)
    path.write_bytes(data)

    if readable:
        samples, _ = decode(path)
        assert len(samples) / 16_000 == pytest.approx(5, abs=0.2)
    else:
        words = fault(path)
        assert "decoding stopped after" in words
        assert str(path) not in words


def test_a_rate_that_changes_on_the_way_is_followed() -> None:
    def blocks() -> list[tuple[int, NDArray[np.float32]]]:
        return [(rate, mediakit.tone(1, rate)[:, 0]) for rate in (48_000, 48_000, 16_000, 8_000)]

    source = readers.Source(48_000, 1, None, iter(blocks()))
    joined = np.concatenate(list(audio._resampled(audio._seconds(source))))

    assert len(joined) == pytest.approx(4 * 16_000, abs=3)
    assert mediakit.loudest_hz(joined[52_000:60_000]) == pytest.approx(440, abs=3)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("seeds")
    sound = mediakit.tone(0.4, 44_100)
    found = {}
    for extension in ("wav", "flac", "ogg", "mp3", "aiff"):
        path = folder / f"a.{extension}"
        soundfile.write(path, sound, 44_100)
        found[extension] = path.read_bytes()
    for name, codec, container in (
        ("a.m4a", "aac", "ipod"),
        ("a.mka", "flac", "matroska"),
        ("a.aac", "aac", "adts"),
    ):
        path = mediakit.encoded(folder / name, codec, container, sound, 44_100)
        found[name] = path.read_bytes()
    return found


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_changed_bytes_give_sound_or_a_file_error(
    data: st.DataObject, seeds: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    changed = bytearray(seeds[data.draw(st.sampled_from(sorted(seeds)))])
    for position in data.draw(st.lists(st.integers(0, 4000), min_size=1, max_size=8)):
        changed[position % len(changed)] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "changed"
    path.write_bytes(changed)
    with path.open("rb") as file:
        try:
            blocks = list(Recording(file, max_duration_s=60).blocks())
        except FileError:
            return
    assert np.isfinite(np.concatenate(blocks)).all()
