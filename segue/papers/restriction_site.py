"""Machine learning applications to DNA subsequence and restriction site analysis (Moyer et al. 2020, arXiv 2011.03544).

Which windows of DNA could restriction enzymes cut out so that the piece can be ligated elsewhere? The labels are exact
here, computed from the enzymes' sites and overhangs (REBASE) on the chromosome of E. coli 536. A support vector
machine, a random forest and a convolutional network (with known sites as its filters, or random ones) learn them from
features of the sites, from composition, or from the bases. The verdict tests three of the paper's statements by
bootstrap intervals: all three above 85%, the forest most specific and the machine most sensitive, sites more important
than composition."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import segue
from segue.analysis.binary import bootstrap, confusion, equal_error, pr_auc, roc_auc
from segue.analysis.restriction import (
    Enzyme,
    SiteScanner,
    Windows,
    composition,
    kmer_counts,
    panel,
    read_enzymes,
    regions,
    site_filters,
)
from segue.kinds import LetterCodec
from segue.models.equivariant import Equivariant, mirror
from segue.models.estimators import ESTIMATORS, informative_columns
from segue.models.motifs import ConvClassifier
from segue.objectives import Batch
from segue.papers.base import Claim, Row, Run, Verdict
from segue.training.learn import learn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LENGTH, EVERY, BLOCK = 150, 60, 10_000
SHARES = (0.70, 0.15, 0.15)
CODEC, PARTNER = LetterCodec("ACGT"), torch.tensor([3, 2, 1, 0])
MADE_UP = [Enzyme(name, site, (cut,)) for name, site, cut in (
    ("EcoRI", "GAATTC", (1, 5)), ("BamHI", "GGATCC", (1, 5)), ("BglII", "AGATCT", (1, 5)), ("BclI", "TGATCA", (1, 5)),
    ("NcoI", "CCATGG", (1, 5)), ("KpnI", "GGTACC", (5, 1)), ("SmaI", "CCCGGG", (3, 3)), ("XmaI", "CCCGGG", (1, 5)))]
SITES, BASES = ("counts", "places", "totals"), ("composition", "words")
INPUTS = {"all": SITES + BASES, "no sites": BASES, "no composition": SITES, "4-mers": ("4-mers",)}
GRID = [{"C": c, "gamma": gamma} for c in (1.0, 10.0) for gamma in (0.002, 0.006, 0.02)]
KEPT = 120  # features, those with the most mutual information with the labels


class Problem:
    """Windows of a genome, whether each is excisable, and their split by blocks of the genome.

    parts, windows, labels, blocks: lists with an entry for the training, validation and test windows, each with as many
    excisable ones as others (`size` of each class in all), and one for all windows of the test blocks, at their natural
    rate. parts: indices of windows. rate: share of excisable windows."""

    def __init__(self, folders: tuple[Path, Path] | None, size: int) -> None:
        if folders is None:
            rng = np.random.default_rng(0)
            text = "".join("".join(rng.choice(list("ACGT"), 60)) +
                           ("GGATCC" + "".join(rng.choice(list("ACGT"), 60)) + "AGATCT" if rng.random() < 0.5 else "")
                           for _ in range(2000))
            enzymes = MADE_UP
        else:
            text, enzymes = segue.read(folders[0] / "ecoli536.fna.gz")[0].object, \
                panel(read_enzymes(folders[1] / "enzymes.tsv"))
        self.enzymes = enzymes
        begins = np.arange(0, len(text) - LENGTH, EVERY)
        all_windows = Windows(text, begins, LENGTH, SiteScanner(enzymes))
        labels = all_windows.excisable()
        part, block = regions(begins, LENGTH, BLOCK if len(text) > 40 * BLOCK else 1000, SHARES)
        self.rate = float(labels.mean())
        rng = np.random.default_rng(1)
        sampled = []
        for number, share in enumerate(SHARES):
            for label in (True, False):
                candidates = rng.permutation(np.flatnonzero((part == number) & (labels == label)))
                sampled.append(candidates[: round(size * share)])
        sizes = [min(len(a), len(b)) for a, b in zip(sampled[::2], sampled[1::2])]
        self.parts = [np.concatenate([a[:n], b[:n]]) for a, b, n in zip(sampled[::2], sampled[1::2], sizes)]
        self.parts.append(np.flatnonzero(part == 2))  # all test windows, at their natural rate
        self.windows = [Windows(text, begins[index], LENGTH, all_windows.scanner) for index in self.parts]
        self.labels, self.blocks = [labels[index] for index in self.parts], [block[index] for index in self.parts]

    def features(self, part: int, groups: tuple[str, ...]) -> np.ndarray:
        """(N, features) of a part's windows, of these groups."""
        windows = self.windows[part]
        texts = windows.texts()
        features = windows.features() | {"composition": composition(texts)}
        if "words" in groups:
            features["words"] = np.concatenate([kmer_counts(texts, k) for k in (2, 3)], 1).astype(float)
        if "4-mers" in groups:
            features["4-mers"] = kmer_counts(texts, 4).astype(float)
        return np.concatenate([features[name] for name in groups], 1)

    def tokens(self, part: int) -> torch.Tensor:
        """(N, LENGTH) ids of the bases of a part's windows."""
        return torch.from_numpy(np.stack([CODEC.encode(text) for text in self.windows[part].texts()])).long()


@cache
def load_problem(folders: tuple[Path, Path] | None, size: int) -> Problem:
    """The problem, made once in each process."""
    return Problem(folders, size)


def score_estimator(name: str, inputs: str, folders: tuple[Path, Path] | None, size: int, trees: int,
                    seed: int) -> dict[str, Any]:
    """Scores of the validation, test and natural test windows by an estimator, whose settings are chosen on validation;
    default: the decision threshold of its scores."""
    problem = load_problem(folders, size)
    x = [problem.features(part, INPUTS[inputs]) for part in range(4)]
    options: list[dict[str, Any]] = GRID if name == "svm" else [{"trees": trees}] if name == "forest" else [{}]
    columns = informative_columns(x[0], problem.labels[0], KEPT)
    x = [part[:, columns] for part in x]
    fitted = [ESTIMATORS[name](seed, **setting).fit(x[0], problem.labels[0]) for setting in options]
    best = max(fitted, key=lambda model: roc_auc(problem.labels[1], model.scores(x[1])))
    return {"default": 0.0 if hasattr(best.model, "decision_function") else 0.5,
            "scores": [best.scores(part).round(5).tolist() for part in x[1:]]}


def score_network(motifs: bool, folders: tuple[Path, Path] | None, size: int, few: int, steps: int,
                  seed: int) -> dict[str, Any]:
    """As `score_estimator`, by a convolutional network over the bases, trained on `few` windows (0: all), read from
    either strand, 64 windows a step (32 of few); its scores are the mean over both strands."""
    problem = load_problem(folders, size)
    tokens, labels = problem.tokens(0), torch.from_numpy(problem.labels[0]).long()
    sites = sorted({enzyme.site for enzyme in problem.enzymes})
    if few:
        subset = torch.from_numpy(np.random.default_rng(seed).permutation(len(tokens))[:few])
        tokens, labels = tokens[subset], labels[subset]
    count = 32 if few else 64
    torch.manual_seed(seed)
    model = ConvClassifier(4, filters=len(sites), motifs=site_filters(sites) if motifs else None)

    def batches(step: int) -> Batch:
        generator = torch.Generator().manual_seed(1000 * seed + step)
        rows = torch.randint(len(tokens), (count,), generator=generator)
        reverse = torch.rand(count, 1, generator=generator) < 0.5
        inputs = torch.where(reverse, mirror(tokens[rows], PARTNER), tokens[rows])
        return Batch(inputs, torch.cat([torch.full((count, LENGTH - 1), -1), labels[rows, None]], 1))

    both_strands = Equivariant(model, PARTNER, classes=True)

    @torch.no_grad()
    def scores(part: int) -> np.ndarray:
        model.eval()
        logits = torch.cat([both_strands(rows).logits[:, -1] for rows in problem.tokens(part).split(256)])
        return (logits[:, 1] - logits[:, 0]).double().numpy()

    def loss(_: Any) -> float:
        return -roc_auc(problem.labels[1], scores(1))

    learn(model, batches, steps, rate=2e-3, seed=seed, held_out=loss, patience=5, measure=10, cooldown=0.5)
    return {"default": 0.0, "scores": [scores(part).round(5).tolist() for part in (1, 2, 3)]}


# --- the claim ---------------------------------------------------------------------------------------------------

ARMS = {"svm": ("svm", "all"), "forest": ("forest", "all"), "logistic": ("logistic", "all"),
        "svm, no sites": ("svm", "no sites"), "svm, no composition": ("svm", "no composition"),
        "forest, no sites": ("forest", "no sites"), "forest, no composition": ("forest", "no composition"),
        "svm, 4-mers": ("svm", "4-mers")}
NETWORK, BLANK = "network, motifs", "network, random"
MAIN = ("svm", "forest", NETWORK)


def measure(run: Run) -> list[Row]:
    genome, enzymes = run.dataset("ecoli-536"), run.dataset("rebase-enzymes")
    folders = None if genome is None or enzymes is None else (genome, enzymes)
    size, trees, steps, few, seeds = run.pick((60, 10, 3, 20, 1), (2000, 500, 300, 500, 3))
    jobs: dict[str, Any] = {arm: partial(score_estimator, name, inputs, folders, size, trees, run.seed)
                            for arm, (name, inputs) in ARMS.items()}
    jobs |= {name: partial(score_network, motifs, folders, size, 0, steps, run.seed)
             for name, motifs in ((NETWORK, True), (BLANK, False))}
    jobs |= {f"{name}, {few} windows, seed {seed}": partial(score_network, motifs, folders, size, few, 2 * steps // 3,
                                                            seed)
             for seed in range(run.seed, run.seed + seeds) for name, motifs in ((NETWORK, True), (BLANK, False))}
    cells = run.cells(jobs)
    problem = load_problem(folders, size)
    (_, validation, labels, natural), (_, _, blocks, _) = problem.labels, problem.blocks
    scores = {arm: [np.array(part) for part in cell["scores"]] for arm, cell in cells.items()}
    predicted = {arm: part[1] >= equal_error(validation, part[0]) for arm, part in scores.items()}
    at_default = {arm: part[1] >= cells[arm]["default"] for arm, part in scores.items()}

    def accuracy(arm: str, rows: np.ndarray) -> float:
        return confusion(labels[rows], predicted[arm][rows]).balanced_accuracy

    def default_rate(arm: str, rows: np.ndarray, which: str) -> float:
        return float(getattr(confusion(labels[rows], at_default[arm][rows]), which))

    def site_importance(rows: np.ndarray) -> float:
        """The accuracy lost without site features, beyond that lost without composition."""
        differences = [accuracy(f"{name}, no composition", rows) - accuracy(f"{name}, no sites", rows)
                       for name in ("svm", "forest")]
        return float(np.mean(differences))

    def motif_gain(rows: np.ndarray) -> float:
        """The accuracy gained by filters that begin as the sites, with few windows."""
        return float(np.mean([accuracy(f"{NETWORK}, {few} windows, seed {seed}", rows) -
                              accuracy(f"{BLANK}, {few} windows, seed {seed}", rows)
                              for seed in range(run.seed, run.seed + seeds)]))

    all_rows, table = np.arange(len(labels)), list[Row]()

    def add(arm: str, name: str, measure_rows: Any) -> None:
        low, high = bootstrap(measure_rows, blocks, draws=run.pick(20, 1000))
        table.append({"model": arm, "measure": name, "value": measure_rows(all_rows), "low": low, "high": high})

    for arm in [*ARMS, NETWORK, BLANK]:
        add(arm, "balanced accuracy", partial(accuracy, arm))
        for which in ("sensitivity", "specificity") if arm in MAIN else ():
            add(arm, f"{which}, default threshold", partial(default_rate, arm, which=which))
        at_natural_rate = confusion(natural, scores[arm][2] >= equal_error(validation, scores[arm][0]))
        for name, value in (("ROC AUC", roc_auc(labels, scores[arm][1])), ("PR AUC", pr_auc(natural, scores[arm][2])),
                            ("precision", at_natural_rate.precision)):
            table.append({"model": arm, "measure": name, "value": value, "low": value, "high": value})
    for other in ("svm", NETWORK):
        add(f"forest - {other}", "specificity, default threshold",
            lambda rows, other=other: default_rate("forest", rows, "specificity")
            - default_rate(other, rows, "specificity"))
    for other in ("forest", NETWORK):
        add(f"svm - {other}", "sensitivity, default threshold",
            lambda rows, other=other: default_rate("svm", rows, "sensitivity")
            - default_rate(other, rows, "sensitivity"))
    add("no composition - no sites", "balanced accuracy", site_importance)
    add(f"{NETWORK} - random, {few} windows", "balanced accuracy", motif_gain)
    run.note(f"{'the chromosome of E. coli 536' if folders else 'made-up DNA'}, {len(problem.enzymes)} enzymes (sold, "
             f"palindromic sites of six, one of those that cut alike); windows of {LENGTH} bases every {EVERY}, of "
             f"which {problem.rate:.1%} are excisable; {len(problem.parts[0])} to learn from, {len(problem.parts[1])} "
             f"to validate and {len(labels)} to test, half of each excisable, each from blocks of {BLOCK // 1000} kb "
             f"of its own; {len(natural):,} windows of the test blocks at their natural rate")
    run.note("balanced accuracy at the threshold of equal errors on validation; intervals by drawing blocks again; PR "
             "AUC and precision (at that threshold) at the natural rate; the label rule itself (pairs of cuts, "
             "distances, overhangs) is in no feature")
    return table


def judge(table: list[Row]) -> tuple[Verdict, str]:
    cell = {(row["model"], row["measure"]): row for row in table}
    main = {name: cell[name, "balanced accuracy"] for name in MAIN}
    forest = [cell[f"forest - {other}", "specificity, default threshold"] for other in ("svm", NETWORK)]
    machine = [cell[f"svm - {other}", "sensitivity, default threshold"] for other in ("forest", NETWORK)]
    sites = cell["no composition - no sites", "balanced accuracy"]
    checks = {
        "all three models above 85%": (all(row["low"] > 0.85 for row in main.values()),
                                       any(row["high"] < 0.85 for row in main.values())),
        "the forest most specific and the machine most sensitive": (
            all(row["low"] > 0 for row in forest + machine), any(row["high"] < 0 for row in forest + machine)),
        "sites matter more than composition": (sites["low"] > 0, sites["high"] < 0)}
    parts = [f"{what}: {'yes' if yes else 'no' if no else 'undecided'}" for what, (yes, no) in checks.items()]
    start = next(row for row in table if "windows" in row["model"])
    precision = cell["forest", "precision"]["value"]
    reason = (f"{'; '.join(parts)}. Balanced accuracy " +
              ", ".join(f"{name} {row['value']:.1%} ({row['low']:.1%} to {row['high']:.1%})"
                        for name, row in main.items()) +
              f"; without sites {100 * sites['value']:.1f} points worse than without composition; motifs in a "
              f"network's filters are worth {100 * start['value']:.1f} points with few windows "
              f"({100 * start['low']:.1f} to {100 * start['high']:.1f}); at the natural rate {precision:.0%} of what "
              "the forest finds is right")
    if any(no for _, no in checks.values()):
        return "refuted", reason
    return ("confirmed" if all(yes for yes, _ in checks.values()) else "inconclusive"), reason


def draw(figure: Figure, table: list[Row]) -> None:
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    rows = [row for row in table if row["measure"] == "balanced accuracy" and " - " not in row["model"]]
    names = [row["model"] for row in rows]
    left.barh(names, [row["value"] for row in rows], color=["C0" if name in MAIN else "C7" for name in names],
              xerr=[[row["value"] - row["low"] for row in rows], [row["high"] - row["value"] for row in rows]])
    left.axvline(0.85, color="grey", linestyle=":")
    left.set(xlabel="balanced accuracy (dotted: 85%)", xlim=(0.4, 1), title="Can this window be cut out?")
    left.tick_params(axis="y", labelsize=8)
    left.invert_yaxis()
    at = {(row["model"], row["measure"]): row["value"] for row in table}
    for name in MAIN:
        right.plot(at[name, "specificity, default threshold"], at[name, "sensitivity, default threshold"], "o",
                   label=name)
    for name, where in (("svm", (0.774, 0.949)), ("forest", (0.857, 0.927)), ("network", (0.824, 0.914))):
        right.plot(*where, "x", color="grey")
        right.annotate(f"{name}, paper", where, xytext=(3, 3), textcoords="offset points", fontsize=7, color="grey")
    right.set(xlabel="specificity", ylabel="sensitivity", title="At default thresholds")
    right.legend(fontsize="small")


CLAIM = Claim(
    slug="restriction-site",
    statement="A support vector machine, a random forest and a convolutional network tell which windows of DNA "
              "restriction enzymes could cut out; the forest is the most specific, the machine the most sensitive, and "
              "features of the sites matter most.",
    rule="three checks, each decided by 95% intervals over blocks of the test genome. (1) machine and forest on all "
         "features and the network whose filters begin with the sites have balanced accuracies above 85% (no: one is "
         "below). (2) at default thresholds the forest's specificity is above both others', and the machine's "
         "sensitivity is (no: one difference is negative). (3) without features of the sites machine and forest lose "
         "more than without composition and words (no: less). Confirmed if all three hold; refuted if any is reversed; "
         "else inconclusive.",
    measure=measure, judge=judge, draw=draw,
    paper={"sensitivity": "machine 94.9%, forest 92.7%, network 91.4%",
           "specificity": "machine 77.4%, forest 85.7%, network 82.4%",
           "features": "the nucleotide specificity of sites matters most (its own data, no intervals)"},
)
