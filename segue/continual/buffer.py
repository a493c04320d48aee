"""Memories of past data with bounded size.

`Reservoir` holds pieces of sequences of any length, and is saved with a fitted model. `Buffer` holds rows of batches
with named tensors for a strategy to replay. A policy in `UPDATES` decides which rows stay, one in `RETRIEVALS`
(`segue.continual.replay`) which are replayed; the strategy decides what is stored with them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from segue.continual.gradients import row_gradients, row_nats
from segue.errors import SegueError, check_choice
from segue.files import atomic_write, read_json, write_json
from segue.objectives import Batch
from segue.training.checkpoint import join_groups, take_group

if TYPE_CHECKING:
    from torch import nn

MASK = (1 << 64) - 1


def splitmix_bits(seed: int, count: int) -> int:
    """64 random bits that depend only on seed and count (the finaliser of SplitMix64, Steele et al. 2014), so that a
    resumed run draws the same."""
    z = (seed * 0xD1B54A32D192ED03 + (count + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def reservoir_slot(seed: int, seen: int, capacity: int) -> int:
    """The slot for the next item after `seen` others, or -1 to drop it, such that every item so far is kept with the
    same probability (reservoir sampling, Vitter 1985)."""
    if seen < capacity:
        return seen
    slot = splitmix_bits(seed, seen) * (seen + 1) >> 64
    return slot if slot < capacity else -1


def structured(ids: np.ndarray, **channels: np.ndarray) -> np.ndarray:
    """Ids (n,), or with channels (n,) beside them one structured array (n,) of all, with the ids in the field "ids"."""
    if not channels:
        return np.asarray(ids)
    columns = {"ids": np.asarray(ids, np.int32), **channels}
    joined = np.empty(len(ids), [(name, values.dtype) for name, values in columns.items()])
    for name, values in columns.items():
        joined[name] = values
    return joined


class Reservoir:
    """A uniform random sample of at most `capacity` of all pieces of sequences ever offered.

    length: elements of a piece; longer sequences are cut. seed: which pieces stay depends only on the seed and on how
    many were offered.
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
        """Cut sequences into pieces and offer them. A sequence is ids (n,), or a structured array (n,) of "ids" and of
        channels beside them; all are alike."""
        for ids in sequences:
            for begin in range(0, max(len(ids) - 1, 0), self.length):
                self._offer(ids[begin : begin + self.length])

    def _offer(self, piece: np.ndarray) -> None:
        slot = reservoir_slot(self.seed, self.seen, self.capacity)
        self.seen += 1
        if slot >= 0:
            self.pieces[slot : slot + 1] = [np.array(piece, dtype=piece.dtype if piece.dtype.names else np.int32)]

    def save(self, folder: Path) -> None:
        from safetensors.numpy import save_file

        lengths = np.array([len(piece) for piece in self.pieces], dtype=np.int64)
        joined: np.ndarray = np.concatenate(self.pieces) if self.pieces else np.empty(0, np.int32)
        columns = {name: np.ascontiguousarray(joined[name]) for name in joined.dtype.names} if joined.dtype.names else \
            {"ids": joined}
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / "replay.safetensors") as temporary:
            save_file({**columns, "lengths": lengths}, str(temporary))
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
            lengths = arrays.pop("lengths")
            joined = structured(**arrays)
            if lengths.sum() != len(joined) or len(lengths) > buffer.capacity or (lengths < 0).any():
                raise SegueError(f"{folder / 'replay.safetensors'} does not fit its replay.json: fit again")
        except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
            raise SegueError(f"{folder}: the replay buffer is broken ({error}): fit again, or use another strategy") \
                from error
        buffer.pieces = [np.array(piece) for piece in np.split(joined, np.cumsum(lengths)[:-1])] if len(lengths) else []
        return buffer


class Buffer:
    """At most `capacity` rows of one length, with named tensors per row (the payload).

    update: the policy that decides which rows stay, a name in `UPDATES` or such a function. seed: of its choices.

    batch: the rows, or None if it is empty. payload: name -> (M, ...), such as logits, features or the number of an
    experience; it may be written in place. scores: (capacity,) of the policy. seen: number of rows offered.
    """

    def __init__(self, capacity: int, update: str | Update = "reservoir", seed: int = 0) -> None:
        if capacity < 1:
            raise SegueError(f"a buffer needs room for a row, not {capacity}")
        if isinstance(update, str):
            check_choice("update", update, UPDATES)
        self.capacity, self.seed = capacity, seed
        self.update: Update = UPDATES[update] if isinstance(update, str) else update
        self.clear()

    def clear(self) -> None:
        """Remove all rows and reset the policy."""
        self.batch: Batch | None = None
        self.payload: dict[str, Tensor] = {}
        self.scores = torch.zeros(self.capacity)
        self.notes: dict[str, Any] = {}  # of the policy: plain values
        self.seen = 0

    def __len__(self) -> int:
        return 0 if self.batch is None else len(self.batch.targets)

    def offer(self, batch: Batch, payload: Mapping[str, Tensor] | Callable[[Batch], Mapping[str, Tensor]] | None = None,
              model: nn.Module | None = None) -> Tensor:
        """Offer rows one after the other; returns (K,) the indices of those that were stored.

        payload: name -> (B, ...), or a function that computes it for the stored rows. model: for policies that use
        losses or gradients.
        """
        batch = batch.to("cpu")
        slots = self.update(self, batch, model)
        self.seen += len(slots)
        row_of_slot = {slot: row for row, slot in enumerate(slots) if slot >= 0}  # the last row offered to each slot
        stored = torch.tensor(sorted(row_of_slot.values()), dtype=torch.long)
        if not row_of_slot:
            return stored
        stored_payload = payload(batch.rows(stored)) if callable(payload) else \
            {name: values[stored.to(values.device)] for name, values in (payload or {}).items()}
        position = {row: index for index, row in enumerate(stored.tolist())}
        size = len(self)
        source = list(range(max(size, max(row_of_slot) + 1)))
        for slot, row in row_of_slot.items():
            source[slot] = size + position[row]
        index, stored_rows = torch.tensor(source), batch.rows(stored)
        self.batch = (stored_rows if self.batch is None else Batch.join([self.batch, stored_rows])).rows(index)
        tensors = {name: values.detach().cpu() for name, values in stored_payload.items()}
        if size:
            tensors = {name: torch.cat([self.payload[name], values]) for name, values in tensors.items()}
        self.payload = {name: values[index] for name, values in tensors.items()}
        return stored

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """(min(n, M),) long: indices of random rows, without repeats."""
        return torch.randperm(len(self), generator=generator)[:n]

    def rows(self, which: Tensor) -> Batch:
        """The rows with these indices."""
        if self.batch is None:
            raise SegueError("the buffer is empty: nothing has been learned yet")
        return self.batch.rows(which)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The contents for a checkpoint: tensors, and plain values."""
        tensors = join_groups({"payload": self.payload})
        grid = None
        if self.batch is not None:
            rows = {name: values for name in ("tokens", "targets", "starts", "prompt", "sets")
                    if (values := getattr(self.batch, name)) is not None}
            tensors |= join_groups({"rows": rows, "channels": self.batch.channels})
            grid = None if self.batch.grid is None else list(self.batch.grid)
            tensors["scores"] = self.scores.clone()
        return tensors, {"seen": self.seen, "notes": self.notes, "grid": grid}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        self.clear()
        self.seen, self.notes = values["seen"], values["notes"]
        if rows := take_group(tensors, "rows"):
            grid = None if values["grid"] is None else tuple(values["grid"])
            self.batch = Batch(**rows, channels=take_group(tensors, "channels"), grid=grid)
            self.payload, self.scores = take_group(tensors, "payload"), tensors["scores"]


class Recent(Buffer):
    """All rows of the last `experiences` experiences; every offer is one experience. payload "experience": (M,) its
    number, from 0 on. The size is not bounded by `capacity`.
    """

    def __init__(self, experiences: int) -> None:
        if experiences < 0:
            raise SegueError(f"the last {experiences} experiences cannot be kept: give 0 or more")
        super().__init__(1)
        self.experiences = experiences

    def offer(self, batch: Batch, payload: Mapping[str, Tensor] | Callable[[Batch], Mapping[str, Tensor]] | None = None,
              model: nn.Module | None = None) -> Tensor:
        rows, count = batch.to("cpu"), len(batch.targets)
        tensors = payload(rows) if callable(payload) else payload or {}
        number = self.notes.get("experiences", 0)
        tensors = {name: values.detach().cpu() for name, values in tensors.items()} | \
            {"experience": torch.full((count,), number)}
        self.notes["experiences"], self.seen = number + 1, self.seen + count
        if self.batch is not None:
            rows = Batch.join([self.batch, rows])
            tensors = {name: torch.cat([self.payload[name], values]) for name, values in tensors.items()}
        kept = (tensors["experience"] > number - self.experiences).nonzero()[:, 0]
        self.batch = rows.rows(kept) if len(kept) else None
        self.payload = {name: values[kept] for name, values in tensors.items()} if len(kept) else {}
        return torch.arange(count if self.experiences else 0)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """(min(n, M),) long: indices of random rows, without repeats, spread evenly over the classes."""
        order, occurrences = torch.randperm(len(self), generator=generator).tolist(), Counter[int]()
        labels = labels_of(self.batch) if self.batch is not None else []
        ranks = []
        for row in order:
            occurrences[labels[row]] += 1
            ranks.append(occurrences[labels[row]])
        return torch.tensor([order[i] for i in np.argsort(ranks, kind="stable")[:n]], dtype=torch.long)


def quantise_rows(x: Tensor, groups: Tensor) -> dict[str, Tensor]:
    """Quantise real numbers (M, ...) to bytes: a payload of "codes", (M, ...) uint8, and "low" and "step", (M,), the
    least number and the step of each row's group. The error is at most half a step, range / 510.

    groups: (M,) long, the group of each row.
    """
    flat = x.detach().flatten(1)
    low, step = flat.new_zeros(len(x)), flat.new_zeros(len(x))
    for group in groups.unique():
        rows = groups == group
        low[rows] = flat[rows].min()
        step[rows] = (flat[rows].max() - flat[rows].min()) / 255
    codes = ((flat - low[:, None]) / torch.where(step > 0, step, 1)[:, None]).round().clamp(0, 255)
    return {"codes": codes.to(torch.uint8).view_as(x), "low": low, "step": step}


def dequantise_rows(payload: Mapping[str, Tensor]) -> Tensor:
    """The approximate numbers (M, ...) of a payload by `quantise_rows`."""
    codes, low, step = payload["codes"], payload["low"], payload["step"]
    shape = (-1, *[1] * (codes.dim() - 1))
    return codes.to(low) * step.view(shape) + low.view(shape)


# Policies. Each returns the slot for every row of the batch, offered one after the other; -1: the row is not stored.

Update = Callable[[Buffer, Batch, "nn.Module | None"], list[int]]


def labels_of(batch: Batch) -> list[int]:
    """The class of each row: its last target."""
    target_mask = batch.targets >= 0
    if not bool(target_mask.any(1).all()):
        raise SegueError("a row without a target has no class")
    last = target_mask.shape[1] - 1 - target_mask.int().flip(1).argmax(1)
    return batch.targets.gather(1, last[:, None])[:, 0].tolist()


def require_model(model: nn.Module | None) -> nn.Module:
    if model is None:
        raise SegueError("this buffer's policy needs the model: give it to offer()")
    return model


def reservoir(buffer: Buffer, batch: Batch, model: nn.Module | None) -> list[int]:
    """Reservoir sampling: every row ever offered is stored with the same probability (Vitter 1985)."""
    return [reservoir_slot(buffer.seed, buffer.seen + i, buffer.capacity) for i in range(len(batch.targets))]


def balanced(buffer: Buffer, batch: Batch, model: nn.Module | None) -> list[int]:
    """Class-balancing reservoir sampling (Chrysakis & Moens 2020): a full buffer replaces a row of a largest class by a
    row of a smaller one. A row's class is its last target."""
    labels = [] if buffer.batch is None else labels_of(buffer.batch)
    seen: dict[str, int] = buffer.notes.setdefault("seen", {})
    full: list[int] = buffer.notes.setdefault("full", [])  # classes that have been the largest
    slots = []
    for i, label in enumerate(labels_of(batch)):
        seen[str(label)] = seen.get(str(label), 0) + 1
        if len(labels) < buffer.capacity:
            labels.append(label)
            slots.append(len(labels) - 1)
            continue
        sizes = Counter(labels)
        largest_size = max(sizes.values())
        full += sorted(c for c, size in sizes.items() if size == largest_size and c not in full)
        bits = splitmix_bits(buffer.seed, buffer.seen + i)
        slot = -1
        if label not in full:
            largest = [index for index, c in enumerate(labels) if sizes[c] == largest_size]
            slot = largest[bits * len(largest) >> 64]
        elif (rank := bits * seen[str(label)] >> 64) < sizes[label]:
            slot = [index for index, c in enumerate(labels) if c == label][rank]
        if slot >= 0:
            labels[slot] = label
        slots.append(slot)
    return slots


def first_of_class(buffer: Buffer, batch: Batch, model: nn.Module | None, of_class: int = 25) -> list[int]:
    """Store the first `of_class` rows of each class, while there is room."""
    size, seen = len(buffer), Counter([] if buffer.batch is None else labels_of(buffer.batch))
    slots = []
    for label in labels_of(batch):
        stays = seen[label] < of_class and size < buffer.capacity
        slots.append(size if stays else -1)
        size, seen[label] = size + stays, seen[label] + stays
    return slots


def highest_loss(buffer: Buffer, batch: Batch, model: nn.Module | None) -> list[int]:
    """Keep the rows with the highest loss when they were offered (Aljundi et al. 2019, arXiv 1812.03596)."""
    size, slots = len(buffer), []
    for loss in row_nats(require_model(model), batch).tolist():
        slot = size if size < buffer.capacity else int(buffer.scores.argmin())
        if size == buffer.capacity and loss <= float(buffer.scores[slot]):
            slot = -1
        else:
            buffer.scores[slot] = loss
        size = max(size, slot + 1)
        slots.append(slot)
    return slots


def greedy_gradients(buffer: Buffer, batch: Batch, model: nn.Module | None, compared: int = 10) -> list[int]:
    """GSS-greedy (Aljundi et al. 2019, arXiv 1903.08671): keep rows whose gradients point in different directions.

    A row's score is 1 + the largest cosine of its gradient with those of `compared` random rows of the buffer (drawn
    once for the batch) and of the batch's rows that were stored. If the buffer is full, a row of score c < 1 competes
    with a stored row, drawn with probability proportional to its score C, and replaces it with probability C / (C + c).
    Scores are not updated later. Holds (rows + compared) gradients at a time.
    """
    model, draw = require_model(model), np.random.default_rng((buffer.seed, buffer.seen))
    size, slots = len(buffer), []

    def directions(rows: Batch) -> list[Tensor]:
        flat = [torch.cat([g.flatten() for g in gradients]).float() for gradients in row_gradients(model, rows)]
        return [g / g.norm().clamp(min=1e-12) for g in flat]

    compared_directions = directions(buffer.rows(torch.from_numpy(draw.permutation(size)[:compared]))) if size else []
    for direction in directions(batch):
        score = 1 + max((float(direction @ known) for known in compared_directions), default=0.0)
        slot = -1
        if size < buffer.capacity:
            slot, size = size, size + 1
        elif score < 1:
            scores = buffer.scores.double().clamp(min=1e-12).numpy()
            slot_drawn = int(draw.choice(size, p=scores / scores.sum()))
            if draw.random() < scores[slot_drawn] / (scores[slot_drawn] + score):
                slot = slot_drawn
        if slot >= 0:
            buffer.scores[slot] = score
            compared_directions.append(direction)
        slots.append(slot)
    return slots


UPDATES: dict[str, Update] = {"reservoir": reservoir, "balanced": balanced, "first": first_of_class,
                              "hardest": highest_loss, "gss": greedy_gradients}
