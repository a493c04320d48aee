"""`design`: propose new sequences with high predicted scores, given a table of measured sequences and a fitted
model."""

from __future__ import annotations

import copy
import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from segue.design.measured import BY, Measured, Predictor, propose, sub_meter
from segue.design.oracles import Encoder
from segue.errors import SegueError
from segue.files import write_text
from segue.kinds.base import Problems
from segue.kinds.biology import Letters
from segue.kinds.codecs import LetterCodec
from segue.kinds.frame import Frame, load_table
from segue.kinds.sequence_columns import COLUMNS
from segue.models import Stack
from segue.models.cloze import ClozeModel
from segue.objectives import ANY_ORDER, generator_of
from segue.progress import progress

if TYPE_CHECKING:
    from rich.console import RenderableType

    from segue.verbs.fitted import Fitted

SHOWN = 10  # designs printed
SCORES = ("score", "fitness", "target", "value", "activity", "affinity", "expression", "label", "y")
ROWS_LOOKED_AT = 100  # to decide what a column holds
MOST_LETTERS = 1_000_000  # of measured sequences that are used, at most
FAIR_CORRELATION = 0.3  # rank correlation below which predictions are hardly better than guesses
COLUMNS_OUT = ("rank", "sequence", "predicted_score", "climbed_score", "start", "start_score", "changes")


@dataclass
class Designs:
    """Proposed sequences, best prediction first, with how reliable the predictions are.

    rows: sequence, predicted_score (by a head that the search did not use), climbed_score (by the head that it
    maximised), start and start_score (the measured sequence it started from), changes (positions that differ).
    values: how they were made.
    """

    rows: list[dict[str, Any]]
    values: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {**self.values, "notes": self.notes, "designs": self.rows}

    def save(self, path: str | Path) -> Path:
        """Write all designs as CSV, atomically."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS_OUT, lineterminator="\n")
        writer.writeheader()
        writer.writerows({"rank": rank, **row} for rank, row in enumerate(self.rows, 1))
        write_text(path, text.getvalue())
        return Path(path)

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        v, table = self.values, Table("rank", "sequence", "predicted", "from one of", "changes", box=None)
        for rank, row in enumerate(self.rows[:SHOWN], 1):
            table.add_row(str(rank), shorten(row["sequence"], row["start"]), f"{row['predicted_score']:.4g}",
                          f"{row['start_score']:.4g}", str(row["changes"]))
        omitted = [f"and {len(self.rows) - SHOWN} more"] if len(self.rows) > SHOWN else []
        lines = [*omitted, f"{v['measured']:,} measured sequences, scores {v['least']:.4g} to {v['most']:.4g}; by "
                 f"{v['by']}, scores predicted from {v['features']}",
                 f"these are predictions, not measurements: on measured sequences that it had not seen the predictor's "
                 f"rank correlation is {v['correlation']:.2f}, its error {v['error']:.3g}; it knows less about designs "
                 "that are farther away, so measure some before you trust it", *self.notes]
        return Group(table, *map(Text, lines))


def shorten(sequence: str, start: str, most: int = 60) -> str:
    """A sequence as short text; a long one as its differences from `start`, as in A12G."""
    if len(sequence) <= most:
        return sequence
    changes = [f"{old}{place}{new}" for place, (old, new) in enumerate(zip(start, sequence), 1) if old != new]
    return " ".join(changes[:8]) + (f" and {len(changes) - 8} more" if len(changes) > 8 else "")


def design(fitted: Fitted, scores: str | Path | Sequence[tuple[str, float]], n: int = 100, by: str = BY[0], *,
           sequence: str | None = None, score: str | None = None, lower: bool = False, positions: str | None = None,
           changes: int | None = None, steps: int = 50, seed: int = 0, strength: float = 0.5,
           quiet: bool = False) -> Designs:
    """Propose up to n new sequences with high predicted scores.

    fitted: a model of DNA or protein, with any mixers.
    scores: a table (CSV, TSV, Parquet, JSON Lines) with a column of sequences and one of scores, or pairs.
    by: "bidirectional" (any model: optimise soft designs against a head on the frozen model's features, regularised by
        how well they explain the table; BIB); or, for a model fitted with objective diffusion, "fine-tune" (a copy
        learns to write sequences that score high; DRAKES), "guidance", "smc" or "tds" (steered sampling).
    sequence, score: names of the columns (default: recognised). lower: lower scores are better.
    positions: that may change, from 1, as "39-41,54" (default: where the table's sequences differ).
    changes: positions that may differ from the measured sequence that a design starts from, at most.
    steps: of the search. strength: for a diffusion model, the cost of departing from its own distribution, in standard
        deviations of the scores.
    """
    network = fitted.model
    stack = network.stack if isinstance(network, ClozeModel) else network
    kind, codec = fitted.kind, fitted.codec
    if not isinstance(kind, Letters) or not isinstance(codec, LetterCodec) or not isinstance(stack, Stack):
        raise SegueError("designs are made letter by letter, with a native model of DNA or protein, not with this one "
                         f"of {kind.name}: fit one on sequences of the kind, without k")
    if by not in BY:
        raise SegueError(f"there is no design by '{by}': choose from {', '.join(BY)}")
    if by != BY[0] and fitted.objective not in ANY_ORDER:
        raise SegueError(f"'{by}' writes with a diffusion model, and this one was fitted with objective "
                         f"{fitted.objective}: fit one with objective diffusion, or design by {BY[0]}")
    if by != BY[0] and (fitted.report.values.get("plan") or {}).get("known"):
        raise SegueError(f"this model was fitted with known letters, and cannot write those: design by {BY[0]}")
    for name, value, minimum in (("n", n, 1), ("steps", steps, 1), ("changes", changes, 1), ("strength", strength, 0)):
        if value is not None and (value < minimum or value == 0 or not math.isfinite(value)):
            raise SegueError(f"{name} must be more than 0, not {value:g}")
    notes: list[str] = []
    pairs = read_scores(fitted, Path(scores), sequence, score, notes) if isinstance(scores, str | Path) else \
        [(kind.normalise(letters), float(value)) for letters, value in scores]
    if (count := MOST_LETTERS * len(pairs) // max(1, sum(len(letters) for letters, _ in pairs))) < len(pairs):
        chosen = torch.randperm(len(pairs), generator=generator_of(seed, 9))[:count].tolist()
        notes.append(f"{count:,} of the {len(pairs):,} measured sequences, by chance, are used")
        pairs = [pairs[i] for i in chosen]
    direction = -1.0 if lower else 1.0
    measured = Measured.of([codec.encode(letters).tolist() for letters, _ in pairs], [direction * v for _, v in pairs])
    free = parse_positions(positions, measured)
    frozen = copy.deepcopy(stack)  # the fitted model itself can go on learning
    prefix = [] if fitted.objective in ANY_ORDER or isinstance(network, ClozeModel) else [codec.size - 1]  # a beginning
    encoder = Encoder(frozen, frozen.vocabulary, measured.letters.tolist(), prefix)
    with progress("design", 1.0, quiet) as meter:
        predictor = Predictor.fit(measured, encoder, seed, sub_meter(meter, 0.0, 0.3))
        proposals = propose(measured, predictor, n, by, frozen, free, changes, steps, seed, strength,
                            progress=sub_meter(meter, 0.3, 1.0))
    decode = codec.decode
    starts = {proposal.start:
              decode(measured.letters[measured.ids[proposal.start, : measured.lengths[proposal.start]]].tolist())
              for proposal in proposals}
    rows = [{"sequence": decode(proposal.ids), "predicted_score": direction * proposal.predicted,
             "climbed_score": direction * proposal.climbed, "start": starts[proposal.start],
             "start_score": direction * float(measured.scores[proposal.start]), "changes": proposal.changes}
            for proposal in proposals]
    if len(rows) < n:
        notes.append(f"only {len(rows)} new sequences were found: allow more positions or changes, or more steps")
    if not predictor.correlation >= FAIR_CORRELATION:
        notes.append(f"a rank correlation below {FAIR_CORRELATION} is little better than a guess: measure more "
                     "sequences, or fit the model on more of their kind")
    extremes = sorted(direction * float(value) for value in (measured.scores.min(), measured.scores.max()))
    values = {"by": by, "measured": len(measured.scores), "least": extremes[0], "most": extremes[1], "lower": lower,
              "features": predictor.kind, "correlation": predictor.correlation, "error": predictor.error, "seed": seed,
              "positions": (measured.varying if free is None else free).nonzero()[:, 0].add(1).tolist()}
    return Designs(rows, values, notes)


def parse_positions(positions: str | None, measured: Measured) -> Tensor | None:
    """Parse positions such as "39-41,54" to a mask (L,) bool; None stays None, the default."""
    if positions is None:
        return None
    length = measured.ids.shape[1]
    free = torch.zeros(length, dtype=torch.bool)
    for part in positions.replace(" ", "").split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= first <= last <= length:
            raise SegueError(f"positions '{positions}': '{part}' is no place or range of places from 1 to {length}, as "
                             "39-41,54")
        free[first - 1 : last] = True
    return free


def read_scores(fitted: Fitted, path: Path, sequence: str | None, score: str | None,
                notes: list[str]) -> list[tuple[str, float]]:
    """Read sequences and scores from a table; `notes` gets the number of rows that cannot be used."""
    if not path.is_file():
        raise SegueError(f"{path} is no file: give a table with a column of sequences and one of scores")
    frame = load_table(path, Problems(), "utf-8", [sequence, score])
    cells = {name: values.to_pylist() for name, values in frame.columns.items()}
    letters_in, scores_in = find_columns(fitted, frame, cells, sequence, score)
    pairs, rejected = list[tuple[str, float]](), list[str]()
    for row, (text, value) in enumerate(zip(cells[letters_in], cells[scores_in])):
        try:
            letters, measured = fitted.kind.normalise(str(text or "")), float(value)
            fitted.codec.encode(letters)
        except (SegueError, TypeError, ValueError) as error:
            rejected.append(f"{frame.place(row)}: {error}")
            continue
        if letters and math.isfinite(measured):
            pairs.append((letters, measured))
        else:
            rejected.append(f"{frame.place(row)}: no sequence, or no number")
    if not pairs:
        raise SegueError(f"{path}: no row has a {fitted.kind.name} sequence in column '{letters_in}' and a number in "
                         f"column '{scores_in}' ({rejected[0]}); name the columns with sequence= and score=")
    if rejected:
        notes.append(f"{len(rejected):,} of {len(pairs) + len(rejected):,} rows were left out ({rejected[0]})")
    notes.append(f"{path.name}: sequences from column '{letters_in}', scores from column '{scores_in}'")
    return pairs


def find_columns(fitted: Fitted, frame: Frame, cells: dict[str, list[Any]], sequence: str | None,
                 score: str | None) -> tuple[str, str]:
    """The names of the columns of sequences and of scores: as given, else by usual names, else the only possible ones.
    """
    names = ", ".join(cells)
    for name, option in ((sequence, "sequence"), (score, "score")):
        if name is not None and name not in cells:
            raise SegueError(f"{frame.path}: there is no column '{name}': give {option}= one of {names}")
    legal = set(fitted.kind.letters + fitted.kind.letters.lower())  # type: ignore[attr-defined]
    if sequence is None:
        candidates = [name for name, column in cells.items() if any(column) and all(
            len(str(cell)) > 1 and legal.issuperset(str(cell)) for cell in column[:ROWS_LOOKED_AT] if cell)]
        sequence = next((name for name in cells if name.lower() in COLUMNS), candidates[0] if candidates else None)
    if score is None:
        numbers = [name for name, column in cells.items() if name != sequence and any(map(is_number, column)) and
                   all(cell in (None, "") or is_number(cell) for cell in column[:ROWS_LOOKED_AT])]
        recognised = [name for name in numbers if name.lower() in SCORES]
        score = recognised[0] if recognised else numbers[0] if len(numbers) == 1 else None
    if sequence is None or score is None:
        missing, option = ("sequences", "sequence") if sequence is None else ("scores", "score")
        raise SegueError(f"{frame.path}: which column has the {missing}? name it with {option}= (columns: {names})")
    return sequence, score


def is_number(cell: Any) -> bool:
    try:
        return math.isfinite(float(cell))
    except (TypeError, ValueError):
        return False
