"""Sound: WAV, FLAC, Ogg, MP3, AIFF, CAF and SPHERE files as sequences of samples, and back (extra `sound`).

A sample is one of 256 levels by the mu law of telephones, 8,000 a second, as raw sound has been modelled since WaveNet
(van den Oord et al. 2016, arXiv 1609.03499): fine where it is quiet, coarse where it is loud.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from segue.errors import SegueError, require
from segue.files import atomic_write
from segue.kinds.base import Dataset, Kind, Problems, Record, split_items
from segue.kinds.codecs import Codec, ItemCodec
from segue.kinds.packed import opened

RATE = 8000  # samples a second
LEVELS = 256
MU = LEVELS - 1
BLOCK = 1 << 20  # samples read at a time
BARS = " ▁▂▃▄▅▆▇█"
SIGNS = (b"fLaC", b"OggS", b"ID3", b".snd", b"caff", b"NIST_1A", b"riff\x2e\x91\xcf\x11", b"\xff\xfb", b"\xff\xf3",
         b"\xff\xf2")  # what the files begin with
LOUD = 40  # decibels between the first and the last of them


class Sound(Kind):
    """An object is a list of levels (int, 0 to 255; silence lies between 127 and 128), its unit the sample. Channels
    are mixed, other rates brought to 8,000 a second. A file holds one sound."""

    name = "sound"
    unit = "sample"
    storage = "items"
    written = (".wav", ".flac")
    split_by = "entity"
    advisor = "adaptive linear prediction"
    decoder = "sample"
    several: ClassVar[bool] = False

    def sniff(self, path: Path, head: bytes) -> float:
        boxed = (head[:4], head[8:11]) in ((b"RIFF", b"WAV"), (b"RF64", b"WAV"), (b"FORM", b"AIF"))
        return 0.97 if boxed or head.startswith(SIGNS) else 0.0

    def read(self, path: Path, problems: Problems | None = None) -> Iterator[Record]:
        """One record for each file."""
        soundfile = require("soundfile", "sound")
        with opened(path) as handle:
            try:
                with soundfile.SoundFile(handle) as file:
                    rate = file.samplerate
                    parts = []  # not by its `blocks`, which some codecs cannot do
                    while len(part := file.read(BLOCK, dtype="float32", always_2d=True)):
                        parts.append(part.mean(1))
            except (SegueError, MemoryError):
                raise
            except Exception as error:  # a foreign parser may raise anything on a broken file
                why = " ".join(str(error).split()).rpartition(">: ")[2] or type(error).__name__
                raise SegueError(f"{path}: no sound that can be read ({why[:160]}); save it again, say as WAV") \
                    from error
        wave = np.concatenate(parts) if parts else np.zeros(0, np.float32)
        if not len(wave) or not 0 < rate <= 1_000_000 or not np.isfinite(wave).all():
            raise SegueError(f"{path}: there is no sound in this file")
        if rate != RATE:
            common = math.gcd(rate, RATE)
            wave = require("scipy.signal", "sound").resample_poly(wave, RATE // common, rate // common)
        yield Record(levels(wave).tolist(), name=str(path))

    def codec(self, data: Dataset) -> Codec:
        """One token for each level."""
        return ItemCodec(list(range(LEVELS)))

    def numbers(self, codec: Codec) -> np.ndarray | None:
        values, ids = np.full((codec.size, 1), np.nan), codec.lookup(range(LEVELS))
        if ids is None:
            return None
        values[ids, 0] = waveform(range(LEVELS))
        return values

    def write(self, objects: Iterable[Sequence[int] | Record], path: str | Path) -> None:
        """One object as a WAV file (FLAC if it is named so) of 16 bits and 8,000 samples a second."""
        soundfile = require("soundfile", "sound")
        sounds = [obj.object if isinstance(obj, Record) else obj for obj in objects]
        if len(sounds) != 1:
            raise SegueError(f"a sound file holds one sound, not {len(sounds)}: write them one by one")
        levels = [level for level in sounds[0] if isinstance(level, int) and 0 <= level < LEVELS]
        with atomic_write(path) as temporary, open(temporary, "wb") as handle:
            form = "FLAC" if Path(path).suffix.lower() == ".flac" else "WAV"
            soundfile.write(handle, np.round(32767 * waveform(levels)).astype(np.int16), RATE, "PCM_16", format=form)

    def show(self, obj: Sequence[int]) -> str:
        """The loudness over time, as one line of at most 96 bars, and the duration."""
        wave = waveform([level for level in obj if isinstance(level, int)])
        windows = np.array_split(wave, min(96, max(len(wave) // 16, 1)))
        power = np.array([float(np.square(window).mean()) if len(window) else 0.0 for window in windows])
        decibels = 10 * np.log10(np.maximum(power, 1e-12) / max(float(power.max()), 1e-12))
        steps = np.clip(np.round((1 + decibels / LOUD) * (len(BARS) - 1)), 0, len(BARS) - 1).astype(int)
        return f"{''.join(BARS[step] for step in steps)} {len(wave) / RATE:.2f} s"

    def normalise(self, obj: Any, known: Collection[str] = ()) -> list[int]:
        """Levels, or a text of them with blanks or commas between; what is none is a SegueError."""
        items = split_items(obj)
        for number, item in enumerate(items, 1):
            if not str(item).isdecimal() or int(item) >= LEVELS:
                raise SegueError(f"sample {number}, {item!r:.40}, is no level: give whole numbers from 0 to 255, or a "
                                 "sound file")
        return [int(item) for item in items]


def levels(wave: np.ndarray) -> np.ndarray:
    """The mu-law levels of samples from -1 to 1, (n,) int64: sign(x) log(1 + mu |x|) / log(1 + mu) in 256 equal
    steps."""
    wave = np.clip(wave.astype(np.float64), -1, 1)
    squeezed = np.sign(wave) * np.log1p(MU * np.abs(wave)) / np.log1p(MU)
    return np.minimum((squeezed + 1) / 2 * LEVELS, MU).astype(np.int64)


def waveform(levels: Sequence[int]) -> np.ndarray:
    """The samples of levels, each the middle of its level, (n,) float64 from -1 to 1."""
    squeezed = (np.asarray(levels, np.float64) + 0.5) / LEVELS * 2 - 1
    return np.sign(squeezed) * np.expm1(np.abs(squeezed) * np.log1p(MU)) / MU
