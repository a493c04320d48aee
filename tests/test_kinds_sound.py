"""Sound files: levels by the mu law, other rates and channels, and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import segue
from segue.errors import SegueError
from segue.kinds import KINDS
from segue.kinds.sound import LEVELS, RATE, levels, waveform
from segue.testing.kinds import check_kind

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("scipy")
SOUND = KINDS["sound"]


def tone(hertz: float, seconds: float, rate: int = RATE, loud: float = 0.5) -> np.ndarray:
    return loud * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)


def test_the_levels_are_those_of_the_mu_law() -> None:
    every = np.arange(LEVELS)
    assert (levels(waveform(every.tolist())) == every).all()
    short = np.round(32767 * waveform(every.tolist())).astype(np.int16)
    assert (levels(short / 32768) == every).all(), "in 16 bits too"
    assert levels(np.array([-1.0, -1e-9, 1e-9, 1.0, 7.0])).tolist() == [0, 127, 128, 255, 255]
    x = 0.3  # by the formula
    assert levels(np.array([x]))[0] == int((np.log(1 + 255 * x) / np.log(256) + 1) / 2 * 256)


@given(x=st.floats(-1, 1))
def test_no_level_is_far_from_what_it_stands_for(x: float) -> None:
    back = float(waveform(levels(np.array([x])).tolist())[0])
    assert abs(back - x) <= 0.025 * abs(x) + 2e-4


@pytest.mark.parametrize("rate, channels, format", [(8000, 1, "WAV"), (16000, 2, "FLAC"), (44100, 1, "WAV"),
                                                    (22050, 2, "OGG"), (8000, 2, "NIST"), (22050, 1, "CAF"),
                                                    (16000, 1, "W64")])
def test_other_rates_channels_and_formats_sound_alike(tmp_path: Path, rate: int, channels: int, format: str) -> None:
    wave = tone(440, 0.5, rate)
    path = tmp_path / f"a.{format.lower()}"
    soundfile.write(path, np.stack([wave] * channels, 1), rate, format=format)
    [record] = SOUND.read(path)
    assert segue.read(path).kind is SOUND and abs(len(record) - RATE // 2) <= 2
    heard = np.abs(np.fft.rfft(waveform(record.object)))
    assert abs(np.argmax(heard) * RATE / len(record) - 440) < 4
    middle = slice(500, 3000)
    assert np.abs(waveform(record.object)[middle] - tone(440, 0.5)[middle]).max() < 0.1


def test_the_contract(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(300, 0.2) + tone(500, 0.2, loud=0.2), RATE)
    check_kind(SOUND, [path], mutations=60)


def test_mistakes_are_told_in_one_line(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), RATE)
    with pytest.raises(SegueError, match="there is no sound"):
        segue.read(tmp_path / "empty.wav")
    (tmp_path / "cut.flac").write_bytes(b"fLaC" + bytes(20))
    with pytest.raises(SegueError, match=r"cut\.flac: no sound that can be read"):
        segue.read(tmp_path / "cut.flac")
    with pytest.raises(SegueError, match="one sound, not 2"):
        SOUND.write([[1], [2]], tmp_path / "two.wav")
    with pytest.raises(SegueError, match="sample 2, '256', is no level"):
        SOUND.normalise("128 256")
    assert SOUND.normalise("128, 7") == [128, 7]


def test_loudness_is_shown() -> None:
    quiet, loud = levels(tone(300, 0.5, loud=0.001)).tolist(), levels(tone(300, 0.5, loud=0.9)).tolist()
    line = SOUND.show(quiet + loud)
    assert line.endswith("1.00 s") and line[0] == " " and line[90] == "█"


def test_from_files_to_a_file(tmp_path: Path) -> None:
    for hertz in (200, 250, 300, 350):
        (tmp_path / "tones").mkdir(exist_ok=True)
        soundfile.write(tmp_path / "tones" / f"{hertz}.wav", tone(hertz, 0.5), RATE)
    model = segue.fit(tmp_path / "tones", out=tmp_path / "model", steps=20, seed=1, quiet=True, mix=False)
    assert model.kind.name == "sound"
    answer = model.continue_(tmp_path / "tones" / "200.wav", n=400, min_new_tokens=400)
    answer.save(tmp_path / "next.wav")
    wave, rate = soundfile.read(tmp_path / "next.wav")
    assert rate == RATE and len(wave) == 4400 and answer.decoder == "sample"  # the likeliest would be a circle
    assert next(iter(SOUND.read(tmp_path / "next.wav"))).object[:4000] == \
        next(iter(SOUND.read(tmp_path / "tones" / "200.wav"))).object


def test_real_speech(shared_data) -> None:  # type: ignore[no-untyped-def]
    data = segue.read(shared_data("fsdd-spoken-digits") / "recordings.zip")
    assert data.kind.name == "sound" and len(data) > 100 and not data.problems
