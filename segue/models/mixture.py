"""A network and a count model as one proper distribution, which decodes like any other model.

log p = a log p_network + b log p_counts - log Z, where a and b follow from how sure and how much of one mind the two
are. A product keeps what both know and lets either veto; on held-out source code it beat every weighted sum tried
(`benchmarks/counts.py`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from segue.errors import SegueError
from segue.files import atomic_write
from segue.models.advised import load_counts
from segue.models.base import Decodable, Decoding, Output
from segue.models.counts import MAX_PROBABILITIES, BlendedCounts, TokenState, as_checked_ids, sample_spans
from segue.models.gate import Gate, fit_gate

GATE_POSITIONS = 12_000  # elements that a gate is fitted on at most
Piece = tuple[np.ndarray, int, int]  # ids of a document; begin and end of the tokens to score


class MixtureState:
    """The states of network and counts, kept in step. Satisfies `segue.models.base.Decoding`."""

    def __init__(self, network: Decoding, counts: TokenState) -> None:
        self.network, self.counts = network, counts

    @property
    def batch(self) -> int:
        return self.network.positions.shape[0]

    @property
    def positions(self) -> Tensor:
        return self.network.positions

    def commit(self, path: Tensor | None = None, counts: Tensor | None = None) -> None:
        self.network.commit(path, counts)
        self.counts.commit(None if path is None else path.cpu(), None if counts is None else counts.cpu())

    def select(self, rows: Tensor) -> MixtureState:
        return MixtureState(self.network.select(rows), self.counts.select(rows.cpu()))

    def join(self, others: Sequence[MixtureState]) -> MixtureState:
        return MixtureState(self.network.join([other.network for other in others]),
                            self.counts.join([other.counts for other in others]))

    def rewind(self, n: int | Tensor) -> None:
        counted = n.cpu() if isinstance(n, Tensor) else n
        self.counts.check_rewind(counted)
        self.network.rewind(n)
        self.counts.rewind(counted)

    def snapshot(self) -> MixtureState:
        return MixtureState(self.network.snapshot(), self.counts.snapshot())

    def restore(self, snapshot: Decoding) -> None:
        assert isinstance(snapshot, MixtureState)
        self.network.restore(snapshot.network)
        self.counts.restore(snapshot.counts)


class Mixture:
    """A network (any `Decodable`) and blended counts over the same tokens; see the module. Satisfies `Decodable`.

    How it is made, where `documents` are the training documents as arrays of ids:

        rest, held = hold_back(documents)
        counts = BlendedCounts(vocabulary)
        counts.count(rest); counts.learn_trust(held)
        ...                                              # train the network, on `rest` only
        mixture = Mixture(network, counts)
        mixture.learn_gate(held, context)
        counts.count(documents)
    """

    def __init__(self, network: Decodable, counts: BlendedCounts, gate: Gate | None = None) -> None:
        if network.vocabulary != counts.vocabulary:
            raise SegueError(f"the network has {network.vocabulary} tokens, the counts {counts.vocabulary}: "
                             "they must share one codec")
        self.network, self.counts, self.gate = network, counts, gate or Gate()

    def with_network(self, network: Decodable) -> Mixture:
        """This mixture with another form of the same network (compiled, quantised)."""
        return Mixture(network, self.counts, self.gate)

    @property
    def vocabulary(self) -> int:
        return self.counts.vocabulary

    @property
    def path(self) -> str:
        return f"{self.network.path}, mixed with {self.counts.path}"

    def init_state(self, batch: int, history: int = 0) -> MixtureState:
        return MixtureState(self.network.init_state(batch, history), self.counts.init_state(batch, history))

    @torch.no_grad()
    def extend(self, tokens: Tensor, state: Decoding, parents: Tensor | None = None,
               at: Tensor | None = None) -> Output:
        """See `segue.models.base.Decodable.extend`; logits are log-probabilities, hidden is the network's."""
        assert isinstance(state, MixtureState)
        output = self.network.extend(tokens, state.network, parents, at)
        others = self.counts.extend(tokens.cpu(), state.counts, None if parents is None else parents.cpu(),
                                    None if at is None else at.cpu())
        mixed = self.gate.mix(output.logits.float().cpu().log_softmax(-1), others.logits)
        return Output(mixed.to(output.logits.device), output.hidden)

    @torch.no_grad()
    def step(self, tokens: np.ndarray, state: MixtureState) -> np.ndarray:
        """Extend each row by one token (B,) int64 and commit it; returns the scores (B, V) of the next. For loops in
        which microseconds count; uses the network's own `step` if it has one."""
        ids = torch.from_numpy(tokens)[:, None]
        step = getattr(self.network, "step", None)
        if step is not None:
            logits = torch.from_numpy(step(tokens, state.network))
        else:
            logits = self.network.extend(ids.to(self._device), state.network).logits[:, 0].float().cpu()
            state.network.commit()
        others = self.counts.extend(ids, state.counts).logits[:, 0]
        state.counts.commit()
        return self.gate.mix(logits.log_softmax(-1), others).numpy()

    @property
    def _device(self) -> torch.device:
        return next(self.network.parameters()).device if isinstance(self.network, nn.Module) else torch.device("cpu")

    @torch.no_grad()
    def _network_scores(self, pieces: Sequence[Piece], context: int, precision: str) -> Tensor:
        """The network's log-probabilities of the tokens [begin, end), begin > 0, of each piece, concatenated. Runs
        windows of `context` tokens, each of which scores its later half (at a document's start all of it)."""
        table: list[Piece] = []                                     # of each window: ids from its low end, at, high
        for ids, begin, end in pieces:
            while begin < end:
                low = max(0, begin - context // 2 - 1)
                high = min(end, low + context + 1)
                table.append((ids[low:], begin - low, high - low))
                begin = high
        longest, most = max(high for _, _, high in table), max(high - at for _, at, high in table)
        tokens = np.zeros((len(table), longest - 1), np.int64)      # what follows a window's end changes nothing in it
        wanted = torch.zeros(len(table), most, dtype=torch.long)
        for row, (ids, at, high) in enumerate(table):
            tokens[row, :high - 1] = ids[:high - 1]
            wanted[row, :high - at] = torch.arange(at - 1, high - 1)
        device = self._device
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            found = self.network.extend(torch.from_numpy(tokens).to(device), self.network.init_state(len(table)),
                                        at=wanted.to(device)).logits.float().cpu()
        return torch.cat([found[row, :high - at] for row, (_, at, high) in enumerate(table)]).log_softmax(-1)

    def _both_log_probabilities(self, groups: Sequence[Sequence[Piece]], context: int,
                                precision: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the log-distributions of network and counts for each group of pieces; the counts work ahead in a
        thread."""
        def count(group: Sequence[Piece]) -> Tensor:
            bounds = np.cumsum([0, *(end - begin for _, begin, end in group)])
            chances = np.empty((bounds[-1], self.vocabulary))
            for piece, low, high in zip(group, bounds, bounds[1:]):
                self.counts.distributions(*piece, chances[low:high])
            return torch.from_numpy(chances.clip(1e-30)).log_().float()

        with ThreadPoolExecutor(1, thread_name_prefix="segue-counts") as pool:
            ahead = deque(pool.submit(count, group) for group in groups[:2])
            for number, group in enumerate(groups):
                if number + 2 < len(groups):
                    ahead.append(pool.submit(count, groups[number + 2]))
                yield self._network_scores(group, context, precision), ahead.popleft().result()

    @torch.no_grad()
    def iterate_scores(self, documents: Sequence[Any], context: int, precision: str = "float32",
                       piece: int = 2048) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Score every token of the documents except each document's first. Yields, for about `piece` tokens at a time
        and in order, document numbers (n,), log-probabilities (n, V), and the tokens (n,) that were scored.

        The network sees `context` tokens at a time, at least half of them before what it scores (but for a document's
        beginning), the counts all of their window. precision: "bfloat16" lets the network multiply so, where that is
        faster.
        """
        ids = [as_checked_ids(document, self.vocabulary) for document in documents]
        piece = self.piece_size(piece)
        table = [(number, (each, at, min(at + piece, len(each)))) for number, each in enumerate(ids)
                 for at in range(1, len(each), piece)]
        groups = group_pieces([row[1] for row in table], piece)
        rows = iter(table)
        for group, pair in zip(groups, self._both_log_probabilities(groups, context, precision)):
            numbers = np.repeat([next(rows)[0] for _ in group], [end - begin for _, begin, end in group])
            tokens = np.concatenate([each[begin:end] for each, begin, end in group]).astype(np.int64)
            yield torch.from_numpy(numbers), self.gate.mix(*pair), torch.from_numpy(tokens)

    def piece_size(self, piece: int = 2048) -> int:
        """Tokens to score at a time: `piece`, or fewer for a large vocabulary."""
        return min(piece, max(64, MAX_PROBABILITIES // self.vocabulary))

    def scores(self, document: Any, context: int) -> Tensor:
        """(n - 1, V) log-probabilities of all tokens of a document but the first; see `iterate_scores`."""
        found = [scores for _, scores, _ in self.iterate_scores([document], context)]
        return torch.cat(found) if found else torch.empty(0, self.vocabulary)

    def log_probabilities(self, document: Any, context: int) -> np.ndarray:
        """(n - 1,): natural logarithm of the probability of each token but the first, given those before it."""
        return np.concatenate([np.empty(0), *(scores.gather(1, targets[:, None])[:, 0].double().numpy()
                                              for _, scores, targets in self.iterate_scores([document], context))])

    def learn_gate(self, documents: Sequence[Any], context: int, seed: int = 0, positions: int = GATE_POSITIONS,
                   epochs: int = 6, precision: str = "float32") -> float:
        """Fit the gate on documents that neither side has seen; returns their cost in bits per element.

        context, precision: see `iterate_scores`. positions: tokens it is fitted on at most.
        """
        ids = [d for d in (as_checked_ids(d, self.vocabulary) for d in documents) if len(d) > 1]
        if not ids:
            raise SegueError("there is too little data to learn the mixture on: give more, or longer, sequences")
        positions = min(positions, (1 << 26) // self.vocabulary + 1)
        pieces = [(ids[number], begin, end) for number, begin, end in
                  sample_spans([len(document) for document in ids], positions, np.random.default_rng(seed), first=1)]
        with torch.no_grad():
            groups = group_pieces(pieces, self.piece_size())
            pairs = self._both_log_probabilities(groups, context, precision)
            p, q = (torch.cat(side) for side in zip(*([x.half() for x in pair] for pair in pairs)))
        targets = np.concatenate([document[begin:end] for document, begin, end in pieces])
        return fit_gate(self.gate, p, q, torch.from_numpy(targets.astype(np.int64)), seed, epochs)

    def save(self, folder: str | Path, name: str = "mixture") -> None:
        """Write the gate and the counts into a folder (the network is saved by whoever made it)."""
        from safetensors.torch import save_file

        self.counts.save(folder, f"{name}-counts")
        with atomic_write(Path(folder) / f"{name}.safetensors") as path:
            save_file(self.gate.state_dict(), str(path))

    @classmethod
    def load(cls, network: Decodable, folder: str | Path, name: str = "mixture") -> Mixture:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        gate, path = Gate(), Path(folder) / f"{name}.safetensors"
        try:
            gate.load_state_dict(load_file(path))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise SegueError(f"{path} is no gate of a mixture ({error}): was the folder copied whole?") from error
        return cls(network, load_counts(folder, f"{name}-counts"), gate)


def group_pieces(pieces: Sequence[Piece], size: int) -> list[list[Piece]]:
    """Neighbouring pieces (ids, begin, end) together, as long as they hold no more than `size` tokens when all are as
    long as the longest: short documents run in one batch."""
    groups: list[list[Piece]] = []
    longest = 0
    for piece in pieces:
        longest = max(longest, piece[2])
        if not groups or longest * (len(groups[-1]) + 1) > size:
            groups.append([])
            longest = piece[2]
        groups[-1].append(piece)
    return groups
