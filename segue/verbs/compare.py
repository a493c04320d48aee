"""`compare`: which method predicts these sequences best? Classical and neural methods, on the same split and metrics.

The comparison of next-element predictors of Tax et al. (arXiv 1811.00062), for any sequences.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segue.analysis.metrics import evaluate
from segue.data import Data, TokenStore
from segue.errors import SegueError
from segue.kinds import Codec
from segue.models.classical import HMM, Spectral, StateMerging, directly_follows
from segue.models.counts import CountModel
from segue.models.predict import DecodablePredictor, SequencePredictor
from segue.progress import Shown, progress
from segue.training.recipe import describe_machine
from segue.verbs.fit import fit
from segue.verbs.inputs import as_data
from segue.verbs.scoreboard import Scoreboard, scoreboard

if TYPE_CHECKING:
    from rich.console import RenderableType

HELD_OUT = 0.2  # share of the data
PIECE_LENGTH = 256  # elements; longer sequences are cut into pieces, for all methods alike
TEST_ELEMENTS = 20_000  # scored at most, spread over the held-out sequences
LEARN_ELEMENTS = 2_000_000  # at most for the slow classical methods
MOST_AUTOMATON_TOKENS = 200  # largest vocabulary for which automata and hidden Markov models are tried
NETWORKS = ("attention", "gru", "lstm", "mamba", "gla")
Learned = tuple[SequencePredictor, str]  # a trained model, and the setting chosen for it


@dataclass
class Result:
    """The scores of one method; see `segue.analysis.metrics`. seconds: to train. chosen: its setting, in words."""

    method: str
    bits_per_unit: float
    bits: float
    accuracy: float
    brier: float
    seconds: float
    chosen: str


@dataclass
class Comparison(Shown):
    """All methods, best first, on the same held-out elements. unit: of `bits_per_unit`. classes: vocabulary size."""

    results: list[Result]
    unit: str
    classes: int
    elements: int
    sequences: int
    machine: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table("method", f"bits per {self.unit}", "accuracy", "Brier x classes", "learned in", "chosen",
                      box=None)
        for r in self.results:
            table.add_row(r.method, f"{r.bits_per_unit:.3f}", f"{r.accuracy:.1%}", f"{r.brier * self.classes:.4f}",
                          f"{r.seconds:.1f} s", r.chosen)
        return Group(table, Text(f"{self.elements:,} held-out elements of {self.sequences:,} sequences, "
                                 f"{self.classes:,} different ones; {self.machine}"))


def cut_sequences(store: TokenStore, start: int | None) -> list[np.ndarray]:
    """The sequences without their begin token, cut into pieces of at most PIECE_LENGTH elements."""
    pieces = []
    for begin, end in zip(store.offsets[:-1], store.offsets[1:]):
        ids = np.asarray(store.tokens[int(begin) : int(end)], np.int32)
        ids = ids[1:] if len(ids) and start is not None and ids[0] == start else ids
        pieces += [ids[at : at + PIECE_LENGTH] for at in range(0, len(ids), PIECE_LENGTH)]
    return [piece for piece in pieces if len(piece)]


def subsample(sequences: list[np.ndarray], elements: int) -> list[np.ndarray]:
    """Evenly spread whole sequences with about `elements` elements in all."""
    total = sum(map(len, sequences))
    if total <= elements:
        return sequences
    count = max(1, int(len(sequences) * elements / total))
    return [sequences[i] for i in np.linspace(0, len(sequences) - 1, count).astype(int)]


def compare(data: Any = None, minutes: float | None = None, seed: int = 0, quiet: bool = False, *,
            tasks: str | None = None, out: str | Path | None = None, device: str | None = None,
            **choices: Any) -> Comparison | Scoreboard:
    """Train every method on four fifths of the sequences, and score all of them on the same held-out rest.

    data: a `Data`, paths, or objects in memory. minutes: for all networks together (default: 2, with `tasks` 30); count
    models take seconds. Settings such as an order are chosen on a part of the training sequences.
    tasks: instead of data, "synthetic" or names of synthetic tasks, to compare mixers in tracking and recall. out and
    choices: see `segue.verbs.scoreboard.scoreboard`. device: for the networks, see `segue.verbs.devices`.
    """
    if (data is None) == (tasks is None):
        raise SegueError("compare takes sequences or tasks, one of them: give paths, or --tasks synthetic")
    if tasks is not None:
        if device not in (None, "cpu"):
            raise SegueError("the scoreboard of tasks is measured on the CPU: leave device out")
        return scoreboard(tasks, seed=seed, out=out, quiet=quiet,
                          **choices | ({} if minutes is None else {"minutes": minutes}))
    if out is not None or choices:
        unsupported = ["out"] * (out is not None) + list(choices)
        raise SegueError(f"{', '.join(unsupported)} goes with tasks, not with sequences: leave it out")
    return compare_methods(data, 2.0 if minutes is None else minutes, seed, quiet, device)


def compare_methods(data: Any, minutes: float, seed: int, quiet: bool, device: str | None = None) -> Comparison:
    """Compare all methods on sequences; see `compare`."""
    if not 0 < minutes < math.inf:
        raise SegueError(f"minutes must be more than 0, not {minutes}")
    data = as_data(data)
    train, test = data.split(HELD_OUT)
    codec = train.codec()
    start = codec.bos
    train_pieces = cut_sequences(train.encode(codec), start)
    test_pieces = subsample(cut_sequences(test.encode(codec), start), TEST_ELEMENTS)
    if len(train_pieces) < 5 or not test_pieces:
        raise SegueError("there is too little to learn from and to compare on: give more sequences")
    order = np.random.default_rng(seed).permutation(len(train_pieces))
    validation = subsample([train_pieces[i] for i in order[: len(train_pieces) // 5]], TEST_ELEMENTS)
    fitting = [train_pieces[i] for i in order[len(train_pieces) // 5 :]]
    units = max(1, sum(codec.units(piece) for piece in test_pieces))
    methods = classical_methods(train_pieces, fitting, validation, codec.size, codec.eos, seed)
    share = minutes / (len(NETWORKS) + 1)
    for mixer in NETWORKS:
        methods[mixer] = partial(fit_network, train, codec, share, seed, mixer=mixer, mix=False, device=device)
    methods["segue's own choice"] = partial(fit_network, train, codec, share, seed, device=device)

    results = []
    with progress("compare", total=len(methods), quiet=quiet) as meter:
        for number, (name, make) in enumerate(methods.items()):
            meter(number, name)
            begin = time.perf_counter()
            model, chosen = make()
            seconds = time.perf_counter() - begin
            scores = evaluate(model, test_pieces)
            results.append(Result(name, scores.bits * scores.predictions / units, scores.bits, scores.accuracy,
                                  scores.brier, seconds, chosen))
    results.sort(key=lambda result: result.bits)
    return Comparison(results, data.kind.unit, codec.size, sum(map(len, test_pieces)), len(test_pieces),
                      describe_machine())


def classical_methods(learn: list[np.ndarray], rest: list[np.ndarray], check: list[np.ndarray], size: int,
                      end: int | None, seed: int) -> dict[str, Callable[[], Learned]]:
    """By name, functions that train the classical methods: settings are chosen by training on `rest` and scoring on
    `check`, then the method is trained on `learn`, which is both."""
    def best(smoothing: str) -> Learned:
        def made(order: int, sequences: list[np.ndarray]) -> CountModel:
            return CountModel(size, order, smoothing).fit(sequences)

        order = min(range(1, 9), key=lambda k: evaluate(made(k, rest), check).bits)
        return made(order, learn), f"order {order}"

    some = subsample(learn, LEARN_ELEMENTS)
    methods: dict[str, Callable[[], Learned]] = {
        "frequencies": lambda: (CountModel(size, 0).fit(learn), ""),
        "directly-follows graph": lambda: (directly_follows(learn, size), ""),
        "all-order Markov (AKOM)": lambda: best("none"),
        "Witten-Bell": lambda: best("witten-bell"),
        "Kneser-Ney": lambda: best("kneser-ney"),
    }
    if size <= MOST_AUTOMATON_TOKENS:
        def automaton() -> Learned:
            model = StateMerging(size, end=end).fit(subsample(learn, LEARN_ELEMENTS // 20))
            return model, f"{model.states} states"

        def spectral() -> Learned:
            def made(rank: int, sequences: list[np.ndarray]) -> Spectral:
                return Spectral(size, end, rank, length=2, most=MOST_AUTOMATON_TOKENS // 2).fit(sequences)

            rank = min((4, 8, 16, 32), key=lambda rank: evaluate(made(rank, rest), check).bits)
            return made(rank, some), f"rank {rank}"

        states = min(size, 40)
        methods["automaton (ALERGIA)"] = automaton
        methods["automaton (spectral)"] = spectral
        methods["hidden Markov model"] = lambda: (
            HMM(size, states, restarts=3, iterations=100, seed=seed).fit(subsample(some, LEARN_ELEMENTS // 10)),
            f"{states} states")
    return methods


def fit_network(train: Data, codec: Codec, minutes: float, seed: int, **choices: Any) -> Learned:
    """Fit a network with a budget of `minutes`."""
    if codec.bos is None:
        raise SegueError(f"{codec} has no token that begins a sequence: its networks cannot predict first elements")
    fitted = fit(train, minutes=minutes, codec=codec, seed=seed, quiet=True, **choices)
    config = fitted.model.config
    chosen = f"{len(config.mixers)} layers of width {config.width}" + (", mixed with counts" if fitted.mixture else "")
    return DecodablePredictor(fitted.decodable(), codec.bos), chosen
