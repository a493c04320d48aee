"""Continual learning in a sparse network: the units that an experience uses are frozen afterwards, free ones get new
connections, and activations of the last experiences are replayed (SHARP, Gurbuz et al. 2023, arXiv 2305.18563)."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segue.continual.buffer import Buffer, Recent, dequantise_rows, first_of_class, labels_of, quantise_rows
from segue.continual.episodes import live_mask
from segue.errors import SegueError
from segue.models.classify import Classifier, NeighbourHead
from segue.models.sparse import SparseNetwork
from segue.objectives import Batch, generator_of
from segue.objectives.contrastive import ACTIVATIONS, RECALLED, target_features
from segue.training.checkpoint import join_groups, take_group
from segue.training.loop import Run
from segue.training.strategy import Strategy

SAMPLE = 1024  # rows that a unit's activity is measured on


def selection(phase: int, period: float = 30.0, least: float = 0.4) -> float:
    """The share of a layer's activity that its selected units must make up in phase 0, 1, ...: 1/2 (1 + cos(pi t /
    period)) at t = phase + 1, at least `least`."""
    return max(least, 0.5 * (1 + math.cos(math.pi * min(1.0, (phase + 1) / period))))


class Sharp(Strategy):
    """For a `Classifier` of a `SparseNetwork` with `NeighbourHead(cosine=True)`, learned with `SupCon`.

    An experience has phases. Each starts with a selection of units (`SparseNetwork.choose`, `selection`), new
    connections, and a new optimiser. At the end of an experience, units age and freeze (early layers at once, late ones
    after the experience has left the memory, so that its stored activations stay valid), the activations of its first
    rows at the layer E are stored as bytes, free units are reinitialised, and the head takes some of the same rows as
    examples, compared by the units selected so far only. After an experience has left the memory, the outputs of those
    units are fixed bit for bit, under any optimiser.

    phases: per experience. recent: experiences in the memory (S; 0: none); a step replays as many of their rows as it
    has new ones, spread evenly over their classes. per_class: rows of each class that are stored. examples: how many of
    these the head takes. period, least: see `selection`. freeze: whether units freeze. quantise: store activations as
    bytes, one range for each class, else unchanged. seed: of the connections.

    Warns at the first connections without a free unit: from then on the network gets sparser.
    """

    name = "sharp"

    def __init__(self, phases: int = 10, recent: int = 1, per_class: int = 25, examples: int = 25,
                 period: float = 30.0, least: float = 0.4, freeze: bool = True, quantise: bool = True,
                 seed: int = 0) -> None:
        if phases < 1 or recent < 0 or min(per_class, examples) < 1 or period <= 0 or not 0 < least <= 1:
            raise SegueError(f"{phases} phases, {recent} recent experiences, {per_class} rows and {examples} examples "
                             f"of a class, a period of {period} and a least share of {least} do not fit: all are above "
                             "0, recent 0 or more, and the share at most 1")
        self.phases, self.recent, self.examples, self.period, self.least = phases, recent, examples, period, least
        self.freeze, self.quantise, self.seed = freeze, quantise, seed
        self.fresh = Buffer(1 << 16, partial(first_of_class, of_class=per_class))  # raw rows of this experience
        self.new: Batch | None = None  # of this step
        self.memory = Recent(recent)  # activations, in place of tokens
        self.learned = 0  # experiences
        self.full = False  # whether the warning of exhausted capacity was given

    @property
    def bytes(self) -> int:
        """Size of the memory in bytes, with the ranges, without targets."""
        values = {name: x for name, x in self.memory.payload.items() if name != "experience"}
        return sum(x.numel() * x.element_size() for x in values.values())

    def parts(self, run: Run) -> tuple[Classifier, SparseNetwork, NeighbourHead]:
        model = run.model
        if not (isinstance(model, Classifier) and isinstance(model.backbone, SparseNetwork) and not model.pool and
                isinstance(model.head, NeighbourHead) and model.head.cosine):
            raise SegueError("strategy sharp rewires a sparse network: give a Classifier of a SparseNetwork and a "
                             "NeighbourHead with cosine=True, without pool")
        return model, model.backbone, model.head

    def before_experience(self, run: Run) -> None:
        self.parts(run)

    def before_step(self, run: Run, batch: Batch) -> Batch:
        starts = {round(i * run.plan.steps / self.phases): i for i in range(self.phases)}
        if run.step in starts:
            self.begin_phase(run, starts[run.step])
        self.new = batch
        drawn = self.memory.draw(len(batch.targets), run.generator())
        if not len(drawn):
            return batch
        old = self.recall(drawn, batch)
        width = old.channels[ACTIVATIONS].shape[-1]
        blank_channels = {RECALLED: torch.zeros(batch.targets.shape, dtype=torch.bool),
                          ACTIVATIONS: torch.zeros(*batch.targets.shape, width)}
        return Batch.join([replace(batch, channels=blank_channels), old])

    def begin_phase(self, run: Run, phase: int) -> None:
        _, network, _ = self.parts(run)
        sample, step = [run.batches(0)], 1
        while step < run.plan.steps and sum(len(rows.targets) for rows in sample) < SAMPLE:
            sample.append(run.batches(step))
            step += 1
        rows = Batch.join(sample).rows(slice(0, SAMPLE)).to(run.device)
        counts = rows.targets >= 0 if network.pointwise() else live_mask(rows)
        network.choose(network.activity(rows.tokens, rows.layout, counts), selection(phase, self.period, self.least))
        missing = network.rewire(generator_of(self.seed, self.learned * self.phases + phase))
        if missing and not self.full:
            warnings.warn(f"the network is full: {missing} connections found no free unit in experience "
                          f"{self.learned + 1}; give it wider layers, or a smaller least share", stacklevel=2)
            self.full = True
        run.optimiser = run.make_optimiser()

    def after_step(self, run: Run) -> None:
        if self.new is not None:
            self.fresh.offer(self.new)

    def recall(self, indices: Tensor, like: Batch) -> Batch:
        """These rows of the memory as a batch of blank elements of the shape of `like`, with their activations at the
        layer E as a channel."""
        old, payload = self.memory.rows(indices), {name: x[indices] for name, x in self.memory.payload.items()}
        h, targets = dequantise_rows(payload) if self.quantise else payload["exact"], old.targets
        length = like.targets.shape[1]
        if h.dim() == 2:  # of the target element only
            h, targets = F.pad(h[:, None], (0, 0, length - 1, 0)), F.pad(targets, (length - 1, 0), value=-1)
        blank = like.tokens.new_zeros(len(indices), *like.tokens.shape[1:])
        return Batch(blank, targets, channels={RECALLED: torch.ones(targets.shape, dtype=torch.bool), ACTIVATIONS: h})

    def after_experience(self, run: Run) -> None:
        model, network, head = self.parts(run)
        never = 1 << 20
        network.promote(*((1, self.recent + 1) if self.freeze else (never, never)))
        assert self.fresh.batch is not None
        rows = self.fresh.batch.to(run.device)
        generator = generator_of(self.seed, -1 - self.learned)
        for layer in network.masked:
            layer.renew(layer.types == 0, generator)
        with torch.no_grad():
            for number in set(self.memory.payload.get("experience", torch.empty(0)).tolist()):
                recalled_rows = self.recall((self.memory.payload["experience"] == number).nonzero()[:, 0], rows)
                self.refresh(run, recalled_rows.to(run.device), age=self.learned - number)
            self.refresh(run, rows, age=0)
            h = network.features(rows.tokens, rows.layout)
        targets = rows.targets
        if network.pointwise(network.early) and bool(((targets >= 0).sum(1) == 1).all()):
            h, targets = h[targets >= 0], targets[targets >= 0][:, None]
        labels = torch.tensor(labels_of(rows), device=h.device)
        self.memory.offer(Batch(torch.zeros_like(targets), targets),
                          quantise_rows(h, labels) if self.quantise else {"exact": h})
        model.mark_seen(labels)
        self.fresh.clear()
        self.learned += 1

    def refresh(self, run: Run, rows: Batch, age: int) -> None:
        """Replace the head's examples of these rows' classes, learned `age` experiences ago, and their units."""
        _, network, head = self.parts(run)
        chosen = torch.tensor(first_of_class(Buffer(len(rows.targets)), rows.to("cpu"), None, self.examples)) >= 0
        features, labels = target_features(network, rows.rows(chosen.to(rows.targets.device)))
        head.forget(labels.unique())
        head.add_examples(features, labels)
        head.units[labels.unique()] = network.masked[-1].types >= 2 + age

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors: dict[str, Tensor] = {}
        values: dict[str, Any] = {"learned": self.learned, "full": self.full}
        for name, buffer in (("fresh", self.fresh), ("memory", self.memory)):
            buffer_tensors, values[name] = buffer.state()
            tensors |= join_groups({name: buffer_tensors})
        return tensors, values

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        self.learned, self.full = values["learned"], values["full"]
        for name, buffer in (("fresh", self.fresh), ("memory", self.memory)):
            buffer.load_state(take_group(tensors, name), values[name])
