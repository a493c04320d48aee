"""Text Is All You Need: Learning Language Representations for Sequential Recommendation (Recformer; Li et al. 2023,
arXiv 2305.13731).

Items are described by key-value text, and a history is encoded as one text, the newest item first; so an item that
nobody chose yet can be recommended. Arms: Recformer, Recformer without item positions, and SASRec, which embeds item
ids; baselines: chance, popularity, and popularity of genres. Data: MovieLens with a fifth of the films cold (absent
from training), which decides the verdict, and Amazon Scientific beside it. The verdict needs text well above chance and
above genre popularity on cold targets, where ids are at chance, and near SASRec on warm ones."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from segue.analysis.items import ItemIndex, ItemRecommender
from segue.analysis.metrics import ranks
from segue.analysis.ranking import rank_next, ranking
from segue.kinds import BPECodec, TextItemCodec
from segue.models import Stack, StackConfig
from segue.models.base import pad_rows, padding_starts
from segue.models.predict import DecodablePredictor, SequencePredictor
from segue.objectives import Batch, InBatch, NextElement, generator_of
from segue.objectives.contrastive import MASKED, WANTED
from segue.objectives.masked import WORD, RandomMask, mask_some
from segue.papers.base import Claim, Row, Run, Verdict
from segue.papers.corpora import rated_films
from segue.training.learn import learn
from segue.training.recommenders import item_batches, item_stack
from segue.training.two_stage import two_stage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILMS, SCIENCE = "MovieLens", "Amazon Scientific"
TEXT, PLACELESS, NUMBERS = "text", "text without item places", "numbers (SASRec)"
RANDOM, POPULAR, GENRES = "random", "popularity", "popularity of genres"
ARMS = {FILMS: (TEXT, PLACELESS, NUMBERS), SCIENCE: (TEXT, NUMBERS)}
COLD, LAST, TOP = 0.2, 3, 10
SEEDS = 3
Histories = list[np.ndarray]


@dataclass(frozen=True)
class Shop:
    """A data set. items: N dictionaries of text, of which the first `warm` occur in training. training: histories of
    warm items, oldest first. validation, test: pairs of a history of warm items and its next item; in validation that
    is warm too. genres: of each item (empty: unknown)."""

    items: list[dict[str, str]]
    warm: int
    training: Histories
    validation: list[tuple[np.ndarray, int]]
    test: list[tuple[np.ndarray, int]]
    genres: list[frozenset[str]]


def split_items(items: list[dict[str, str]], training: Histories, test: list[tuple[np.ndarray, int]],
                genres: list[frozenset[str]], seed: int) -> Shop:
    """Renumber the items at random, warm ones first, drop cold items from histories, and split off the last item of
    each training history for validation."""
    order = np.random.default_rng([4, seed]).permutation(len(items))
    warm = len(items) - round(COLD * len(items))
    number = order.argsort()

    def keep_warm(row: np.ndarray) -> np.ndarray:
        row = number[row]
        return row[row < warm]

    rows = [kept for row in training if len(kept := keep_warm(row)) > 2]
    return Shop([items[i] for i in order], warm, [row[:-1] for row in rows], [(row[:-1], int(row[-1])) for row in rows],
                [(kept, int(number[item])) for row, item in test if len(kept := keep_warm(row))],
                [genres[i] for i in order] if genres else [])


def load_movielens(folder: Path, seed: int) -> Shop:
    """MovieLens; the last LAST films of each user are test targets."""
    rows, films = rated_films(folder)
    rows = [row for row in rows if len(row) > LAST + 2]
    items, genres = list[dict[str, str]](), list[frozenset[str]]()
    for film in films:
        match = re.fullmatch(r"(.*?)\s*(?:\((\d{4})[^)]*\))?\s*", film["title"])
        title, year = match.groups() if match is not None else (film["title"], None)
        items.append({"title": title, "year": year or "", "genres": film["genres"].replace("|", " ")})
        genres.append(frozenset(film["genres"].split("|")))
    test = [(row[:i], int(row[i])) for row in rows for i in range(len(row) - LAST, len(row))]
    return split_items(items, [row[:-LAST] for row in rows], test, genres, seed)


def load_scientific(folder: Path, seed: int) -> Shop:
    """Amazon Scientific: the last item of each buyer is the test target, of 2,000 random buyers."""
    def read_lines(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in gzip.decompress((folder / f"{name}.jsonl.gz").read_bytes()).splitlines()]

    items = {record["item"]: {name: str(record[name]) for name in ("title", "brand", "description")}
             for record in read_lines("items")}
    index = {item: i for i, item in enumerate(items)}

    def history(record: dict[str, Any]) -> np.ndarray:
        return np.array([index[item] for item in record["history"]], np.int64)

    training = [np.append(history(record), index[record["item"]]) for record in read_lines("valid")]
    test = [(history(record), index[record["item"]]) for record in read_lines("test")]
    sample = np.random.default_rng([5, seed]).permutation(len(test))[:2_000]
    return split_items(list(items.values()), training, [test[i] for i in sample], [], seed)


def make_artificial(seed: int) -> Shop:
    """Artificial items of three colours; each history is of one colour."""
    rng = np.random.default_rng([6, seed])
    items = [{"title": f"{colour} thing {i}", "genres": colour}
             for colour in ("red", "blue", "green") for i in range(20)]
    rows = [rng.integers(20, size=8) + 20 * rng.integers(3) for _ in range(40)]
    return split_items(items, [row[:-1] for row in rows], [(row[:-1], int(row[-1])) for row in rows],
                       [frozenset([item["genres"]]) for item in items], seed)


def load_shop(data: str, folder: Path | None, seed: int) -> Shop:
    """The data set; an artificial one where there is no folder."""
    if folder is None:
        return make_artificial(seed)
    return load_movielens(folder, seed) if data == FILMS else load_scientific(folder, seed)


def sample_pairs(histories: Histories, rows: int, seed: int, step: int, late: bool = False
                 ) -> list[tuple[np.ndarray, int]]:
    """`rows` random pairs of a history's prefix and its next item; users are drawn in proportion to their history's
    length, the next item uniformly, or with `late` from the history's second half."""
    rng = np.random.default_rng([seed, step])
    sizes = np.array([len(row) - 1 for row in histories], float)
    pairs = []
    for user in rng.choice(len(histories), rows, p=sizes / sizes.sum()):
        size = len(histories[user])
        i = int(rng.integers(max(1, (size - 1) // 2) if late else 1, size))
        pairs.append((histories[user][:i], int(histories[user][i])))
    return pairs


class Texts:
    """Encodes histories and single items as tokens. placed: whether tokens have the position of their item."""

    def __init__(self, items: list[dict[str, str]], vocabulary: int, placed: bool, setting: dict[str, Any]) -> None:
        words = BPECodec.train([f" {text}" for item in items for pair in item.items() for text in pair], vocabulary)
        self.codec = TextItemCodec(words, longest=setting["longest"], items=setting["items"], length=setting["length"])
        self.items, self.placed = [self.codec.item(item) for item in items], placed

    def tokens(self, history: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n, 3) ids of the tokens (token, type, item position), and (n,) the index of each token's word."""
        recent = history[-self.codec.items :]
        tokens = self.codec.history([self.items[item] for item in recent.tolist()])
        rows = self.codec.rows(tokens)
        if not self.placed:
            rows[:, 2] = 0
        return rows, tokens.channels["word"]

    def read(self, history: np.ndarray) -> np.ndarray:
        """(n, 3) ids of the tokens."""
        return self.tokens(history)[0]

    def batch(self, histories: Histories, targets: list[int], masks: torch.Generator | None = None) -> Batch:
        """Rows with their target at the first token, whose vector represents the row. masks: the generator for masked
        language modelling of the same rows (None: without)."""
        encoded = [self.tokens(history) for history in histories]
        lengths = torch.tensor([len(rows) for rows, _ in encoded])
        tokens = torch.stack([pad_rows([rows[:, i].tolist() for rows, _ in encoded]) for i in range(3)], -1)
        row_targets = torch.full(tokens.shape[:2], -1)
        row_targets[:, 0] = torch.tensor(targets)
        starts = padding_starts(lengths, tokens.shape[1])
        if masks is None:
            return Batch(tokens, row_targets, starts)
        maskable = torch.arange(tokens.shape[1]) < lengths[:, None]
        maskable[:, 0] = False
        masked = mask_some(Batch(tokens, tokens[..., 0].masked_fill(~maskable, -1), starts,
                                 {WORD: pad_rows([words.tolist() for _, words in encoded], -1)}),
                           self.codec.mask, RandomMask(0.15), masks)
        return Batch(tokens, row_targets, starts, {MASKED: masked.tokens[..., 0], WANTED: masked.targets})


def build_reader(codec: TextItemCodec, width: int, dropout: float) -> Stack:
    """Two blocks of windowed attention with a global first token, which has projections of its own (Longformer)."""
    attention = {"heads": 2, "causal": False, "positions": "none", "window": 33, "global_tokens": 1,
                 "global_projections": True}
    return Stack(StackConfig(codec.size, width, ["attention"] * 2, {"attention": attention}, channel="mlp",
                             activation="gelu", norm="layer", bias=True, learned_positions=codec.length,
                             tables=codec.tables, embed_norm=True, dropout=dropout))


def ndcg(model: SequencePredictor, pairs: list[tuple[np.ndarray, int]], items: int) -> float:
    """NDCG@10 of the next item among all items that are not in the history; ties get their mean rank."""
    item_ranks = rank_next(model, [history for history, _ in pairs], [item for _, item in pairs], items=items,
                           drop_seen=True)
    return ranking(item_ranks, (TOP,)).ndcg[TOP]


def train_recformer(data_set: Shop, arm: str, seed: int, setting: dict[str, Any]) -> SequencePredictor:
    """Train Recformer: contrastively in the batch on next items and by masked language modelling, then two-stage
    finetuning against an index of all warm items."""
    torch.manual_seed(seed)
    texts = Texts(data_set.items, setting["vocabulary"], arm == TEXT, setting)
    model = build_reader(texts.codec, setting["width"], setting["dropout"])
    pretraining, first, second = setting["steps"]

    def contrastive_batch(step: int) -> Batch:
        pairs = sample_pairs(data_set.training, setting["rows"], seed, step, late=True)
        rows = [history for history, _ in pairs] + [np.array([item]) for _, item in pairs]
        return texts.batch(rows, [*range(len(pairs))] * 2, generator_of(seed, step))

    def finetuning_batch(step: int) -> Batch:
        pairs = sample_pairs(data_set.training, setting["rows"], seed, pretraining + step)
        return texts.batch([history for history, _ in pairs], [item for _, item in pairs])

    learn(model, contrastive_batch, pretraining, rate=setting["rate"], seed=seed,
          objective=InBatch(setting["temperature"]))
    warm = ItemIndex([texts.read(np.array([item])) for item in range(data_set.warm)], setting["temperature"])
    validation = data_set.validation[:: max(1, len(data_set.validation) // setting["looks"])]

    def score(net: nn.Module) -> float:
        return -ndcg(ItemRecommender(net, warm, texts.read), validation, data_set.warm)

    two_stage(model, warm, finetuning_batch, (first, second), max(1, first // 6), score, seed=seed,
              rate=setting["rate"], cooldown=0.3)
    index = ItemIndex([texts.read(np.array([item])) for item in range(len(data_set.items))], setting["temperature"])
    index.refresh(model)
    return ItemRecommender(model, index, texts.read)


def train_sasrec(data_set: Shop, seed: int, setting: dict[str, Any]) -> SequencePredictor:
    """Train SASRec on ids of warm items; the embeddings of cold items stay at their random initialisation."""
    torch.manual_seed(seed)
    length, width = setting["context"], setting["width"]
    model = item_stack(data_set.warm, length, width, setting["dropout"], causal=True)
    learn(model, item_batches(data_set.training, data_set.warm, length, setting["rows"], seed), sum(setting["steps"]),
          seed=seed, objective=NextElement(), decay=0.01, rate=0.01, muon=True, cooldown=1.0)
    items = len(data_set.items)
    with_cold = item_stack(items, length, width, causal=True)
    vectors = with_cold.embedding.weight.detach().clone()
    vectors[[*range(data_set.warm), items]] = model.embedding.weight.detach()
    with_cold.load_state_dict(model.state_dict() | {"embedding.weight": vectors, "head.weight": vectors})
    return DecodablePredictor(with_cold.eval(), items, items, length - 1)


def score_warm_and_cold(data_set: Shop, score_pairs: Callable[[list[tuple[np.ndarray, int]]], float],
                        ) -> dict[str, float]:
    """The score (a function of pairs) of warm and of cold test targets."""
    warm = [pair for pair in data_set.test if pair[1] < data_set.warm]
    cold = [pair for pair in data_set.test if pair[1] >= data_set.warm]
    return {"warm": score_pairs(warm), "cold": score_pairs(cold), "cold targets": len(cold),
            "items": len(data_set.items)}


def score_arm(name: str, data: str, folder: Path | None, seed: int, setting: dict[str, Any]) -> dict[str, float]:
    """Train the arm; its NDCG@10 of warm and of cold targets."""
    data_set = load_shop(data, folder, seed)
    model = train_sasrec(data_set, seed, setting) if name == NUMBERS else train_recformer(data_set, name, seed, setting)
    return score_warm_and_cold(data_set, lambda pairs: ndcg(model, pairs, len(data_set.items)))


def score_baselines(data: str, folder: Path | None, seed: int) -> dict[str, dict[str, float]]:
    """NDCG@10 of popularity in training, and of the mean popularity of the warm items that share a genre."""
    data_set = load_shop(data, folder, seed)
    items = len(data_set.items)
    popularity = np.bincount(np.concatenate(data_set.training), minlength=items).astype(float)
    scores = {POPULAR: popularity}
    if data_set.genres:
        names = sorted(frozenset().union(*data_set.genres))
        one_hot = np.array([[name in genres for name in names] for genres in data_set.genres], float)
        shares_genre = (one_hot @ one_hot.T[:, : data_set.warm] > 0).astype(float)
        scores[GENRES] = shares_genre @ popularity[: data_set.warm] / np.maximum(shares_genre.sum(1), 1)

    def ndcg_of(score: np.ndarray, pairs: list[tuple[np.ndarray, int]]) -> float:
        item_ranks = [ranks(score[None], np.array([item]), seen=[history])[0] for history, item in pairs]
        return ranking(np.array(item_ranks), (TOP,)).ndcg[TOP]

    return {name: score_warm_and_cold(data_set, partial(ndcg_of, score)) for name, score in scores.items()}


def chance_ndcg(items: int) -> tuple[float, float]:
    """Mean and standard deviation of the NDCG@10 of one target at a random rank."""
    gain = 1 / np.log2(np.arange(TOP) + 2)
    first, second = gain.sum() / items, np.square(gain).sum() / items
    return float(first), float((second - first**2) ** 0.5)


SETTING = {"width": 64, "dropout": 0.1, "rows": 32, "rate": 2e-3, "temperature": 0.05, "vocabulary": 2000,
           "longest": 12, "items": 10, "length": 200, "context": 50, "steps": (60, 180, 40), "looks": 100}


def measure(run: Run) -> list[Row]:
    folders = {FILMS: run.dataset("movielens-latest-small-2016"), SCIENCE: run.dataset("amazon-scientific-text")}
    small = SETTING | {"width": 8, "rows": 4, "vocabulary": 300, "context": 8, "steps": (2, 2, 2), "looks": 4}
    setting = run.pick(small, SETTING)
    seeds = {FILMS: run.pick(1, SEEDS), SCIENCE: 1}
    jobs: dict[str, Any] = {}
    for data, arms in ARMS.items():
        for seed in range(run.seed, run.seed + seeds[data]):
            jobs |= {f"{data} {name} {seed}": partial(score_arm, name, data, folders[data], seed, setting)
                     for name in arms}
            jobs[f"{data} baselines {seed}"] = partial(score_baselines, data, folders[data], seed)
    cells = run.cells(jobs)
    table: list[Row] = []
    for data, arms in ARMS.items():
        data_seeds = range(run.seed, run.seed + seeds[data])
        by_arm = {arm: [cells[f"{data} {arm} {seed}"] for seed in data_seeds] for arm in arms}
        for baseline in cells[f"{data} baselines {run.seed}"]:
            by_arm[baseline] = [cells[f"{data} baselines {seed}"][baseline] for seed in data_seeds]
        items = by_arm[arms[0]][0]["items"]
        for arm, results in by_arm.items():
            warm, cold = ([result[part] for result in results] for part in ("warm", "cold"))
            table.append({"data": data, "arm": arm, "warm": mean(warm), "cold": mean(cold),
                          "cold targets": sum(result["cold targets"] for result in results), "items": items,
                          "warm by seed": warm, "cold by seed": cold})
        chance = chance_ndcg(items)[0]
        table.append({"data": data, "arm": RANDOM, "warm": chance, "cold": chance, "cold targets": None, "items": items,
                      "warm by seed": [], "cold by seed": []})
    run.note(f"NDCG@{TOP} of what came next among all items that a history does not hold, those alike in all they say "
             f"at the middle of their ranks; {COLD:.0%} of the items are cold: in no training target, in no history, "
             "and not among the items that training compares")
    run.note(f"width {setting['width']}, two blocks, {sum(setting['steps'])} steps of {setting['rows']} rows for "
             f"either: text, {setting['items']} items of at most 3 x {setting['longest']} tokens, in three parts "
             f"{setting['steps']} (in-batch contrast with masks filled in, and two stages against an index of the warm "
             f"items); numbers, {setting['context']} items and each place asked, Muon at 0.01 as bert4rec")
    run.note(f"MovieLens (latest small, 2016; {seeds[FILMS]} seeds, each with other cold items) stands in for "
             "MovieLens-100K: title, year, genres; the last three films of each user are asked for; the order within a "
             "sitting is partly that of the page. Amazon Scientific: 2,000 test histories, title, brand, description, "
             "one seed" if folders[FILMS] else "made up: things of three colours")
    run.note("text has hardly begun to learn in so few steps. Tried since on MovieLens, seed 100: Muon at 0.01, warm "
             "0.006; 350 steps of contrast instead of 60, of 64 rows of 3 items and without dropout, warm 0.017, cold "
             "0.008, in 130 seconds of one core for that arm alone")
    return table


def judge(table: list[Row]) -> tuple[Verdict, str]:
    films = {row["arm"]: row for row in table if row["data"] == FILMS}
    other = {row["arm"]: row for row in table if row["data"] == SCIENCE}
    text, numbers, placeless, genres = (films[arm] for arm in (TEXT, NUMBERS, PLACELESS, GENRES))
    chance, deviation = chance_ndcg(text["items"])
    luck = chance + 2 * deviation / numbers["cold targets"] ** 0.5
    noise = 2 * (sum(stdev(row["warm by seed"]) ** 2 for row in (text, placeless)) / SEEDS) ** 0.5
    reason = (f"on cold films text has {text['cold']:.4f}, numbers {numbers['cold']:.4f}, chance {chance:.4f} (up to "
              f"{luck:.4f} by luck), popularity of genres {genres['cold']:.4f}; on warm films text {text['warm']:.4f}, "
              f"numbers {numbers['warm']:.4f}, text without places {placeless['warm']:.4f} (noise {noise:.4f}); Amazon "
              f"Scientific: cold {other[TEXT]['cold']:.4f} and {other[NUMBERS]['cold']:.4f}, warm "
              f"{other[TEXT]['warm']:.4f} and {other[NUMBERS]['warm']:.4f}")
    if text["cold"] <= genres["cold"]:
        return "refuted", reason
    holds = (text["cold"] >= 2 * chance and numbers["cold"] <= luck and text["warm"] >= 0.6 * numbers["warm"]
             and placeless["warm"] <= text["warm"] + noise)
    return ("confirmed" if holds else "inconclusive"), reason


def draw(figure: Figure, table: list[Row]) -> None:
    colours = {TEXT: "tab:blue", PLACELESS: "tab:cyan", NUMBERS: "tab:orange", POPULAR: "tab:grey", GENRES: "tab:brown",
               RANDOM: "black"}
    for axes, data in zip(figure.subplots(1, 2), ARMS):
        rows = [row for row in table if row["data"] == data]
        for index, row in enumerate(rows):
            positions = np.arange(2) + (index - (len(rows) - 1) / 2) * 0.8 / len(rows)
            axes.bar(positions, [row["warm"], row["cold"]], 0.8 / len(rows), color=colours[row["arm"]],
                     label=row["arm"])
            for x, values in zip(positions, (row["warm by seed"], row["cold by seed"])):
                axes.plot([x] * len(values), values, ".", color="black", markersize=3)
        axes.set_xticks([0, 1], ["warm targets", "cold targets"])
        axes.set(title=data, ylabel=f"NDCG@{TOP}")
    figure.axes[0].legend(fontsize="x-small")


CLAIM = Claim(
    slug="recformer",
    statement="A model that reads what is said of items recommends about as well as one that knows them by number, and "
              "recommends items that nobody chose yet, which the other cannot.",
    rule="on MovieLens with a fifth of the films cold, NDCG@10, means of three seeds: refuted if on cold targets text "
         "is not above the popularity of genres (the mean popularity of films that share one); confirmed if there text "
         "has at least twice what chance gives, and numbers at most what chance gives and two standard errors; on warm "
         "targets text has at least 60% of what numbers have; and text without places of items is there not better "
         "than with them by more than two standard errors over seeds; else inconclusive. Amazon Scientific is reported "
         "beside it.",
    measure=measure, judge=judge, draw=draw,
    paper={"Scientific, NDCG@10 (unverified)": "Recformer 0.1027, best baseline 0.0862",
           "six domains, supervised / zero-shot (unverified)": "15.8% / 39.8% above the best baseline on average",
           "cold items": "the largest gains"},
)
