"""Count models: Markov models of any order, with back-off, Witten-Bell or Kneser-Ney smoothing, and a learned blend.

They are `Decodable` like every model: they draft, decode in trees and are mixed with networks (`segue.models.mixture`).
`CountModel` is the classical family. `BlendedCounts` also counts the sequence's own past and learns the weight of each
order. Both keep one sorted array of the training stream (`segue.kernels.counts`), which serves all orders.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segue.errors import SegueError, check_choice
from segue.files import atomic_write, read_json, write_json
from segue.kernels import counts as kernel
from segue.mixers.layout import check_commit, check_node_indices, check_parents, check_rows
from segue.models.base import Decoding, Output, check_tokens
from segue.models.one_cycle import one_cycle

PIECE_ELEMENTS = 1024  # elements whose distributions are in memory at once
CROSS_FIT_BELOW = 300_000  # tokens: smaller corpora learn trust by cross-fitting, larger ones on a held-out share
TRUST_POSITIONS, FOLD_POSITIONS = 60_000, 24_000  # positions to learn trust on at most: held out, by folds
MIN_DOCUMENTS = 20  # to hold out whole documents; of fewer, the ends of each are held out
MAX_PROBABILITIES = 1 << 23  # in memory at once
SMOOTHINGS = {"none": kernel.MARKOV, "witten-bell": kernel.WITTEN_BELL, "kneser-ney": kernel.KNESER_NEY}


class TokenState:
    """The decoding state of a count model: the latest tokens of each row. Satisfies `segue.models.base.Decoding`.

    past: (B, window + history) int32, newest last. filled: (B,), how many of those are tokens.
    """

    def __init__(self, past: np.ndarray, filled: np.ndarray, positions: Tensor, window: int) -> None:
        self.past, self.filled, self.positions, self.window = past, filled, positions, window
        self.pending: tuple[np.ndarray, np.ndarray | None] | None = None

    @classmethod
    def fresh(cls, batch: int, window: int, history: int) -> TokenState:
        return cls(np.zeros((batch, window + history), np.int32), np.zeros(batch, np.int64),
                   torch.zeros(batch, dtype=torch.long), window)

    @property
    def batch(self) -> int:
        return len(self.past)

    @property
    def reaches_start(self) -> np.ndarray:
        """(B,) bool, whether the remembered tokens reach back to the start of the document."""
        return self.filled == self.positions.numpy()

    def commit(self, path: Tensor | None = None, counts: Tensor | None = None) -> None:
        if self.pending is None:
            raise SegueError("nothing is pending: call extend before commit")
        tokens, parents = self.pending
        check_commit(path, counts, parents, *tokens.shape)
        size = self.past.shape[1]
        past = np.empty_like(self.past)
        num_committed = np.full(self.batch, tokens.shape[1])
        if path is not None:
            path = path.cpu()
            num_committed = (path >= 0).sum(1).numpy()
        elif counts is not None:
            num_committed = counts.cpu().numpy()
        for b, n in enumerate(num_committed):
            new = tokens[b, :n] if path is None else tokens[b, path[b, :n].numpy()]
            past[b] = np.concatenate((self.past[b, min(n, size):], new[max(0, n - size):]))
        self.past, self.filled = past, np.minimum(self.filled + num_committed, size)
        self.positions = self.positions + torch.from_numpy(num_committed)
        self.pending = None

    def select(self, rows: Tensor) -> TokenState:
        rows = rows.cpu()
        return TokenState(self.past[rows.numpy()], self.filled[rows.numpy()], self.positions[rows], self.window)

    def join(self, others: Sequence[TokenState]) -> TokenState:
        parts = [self, *others]
        return TokenState(np.concatenate([part.past for part in parts]),
                          np.concatenate([part.filled for part in parts]),
                          torch.cat([part.positions for part in parts]), self.window)

    def check_rewind(self, n: int | Tensor) -> None:
        """Raise SegueError where `rewind(n)` would."""
        steps = torch.as_tensor(n).cpu().expand(self.batch)
        positions = self.positions - steps
        filled = self.filled - steps.numpy()
        if (steps < 0).any() or (positions < 0).any():
            raise SegueError(f"cannot rewind {steps.tolist()} tokens at positions {self.positions.tolist()}")
        if (filled < np.minimum(positions.numpy(), self.window)).any():
            raise SegueError(f"a count model can go back {self.past.shape[1] - self.window} tokens here, not "
                             f"{int(steps.max())}: create the state with init_state(batch, history=N) for a larger N")

    def rewind(self, n: int | Tensor) -> None:
        self.check_rewind(n)
        steps = torch.as_tensor(n).cpu().expand(self.batch)
        self.filled = self.filled - steps.numpy()
        self.positions, self.pending = self.positions - steps, None
        self.past = np.array([np.roll(row, k) for row, k in zip(self.past, steps.tolist())], np.int32) \
            .reshape(self.past.shape)

    def snapshot(self) -> TokenState:
        # arrays are replaced, never written into, so a copy may share them
        return TokenState(self.past, self.filled, self.positions, self.window)

    def restore(self, snapshot: Decoding) -> None:
        assert isinstance(snapshot, TokenState)
        self.past, self.filled, self.positions = snapshot.past, snapshot.filled, snapshot.positions
        self.pending = None


def as_checked_ids(sequence: Any, vocabulary: int, name: str = "a sequence") -> np.ndarray:
    """The ids (n,) int32 of an array or a `segue.sequence.Sequence`; a SegueError under this name if some lie outside
    the vocabulary, since the kernels index by them."""
    ids = np.asarray(getattr(sequence, "ids", sequence), np.int32)
    if ids.ndim != 1 or (ids.size and (ids.min() < 0 or ids.max() >= vocabulary)):
        raise SegueError(f"{name} has ids outside 0..{vocabulary - 1}: encode it with the codec the model was made for")
    return ids


def join_documents(documents: Iterable[Any], vocabulary: int) -> np.ndarray:
    """Concatenate documents (arrays of ids, or `segue.sequence.Sequence`) into one int32 stream in which each follows a
    separator, the id `vocabulary`."""
    pieces = [np.array([vocabulary], np.int32)]
    for number, document in enumerate(documents):
        ids = as_checked_ids(document, vocabulary, f"sequence {number}")
        if ids.size:
            pieces += [ids, pieces[0]]
    if len(pieces) == 1:
        raise SegueError("there is nothing to count: every sequence is empty")
    return np.concatenate(pieces[:-1])


class _CountBase:
    """Base class of count models: the sorted stream, the `Decodable` protocol, and saving."""

    tables: kernel.Tables
    vocabulary: int
    window: int  # how many tokens back a prediction can depend on

    def _predict_nodes(self, past: np.ndarray, begins: np.ndarray, whole: np.ndarray, tokens: np.ndarray,
                       parents: np.ndarray, chain: bool, at: np.ndarray, out: np.ndarray) -> None:
        """Write into `out` (B, M, V) float64 the next-token distributions after the nodes `at` (B, M) of tokens (B, N),
        which follow the part of `past` from `begins` (B,) on; see `TokenState`."""
        raise NotImplementedError

    def distributions(self, ids: np.ndarray, begin: int, end: int, out: np.ndarray) -> None:
        """Write into `out` (end - begin, V) float64 the distributions of the elements begin .. end - 1 of one whole
        document, int32 ids (n,), each from all before it."""
        raise NotImplementedError

    def init_state(self, batch: int, history: int = 0) -> TokenState:
        return TokenState.fresh(batch, self.window, history)

    def probabilities(self, tokens: Tensor, state: TokenState, parents: Tensor | None = None,
                      at: Tensor | None = None) -> np.ndarray:
        """As `extend`, giving probabilities (B, M, V) float64 instead of logits."""
        check_tokens(tokens, self.vocabulary)
        check_rows(len(tokens), state)
        if at is not None:
            check_node_indices(at, *tokens.shape)
        if parents is not None:
            check_parents(parents, *tokens.shape)
        ids = tokens.numpy().astype(np.int32)
        tree = np.empty((1, 0), np.int64) if parents is None else np.ascontiguousarray(parents.numpy())
        # always a copy of one type: numba would compile the kernels again for a read-only array
        nodes = np.array(np.broadcast_to(np.arange(ids.shape[1]), ids.shape) if at is None else at.numpy(), order="C")
        out = np.empty((*nodes.shape, self.vocabulary))
        begins = state.past.shape[1] - state.filled
        self._predict_nodes(state.past, begins, state.reaches_start, ids, tree, parents is None, nodes, out)
        state.pending = (ids, None if parents is None else tree)
        return out

    def extend(self, tokens: Tensor, state: Decoding, parents: Tensor | None = None,
               at: Tensor | None = None) -> Output:
        """See `segue.models.base.Decodable.extend`; logits are log-probabilities, hidden is empty (B, N, 0)."""
        assert isinstance(state, TokenState)
        probabilities = self.probabilities(tokens, state, parents, at)
        return Output(torch.from_numpy(probabilities.clip(1e-30)).log().float(), torch.empty(*tokens.shape, 0))

    def predictions(self, sequence: Any, begin: int = 0, end: int | None = None) -> np.ndarray:
        """(n, V): the distribution of every element of one whole sequence, from the elements before it; or of those
        from `begin` up to `end`."""
        ids = as_checked_ids(sequence, self.vocabulary)
        end = ids.size if end is None else min(end, ids.size)
        out = np.empty((max(0, end - begin), self.vocabulary))
        self.distributions(ids, begin, end, out)
        return out

    def next(self, prefix: Any) -> np.ndarray:
        """(V,): the distribution of the element after a prefix (possibly empty) of a sequence."""
        ids = np.append(as_checked_ids(prefix, self.vocabulary), np.int32(0))
        out = np.empty((1, self.vocabulary))
        self.distributions(ids, ids.size - 1, ids.size, out)
        return out[0]

    def log_probabilities(self, sequence: Any) -> np.ndarray:
        """(n,): natural logarithm of the probability of each element given those before it."""
        ids = as_checked_ids(sequence, self.vocabulary)
        probabilities, size = np.empty(ids.size), min(PIECE_ELEMENTS, max(64, MAX_PROBABILITIES // self.vocabulary))
        for begin in range(0, ids.size, size):
            end = min(begin + size, ids.size)
            out = np.empty((end - begin, self.vocabulary))
            self.distributions(ids, begin, end, out)
            probabilities[begin:end] = out[np.arange(end - begin), ids[begin:end]]
        return np.log(np.maximum(probabilities, 1e-300))

    def classical(self, order: int = 5, smoothing: str = "kneser-ney") -> CountModel:
        """The classical model of this order over the same counts."""
        return CountModel(self.vocabulary, order, smoothing)._with_tables(self.tables)

    def _settings(self) -> dict[str, Any]:
        raise NotImplementedError

    def save(self, folder: str | Path, name: str = "counts") -> None:
        """Write NAME.json and NAME.safetensors into a folder: about 8 bytes for each training token."""
        from safetensors.numpy import save_file

        narrow = np.uint16 if self.vocabulary < 1 << 16 else np.int32
        arrays = {"stream": self.tables.stream.astype(narrow), "order": self.tables.order,
                  "common": self.tables.common, **self._arrays()}
        with atomic_write(Path(folder) / f"{name}.safetensors") as path:
            save_file(arrays, path)
        write_json(Path(folder) / f"{name}.json", self._settings())

    def _arrays(self) -> dict[str, np.ndarray]:
        return {}


@contextmanager
def read_saved(folder: str | Path, name: str) -> Iterator[tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """Context with the settings and arrays that `save` wrote; raises SegueError if the body cannot build a model of
    them."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    settings, path = read_json(Path(folder) / f"{name}.json"), Path(folder) / f"{name}.safetensors"
    try:
        arrays = load_file(path)
    except (OSError, SafetensorError) as error:
        raise SegueError(f"{path} cannot be read ({error}): was the folder copied whole?") from error
    try:
        yield settings, arrays
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise SegueError(f"{Path(folder) / name}.json does not describe the counts beside it ({error}): was the "
                         "folder copied whole?") from error


class CountModel(_CountBase):
    """Markov model: the distribution of the next element from how often it followed the latest `order` ones.

    vocabulary: V, the end-of-sequence id included if there is one; ends are predicted where sequences contain that
        id. order: k, 0 to 64. smoothing: "none", "witten-bell" (p_k = (c + t p_{k-1}) / (n + t)) or "kneser-ney"
        (interpolated; shorter contexts count distinct longer ones). start: the start of a sequence counts as
        one symbol before the first element (without it an order-k model predicts first elements from the unigram
        table). backoff: without smoothing, use the longest suffix that was seen (all-k-order Markov, AKOM) instead of
        exactly k elements (a uniform guess where those were never seen).
    discount: Kneser-Ney's, for every order (default: n1 / (n1 + 2 n2) of each order).

    Order 1 without smoothing is the directly-follows graph. Paper: next-element.
    """

    def __init__(self, vocabulary: int, order: int = 5, smoothing: str = "witten-bell", start: bool = True,
                 backoff: bool = True, discount: float | None = None) -> None:
        check_choice("smoothing", smoothing, SMOOTHINGS)
        if not 0 <= order <= 64 or vocabulary < 1:
            raise SegueError(f"a count model of order {order} over {vocabulary} symbols: choose an order of 0 to 64")
        self.vocabulary, self.order, self.smoothing, self.start, self.backoff = \
            vocabulary, order, smoothing, start, backoff
        self.discount = np.full(order + 1, np.nan if discount is None else discount)
        self.window = max(order, 1)

    @property
    def path(self) -> str:
        return f"counts of order {self.order}, {self.smoothing}"

    def fit(self, sequences: Iterable[Any]) -> CountModel:
        """Count sequences (arrays of ids or `Sequence`); what was counted before is replaced."""
        stream = join_documents(sequences, self.vocabulary)
        return self._with_tables(kernel.build(stream, self.vocabulary, max(self.order, 1)))

    def _with_tables(self, tables: kernel.Tables) -> CountModel:
        self.tables = tables
        if self.smoothing == "kneser-ney" and np.isnan(self.discount).any():
            counts_of_counts = np.empty((self.order + 1, 2))
            kernel.counts_of_counts(self.tables, self.order, counts_of_counts)
            n1, n2 = counts_of_counts.T
            self.discount = np.clip((n1 + 1) / (n1 + 2 * n2 + 2), 0.1, 0.95)
        return self

    def _kernel_arguments(self) -> tuple[Any, ...]:
        work = kernel.workspace(self.vocabulary, 0, self.order)
        return self.start, self.order, SMOOTHINGS[self.smoothing], self.backoff, self.discount, work

    def _predict_nodes(self, past: np.ndarray, begins: np.ndarray, whole: np.ndarray, tokens: np.ndarray,
                       parents: np.ndarray, chain: bool, at: np.ndarray, out: np.ndarray) -> None:
        kernel.classical_nodes(self.tables, past, begins, whole, tokens, parents, chain, at,
                               *self._kernel_arguments(), out)

    def distributions(self, ids: np.ndarray, begin: int, end: int, out: np.ndarray) -> None:
        kernel.classical_document(self.tables, ids, begin, end, *self._kernel_arguments(), out)

    def _settings(self) -> dict[str, Any]:
        return {"kind": "count model", "vocabulary": self.vocabulary, "order": self.order,
                "smoothing": self.smoothing, "start": self.start, "backoff": self.backoff}

    def _arrays(self) -> dict[str, np.ndarray]:
        return {"discount": self.discount}

    @classmethod
    def load(cls, folder: str | Path, name: str = "counts") -> CountModel:
        """Load what `save` wrote."""
        with read_saved(folder, name) as (settings, arrays):
            model = cls(**{key: value for key, value in settings.items() if key != "kind"})
            model.discount = arrays["discount"]
            tables = kernel.restore(arrays["stream"], arrays["order"], arrays["common"], model.vocabulary,
                                    max(model.order, 1))
            return model._with_tables(tables)


def documents_bits(model: _CountBase, documents: Sequence[Any]) -> float:
    """Total cost of documents in bits, every element scored once from those before it in its own document."""
    return -sum(float(model.log_probabilities(document).sum()) for document in documents) / np.log(2)


def split_held_out(documents: Sequence[Any], share: float = 0.08, seed: int = 0) -> tuple[list[Any], list[Any]]:
    """Split training documents into those to count and those to learn trust on. The latter are whole documents drawn at
    random, but none of the largest; if there are few documents, the last part of each."""
    sizes = np.array([len(document) for document in documents])
    if len(documents) >= MIN_DOCUMENTS:
        chosen, total = set(), 0
        for index in np.random.default_rng(seed).permutation(len(documents)).tolist():
            if total >= share * sizes.sum():
                break
            if sizes[index] <= max(0.25 * share * sizes.sum(), float(np.median(sizes))):
                chosen.add(index)
                total += sizes[index]
        return ([d for i, d in enumerate(documents) if i not in chosen],
                [d for i, d in enumerate(documents) if i in chosen])
    cuts = (sizes * (1 - share)).astype(int)
    return ([d[:cut] for d, cut in zip(documents, cuts)],
            [d[cut:] for d, cut in zip(documents, cuts) if cut < len(d)])


def sample_spans(sizes: Sequence[int], positions: int, draw: np.random.Generator,
                 first: int = 0) -> list[tuple[int, int, int]]:
    """Draw a span of each document, beginning at `first` or later, as (document, begin, end): about `positions`
    positions in all. Random places give spans with a short and with a long past. Of many short documents some are left
    out."""
    spans, total, fraction = [], 0, min(1.0, positions / max(1, sum(sizes)))
    for number in draw.permutation(len(sizes)).tolist():
        size = min(sizes[number] - first, max(int(np.ceil(fraction * sizes[number])), 64))
        if total >= positions or size < 1:
            continue
        begin = int(draw.integers(first, sizes[number] - size + 1))
        spans.append((number, begin, begin + size))
        total += size
    return spans


class BlendedCounts(_CountBase):
    """Counts of every order, of a corpus and of the sequence's own past, blended with learned weights (the trust).

    The discounted distributions of all orders are combined from the longest down: each backs off to the next shorter
    one with a probability that a small network computes from its counts (the number of observations, of distinct
    followers, and of followers seen once). The last one is the uniform distribution, so the blend is proper. The
    network is fitted on documents that were not counted, which are counted afterwards.

    vocabulary: V. window: how many tokens of its own past a sequence remembers (the state's size).
    """

    def __init__(self, vocabulary: int, window: int = 8192) -> None:
        if not (vocabulary >= 1 and window >= kernel.MAX_MATCH):
            raise SegueError(f"a blend of counts over {vocabulary} symbols with a window of {window}: "
                             f"the window must be at least {kernel.MAX_MATCH}")
        self.vocabulary, self.window = vocabulary, window

    @property
    def path(self) -> str:
        return f"blended counts, {self.tables.order.size:,} observations"

    @property
    def workspace(self) -> kernel.Workspace:
        """Scratch memory of the kernels."""
        return kernel.workspace(self.vocabulary, self.window)

    def fit(self, documents: Sequence[Any], seed: int = 0, positions: int = TRUST_POSITIONS,
            epochs: int = 4) -> BlendedCounts:
        """Count documents and learn trust: on a held-out share that is counted afterwards, or, below `CROSS_FIT_BELOW`
        tokens, by `cross_fit`.

        positions: the most tokens to fit the trust on. epochs: passes over them.
        """
        if sum(map(len, documents)) < CROSS_FIT_BELOW:
            self.cross_fit(documents, seed, epochs=2 * epochs)
            return self
        counted, held_out = split_held_out(documents, seed=seed)
        self.count(counted)
        self.learn_trust(held_out, seed, positions, epochs)
        self.count(documents)
        return self

    def count(self, documents: Iterable[Any]) -> None:
        """Count these documents in place of the corpus."""
        self.tables = kernel.build(join_documents(documents, self.vocabulary), self.vocabulary, kernel.MAX_MATCH)

    def add(self, documents: Iterable[Any]) -> None:
        """Count further documents in addition to the corpus."""
        stream = np.concatenate([self.tables.stream, join_documents(documents, self.vocabulary)])
        self.tables = kernel.build(stream, self.vocabulary, kernel.MAX_MATCH)

    def merged_with(self, others: Sequence[BlendedCounts], base: BlendedCounts) -> BlendedCounts | None:
        """New counts that add to these what each of `others` has counted beyond `base`; None unless all extend
        `base`."""
        size, streams = base.tables.stream.size, [self.tables.stream]
        for other in others:
            if not np.array_equal(other.tables.stream[:size], base.tables.stream):
                return None
            streams.append(other.tables.stream[size:])
        merged = BlendedCounts(self.vocabulary, self.window)
        merged.tables = kernel.build(np.concatenate(streams), self.vocabulary, kernel.MAX_MATCH)
        merged.trust = self.trust
        return merged

    def learn_trust(self, documents: Sequence[Any], seed: int = 0, positions: int = TRUST_POSITIONS,
                    epochs: int = 4) -> float:
        """Fit the trust on documents that were not counted; returns their cost in bits per element."""
        training_set = self._trust_features(documents, positions, np.random.default_rng(seed))
        self.trust, bits = _fit_trust(*training_set, self.vocabulary, seed, epochs)
        return bits

    def cross_fit(self, documents: Sequence[Any], seed: int = 0, positions: int = FOLD_POSITIONS, epochs: int = 8,
                  folds: int = 5) -> float:
        """Count documents and learn trust on the same ones, each predicted by counts of the other folds, so that small
        data sets lose nothing to a held-out share. Returns the cost of those predictions in bits per element."""
        pieces = documents if len(documents) >= MIN_DOCUMENTS else \
            [part for document in documents for part in np.array_split(np.asarray(document), folds) if len(part)]
        draw = np.random.default_rng(seed)
        fold, training_sets = draw.permutation(len(pieces)) % folds, []
        for number in range(min(folds, len(pieces))):
            self.count([piece for piece, piece_fold in zip(pieces, fold) if piece_fold != number])
            held_out = [piece for piece, piece_fold in zip(pieces, fold) if piece_fold == number]
            training_sets.append(self._trust_features(held_out, positions // folds, draw))
        rows, facts = (torch.cat(parts) for parts in zip(*training_sets))
        self.trust, bits = _fit_trust(rows, facts, self.vocabulary, seed, epochs)
        self.count(documents)
        return bits

    def _trust_features(self, documents: Sequence[Any], positions: int,
                        draw: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Features and facts of about `positions` positions of documents that were not counted, for `_fit_trust`."""
        ids = [as_checked_ids(document, self.vocabulary) for document in documents]
        if not sum(map(len, ids)):
            raise SegueError("there is too little data to learn trust on: give more, or longer, sequences")
        rows, facts = [], []
        for number, begin, end in sample_spans([len(document) for document in ids], positions, draw):
            rows.append(np.empty((end - begin, kernel.LEVELS, kernel.FEATURES), np.float32))
            facts.append(np.empty((end - begin, kernel.LEVELS, 5), np.float32))
            kernel.observe_document(self.tables, ids[number], begin, end, self.window, self.workspace, rows[-1],
                                    facts[-1])
        return torch.from_numpy(np.concatenate(rows)), torch.from_numpy(np.concatenate(facts))

    def draft_likeliest(self, state: TokenState, length: int, least: float) -> list[int]:
        """Greedy continuation of a state's first row: at most `length` tokens, ending before one less likely than
        `least`."""
        tokens = np.empty(length, np.int64)
        past = state.past[0]
        n = kernel.blend_draft(self.tables, past, past.size - state.filled[0], bool(state.reaches_start[0]),
                               self.window, self.trust, self.workspace, least, tokens)
        return tokens[:n].tolist()

    def _predict_nodes(self, past: np.ndarray, begins: np.ndarray, whole: np.ndarray, tokens: np.ndarray,
                       parents: np.ndarray, chain: bool, at: np.ndarray, out: np.ndarray) -> None:
        kernel.blend_nodes(self.tables, past, begins, whole, tokens, parents, chain, at, self.window, self.trust,
                           self.workspace, out)

    def distributions(self, ids: np.ndarray, begin: int, end: int, out: np.ndarray) -> None:
        kernel.blend_document(self.tables, ids, begin, end, self.window, self.trust, self.workspace, out)

    def _settings(self) -> dict[str, Any]:
        return {"kind": "blended counts", "vocabulary": self.vocabulary, "window": self.window}

    def _arrays(self) -> dict[str, np.ndarray]:
        return {f"trust.{name}": value for name, value in self.trust._asdict().items()}

    @classmethod
    def load(cls, folder: str | Path, name: str = "counts") -> BlendedCounts:
        """Load what `save` wrote."""
        with read_saved(folder, name) as (settings, arrays):
            model = cls(settings["vocabulary"], settings["window"])
            model.tables = kernel.restore(arrays["stream"], arrays["order"], arrays["common"], model.vocabulary,
                                          kernel.MAX_MATCH)
            model.trust = kernel.Trust(*(arrays[f"trust.{field}"] for field in kernel.Trust._fields))
            return model


def _fit_trust(rows: Tensor, facts: Tensor, vocabulary: int, seed: int, epochs: int) -> tuple[kernel.Trust, float]:
    """Fit the trust by maximum likelihood of P tokens; returns it and their cost in bits per token. rows (P, LEVELS,
    FEATURES), facts (P, LEVELS, 5): see `segue.kernels.counts.observe_document`."""
    hidden, batch, corpus = 16, 512, kernel.CORPUS_ORDERS.size + 1
    sources = (slice(0, corpus), slice(corpus, kernel.LEVELS))
    means = torch.stack([rows[:, s].mean((0, 1)) for s in sources])
    scales = torch.stack([rows[:, s].std((0, 1)) for s in sources]) + 1e-2
    draw = torch.Generator().manual_seed(seed)
    into = torch.randn(2, kernel.FEATURES, hidden, generator=draw) / kernel.FEATURES ** 0.5
    parameters = [into, torch.zeros(2, 1, hidden), torch.zeros(2, hidden, 2), torch.zeros(2, 1, 2),
                  torch.ones(2, kernel.LEVELS)]
    for parameter in parameters:
        parameter.requires_grad_()
    into, into_bias, out, out_bias, discount_logits = parameters
    latest = torch.ones(2, kernel.LEVELS)
    latest[1, corpus:] = 0  # the latest follower's weight of 1 is not discounted
    level_order = torch.from_numpy(kernel.LEVEL_ORDER).flip(0)

    def likelihood(x: Tensor, facts: Tensor) -> Tensor:
        outputs = []
        for source, levels in enumerate(sources):
            y = (x[:, levels] - means[source]) / scales[source]
            y = torch.tanh(y @ into[source] + into_bias[source])
            outputs.append((y @ out[source] + out_bias[source]).sigmoid())
        backoff, first_share = torch.cat(outputs, 1).unbind(-1)
        total, followers, second_total, count, second_count = facts.unbind(-1)
        discount, second_discount = discount_logits.sigmoid() * latest
        observed = (followers > 0).float()
        first = count.sub(discount).clamp(min=0) / (total - discount * followers).clamp(min=1e-6)
        second_total = (second_total - second_discount * followers).clamp(min=1e-6)
        second = second_count.sub(second_discount).clamp(min=0) / second_total
        level_probability = (first_share * first + (1 - first_share) * second) * (1 - backoff) * observed
        backoff = torch.where(followers > 0, backoff, 1.0)
        reach = backoff[:, level_order].cumprod(1)
        before = torch.cat([torch.ones_like(reach[:, :1]), reach[:, :-1]], 1)
        return (before * level_probability[:, level_order]).sum(1) + reach[:, -1] / vocabulary

    steps = max(epochs * len(rows) // batch, 100)
    one_cycle(parameters, lambda now: -likelihood(rows[now], facts[now]).clamp(min=1e-12).log(), len(rows), steps,
              min(batch, len(rows)), draw, decay=1e-3)
    with torch.no_grad():
        bits = -torch.cat([likelihood(*part) for part in zip(rows.split(4096), facts.split(4096))]).log2().mean()
        # the scaling of the features goes into the first layer
        into_scaled = into / scales[..., None]
        bias = into_bias[:, 0] - (means[:, None] @ into_scaled)[:, 0]
        trust = kernel.Trust(*(x.double().contiguous().numpy() for x in (
            into_scaled.transpose(1, 2), bias, out.transpose(1, 2), out_bias[:, 0],
            discount_logits.sigmoid() * latest)))
    return trust, float(bits)
