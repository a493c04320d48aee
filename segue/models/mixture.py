"""A network and a count model as one proper distribution, which decodes like any other model.

log p = a log p_network + b log p_counts - log Z, where a and b are functions of how certain the two distributions are
and how well they agree. In a product either can veto; on held-out source code it beat every weighted sum tried
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
from segue.models.base import Decodable, Decoding, Output, needs_whole_prompt
from segue.models.counts import MAX_PROBABILITIES, BlendedCounts, TokenState, as_checked_ids, sample_spans
from segue.models.gate import Gate, fit_gate

GATE_POSITIONS = 12_000  # elements to fit a gate on, at most
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

    To make one from `documents`, the training documents as arrays of ids:

        train, held_out = split_held_out(documents)
        counts = BlendedCounts(vocabulary)
        counts.count(train); counts.learn_trust(held_out)
        ...                                              # train the network, on `train` only
        mixture = Mixture(network, counts)
        mixture.learn_gate(held_out, context)
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
    def needs_whole_prompt(self) -> bool:
        return needs_whole_prompt(self.network)

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
        counted = self.counts.extend(tokens.cpu(), state.counts, None if parents is None else parents.cpu(),
                                     None if at is None else at.cpu())
        mixed = self.gate.mix(output.logits.float().cpu().log_softmax(-1), counted.logits)
        return Output(mixed.to(output.logits.device), output.hidden)

    @torch.no_grad()
    def step(self, tokens: np.ndarray, state: MixtureState) -> np.ndarray:
        """Extend each row by one token (B,) int64 and commit it; returns the log-probabilities (B, V) of the next. For
        tight decoding loops; uses the network's own `step` if it has one."""
        ids = torch.from_numpy(tokens)[:, None]
        step = getattr(self.network, "step", None)
        if step is not None:
            logits = torch.from_numpy(step(tokens, state.network))
        else:
            logits = self.network.extend(ids.to(self._device), state.network).logits[:, 0].float().cpu()
            state.network.commit()
        counted = self.counts.extend(ids, state.counts).logits[:, 0]
        state.counts.commit()
        return self.gate.mix(logits.log_softmax(-1), counted).numpy()

    @property
    def _device(self) -> torch.device:
        return next(self.network.parameters()).device if isinstance(self.network, nn.Module) else torch.device("cpu")

    @torch.no_grad()
    def _network_scores(self, pieces: Sequence[Piece], context: int, precision: str) -> Tensor:
        """The network's log-probabilities of the tokens [begin, end), begin > 0, of each piece, concatenated. Runs
        windows of `context` tokens, each of which scores its later half (at a document's start all of it)."""
        windows: list[Piece] = []  # for each window its ids, and the begin and end of the tokens to score among them
        for ids, begin, end in pieces:
            while begin < end:
                low = max(0, begin - context // 2 - 1)
                high = min(end, low + context + 1)
                windows.append((ids[low:], begin - low, high - low))
                begin = high
        longest, max_scored = max(end for _, _, end in windows), max(end - begin for _, begin, end in windows)
        tokens = np.zeros((len(windows), longest - 1), np.int64)  # padding at the end does not affect earlier tokens
        wanted = torch.zeros(len(windows), max_scored, dtype=torch.long)
        for row, (ids, begin, end) in enumerate(windows):
            tokens[row, :end - 1] = ids[:end - 1]
            wanted[row, :end - begin] = torch.arange(begin - 1, end - 1)
        device = self._device
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            logits = self.network.extend(torch.from_numpy(tokens).to(device), self.network.init_state(len(windows)),
                                         at=wanted.to(device)).logits.float().cpu()
        return torch.cat([logits[row, :end - begin] for row, (_, begin, end) in enumerate(windows)]).log_softmax(-1)

    def _both_log_probabilities(self, groups: Sequence[Sequence[Piece]], context: int,
                                precision: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the log-distributions of network and counts for each group of pieces; the counts are computed ahead, in
        a thread."""
        def count(group: Sequence[Piece]) -> Tensor:
            bounds = np.cumsum([0, *(end - begin for _, begin, end in group)])
            probabilities = np.empty((bounds[-1], self.vocabulary))
            for piece, low, high in zip(group, bounds, bounds[1:]):
                self.counts.distributions(*piece, probabilities[low:high])
            return torch.from_numpy(probabilities.clip(1e-30)).log_().float()

        with ThreadPoolExecutor(1, thread_name_prefix="segue-counts") as executor:
            ahead = deque(executor.submit(count, group) for group in groups[:2])
            for number, group in enumerate(groups):
                if number + 2 < len(groups):
                    ahead.append(executor.submit(count, groups[number + 2]))
                yield self._network_scores(group, context, precision), ahead.popleft().result()

    @torch.no_grad()
    def iterate_scores(self, documents: Sequence[Any], context: int, precision: str = "float32",
                       piece: int = 2048) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Score every token of the documents except each document's first. Yields, for about `piece` tokens at a time
        and in order, document numbers (n,), log-probabilities (n, V), and the tokens (n,) that were scored.

        The network reads `context` tokens at a time, of which at least half precede those it scores (except at a
        document's beginning); the counts read all of their window. precision: "bfloat16" runs the network under
        autocast to bfloat16.
        """
        ids = [as_checked_ids(document, self.vocabulary) for document in documents]
        piece = self.piece_size(piece)
        pieces = [(number, (document, begin, min(begin + piece, len(document)))) for number, document in enumerate(ids)
                  for begin in range(1, len(document), piece)]
        groups = group_pieces([item for _, item in pieces], piece)
        document_numbers = iter([number for number, _ in pieces])
        for group, log_probabilities in zip(groups, self._both_log_probabilities(groups, context, precision)):
            numbers = np.repeat([next(document_numbers) for _ in group], [end - begin for _, begin, end in group])
            tokens = np.concatenate([document[begin:end] for document, begin, end in group]).astype(np.int64)
            yield torch.from_numpy(numbers), self.gate.mix(*log_probabilities), torch.from_numpy(tokens)

    def piece_size(self, piece: int = 2048) -> int:
        """Tokens to score at a time: `piece`, or fewer for a large vocabulary."""
        return min(piece, max(64, MAX_PROBABILITIES // self.vocabulary))

    def scores(self, document: Any, context: int) -> Tensor:
        """(n - 1, V) log-probabilities of all tokens of a document but the first; see `iterate_scores`."""
        parts = [scores for _, scores, _ in self.iterate_scores([document], context)]
        return torch.cat(parts) if parts else torch.empty(0, self.vocabulary)

    def log_probabilities(self, document: Any, context: int) -> np.ndarray:
        """(n - 1,): natural logarithm of the probability of each token but the first, given those before it."""
        return np.concatenate([np.empty(0), *(scores.gather(1, targets[:, None])[:, 0].double().numpy()
                                              for _, scores, targets in self.iterate_scores([document], context))])

    def learn_gate(self, documents: Sequence[Any], context: int, seed: int = 0, positions: int = GATE_POSITIONS,
                   epochs: int = 6, precision: str = "float32") -> float:
        """Fit the gate on documents that neither the network nor the counts have seen; returns their cost in bits per
        element.

        context, precision: see `iterate_scores`. positions: the most tokens to fit it on.
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
        """Write the gate and the counts into a folder; the network is not saved."""
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
    """Group consecutive pieces so that short documents share a batch: a group, padded to the end of its longest piece,
    holds at most `size` tokens."""
    groups: list[list[Piece]] = []
    longest = 0
    for piece in pieces:
        longest = max(longest, piece[2])
        if not groups or longest * (len(groups[-1]) + 1) > size:
            groups.append([])
            longest = piece[2]
        groups[-1].append(piece)
    return groups
