"""What a learner keeps of the past: a buffer of bounded size, with reservoir sampling (Vitter 1985)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from segue.errors import SegueError
from segue.files import atomic_write, read_json, write_json

MASK = (1 << 64) - 1


def mixed(seed: int, count: int) -> int:
    """64 random bits that depend on seed and count alone (the finaliser of SplitMix64, Steele et al. 2014), so that it
    does not matter how often a run was interrupted."""
    z = (seed * 0xD1B54A32D192ED03 + (count + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


class Reservoir:
    """At most `capacity` pieces of sequences, each piece ever offered with the same chance to be among them.

    capacity: pieces kept. length: elements of a piece; longer sequences are offered in pieces of this length.
    seed: which pieces stay depends on the seed and on how many were offered, on nothing else.
    """

    def __init__(self, capacity: int, length: int, seed: int = 0) -> None:
        if capacity < 1 or length < 2:
            raise SegueError(f"a replay buffer needs room for a piece of two elements, not {capacity} of {length}")
        self.capacity, self.length, self.seed = capacity, length, seed
        self.seen = 0
        self.pieces: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self.pieces)

    def offer(self, sequences: Iterable[np.ndarray]) -> None:
        """Offer whole sequences of ids (n,)."""
        for ids in sequences:
            for begin in range(0, max(len(ids) - 1, 0), self.length):
                self._offer(ids[begin : begin + self.length])

    def _offer(self, piece: np.ndarray) -> None:
        place = mixed(self.seed, self.seen) * (self.seen + 1) >> 64
        self.seen += 1
        if len(self.pieces) < self.capacity:
            self.pieces.append(np.array(piece, dtype=np.int32))
        elif place < self.capacity:
            self.pieces[place] = np.array(piece, dtype=np.int32)

    def draw(self, n: int, generator: np.random.Generator) -> list[np.ndarray]:
        """`n` pieces, without repeats as long as there are enough."""
        if not self.pieces:
            raise SegueError("the replay buffer is empty: fit on some data first")
        chosen = generator.choice(len(self.pieces), size=n, replace=n > len(self.pieces))
        return [self.pieces[i] for i in chosen]

    def save(self, folder: Path) -> None:
        from safetensors.numpy import save_file

        lengths = np.array([len(piece) for piece in self.pieces], dtype=np.int64)
        ids = np.concatenate(self.pieces) if self.pieces else np.empty(0, np.int32)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / "replay.safetensors") as temporary:
            save_file({"ids": ids, "lengths": lengths}, str(temporary))
        write_json(folder / "replay.json", {"capacity": self.capacity, "length": self.length, "seed": self.seed,
                                            "seen": self.seen})

    @classmethod
    def load(cls, folder: Path) -> Reservoir:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        values = read_json(folder / "replay.json")
        try:
            arrays = load_file(str(folder / "replay.safetensors"))
            buffer = cls(values["capacity"], values["length"], values["seed"])
            buffer.seen = values["seen"]
            ids, lengths = arrays["ids"], arrays["lengths"]
            if lengths.sum() != len(ids) or len(lengths) > buffer.capacity or (lengths < 0).any():
                raise SegueError(f"{folder / 'replay.safetensors'} does not fit its replay.json: fit again")
        except (OSError, KeyError, TypeError, SafetensorError) as error:
            raise SegueError(f"{folder}: the replay buffer is broken ({error}): fit again, or use another strategy") \
                from error
        buffer.pieces = [np.array(piece) for piece in np.split(ids, np.cumsum(lengths)[:-1])] if len(lengths) else []
        return buffer
