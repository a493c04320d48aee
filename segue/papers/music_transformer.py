"""Music Transformer (Huang et al. 2018, arXiv 1809.04281).

Two statements. (1) Attention with relative positions models music better than absolute sinusoids alone: nats per note
of Bach's chorales (on the grid of sixteenths; a third arm also has relative time and pitch) and nats per character of
folk tunes in ABC notation (reported beside). (2) Skewing q E^T needs one vector per distance, where the formulation of
Shaw et al. needs one per pair of positions: the memory beyond the scores themselves, by length. The verdict needs both.
"""

from __future__ import annotations

import time
import zipfile
from functools import partial
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from segue.analysis.memory import peak_memory
from segue.mixers.positions import relative_scores
from segue.models import Stack, StackConfig
from segue.objectives import Batch, NextElement, generator_of
from segue.papers import corpora
from segue.papers.base import Claim, Row, Run, Verdict
from segue.training.learn import learn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOW, PITCHES = 30, 60  # MIDI pitches of the table, with room to transpose; one more element is silence
CONTEXT, ROWS = 256, 8
HEAD = 64  # features of the head whose memory is measured
RELATIVE = {"positions": "sinusoidal", "relative": CONTEXT // 2}  # half the length, as in the paper
NOTES = "sinusoids + relative + time and pitch"  # for chorales only: characters of ABC have neither
ARMS: dict[str, dict[str, Any]] = {
    "sinusoids": {"positions": "sinusoidal"},
    "sinusoids + relative": RELATIVE,
    NOTES: {**RELATIVE, "traits": {"time": CONTEXT // 4, "pitch": 4 * 12}},
}
# Traits of the ids that `load_chorales` makes: time advances with each soprano note, and silence has no pitch.
TRAITS: dict[str, dict[str, Any]] = {
    "time": {"of": [int(voice == 0) for voice in range(4) for _ in range(PITCHES + 1)], "sum": True},
    "pitch": {"of": [*range(LOW, LOW + PITCHES), None] * 4},
}


# --- the pieces ----------------------------------------------------------------------------------------------------


def load_chorales(folder: Path | None, part: str) -> list[Tensor]:
    """Pieces as (T,) ids, each of a voice and a pitch, with soprano, alto, tenor and bass of a step in turn. Without a
    folder, made-up pieces whose voices hold their notes."""
    if folder is None:
        generator = torch.Generator().manual_seed(len(part))
        moves = torch.randint(-2, 3, (6, 20, 4), generator=generator).cumsum(1)
        steps = [(moves[i].repeat_interleave(4, 0) + torch.tensor([70, 65, 58, 50])).tolist() for i in range(6)]
    else:
        steps = corpora.chorales(folder, part)
    pieces = []
    for piece in steps:
        pitch = torch.tensor(piece)
        note = torch.where(pitch < 0, PITCHES, pitch - LOW)
        pieces.append((note + (PITCHES + 1) * torch.arange(4)).flatten())
    return pieces


def transpose_piece(piece: Tensor, semitones: int) -> Tensor:
    """The piece with its notes raised by so many semitones; silence stays silence."""
    return torch.where(piece % (PITCHES + 1) == PITCHES, piece, piece + semitones)


def load_tunes(folder: Path, part: str) -> list[Tensor]:
    """Folk tunes as (T,) character ids; every tenth tune is a test tune."""
    with zipfile.ZipFile(folder / "nottingham-abc-cleaned.zip") as archive:
        text = "\n".join(archive.read(name).decode("utf-8", "replace") for name in sorted(archive.namelist())
                         if name.endswith(".abc"))
    whole = ["X:" + tune for tune in text.split("X:")[1:]]
    chosen = [tune for i, tune in enumerate(whole) if (i % 10 == 0) == (part == "test")]
    return [torch.tensor([min(ord(letter), 127) for letter in tune]) for tune in chosen]


def crop_piece(piece: Tensor, begin: int) -> tuple[Tensor, Tensor]:
    """CONTEXT elements from `begin` and their next elements, which are -1 (not scored) beyond the end of the piece."""
    window = piece[begin : begin + CONTEXT + 1]
    tokens, targets = torch.zeros(CONTEXT, dtype=torch.long), torch.full((CONTEXT,), -1)
    tokens[: len(window) - 1], targets[: len(window) - 1] = window[:-1], window[1:]
    return tokens, targets


def sample_batch(pieces: list[Tensor], unit: int, transpose: bool, seed: int, step: int) -> Batch:
    """ROWS crops of random pieces, each beginning at a multiple of `unit`; with `transpose` moved by -3 to 3
    semitones."""
    generator = generator_of(seed, step)
    rows = []
    for _ in range(ROWS):
        piece = pieces[int(torch.randint(len(pieces), (), generator=generator))]
        starts = max(0, len(piece) - CONTEXT - 1) // unit + 1
        begin = unit * int(torch.randint(starts, (), generator=generator))
        shift = int(torch.randint(-3, 4, (), generator=generator)) if transpose else 0
        rows.append(crop_piece(transpose_piece(piece, shift) if shift else piece, begin))
    tokens, targets = (torch.stack(x) for x in zip(*rows))
    return Batch(tokens, targets)


@torch.no_grad()
def nats_per_element(model: Stack, pieces: list[Tensor]) -> float:
    """Nats per element in disjoint windows, of which the first element is given."""
    model.eval()
    windows = [crop_piece(piece, begin) for piece in pieces for begin in range(0, len(piece) - 1, CONTEXT)]
    total, count = 0.0, 0
    for at in range(0, len(windows), 16):
        tokens, targets = (torch.stack(x) for x in zip(*windows[at : at + 16]))
        loss = NextElement()(model, Batch(tokens, targets))
        total, count = total + float(loss.total), count + loss.count
    return total / count


def train_and_score(arm: str, data: str, folder: Path | None, seed: int, steps: int, width: int) -> float:
    """Train on one kind of music; nats per element of the test pieces."""
    read, unit = (load_chorales, 4) if data == "chorales" else (load_tunes, 1)
    assert folder is not None or data == "chorales"
    learned, test = (read(folder, part) for part in ("train", "test"))  # type: ignore[arg-type]
    torch.manual_seed(seed)
    vocabulary = 4 * (PITCHES + 1) if data == "chorales" else 128
    model = Stack(StackConfig(vocabulary, width, ["attention"] * 3, {"attention": ARMS[arm]}, norm="layer", tied=False,
                              traits=TRAITS if arm == NOTES else {}))
    learn(model, partial(sample_batch, learned, unit, data == "chorales", seed), steps, rate=1e-3, seed=seed)
    return nats_per_element(model, test)


# --- memory --------------------------------------------------------------------------------------------------------


def measure_scores(how: str, length: int) -> dict[str, float]:
    """Seconds, and bytes beyond the scores themselves, to compute the relative scores of one head.

    how: "skewed", or "looked up" with a vector per pair of positions."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(1, 1, length, HEAD, generator=generator)
    table = torch.randn(1, length, HEAD, generator=generator)
    distance = (torch.arange(length)[:, None] - torch.arange(length))[None]

    def compute() -> Tensor:
        if how == "skewed":
            return relative_scores(q, table, distance, True, True, False)
        vectors = table[:, distance[0].clamp(min=0)]  # a vector per pair, as of Shaw et al. 2018
        return torch.einsum("bhie,hije->bhij", q, vectors)

    begin = time.perf_counter()
    compute()
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "bytes": peak_memory(compute) - 4 * length**2}


# --- the claim -----------------------------------------------------------------------------------------------------


def measure(run: Run) -> list[Row]:
    steps, width, seeds = run.pick(4, 160), run.pick(32, 128), run.pick(1, 2)
    folders = {"chorales": run.dataset("jsb-chorales"), "tunes": run.dataset("nottingham-abc")}
    jobs = {(arm, "chorales", seed): steps for seed in range(run.seed, run.seed + seeds) for arm in ARMS}
    if run.scale != "smoke":  # there are no made-up tunes
        jobs |= {(arm, "tunes", run.seed): steps // 2 for arm in ARMS if arm != NOTES}
    done = run.cells({f"{arm}, {data}, seed {seed}":
                      partial(train_and_score, arm, data, folders[data], seed, count, width)
                      for (arm, data, seed), count in jobs.items()})
    table: list[Row] = [{"part": data, "arm": arm, "seed": seed, "length": CONTEXT, "nats": value, "MiB": None,
                         "seconds": None} for (arm, data, seed), value in zip(jobs, done.values())]
    for length in run.pick([64, 128], [256, 512, 1024, 2048]):
        for how in ("skewed", "looked up"):
            cost = run.cell(f"scores {how} {length}", partial(measure_scores, how, length))
            table.append({"part": "memory", "arm": how, "seed": run.seed, "length": length, "nats": None,
                          "MiB": cost["bytes"] / 2**20, "seconds": cost["seconds"]})
    run.note(f"3 layers of width {width}, 4 heads, rows of {CONTEXT} x {ROWS}, AdamW at 1e-3 with linear decay, "
             f"{steps} steps (tunes: half), chorales transposed by -3 to 3 semitones; the voice of a note is part of "
             "its id; sinusoids enter at every layer, relative vectors reach half the length and nothing lies beyond; "
             "those of time reach 64 sixteenths, those of pitch four octaves")
    run.note("scored on the test pieces in windows that do not overlap; nats per note count held notes again at every "
             "sixteenth; nothing was chosen by the test pieces")
    run.note(f"MiB: for one head of {HEAD} features, beyond the scores, which both ways need")
    return table


def judge(table: list[Row]) -> tuple[Verdict, str]:
    nats: dict[tuple[str, int], float] = {(row["arm"], row["seed"]): row["nats"] for row in table
                                          if row["part"] == "chorales"}
    gaps = [value - nats["sinusoids + relative", seed] for (arm, seed), value in nats.items() if arm == "sinusoids"]
    memory = {(row["arm"], row["length"]): row["MiB"] for row in table if row["part"] == "memory"}
    longest = max(length for _, length in memory)
    ratio = memory["looked up", longest] / memory["skewed", longest]
    reason = (f"relative attention saves {mean(gaps):.3f} nats per note (at least {min(gaps):.3f}) on the chorales; at "
              f"length {longest} a vector per pair takes {ratio:.0f} times the extra memory of skewing")
    beyond = [nats["sinusoids + relative", seed] - value for (arm, seed), value in nats.items() if arm == NOTES]
    if beyond:
        reason += f"; time and pitch save {mean(beyond):.3f} more (at least {min(beyond):.3f})"
    if min(gaps) >= 0.08 and ratio >= HEAD / 4:
        return "confirmed", reason
    if mean(gaps) < 0.02 or ratio < 2:
        return "refuted", reason
    return "inconclusive", reason


def draw(figure: Figure, table: list[Row]) -> None:
    music, memory = figure.subplots(1, 2)
    bars: dict[tuple[str, str], list[float]] = {}
    for row in table:
        if row["nats"] is not None:
            bars.setdefault((row["part"], row["arm"]), []).append(row["nats"])
    names = [f"{part}:\n" + arm.replace(" + time", "\n+ time") for part, arm in bars]
    music.bar(names, [mean(values) for values in bars.values()],
              color=[f"C{list(ARMS).index(arm)}" for _, arm in bars])
    for at, values in enumerate(bars.values()):
        music.scatter([at] * len(values), values, color="black", s=8, zorder=3)
    music.set(ylabel="nats per element, test pieces", title="Music")
    music.tick_params(axis="x", rotation=60, labelsize=7)
    for how in ("skewed", "looked up"):
        points = [(row["length"], row["MiB"]) for row in table if row["part"] == "memory" and row["arm"] == how]
        memory.plot(*zip(*points), marker="o", label=how)
    memory.set_xscale("log", base=2)
    memory.set(yscale="log", xlabel="length", ylabel="MiB beyond the scores", title="Relative scores")
    memory.legend()


CLAIM = Claim(
    slug="music-transformer",
    statement="Attention with relative distances models music better than with sinusoids alone, and skewing spares it "
              "a vector for every pair of positions.",
    rule="confirmed if on the chorales the model with relative distances needs at least 0.08 nats per note less than "
         f"the one with sinusoids alone at every seed, and a vector per pair takes at least {HEAD // 4} (a quarter of "
         "a head's features) times the extra memory of skewing at the longest length; refuted if the mean "
         "saving is below 0.02, or the memory less than twice; else inconclusive. The tunes are shown beside.",
    measure=measure, judge=judge, draw=draw,
    paper={"chorales, nats per note (validation)": "sinusoids 0.398 (concatenated), relative 0.357, with pitch and "
                                                   "time 0.335 (from memory, not verified)",
           "extra memory at length 2048, one head of 64": "1.07 GB a vector per pair, 0.5 MB of vectors by skewing"},
)
