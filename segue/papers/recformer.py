"""Text Is All You Need: Learning Language Representations for Sequential Recommendation (Recformer; Li et al. 2023,
arXiv 2305.13731).

Items are dictionaries of text, and a history is read as one text, the newest item first; so an item that nobody chose
yet can be recommended. Against the same sort of stack over numbers of items (SASRec), on items that training has seen
(warm) and on items that it has not (cold).
"""

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
    """items: N dictionaries of text, of which the first `warm` were there in training. learned: histories of those,
    oldest first. checked, asked: pairs of a history of warm items and what came next, for validation (a warm one) and
    for the test. genres: of each item (empty: nothing is known)."""

    items: list[dict[str, str]]
    warm: int
    learned: Histories
    checked: list[tuple[np.ndarray, int]]
    asked: list[tuple[np.ndarray, int]]
    genres: list[frozenset[str]]


def shop(items: list[dict[str, str]], learned: Histories, asked: list[tuple[np.ndarray, int]],
         genres: list[frozenset[str]], seed: int) -> Shop:
    """Deal items out anew, warm ones first; histories lose what is cold. The last of each is for validation."""
    order = np.random.default_rng([4, seed]).permutation(len(items))
    warm = len(items) - round(COLD * len(items))
    number = order.argsort()

    def seen(row: np.ndarray) -> np.ndarray:
        row = number[row]
        return row[row < warm]

    rows = [kept for row in learned if len(kept := seen(row)) > 2]
    return Shop([items[i] for i in order], warm, [row[:-1] for row in rows], [(row[:-1], int(row[-1])) for row in rows],
                [(kept, int(number[item])) for row, item in asked if len(kept := seen(row))],
                [genres[i] for i in order] if genres else [])


def films(folder: Path, seed: int, least: int = 5) -> Shop:
    """What people rated, of films with so many ratings; the last three of each are asked for."""
    rows, told = rated_films(folder, least)
    rows = [row for row in rows if len(row) > LAST + 2]
    items, genres = list[dict[str, str]](), list[frozenset[str]]()
    for film in told:
        said = re.fullmatch(r"(.*?)\s*(?:\((\d{4})[^)]*\))?\s*", film["title"])
        title, year = said.groups() if said is not None else (film["title"], None)
        items.append({"title": title, "year": year or "", "genres": film["genres"].replace("|", " ")})
        genres.append(frozenset(film["genres"].split("|")))
    asked = [(row[:at], int(row[at])) for row in rows for at in range(len(row) - LAST, len(row))]
    return shop(items, [row[:-LAST] for row in rows], asked, genres, seed)


def science(folder: Path, seed: int, least: int = 2_000) -> Shop:
    """What people bought of industry and science, up to the last items; those are asked for, of so many of them."""
    def lines(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in gzip.decompress((folder / f"{name}.jsonl.gz").read_bytes()).splitlines()]

    told = {each["item"]: {name: str(each[name]) for name in ("title", "brand", "description")}
            for each in lines("items")}
    known = {item: i for i, item in enumerate(told)}

    def row(each: dict[str, Any]) -> np.ndarray:
        return np.array([known[item] for item in each["history"]], np.int64)

    learned = [np.append(row(each), known[each["item"]]) for each in lines("valid")]
    asked = [(row(each), known[each["item"]]) for each in lines("test")]
    chosen = np.random.default_rng([5, seed]).permutation(len(asked))[:least]
    return shop(list(told.values()), learned, [asked[i] for i in chosen], [], seed)


def made_up(seed: int) -> Shop:
    """Items of a colour and a thing, each colour followed by itself."""
    draw = np.random.default_rng([6, seed])
    items = [{"title": f"{colour} thing {i}", "genres": colour}
             for colour in ("red", "blue", "green") for i in range(20)]
    rows = [draw.integers(20, size=8) + 20 * draw.integers(3) for _ in range(40)]
    return shop(items, [row[:-1] for row in rows], [(row[:-1], int(row[-1])) for row in rows],
                [frozenset([item["genres"]]) for item in items], seed)


def opened(data: str, folder: Path | None, seed: int) -> Shop:
    return made_up(seed) if folder is None else films(folder, seed) if data == FILMS else science(folder, seed)


def chosen_at(histories: Histories, rows: int, seed: int, step: int, late: bool = False
              ) -> list[tuple[np.ndarray, int]]:
    """Users drawn by how much they did, and a place in each history, in its second half where `late`: what came before,
    and what came there."""
    draw = np.random.default_rng([seed, step])
    sizes = np.array([len(row) - 1 for row in histories], float)
    found = []
    for user in draw.choice(len(histories), rows, p=sizes / sizes.sum()):
        size = len(histories[user])
        at = int(draw.integers(max(1, (size - 1) // 2) if late else 1, size))
        found.append((histories[user][:at], int(histories[user][at])))
    return found


class Texts:
    """What a stack reads of histories, and of single items. placed: whether tokens know the place of their item."""

    def __init__(self, items: list[dict[str, str]], vocabulary: int, placed: bool, setting: dict[str, Any]) -> None:
        words = BPECodec.train([f" {text}" for item in items for pair in item.items() for text in pair], vocabulary)
        self.codec = TextItemCodec(words, longest=setting["longest"], items=setting["items"], length=setting["length"])
        self.told, self.placed = [self.codec.item(item) for item in items], placed

    def tokens(self, history: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n, 3) and (n,): what is read, and which words the tokens are of."""
        kept = history[-self.codec.items :]
        tokens = self.codec.history([self.told[item] for item in kept.tolist()])
        rows = self.codec.rows(tokens)
        if not self.placed:
            rows[:, 2] = 0
        return rows, tokens.channels["word"]

    def read(self, history: np.ndarray) -> np.ndarray:
        return self.tokens(history)[0]

    def batch(self, histories: Histories, targets: list[int], masks: torch.Generator | None = None) -> Batch:
        """Rows whose vector is asked for at their begin; masks: what draws some to be filled in besides."""
        both = [self.tokens(history) for history in histories]
        lengths = torch.tensor([len(rows) for rows, _ in both])
        tokens = torch.stack([pad_rows([rows[:, i].tolist() for rows, _ in both]) for i in range(3)], -1)
        asked = torch.full(tokens.shape[:2], -1)
        asked[:, 0] = torch.tensor(targets)
        starts = padding_starts(lengths, tokens.shape[1])
        if masks is None:
            return Batch(tokens, asked, starts)
        live = torch.arange(tokens.shape[1]) < lengths[:, None]
        live[:, 0] = False
        hidden = mask_some(Batch(tokens, tokens[..., 0].masked_fill(~live, -1), starts,
                                 {WORD: pad_rows([words.tolist() for _, words in both], -1)}),
                           self.codec.mask, RandomMask(0.15), masks)
        return Batch(tokens, asked, starts, {MASKED: hidden.tokens[..., 0], WANTED: hidden.targets})


def reader(codec: TextItemCodec, width: int, dropout: float) -> Stack:
    """Two blocks of windowed attention, whose begin sees all and is seen by all by projections of its own."""
    attention = {"heads": 2, "causal": False, "positions": "none", "window": 33, "global_tokens": 1,
                 "global_projections": True}
    return Stack(StackConfig(codec.size, width, ["attention"] * 2, {"attention": attention}, channel="mlp",
                             activation="gelu", norm="layer", bias=True, learned_positions=codec.length,
                             tables=codec.tables, embed_norm=True, dropout=dropout))


def ndcg(model: SequencePredictor, pairs: list[tuple[np.ndarray, int]], items: int) -> float:
    """NDCG@10 of what came next among all items that a history does not hold; ties at their middle."""
    found = rank_next(model, [history for history, _ in pairs], [item for _, item in pairs], items=items,
                      drop_seen=True)
    return ranking(found, (TOP,)).ndcg[TOP]


def by_text(place: Shop, arm: str, seed: int, setting: dict[str, Any]) -> SequencePredictor:
    """Contrast with what came next in the batch, filling in masks beside it; then two stages against all warm items."""
    torch.manual_seed(seed)
    texts = Texts(place.items, setting["vocabulary"], arm == TEXT, setting)
    model = reader(texts.codec, setting["width"], setting["dropout"])
    pretrained, first, second = setting["steps"]

    def pairs(step: int) -> Batch:
        drawn = chosen_at(place.learned, setting["rows"], seed, step, late=True)
        rows = [history for history, _ in drawn] + [np.array([item]) for _, item in drawn]
        return texts.batch(rows, [*range(len(drawn))] * 2, generator_of(seed, step))

    def batches(step: int) -> Batch:
        drawn = chosen_at(place.learned, setting["rows"], seed, pretrained + step)
        return texts.batch([history for history, _ in drawn], [item for _, item in drawn])

    learn(model, pairs, pretrained, rate=setting["rate"], seed=seed, objective=InBatch(setting["temperature"]))
    warm = ItemIndex([texts.read(np.array([item])) for item in range(place.warm)], setting["temperature"])
    looked = place.checked[:: max(1, len(place.checked) // setting["looks"])]

    def score(net: nn.Module) -> float:
        return -ndcg(ItemRecommender(net, warm, texts.read), looked, place.warm)

    two_stage(model, warm, batches, (first, second), max(1, first // 6), score, seed=seed, rate=setting["rate"],
              cooldown=0.3)
    whole = ItemIndex([texts.read(np.array([item])) for item in range(len(place.items))], setting["temperature"])
    whole.refresh(model)
    return ItemRecommender(model, whole, texts.read)


def by_number(place: Shop, seed: int, setting: dict[str, Any]) -> SequencePredictor:
    """The same sort of stack over numbers of warm items; vectors of cold items stay as they were drawn."""
    torch.manual_seed(seed)
    length, width = setting["context"], setting["width"]
    model = item_stack(place.warm, length, width, setting["dropout"], causal=True)
    learn(model, item_batches(place.learned, place.warm, length, setting["rows"], seed), sum(setting["steps"]),
          seed=seed, objective=NextElement(), decay=0.01, rate=0.01, muon=True, cooldown=1.0)
    items = len(place.items)
    whole = item_stack(items, length, width, causal=True)
    vectors = whole.embedding.weight.detach().clone()
    vectors[[*range(place.warm), items]] = model.embedding.weight.detach()
    whole.load_state_dict(model.state_dict() | {"embedding.weight": vectors, "head.weight": vectors})
    return DecodablePredictor(whole.eval(), items, items, length - 1)


def told(place: Shop, scored: Callable[[list[tuple[np.ndarray, int]]], float]) -> dict[str, float]:
    warm = [pair for pair in place.asked if pair[1] < place.warm]
    cold = [pair for pair in place.asked if pair[1] >= place.warm]
    return {"warm": scored(warm), "cold": scored(cold), "cold targets": len(cold), "items": len(place.items)}


def arm(name: str, data: str, folder: Path | None, seed: int, setting: dict[str, Any]) -> dict[str, float]:
    """NDCG@10 of warm and of cold targets."""
    place = opened(data, folder, seed)
    model = by_number(place, seed, setting) if name == NUMBERS else by_text(place, name, seed, setting)
    return told(place, lambda pairs: ndcg(model, pairs, len(place.items)))


def baselines(data: str, folder: Path | None, seed: int) -> dict[str, dict[str, float]]:
    """How often items were chosen in training, and how often those that share a genre were on average."""
    place = opened(data, folder, seed)
    items = len(place.items)
    often = np.bincount(np.concatenate(place.learned), minlength=items).astype(float)
    scores = {POPULAR: often}
    if place.genres:
        names = sorted(frozenset().union(*place.genres))
        has = np.array([[name in genres for name in names] for genres in place.genres], float)
        shares = (has @ has.T[:, : place.warm] > 0).astype(float)
        scores[GENRES] = shares @ often[: place.warm] / np.maximum(shares.sum(1), 1)

    def ranked(score: np.ndarray, pairs: list[tuple[np.ndarray, int]]) -> float:
        found = [ranks(score[None], np.array([item]), seen=[history])[0] for history, item in pairs]
        return ranking(np.array(found), (TOP,)).ndcg[TOP]

    return {name: told(place, partial(ranked, score)) for name, score in scores.items()}


def by_chance(items: int) -> tuple[float, float]:
    """Mean and deviation of NDCG@10 of one target at a random rank."""
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
            jobs |= {f"{data} {name} {seed}": partial(arm, name, data, folders[data], seed, setting) for name in arms}
            jobs[f"{data} baselines {seed}"] = partial(baselines, data, folders[data], seed)
    done = run.cells(jobs)
    table: list[Row] = []
    for data, arms in ARMS.items():
        every = range(run.seed, run.seed + seeds[data])
        found = {name: [done[f"{data} {name} {seed}"] for seed in every] for name in arms}
        for name in done[f"{data} baselines {run.seed}"]:
            found[name] = [done[f"{data} baselines {seed}"][name] for seed in every]
        items = found[arms[0]][0]["items"]
        for name, each in found.items():
            table.append({"data": data, "arm": name, "warm": mean(one["warm"] for one in each),
                          "cold": mean(one["cold"] for one in each), "cold targets": sum(
                              one["cold targets"] for one in each), "items": items,
                          "warm by seed": [one["warm"] for one in each], "cold by seed": [one["cold"] for one in each]})
        chance = by_chance(items)[0]
        table.append({"data": data, "arm": RANDOM, "warm": chance, "cold": chance, "cold targets": None, "items": items,
                      "warm by seed": [], "cold by seed": []})
    run.note(f"NDCG@{TOP} of what came next among all items that a history does not hold, those alike in all they say "
             f"at the middle of their ranks; {COLD:.0%} of the items are cold: in no training target, in no history, "
             "and not among the items that training compares")
    run.note(f"width {setting['width']}, two blocks, {sum(setting['steps'])} steps of {setting['rows']} rows for "
             f"either: text, {setting['items']} items of at most 3 x {setting['longest']} tokens, in three parts "
             f"{setting['steps']} (in-batch contrast with masks filled in, and two stages against an index of the warm "
             f"items); numbers, {setting['context']} items and each place asked, at bert4rec's settings")
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
    text, numbers, placeless, genres = (films[name] for name in (TEXT, NUMBERS, PLACELESS, GENRES))
    chance, deviation = by_chance(text["items"])
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
            at = np.arange(2) + (index - (len(rows) - 1) / 2) * 0.8 / len(rows)
            axes.bar(at, [row["warm"], row["cold"]], 0.8 / len(rows), color=colours[row["arm"]], label=row["arm"])
            for place, values in zip(at, (row["warm by seed"], row["cold by seed"])):
                axes.plot([place] * len(values), values, ".", color="black", markersize=3)
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
