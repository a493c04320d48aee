"""Evaluation: scores every position of every document once, with baselines on the same positions."""

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
from segue.objectives.diffusion import draw_masks
from segue.objectives.masked import isin, padding_starts
from segue.progress import Shown
from segue.training.batches import Store

if TYPE_CHECKING:
    from rich.console import RenderableType

    from segue.data import TokenStore
    from segue.kinds import Codec
    from segue.models.advised import Advisor
    from segue.models.counts import CountModel

CALIBRATION_BINS = 15
TOPS = (1, 5, 10)  # k of top-k accuracy
BOOTSTRAP_DRAWS = 2000
BOOTSTRAP_ROOM = 1 << 18  # documents that are drawn together
SCORES_AT_ONCE = 1 << 22  # that are ranked
PROBABILITIES_AT_ONCE = 1 << 23  # of a baseline in memory
OURS = "this model"  # its name in tables of methods
SHOWN_COLUMNS = 9  # with forecast errors in a printed report, the mean included


@dataclass
class Scored:
    """Sums over the positions of each of D documents: nats (D,), counts (D,), top-k hits (D, 3) for k in TOPS. bins (3,
    CALIBRATION_BINS): by confidence, the number of all positions, their summed confidence, and how many are right."""

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
    """Results of an evaluation on held-out documents.

    unit: what a base unit is (byte, base, residue, event). bits_per_unit: with its 95% interval over documents.
    bits_per_element, perplexity: per token. top: share of elements among the k most probable. calibration_error:
    expected, between confidence and accuracy of the most probable element, over 15 bins. baselines: bits per unit.
    ranking: where elements are items, accuracy, HR@10, NDCG@10 and MRR (see `RankCollector`) of this model and of those
    baselines that rank items, by name. forecasts: of measured numbers, the errors of forecasts by column, method and
    measure.
    """

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
        for name, bits, interval in sorted(rows, key=lambda row: row[1]):
            ranked = self.ranking.get(name, {})
            table.add_row(Text(name, style="bold" if name == OURS else ""), f"{bits:.3f}{interval}",
                          *(f"{ranked[measure]:.3f}" if ranked else "" for measure in measures))
        last_columns = dict(list(self.forecasts.items())[-SHOWN_COLUMNS:])
        errors = [Table(column, *next(iter(rows.values())), box=None) for column, rows in last_columns.items()]
        for error_table, methods in zip(errors, last_columns.values()):
            for name, values in methods.items():
                error_table.add_row(Text(name, style="bold" if name == OURS else ""),
                                    *(f"{v:.4g}" for v in values.values()))
        tops = ", ".join(f"{share:.1%} in the top {k}" for k, share in self.top.items())
        return Group(table, Text(
            f"{self.documents:,} documents, {self.units:,} {self.unit}s, {self.elements:,} elements: "
            f"{self.bits_per_element:.3f} bits per element (perplexity {self.perplexity:.2f}), {tops}, "
            f"calibration error {self.calibration_error:.3f}"), *errors,
            Text(f"run by: {self.path}"), *map(Text, self.notes))


class RankCollector:
    """Collects the rank of each next item among all items (`segue.analysis.ranking`) on the documents in `store`.

    items: ids below are items; the id `items` stands for unknown items and counts as a miss. fresh: whether no document
    contains an item twice; then earlier items of a document are not candidates.
    """

    def __init__(self, store: Store, items: int) -> None:
        self.items, self.found = items, list[np.ndarray]()
        self.documents = [np.asarray(store.tokens[int(start) : int(end)], np.int64)
                          for start, end in zip(store.offsets[:-1], store.offsets[1:])]
        histories = [document[document < items] for document in self.documents]
        self.fresh = any(map(len, histories)) and all(len(ids) == len(np.unique(ids)) for ids in histories)

    def add(self, scores: np.ndarray, targets: np.ndarray, documents: np.ndarray) -> None:
        """Add predictions: scores (N, V), targets (N,), documents (N,) the document number of each."""
        rank_of = np.full(len(targets), np.inf)
        positions = np.flatnonzero(targets < self.items)
        for chunk in np.array_split(positions, -(-positions.size * self.items // SCORES_AT_ONCE)) \
                if positions.size else ():
            history = None
            if self.fresh:  # then the target identifies its position in the document
                pairs = [(self.documents[d], t) for d, t in zip(documents[chunk].tolist(), targets[chunk].tolist())]
                prefixes = [document[: np.flatnonzero(document == t)[0]] for document, t in pairs]
                history = [document[document < self.items] for document in prefixes]
            rank_of[chunk] = ranks(scores[chunk, : self.items], targets[chunk], seen=history)
        self.found.append(rank_of[targets <= self.items])  # the end of a sequence is no item

    def empty_copy(self) -> RankCollector:
        """A collector without ranks, for another model on the same documents."""
        collector = copy.copy(self)
        collector.found = []
        return collector

    def result(self) -> Ranking:
        return ranking(np.concatenate([np.empty(0), *self.found]))


class Tally:
    """Accumulates scores of logits by document, and ranks in a `RankCollector` if there is one."""

    def __init__(self, documents: int, ranks: RankCollector | None = None) -> None:
        self.ranks = ranks
        self.nats, self.counts = np.zeros(documents), np.zeros(documents, dtype=np.int64)
        self.hits = np.zeros((documents, len(TOPS)))
        self.bins = np.zeros((3, CALIBRATION_BINS))

    def add(self, logits: Tensor, targets: Tensor, documents: Tensor, weights: Tensor | None = None) -> None:
        """Add predictions: logits (N, V), targets (N,), documents (N,) the document number of each. weights: (N,) how
        often each counts; the counts are then left to the caller."""
        logits = logits.float()
        size = len(self.nats)
        lse = logits.logsumexp(-1)
        target_logits = logits.gather(1, targets[:, None])[:, 0]
        repeats = torch.ones_like(lse, dtype=torch.float64) if weights is None else weights
        nats = (lse - target_logits).double() * repeats
        # Products in bfloat16 give equal logits; the target is expected among those in any order.
        better, equal = (compare(logits, target_logits[:, None]).sum(1) for compare in (torch.gt, torch.eq))
        confidence = (logits.amax(-1) - lse).exp().double()
        if self.ranks is not None:
            self.ranks.add(logits.cpu().numpy(), targets.cpu().numpy(), documents.cpu().numpy())
        self.nats += torch.bincount(documents, nats, size).cpu().numpy()
        if weights is None:
            self.counts += torch.bincount(documents, minlength=size).cpu().numpy()
        hits = [((k - better).double() / equal.clamp(min=1)).clamp(0, 1) for k in TOPS]
        for i, hit in enumerate(hits):
            self.hits[:, i] += torch.bincount(documents, repeats * hit, size).cpu().numpy()
        bucket = (confidence * CALIBRATION_BINS).nan_to_num().long().clamp(max=CALIBRATION_BINS - 1)
        correct = hits[TOPS.index(1)]
        for i, weight in enumerate((torch.ones_like(confidence), confidence, correct)):
            self.bins[i] += torch.bincount(bucket, repeats * weight, CALIBRATION_BINS).cpu().numpy()

    def result(self) -> Scored:
        return Scored(self.nats, self.counts, self.hits, self.bins)


@torch.no_grad()
def score(model: Decodable, store: Store, context: int | None = None, rows: int = 16, limit: int | None = None,
          overlap: float = 0.5, precision: str = "float32", ranks: RankCollector | None = None) -> Scored:
    """Score each predicted position of each document of `store` once.

    context: the length of windows to read; all but the first window of a document score only what has `overlap` x
    context elements before it. None: carry the state through whole documents (for states of constant size). limit:
    score only about so many elements, spread evenly over the documents. ranks: also collect ranks.
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
    return tally.result()


@torch.no_grad()
def score_bound(model: Stack, store: Store, context: int, rows: int = 16, limit: int | None = None,
                overlap: float = 0.5, precision: str = "float32", draws: int = 8, seed: int = 0,
                known: Sequence[int] = ()) -> Scored:
    """Like `score`, for a masked diffusion model (`MaskedDiffusion`): nats are an unbiased estimate of an upper bound,
    over random orders of the elements, and so are hits and confidence. draws: passes. known: ids that are always
    visible and not scored."""
    offsets = np.asarray(store.offsets)
    predicted = np.diff(offsets) - 1
    table, tally = select_windows(offsets, predicted, context, overlap, limit), Tally(len(predicted))
    scored = np.zeros_like(predicted)
    mask, device, generator = model.vocabulary - 1, model.embedding.weight.device, torch.Generator().manual_seed(seed)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        for i in range(0, len(table), rows):
            windows = table[i : i + rows]
            ids, valid_mask = window_ids(store, windows, device)
            clean, documents = ids[:, 1:], torch.from_numpy(windows[:, 0]).to(device)[:, None].expand(valid_mask.shape)
            valid_mask = valid_mask & ~isin(clean, known)
            starts = padding_starts(torch.from_numpy(windows[:, 2]).to(device), clean.shape[1])
            layout = Layout.chain((clean.shape[0], clean.shape[1]), starts=starts, device=device)
            scored += np.bincount(windows[:, 0], valid_mask.sum(1).cpu().numpy(), len(scored)).astype(np.int64)
            for hidden, weights in draw_masks(valid_mask, draws, generator):
                logits = mask_tokens(model(clean.masked_fill(hidden, mask), layout).logits[hidden][:, :mask], known)
                tally.add(logits, clean[hidden], documents[hidden], weights[:, None].expand(valid_mask.shape)[hidden])
    return replace(tally.result(), counts=scored)


def scoring_windows(offsets: np.ndarray, predicted: np.ndarray, context: int, overlap: float) -> np.ndarray:
    """(W, 4) the windows to score: document, first token, length, and number of leading positions that are context
    only.
    """
    step = max(1, context - int(overlap * context))
    scored = np.flatnonzero(predicted > 0)
    count = 1 + np.maximum(0, -((context - predicted[scored]) // step))
    document = np.repeat(scored, count)
    number = np.arange(len(document)) - np.repeat(np.cumsum(count) - count, count)
    end = np.minimum(predicted[document], context + number * step)
    start = np.maximum(0, end - context)
    known = np.where(number > 0, context + (number - 1) * step - start, 0)
    return np.stack([document, offsets[document] + start, end - start, known], 1).astype(np.int64)


def select_windows(offsets: np.ndarray, predicted: np.ndarray, context: int, overlap: float,
                   limit: int | None) -> np.ndarray:
    """Evenly spread windows with about `limit` elements in all, or all windows; the longest first."""
    table = scoring_windows(offsets, predicted, context, overlap)
    if limit is not None and table[:, 2].sum() > limit:
        num_windows = max(1, int(len(table) * limit / table[:, 2].sum()))
        table = table[np.linspace(0, len(table) - 1, num_windows).astype(np.int64)]
    return table[np.argsort(-table[:, 2], kind="stable")]


def window_ids(store: Store, windows: np.ndarray, device: Any) -> tuple[Tensor, Tensor]:
    """Ids of B windows, padded (B, N + 1), and a mask of the positions after the first that are scored (B, N)."""
    column = np.arange(int(windows[:, 2].max()))
    index = np.minimum(windows[:, 1, None] + np.arange(len(column) + 1), len(store.tokens) - 1)
    valid_mask = torch.from_numpy((column < windows[:, 2, None]) & (column >= windows[:, 3, None]))
    return torch.from_numpy(store.tokens[index].astype(np.int64)).to(device), valid_mask.to(device)


def _score_windows(model: Any, store: Store, offsets: np.ndarray, predicted: np.ndarray, context: int, rows: int,
                   limit: int | None, overlap: float, tally: Tally, device: Any) -> None:
    table = select_windows(offsets, predicted, context, overlap, limit)
    for i in range(0, len(table), rows):
        windows = table[i : i + rows]
        ids, valid_mask = window_ids(store, windows, device)
        n = valid_mask.shape[1]
        if isinstance(model, nn.Module):
            logits = model(ids[:, :-1]).logits
        else:
            logits = model.extend(ids[:, :-1], model.init_state(len(windows))).logits
        documents = torch.from_numpy(windows[:, 0]).to(device)[:, None].expand(-1, n)
        tally.add(logits[valid_mask], ids[:, 1:][valid_mask], documents[valid_mask])


def _score_whole(model: Decodable, store: Store, offsets: np.ndarray, predicted: np.ndarray, rows: int, tally: Tally,
                 device: Any) -> None:
    """Carry the state through whole documents, the longest ones first."""
    order = np.argsort(-predicted, kind="stable")
    order = order[predicted[order] > 0]
    for at in range(0, len(order), rows):
        group = order[at : at + rows]
        state = model.init_state(len(group))
        for begin in range(0, int(predicted[group[0]]), 256):
            num_active = int((predicted[group] > begin).sum())  # sorted: the rows still going are the first ones
            if num_active < len(group):
                group = group[:num_active]
                state = state.select(torch.arange(num_active, device=device))
            n = min(256, int(predicted[group[0]]) - begin)
            index = np.minimum(offsets[group, None] + begin + np.arange(n + 1), len(store.tokens) - 1)
            ids = torch.from_numpy(store.tokens[index].astype(np.int64)).to(device)
            valid_mask = torch.from_numpy(begin + np.arange(n) < predicted[group, None]).to(device)
            logits = model.extend(ids[:, :-1], state).logits
            state.commit()
            documents = torch.from_numpy(group).to(device)[:, None].expand(-1, n)
            tally.add(logits[valid_mask], ids[:, 1:][valid_mask], documents[valid_mask])


def bits_interval(nats: np.ndarray, units: np.ndarray) -> tuple[float, float]:
    """The 95% bootstrap interval over documents of the bits per unit; for one document, its value twice."""
    scored = (units > 0) | (nats > 0)  # of an empty document the end is scored, which is no unit
    nats, units = nats[scored], units[scored]
    if len(units) < 2:
        value = float(nats.sum() / max(1, units.sum()) / math.log(2))
        return value, value
    generator, ratios = np.random.default_rng(0), []
    at_once = max(1, BOOTSTRAP_ROOM // len(units))
    for first in range(0, BOOTSTRAP_DRAWS, at_once):
        drawn = generator.integers(0, len(units), (min(at_once, BOOTSTRAP_DRAWS - first), len(units)))
        total_nats, total_units = nats[drawn].sum(1), units[drawn].sum(1)
        ratios.append(total_nats[total_units > 0] / total_units[total_units > 0] / math.log(2))
    low, high = np.percentile(np.concatenate(ratios), [2.5, 97.5])
    return float(low), float(high)


def targets_of(store: Store) -> Iterator[np.ndarray]:
    """The predicted tokens of each document."""
    for begin, end in zip(store.offsets[:-1], store.offsets[1:]):
        yield np.asarray(store.tokens[int(begin) + 1 : max(int(begin) + 1, int(end))])


def predicted_units(store: TokenStore, codec: Codec) -> np.ndarray:
    """(D,) predicted base units of each document: all, except those of a first token without a begin token before it
    (as in a part of a longer document)."""
    units = np.array(store.units)
    nonempty = np.flatnonzero(np.diff(store.offsets) > 0)
    first_tokens = np.asarray(store.tokens[store.offsets[nonempty]], dtype=np.int64)
    units[nonempty] -= np.where(first_tokens == codec.bos, 0, codec.weights()[first_tokens]) \
        if codec.bos is not None else codec.weights()[first_tokens]
    return units


def unigram_nats(counts: np.ndarray, store: Store) -> float:
    """Nats of all predicted tokens by token frequencies, with one half added to each count."""
    counts = np.asarray(counts, dtype=np.float64) + 0.5
    cost = np.log(counts.sum()) - np.log(counts)
    return float(sum(cost[part].sum() for part in targets_of(store)))


def uniform_bits(counts: np.ndarray, store: TokenStore, weights: np.ndarray) -> float:
    """Bits of all predicted tokens, special ones excluded, if all tokens that occur (in `counts` or here) were equally
    likely: 2 per base for DNA that only has ACGT. weights: (size,), 0 for special tokens."""
    occurring = np.asarray(counts) + np.bincount(store.tokens, minlength=len(weights))
    kinds = max(1, int(np.count_nonzero((occurring > 0) & (weights > 0))))
    return math.log2(kinds) * sum(int(np.count_nonzero(weights[part])) for part in targets_of(store))


def xz_bits(contents: bytes) -> int:
    """The size in bits after compression with `xz -9e`."""
    return 8 * len(lzma.compress(contents, preset=9 | lzma.PRESET_EXTREME))


def count_model_ranks(counts: CountModel, store: Store, ranks: RankCollector) -> Ranking:
    """The ranking metrics of a count model on the documents."""
    sequence_nats(counts, store, ranks)
    return ranks.result()


def sequence_nats(model: CountModel | Advisor, store: Store, ranks: RankCollector | None = None) -> float:
    """Nats of all tokens of the documents except the first of each, by a model with `predictions`. ranks: also collect
    ranks."""
    nats, piece = 0.0, min(1024, max(64, PROBABILITIES_AT_ONCE // model.vocabulary))
    for number, (begin, end) in enumerate(zip(store.offsets[:-1], store.offsets[1:])):
        ids = np.asarray(store.tokens[int(begin) : int(end)], np.int32)
        for at in range(1, len(ids), piece):
            probabilities, targets = model.predictions(ids, at, at + piece), ids[at : at + piece].astype(np.int64)
            nats -= float(np.log(np.maximum(probabilities[np.arange(len(targets)), targets], 1e-300)).sum())
            if ranks is not None:
                ranks.add(probabilities, targets, np.full(len(probabilities), number))
    return nats


def summarise(scored: Scored, units: np.ndarray, unit: str, path: str, baselines: dict[str, float],
              notes: list[str] | None = None, ranked: dict[str, Ranking] | None = None) -> Evaluation:
    """Make an `Evaluation` of the sums. units: (D,) base units of each document. ranked: ranking metrics by method."""
    elements = int(scored.counts.sum())
    if not elements or not units.sum():
        raise SegueError("there is nothing to score: every sequence has fewer than two elements")
    counts, confidence, correct = scored.bins
    return Evaluation(
        unit, len(scored.nats), int(units.sum()), elements,
        float(scored.nats.sum() / units.sum() / math.log(2)), bits_interval(scored.nats, units),
        scored.mean / math.log(2), math.exp(min(scored.mean, 700.0)),
        {str(k): float(scored.hits[:, i].sum() / elements) for i, k in enumerate(TOPS)},
        float(np.abs(confidence - correct).sum() / max(1.0, counts.sum())), baselines, path, notes or [],
        {name: {"accuracy": metrics.hits[1], "HR@10": metrics.hits[10], "NDCG@10": metrics.ndcg[10], "MRR": metrics.mrr}
         for name, metrics in (ranked or {}).items()})
