"""Peptide Sequencing Via Protein Language Models (2024, arXiv 2408.00892).

Only some amino acids of a protein can be read where they stand; a bidirectional language model fills in the rest. On
resistance proteins, many of which are alleles of one gene: held out at random or by family (clusters of similar
proteins), with four (K1) or nine (K2) readable residues, beside the commonest residue and a lookup of the most similar
training protein. The verdict asks whether the split makes the result (random far above family), and whether the network
learns anything beyond retrieval.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from segue.analysis.blanks import PatternLookup, blank_scores
from segue.data import Data, of, read
from segue.kinds.codecs import LetterCodec
from segue.models import Stack, StackConfig
from segue.models.base import mask_tokens, pad_rows, padding_starts
from segue.models.stack import both_ways
from segue.objectives import Batch, MaskedElements
from segue.objectives.masked import LetterMask, mask_some
from segue.papers.base import Claim, Row, Run, Verdict
from segue.training.learn import learn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LETTERS = "ACDEFGHIKLMNPQRSTVWYX"  # U, O, B, Z and J are read as X (unknown)
CODEC = LetterCodec(LETTERS)
MASK = CODEC.size - 1  # the codec's end-of-sequence id, which is not used here
KNOWN = {"K1": "KCYM", "K2": "KCYMRHWST"}
ARMS = {"random, K1": ("content", "K1"), "family, K1": ("cluster", "K1"), "random, K2": ("content", "K2")}
TESTED = 0.1
HIT = 0.5  # least agreement of a lookup that counts as a hit: share equal of the positions readable in either protein
SHORTEST, LONGEST = 30, 300  # residues
STEPS = 370
COMMONEST, LOOKUP, NETWORK = "commonest residue", "lookup", "network"

Rows = list[np.ndarray]


def load_proteins(path: Path | None, seed: int = 0) -> Data:
    """Distinct proteins of 30 to 300 residues; without a path made-up alleles of a few genes."""
    if path is None:
        draw = np.random.default_rng(seed)
        genes = draw.integers(0, 20, (24, 40))
        alleles = [np.where(draw.random(40) < 0.03, draw.integers(0, 20, 40), gene) for gene in genes for _ in range(5)]
        return of([CODEC.decode(ids) for ids in alleles], kind="protein")
    table = str.maketrans("UOBZJ", "XXXXX", "*-")
    proteins = {letters.translate(table) for letters in read(path).objects()}
    return of(sorted(letters for letters in proteins if SHORTEST <= len(letters) <= LONGEST), kind="protein")


def split_proteins(path: Path | None, by: str, seed: int) -> tuple[Rows, Rows]:
    """Training and test proteins as ids; by: how they are held out (`Data.split`)."""
    train, test = load_proteins(path, seed).split(TESTED, by=by, seed=seed)
    return [CODEC.encode(protein) for protein in train.objects()], [CODEC.encode(protein) for protein in test.objects()]


def masked_batches(rows: Rows, known_ids: Sequence[int], count: int, seed: int) -> Callable[[int], Batch]:
    """A function of the step: `count` proteins, reshuffled each epoch, with all but the known residues masked and
    scored."""
    def draw(step: int) -> Batch:
        epoch, at = divmod(step, max(1, len(rows) // count))
        order = np.random.default_rng((seed, epoch)).permutation(len(rows))[at * count : (at + 1) * count]
        return mask_some(make_batch([rows[i] for i in order]), MASK, LetterMask(tuple(known_ids)), unmasked=0.0)

    return draw


def make_batch(rows: Rows) -> Batch:
    """Padded rows whose targets are their own elements; X and padding are not scored."""
    ids = pad_rows([row.tolist() for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    scored = (torch.arange(ids.shape[1]) < lengths[:, None]) & (ids != CODEC.letters.index("X"))
    return Batch(ids, ids.masked_fill(~scored, -1), padding_starts(lengths, ids.shape[1]))


@torch.no_grad()
def fill_blanks(model: Stack, rows: Rows, known_ids: Sequence[int]) -> Rows:
    """The rows with each blank filled in by its likeliest residue, in one pass."""
    answers = []
    excluded = [*known_ids, CODEC.letters.index("X"), MASK]
    for at in range(0, len(rows), 16):
        part = rows[at : at + 16]
        batch = mask_some(make_batch(part), MASK, LetterMask(tuple(known_ids)), unmasked=0.0)
        best: Tensor = mask_tokens(model(batch.tokens, batch.layout).logits, excluded).argmax(-1)
        filled = torch.where(batch.tokens == MASK, best, batch.tokens).numpy()
        answers += [tokens[: len(row)] for tokens, row in zip(filled, part)]
    return answers


def build_network(width: int, depth: int) -> Stack:
    """A bidirectional attention stack, with learned positions as in ProtBert beside rotary ones."""
    return Stack(both_ways(StackConfig(MASK + 1, width, ["attention"] * depth, {"attention": {"heads": 4}},
                                       norm="layer", learned_positions=LONGEST)))


def score_arm(path: Path | None, by: str, known: str, seed: int, steps: int, count: int, width: int, depth: int,
              ) -> dict[str, dict[str, float]]:
    """Scores of each method's filled blanks, in per cent; "no hit": only of proteins for which the lookup finds
    nothing."""
    train, test = split_proteins(path, by, seed)
    ids = CODEC.encode(KNOWN[known]).tolist()
    torch.manual_seed(seed)
    model = build_network(width, depth)
    learn(model, masked_batches(train, ids, count, seed), steps, rate=0.01, seed=seed, muon=True, cooldown=0.5,
          objective=MaskedElements(impossible=ids))
    lookup = PatternLookup(train, ids)
    missed = [i for i, row in enumerate(test) if lookup.find(row)[1] < HIT]
    answers = {COMMONEST: [np.where(np.isin(row, ids), row, lookup.commonest) for row in test],
               LOOKUP: [lookup.fill(row) for row in test], NETWORK: fill_blanks(model.eval(), test, ids)}
    result = {}
    for name, rows in answers.items():
        scores = blank_scores(rows, test, ids)
        alone = blank_scores([rows[i] for i in missed], [test[i] for i in missed], ids)
        result[name] = {"blanks": 100 * scores.mean, "pooled": 100 * scores.pooled, "identity": 100 * scores.identity,
                        "no hit": 100 * alone.pooled if missed else 0.0, "proteins": len(test),
                        "without hit": len(missed)}
    return result


def measure(run: Run) -> list[Row]:
    folder = run.dataset("prokka-proteins")
    path = None if folder is None else folder / "bacteria-amr.faa.gz"
    setting = run.pick({"steps": 2, "count": 8, "width": 16, "depth": 1},
                       {"steps": STEPS, "count": 16, "width": 128, "depth": 2})
    done = run.cells({name: partial(score_arm, path, by, known, run.seed, **setting)
                      for name, (by, known) in ARMS.items()})
    what = "made-up alleles" if path is None else "NCBI resistance proteins as carried by Prokka"
    run.note(f"data: {what}, different proteins of {SHORTEST} to {LONGEST} residues; a tenth is held out, at random or "
             "by clusters (single linkage at 40% shared words of 4 residues)")
    run.note(f"network: {setting['depth']} blocks of attention that read both ways, width {setting['width']}, learned "
             f"and rotary positions, {setting['steps']} steps of {setting['count']} proteins, from scratch; one pass, "
             "the likeliest of the residues that are not known")
    run.note("lookup: the training protein of the same length whose readable residues match best, its others copied; "
             "no hit: of the places that can be read in either, fewer than half say the same (or no such length)")
    run.note("blanks: share of right blanks, mean over proteins; pooled: over all blanks; identity: over all residues")
    lookup, common = (done["family, K1"][method]["blanks"] for method in (LOOKUP, COMMONEST))
    run.note(f"by how much families apart are still related: lookup fills in {lookup:.1f}% of the blanks there, the "
             f"commonest residue {common:.1f}%")
    return [{"arm": name, "method": method} | values for name, methods in done.items()
            for method, values in methods.items()]


def judge(table: list[Row]) -> tuple[Verdict, str]:
    def value(arm: str, method: str, what: str = "blanks") -> float:
        return next(row[what] for row in table if (row["arm"], row["method"]) == (arm, method))

    random, family, k2 = (value(name, NETWORK) for name in ARMS)
    common, alone = value("family, K1", COMMONEST), value("random, K1", COMMONEST)
    looked_up = value("random, K1", LOOKUP)
    beyond = value("random, K1", NETWORK, "no hit") - value("random, K1", COMMONEST, "no hit")
    reason = (f"the network fills in {random:.1f}% of the blanks with a random split, {family:.1f}% with families "
              f"apart (commonest residue {common:.1f}%), {k2:.1f}% with K2 known; lookup has {looked_up:.1f}% with a "
              f"random split; where it finds nothing the network is {beyond:+.1f} points above the commonest residue")
    if random < alone + 5:
        return "inconclusive", reason
    split = random >= 3 * family and k2 >= random + 3 and family >= common + 1
    return ("confirmed" if split and (random > looked_up or beyond >= 2) else "refuted"), reason


def draw(figure: Figure, table: list[Row]) -> None:
    methods = {COMMONEST: "tab:grey", LOOKUP: "tab:orange", NETWORK: "tab:blue"}
    for axes, what, title in zip(figure.subplots(1, 2), ("blanks", "no hit"),
                                 ("all held-out proteins", "those for which lookup finds nothing")):
        for place, (method, colour) in enumerate(methods.items()):
            values = [row[what] for row in table if row["method"] == method]
            bars = axes.bar(np.arange(len(values)) + 0.27 * (place - 1), values, 0.25, color=colour, label=method)
            axes.bar_label(bars, fmt="%.0f", fontsize="x-small")
        axes.set_xticks(range(len(ARMS)), list(ARMS), fontsize="small")
        axes.set(title=title, ylim=(0, 100))
    figure.axes[0].set_ylabel("right blanks, %")
    figure.axes[0].legend(fontsize="small")


CLAIM = Claim(
    slug="peptide",
    statement="A protein language model that is shown four of the twenty residues where they stand fills in most of "
              "the others.",
    rule="share of right blanks, mean over proteins: confirmed if with a random split it is at least 3 times that with "
         "families apart (the split makes the result), with nine known residues at least 3 points above that with "
         "four, with families apart at least 1 point above the commonest residue, and something is learned beyond "
         "retrieval: with a random split the network is above lookup, or, pooled over the proteins for which lookup "
         "finds nothing, at least 2 points above the commonest residue; inconclusive if with a random split the "
         "network is less than 5 points above the commonest residue (too little was learned); else refuted.",
    measure=measure, judge=judge, draw=draw,
    paper={"E. coli, four known, blanks": "73.5% (own model), 51.4% and 45.2% (of other species)",
           "E. fergusonii, four known": "blanks 88.3%, pooled 86.8%, identity 89.7%",
           "E. fergusonii, nine known": "blanks 93.5%, pooled 92.8%, identity 95.7%",
           "abstract": "up to 90.5%"},
)
