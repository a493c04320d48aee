"""Small made-up files, one set for each kind, to try a part on all of them."""

from __future__ import annotations

import json
import random
import wave
from pathlib import Path

import numpy as np

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "two", "dogs", "run", "far", "away", "from", "here"]


def write_samples(folder: str | Path, seed: int = 0) -> dict[str, Path]:
    """Write a file or folder for each kind into `folder`; returns the paths by kind. MIDI needs the extra `music`."""
    folder, draw = Path(folder), random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)

    def letters(alphabet: str, length: int) -> str:
        return "".join(draw.choices(alphabet, k=length))

    texts = {
        "text": ("text.txt", "\n".join(" ".join(draw.choices(WORDS, k=12)) for _ in range(60))),
        "code": ("code.py", "".join(f"def f{i}(x):\n    return x + {draw.randrange(99)}\n\n" for i in range(90))),
        "dna": ("dna.fa", "".join(f">s{i}\n{letters('ACGT', 60)}\n" for i in range(30))),
        "protein": ("protein.fa", "".join(f">s{i}\n{letters('ACDEFGHIKLMNPQRSTVWY', 40)}\n" for i in range(30))),
        "molecule": ("molecule.smi", "".join("C" * draw.randrange(1, 9) + draw.choice(["O", "N", "c1ccccc1", "C(=O)O"])
                                             + "\n" for _ in range(80))),
        "events": ("events.csv", "user,item,time\n" + "".join(
            f"u{i},{draw.choice('abcdefgh')},{1e9 + 1000 * i + 9 * j + draw.uniform(0, 9):.2f}\n"
            for i in range(30) for j in range(12))),
        "cases": ("cases.txt", "".join(letters("abcde", 10) + "\n" for _ in range(40))),
        "series": ("series.csv", "time,a,b\n" + "".join(
            f"2020-01-{1 + i // 24:02d} {i % 24:02d}:00,{5 * np.sin(i / 3) + draw.random():.3f},"
            f"{9 * np.cos(i / 5) + draw.random():.2f}\n" for i in range(240))),
        "rows": ("rows.csv", "color,size,weight,label\n" + "".join(
            f"{draw.choice(['red', 'blue'])},{draw.choice('SML')},{draw.uniform(1, 9):.1f},{draw.choice(['y', 'n'])}\n"
            for _ in range(120))),
        "graph": ("graph.json", json.dumps([{"nodes": [{"id": i} for i in range(6)], "links": [
            {"source": i, "target": draw.randrange(6)} for i in range(6)]} for _ in range(20)])),
    }
    paths = {}
    for kind, (name, text) in texts.items():
        paths[kind] = folder / name
        paths[kind].write_text(text, encoding="utf-8")
    return paths | {"music": _write_music(folder / "music", draw), "sound": _write_sound(folder / "sound"),
                    "picture": _write_pictures(folder / "pictures.npy")}


def _write_music(folder: Path, draw: random.Random) -> Path:
    import mido

    folder.mkdir(exist_ok=True)
    for number in range(12):
        track = mido.MidiTrack()
        for _ in range(20):
            note = draw.randrange(55, 75)
            track.append(mido.Message("note_on", note=note, velocity=64, time=0))
            track.append(mido.Message("note_off", note=note, velocity=0, time=draw.choice([120, 240, 480])))
        file = mido.MidiFile()
        file.tracks.append(track)
        file.save(folder / f"{number}.mid")
    return folder


def _write_sound(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for number in range(8):
        samples = 9000 * np.sin(np.arange(400) * (0.05 + 0.01 * number))
        with wave.open(str(folder / f"{number}.wav"), "wb") as file:
            file.setparams((1, 2, 8000, len(samples), "NONE", ""))
            file.writeframes(samples.astype("<i2").tobytes())
    return folder


def _write_pictures(path: Path) -> Path:
    np.save(path, np.random.default_rng(0).integers(0, 255, (20, 6, 6)).astype(np.uint8))
    return path
