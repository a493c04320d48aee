"""How well a model predicts: each position of each document scored once, beside baselines on the same positions."""

from __future__ import annotations

import copy
import lzma
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from segue.analysis.metrics import ranks
from segue.analysis.ranking import Ranking, ranking
from segue.errors import SegueError
from segue.mixers.layout import Layout
from segue.models import Stack
from segue.models.base import Decodable, mask_tokens
from segue.objectives.diffusion import questions
from segue.objectives.masked import isin, padding_starts
from segue.progress import Shown
from segue.training.batches import Store

if TYPE_CHECKING:
    from rich.console import RenderableType

    from segue.data import TokenStore
    from segue.kinds import Codec
    from segue.models.advised import Advisor
    from segue.models.counts import CountModel

BINS = 15  # of the calibration error
TOPS = (1, 5, 10)
DRAWS = 2000  # of the bootstrap
AT_ONCE = 1 << 22  # scores that are ranked
CELLS = 1 << 23  # probabilities held at once
OURS = "this model"
SHOWN = 9  # columns with forecasts, of those and their mean


@dataclass
class Scored:
    """Sums over the positions of each document (D documents): nats (D,), counts (D,), hits (D, 3) among the TOPS most
    probable; and over all of them, by confidence: how many, their confidence, how many right (BINS,) each."""

    nats: np.ndarray
    counts: np.ndarray
    hits: np.ndarray
    bins: np.ndarray

    @property
    def mean(self) -> float:
        """Nats per element."""
        return float(self.nats.sum() / max(1, self.counts.sum()))


@dataclass
class Evaluation(Shown):
    """unit: what a base unit is (byte, base, residue, event). bits_per_unit: with its 95% interval over documents.
    bits_per_element, perplexity: per token. top: share of elements among the k most probable. calibration_error:
    expected, between confidence and accuracy of the most probable element, over 15 bins. baselines: bits per unit.
    ranking: where elements are items, accuracy, HR@10, NDCG@10 and MRR (see `Ranks`) of this model and of those
    baselines that rank items, by name. forecasts: of measured numbers, by column, method and measure, errors of
    forecasts."""

    unit: str
    documents: int
    units: int
    elements: int
    bits_per_unit: float
    interval: tuple[float, float]
    bits_per_element: float
    perplexity: float
    top: dict[str, float]
    calibration_error: float
    baselines: dict[str, float]
    path: str
    notes: list[str] = field(default_factory=list)
    ranking: dict[str, dict[str, float]] = field(default_factory=dict)
    forecasts: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        measures = list(next(iter(self.ranking.values()), {}))
        table = Table("", f"bits per {self.unit}", *measures, box=None)
        low, high = self.interval
        rows = [(OURS, self.bits_per_unit, f"  (95%: {low:.3f} to {high:.3f})" if low < high else "")]
        rows += [(name, bits, "") for name, bits in self.baselines.items()]
        for name, bits, more in sorted(rows, key=lambda row: row[1]):
            ranked = self.ranking.get(name, {})
            table.add_row(Text(name, style="bold" if name == OURS else ""), f"{bits:.3f}{more}",
                          *(f"{ranked[measure]:.3f}" if ranked else "" for measure in measures))
        shown = dict(list(self.forecasts.items())[-SHOWN:])
        errors = [Table(column, *next(iter(rows.values())), box=None) for column, rows in shown.items()]
        for each, methods in zip(errors, shown.values()):
            for name, told in methods.items():
                each.add_row(Text(name, style="bold" if name == OURS else ""), *(f"{v:.4g}" for v in told.values()))
        tops = ", ".join(f"{share:.1%} in the top {k}" for k, share in self.top.items())
        return Group(table, Text(
            f"{self.documents:,} documents, {self.units:,} {self.unit}s, {self.elements:,} elements: "
            f"{self.bits_per_element:.3f} bits per element (perplexity {self.perplexity:.2f}), {tops}, "
            f"calibration error {self.calibration_error:.3f}"), *errors,
            Text(f"run by: {self.path}"), *map(Text, self.notes))


class Ranks:
    """Collects how high each item of the documents in `store` is ranked among all items (`segue.analysis.ranking`).

    items: the first so many ids are items; the one behind them stands for items that are unknown, and is a miss.
    fresh: whether no document holds an item twice. If so, what a document held before is no candidate.
    """

    def __init__(self, store: Store, items: int) -> None:
        self.items, self.found = items, list[np.ndarray]()
        self.documents = [np.asarray(store.tokens[int(begin) : int(end)], np.int64)
                          for begin, end in zip(store.offsets[:-1], store.offsets[1:])]
        known = [part[part < items] for part in self.documents]
        self.fresh = any(map(len, known)) and all(len(part) == len(np.unique(part)) for part in known)

    def add(self, scores: np.ndarray, targets: np.ndarray, documents: np.ndarray) -> None:
        """scores (N, V), targets (N,), documents (N,): which one each is of."""
        found = np.full(len(targets), np.inf)
        known = np.flatnonzero(targets < self.items)
        for some in np.array_split(known, -(-known.size * self.items // AT_ONCE)) if known.size else ():
            seen = None
            if self.fresh:  # so a target says where in its document it stands
                of = [(self.documents[d], t) for d, t in zip(documents[some].tolist(), targets[some].tolist())]
                before = [part[: np.flatnonzero(part == t)[0]] for part, t in of]
                seen = [part[part < self.items] for part in before]
            found[some] = ranks(scores[some, : self.items], targets[some], seen=seen)
        self.found.append(found[targets <= self.items])  # the end of a sequence is no item

    def another(self) -> Ranks:
        """An empty one, for another model on the same documents."""
        other = copy.copy(self)
        other.found = []
        return other

    def done(self) -> Ranking:
        return ranking(np.concatenate([np.empty(0), *self.found]))


class Tally:
    """Collects scores of logits, document by document; and ranks, where it is given some to add to."""

    def __init__(self, documents: int, ranks: Ranks | None = None) -> None:
        self.ranks = ranks
        self.nats, self.counts = np.zeros(documents), np.zeros(documents, dtype=np.int64)
        self.hits = np.zeros((documents, len(TOPS)))
        self.bins = np.zeros((3, BINS))

    def add(self, logits: Tensor, targets: Tensor, documents: Tensor, weights: Tensor | None = None) -> None:
        """logits (N, V), targets (N,), documents (N,): which one each is of. weights: (N,) how often each counts; the
        caller then knows the counts."""
        logits = logits.float()
        size = len(self.nats)
        lse = logits.logsumexp(-1)
        given = logits.gather(1, targets[:, None])[:, 0]
        times = torch.ones_like(lse, dtype=torch.float64) if weights is None else weights
        nats = (lse - given).double() * times
        rank = (logits > given[:, None]).sum(1)
        confidence = (logits.amax(-1) - lse).exp().double()
        if self.ranks is not None:
            self.ranks.add(logits.cpu().numpy(), targets.cpu().numpy(), documents.cpu().numpy())
        self.nats += torch.bincount(documents, nats, size).cpu().numpy()
        if weights is None:
            self.counts += torch.bincount(documents, minlength=size).cpu().numpy()
        for i, k in enumerate(TOPS):
            self.hits[:, i] += torch.bincount(documents, times * (rank < k), size).cpu().numpy()
        bucket = (confidence * BINS).long().clamp(max=BINS - 1)
        right = (rank == 0).double()
        for i, weight in enumerate((torch.ones_like(confidence), confidence, right)):
            self.bins[i] += torch.bincount(bucket, times * weight, BINS).cpu().numpy()

    def done(self) -> Scored:
        return Scored(self.nats, self.counts, self.hits, self.bins)


@torch.no_grad()
def score(model: Decodable, store: Store, context: int | None = None, rows: int = 16, limit: int | None = None,
          overlap: float = 0.5, precision: str = "float32", ranks: Ranks | None = None) -> Scored:
    """Score each predicted position of each document of `store` once.

    context: elements the model was trained to see at once. None carries the state through whole documents (right for
    states of constant size); otherwise windows of that length are used, of which all but the first score only what
    has `overlap` x context before it. limit: about so many elements, spread evenly over the documents, and no more.
    ranks: to add to, if given.
    """
    offsets = np.asarray(store.offsets)
    predicted = np.diff(offsets) - 1
    tally = Tally(len(predicted), ranks)
    device = next(model.parameters()).device if isinstance(model, nn.Module) else "cpu"
    with torch.autocast(str(device).split(":")[0], torch.bfloat16, enabled=precision == "bfloat16"):
        if context is None:
            _score_whole(model, store, offsets, predicted, rows, tally, device)
        else:
            _score_windows(model, store, offsets, predicted, context, rows, limit, overlap, tally, device)
    return tally.done()


@torch.no_grad()
def bound(model: Stack, store: Store, context: int, rows: int = 16, limit: int | None = None, overlap: float = 0.5,
          precision: str = "float32", draws: int = 8, seed: int = 0, known: Sequence[int] = ()) -> Scored:
    """As `score`, of a stack that fills in masks (`MaskedDiffusion`): nats are an upper bound, estimated without bias,
    over random orders of the elements; hits and confidence are likewise those in random order. draws: passes. known:
    ids that are given wherever they stand, and not scored."""
    offsets = np.asarray(store.offsets)
    predicted = np.diff(offsets) - 1
    table, tally = some_windows(offsets, predicted, context, overlap, limit), Tally(len(predicted))
    scored = np.zeros_like(predicted)
    mask, device, generator = model.vocabulary - 1, model.embedding.weight.device, torch.Generator().manual_seed(seed)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        for at in range(0, len(table), rows):
            part = table[at : at + rows]
            ids, live = ids_of(store, part, device)
            clean, documents = ids[:, 1:], torch.from_numpy(part[:, 0]).to(device)[:, None].expand(live.shape)
            live = live & ~isin(clean, known)
            starts = padding_starts(torch.from_numpy(part[:, 2]).to(device), clean.shape[1])
            layout = Layout.chain((clean.shape[0], clean.shape[1]), starts=starts, device=device)
            scored += np.bincount(part[:, 0], live.sum(1).cpu().numpy(), len(scored)).astype(np.int64)
            for hidden, weights in questions(live, draws, generator):
                logits = mask_tokens(model(clean.masked_fill(hidden, mask), layout).logits[hidden][:, :mask], known)
                tally.add(logits, clean[hidden], documents[hidden], weights[:, None].expand(live.shape)[hidden])
    return replace(tally.done(), counts=scored)


def windows(offsets: np.ndarray, predicted: np.ndarray, context: int, overlap: float) -> np.ndarray:
    """(W, 4): document, first token, length, and how many leading positions are context only."""
    step = max(1, context - int(overlap * context))
    found = []
    for document in np.flatnonzero(predicted > 0):
        n, first = int(predicted[document]), int(offsets[document])
        found.append((document, first, min(n, context), 0))
        done = min(n, context)
        while done < n:
            end = min(n, done + step)
            begin = max(0, end - context)
            found.append((document, first + begin, end - begin, done - begin))
            done = end
    return np.array(found, dtype=np.int64).reshape(-1, 4)


def some_windows(offsets: np.ndarray, predicted: np.ndarray, context: int, overlap: float,
                 limit: int | None) -> np.ndarray:
    """The windows of about `limit` elements, evenly spread, or all of them; the longest first."""
    table = windows(offsets, predicted, context, overlap)
    if limit is not None and table[:, 2].sum() > limit:
        keep = max(1, int(len(table) * limit / table[:, 2].sum()))
        table = table[np.linspace(0, len(table) - 1, keep).astype(np.int64)]
    return table[np.argsort(-table[:, 2], kind="stable")]


def ids_of(store: Store, part: np.ndarray, device: Any) -> tuple[Tensor, Tensor]:
    """The ids of some windows (B, N + 1), padded, and which of all but the first are scored (B, N)."""
    column = np.arange(int(part[:, 2].max()))
    index = np.minimum(part[:, 1, None] + np.arange(len(column) + 1), len(store.tokens) - 1)
    live = torch.from_numpy((column < part[:, 2, None]) & (column >= part[:, 3, None]))
    return torch.from_numpy(store.tokens[index].astype(np.int64)).to(device), live.to(device)


def _score_windows(model: Any, store: Store, offsets: np.ndarray, predicted: np.ndarray, context: int, rows: int,
                   limit: int | None, overlap: float, tally: Tally, device: Any) -> None:
    table = some_windows(offsets, predicted, context, overlap, limit)
    for at in range(0, len(table), rows):
        part = table[at : at + rows]
        ids, live = ids_of(store, part, device)
        n = live.shape[1]
        if isinstance(model, nn.Module):
            logits = model(ids[:, :-1]).logits
        else:
            logits = model.extend(ids[:, :-1], model.init_state(len(part))).logits
        documents = torch.from_numpy(part[:, 0]).to(device)[:, None].expand(-1, n)
        tally.add(logits[live], ids[:, 1:][live], documents[live])


def _score_whole(model: Decodable, store: Store, offsets: np.ndarray, predicted: np.ndarray, rows: int, tally: Tally,
                 device: Any) -> None:
    """Carry the state through whole documents, the longest ones first."""
    order = np.argsort(-predicted, kind="stable")
    order = order[predicted[order] > 0]
    for at in range(0, len(order), rows):
        group = order[at : at + rows]
        state = model.init_state(len(group))
        for begin in range(0, int(predicted[group[0]]), 256):
            going = int((predicted[group] > begin).sum())  # sorted: the rows still going are the first ones
            if going < len(group):
                group = group[:going]
                state = state.select(torch.arange(going, device=device))
            n = min(256, int(predicted[group[0]]) - begin)
            index = np.minimum(offsets[group, None] + begin + np.arange(n + 1), len(store.tokens) - 1)
            ids = torch.from_numpy(store.tokens[index].astype(np.int64)).to(device)
            live = torch.from_numpy(begin + np.arange(n) < predicted[group, None]).to(device)
            logits = model.extend(ids[:, :-1], state).logits
            state.commit()
            documents = torch.from_numpy(group).to(device)[:, None].expand(-1, n)
            tally.add(logits[live], ids[:, 1:][live], documents[live])


def bits_interval(nats: np.ndarray, units: np.ndarray) -> tuple[float, float]:
    """95% of the bits per unit when documents are drawn again (bootstrap). One document has no interval: its value."""
    live = units > 0
    nats, units = nats[live], units[live]
    if len(units) < 2:
        value = float(nats.sum() / max(1, units.sum()) / math.log(2))
        return value, value
    draw = np.random.default_rng(0)
    ratios = []
    for _ in range(DRAWS):
        weight = np.bincount(draw.integers(0, len(units), len(units)), minlength=len(units))
        ratios.append((weight @ nats) / (weight @ units) / math.log(2))
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(low), float(high)


def targets_of(store: Store) -> Iterator[np.ndarray]:
    """The predicted tokens of each document."""
    for begin, end in zip(store.offsets[:-1], store.offsets[1:]):
        yield np.asarray(store.tokens[int(begin) + 1 : max(int(begin) + 1, int(end))])


def predicted_units(store: TokenStore, codec: Codec) -> np.ndarray:
    """(D,) base units of what is predicted of each document: all, but for those of its first token where nothing stands
    before it (a part cut out of a longer document has no begin)."""
    units = np.array(store.units)
    some = np.flatnonzero(np.diff(store.offsets) > 0)
    first = np.asarray(store.tokens[store.offsets[some]], dtype=np.int64)
    units[some] -= np.where(first == codec.bos, 0, codec.weights()[first]) if codec.bos is not None else \
        codec.weights()[first]
    return units


def unigram_nats(counts: np.ndarray, store: Store) -> float:
    """Nats of all predicted tokens under frequencies with one half added to each count."""
    counts = np.asarray(counts, dtype=np.float64) + 0.5
    cost = np.log(counts.sum()) - np.log(counts)
    return float(sum(cost[part].sum() for part in targets_of(store)))


def uniform_bits(counts: np.ndarray, store: TokenStore, weights: np.ndarray) -> float:
    """Bits of all predicted tokens but ends, if those that there are (of `counts`, or here) were all as likely: of DNA
    that has no other bases than ACGT two for each. weights: (size,), 0 for specials."""
    there = np.asarray(counts) + np.bincount(store.tokens, minlength=len(weights))
    kinds = max(1, int(np.count_nonzero((there > 0) & (weights > 0))))
    return math.log2(kinds) * sum(int(np.count_nonzero(weights[part])) for part in targets_of(store))


def xz_bits(contents: bytes) -> int:
    """Bits of what `xz -9e` makes of it."""
    return 8 * len(lzma.compress(contents, preset=9 | lzma.PRESET_EXTREME))


def ranked_by(counts: CountModel, store: Store, ranks: Ranks) -> Ranking:
    """How high a count model ranks the items of the documents."""
    nats_by(counts, store, ranks)
    return ranks.done()


def nats_by(model: CountModel | Advisor, store: Store, ranks: Ranks | None = None) -> float:
    """Nats of all tokens of the documents but the first of each, by what predicts whole sequences. ranks: to add to, if
    given."""
    nats, piece = 0.0, min(1024, max(64, CELLS // model.vocabulary))
    for number, (begin, end) in enumerate(zip(store.offsets[:-1], store.offsets[1:])):
        ids = np.asarray(store.tokens[int(begin) : int(end)], np.int32)
        for at in range(1, len(ids), piece):
            chances, targets = model.predictions(ids, at, at + piece), ids[at : at + piece].astype(np.int64)
            nats -= float(np.log(np.maximum(chances[np.arange(len(targets)), targets], 1e-300)).sum())
            if ranks is not None:
                ranks.add(chances, targets, np.full(len(chances), number))
    return nats


def summarise(scored: Scored, units: np.ndarray, unit: str, path: str, baselines: dict[str, float],
              notes: list[str] | None = None, ranked: dict[str, Ranking] | None = None) -> Evaluation:
    """Sums -> the numbers of a report. units: (D,) base units of each document. ranked: by name, see `Evaluation`."""
    elements = int(scored.counts.sum())
    if not elements or not units.sum():
        raise SegueError("there is nothing to score: every sequence has fewer than two elements")
    many, confidence, right = scored.bins
    return Evaluation(
        unit, len(scored.nats), int(units.sum()), elements,
        float(scored.nats.sum() / units.sum() / math.log(2)), bits_interval(scored.nats, units),
        scored.mean / math.log(2), math.exp(min(scored.mean, 700.0)),
        {str(k): float(scored.hits[:, i].sum() / elements) for i, k in enumerate(TOPS)},
        float(np.abs(confidence - right).sum() / max(1.0, many.sum())), baselines, path, notes or [],
        {name: {"accuracy": each.hits[1], "HR@10": each.hits[10], "NDCG@10": each.ndcg[10], "MRR": each.mrr}
         for name, each in (ranked or {}).items()})
