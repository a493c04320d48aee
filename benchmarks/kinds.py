"""What `segue fit --minutes 1` tells of what comes next, beside what one would write in ten lines, kind by kind.

    python benchmarks/kinds.py --data FOLDER [--minutes 1] [NAME ...]     # measure, and write results/kinds.md
    python benchmarks/kinds.py                                            # write the page from all that was measured

FOLDER holds a folder for each data set (see `SETS`); what is not there is left out, what is made up needs none. Both
sides learn from the same sequences and are scored on the same others: a data set's own parts where it has some, the
last item of each user for items, and else sequences drawn by a hash. One thread, and minutes of its
processor time. Nothing is chosen on what is scored.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import segue
from segue.analysis.forecast import crps, find_season, naive_scale
from segue.analysis.metrics import evaluate, ranks
from segue.analysis.molecules import molecule_quality
from segue.analysis.ranking import rank_next, ranking
from segue.data import Data
from segue.decoding import generate
from segue.kinds.codecs import ItemCodec
from segue.kinds.elements import as_elements
from segue.models.counts import CountModel
from segue.models.predict import DecodablePredictor
from segue.training.evaluate import OURS
from segue.training.recipe import describe_machine
from segue.verbs.forecast import combined_forecasts
from segue.verbs.timed import TimedEvaluation

HERE = Path(__file__).parent / "results"
RECORD = HERE / "kinds.jsonl"
Measured = dict[str, dict[str, float]]  # by measure, by method
SEGUE = "segue"
USERS, TESTED = 2_000, 20_000  # last items, and events of logs, that are scored at most
AHEAD, PLACES = 24, 16  # moments that are forecast, and from how many places


# Items: what each user takes last. HR@10 and NDCG@10 among all items that the user has not had, where none comes twice.


def items(minutes: float, path: Path, test: Path | None = None) -> Measured:
    data = segue.read(path)
    train, given = (data.split(by="last")[0], data) if test is None else (data, segue.read(test))
    model = segue.fit(train, minutes=minutes, quiet=True)
    assert isinstance(model.codec, ItemCodec)
    known = len(model.codec.items)
    asked = [ids[ids <= known] for ids in (model.codec.encode(record.object) for record in given) if len(ids) > 1]
    asked = [asked[i] for i in np.unique(np.linspace(0, len(asked) - 1, USERS).astype(int))]
    past, last = [ids[:-1] for ids in asked], [int(ids[-1]) for ids in asked]
    learned = [ids[ids < known] for ids in (model.codec.encode(record.object) for record in train)]
    once = all(len(np.unique(ids)) == len(ids) for ids in learned)
    network = DecodablePredictor(model.decodable(), model.codec.bos, length=model.context - 1)
    found = {SEGUE: rank_next(network, past, last, items=known, drop_seen=once, rows=64)}
    popular, after = np.bincount(np.concatenate(learned), minlength=known), defaultdict[int, Counter[int]](Counter)
    for ids in learned:
        for before, item in zip(ids.tolist(), ids[1:].tolist()):
            after[before][item] += 1
    users, of = [set[int]() for _ in range(known)], [np.unique(ids) for ids in learned]
    for user, ids in enumerate(of):
        for item in ids.tolist():
            users[item].add(user)

    def markov(ids: np.ndarray) -> np.ndarray:
        scores = popular / (popular.sum() + 1)
        for item, count in after[int(ids[-1])].items() if len(ids) and ids[-1] < known else ():
            scores[item] += count
        return scores

    def neighbours(ids: np.ndarray) -> np.ndarray:
        """The sum of the cosines of all items of the history."""
        weight, scores = defaultdict[int, float](float), popular / 1e9
        for item in set(ids[ids < known].tolist()):
            for user in users[item]:
                weight[user] += 1 / math.sqrt(len(users[item]))
        for user, share in weight.items():
            scores[of[user]] += share
        return scores / np.sqrt(np.maximum(popular, 1))

    for name, scores in (("popularity", lambda ids: popular), ("Markov, last item", markov),
                         ("item-kNN, cosine", neighbours)):
        found[name] = np.array([
            ranks(np.array(scores(ids), float)[None], np.array([item]), seen=[ids[ids < known]] if once else None)[0]
            if item < known else np.inf for ids, item in zip(past, last)])
    told = {name: ranking(each, (10,)) for name, each in found.items()}
    return {"HR@10": {name: each.hits[10] for name, each in told.items()},
            "NDCG@10": {name: each.ndcg[10] for name, each in told.items()}}


# Logs: the next activity of a case, its end among them.


def logs(minutes: float, path: Path, **reading: Any) -> Measured:
    train, test = segue.read(path, **reading).split(0.2)
    model = segue.fit(train, minutes=minutes, quiet=True)
    end = model.codec.eos
    assert end is not None
    learned, asked = ([np.append(model.codec.encode(record.object), end) for record in data] for data in (train, test))
    asked = asked[: 1 + int(np.searchsorted(np.cumsum([*map(len, asked)]), TESTED))]
    ours = evaluate(DecodablePredictor(model.decodable(), model.codec.bos), asked)
    cut = len(learned) * 4 // 5
    order = max(range(1, 9), key=lambda k: accuracy(followers(learned[:cut], k), learned[cut:], k))
    smooth = CountModel(model.codec.size, min(range(1, 9), key=lambda k: evaluate(
        CountModel(model.codec.size, k, "witten-bell").fit(learned[:cut]), learned[cut:]).bits), "witten-bell")
    return {"accuracy": {SEGUE: ours.accuracy, "successor": accuracy(followers(learned, 1), asked, 1),
                         "counts of order k": accuracy(followers(learned, order), asked, order)},
            "bits an event": {SEGUE: ours.bits, "counts of order k": evaluate(smooth.fit(learned), asked).bits}}


def followers(cases: Sequence[np.ndarray], order: int) -> dict[tuple[int, ...], int]:
    """What came most often after each run of up to `order` activities."""
    seen: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for ids in map(np.ndarray.tolist, cases):
        for place, item in enumerate(ids):
            for k in range(min(order, place) + 1):
                seen[tuple(ids[place - k : place])][item] += 1
            if place <= order:
                seen[-1, *ids[:place]][item] += 1  # the whole case
    return {context: counts.most_common(1)[0][0] for context, counts in seen.items()}


def accuracy(best: dict[tuple[int, ...], int], cases: Sequence[np.ndarray], order: int) -> float:
    """The longest run that was seen says what comes."""
    right = []
    for ids in map(np.ndarray.tolist, cases):
        for place, item in enumerate(ids):
            runs = [(-1, *ids[:place])] if place <= order else []
            runs += [tuple(ids[place - k : place]) for k in range(min(order, place), -1, -1)]
            right.append(best[next(run for run in runs if run in best)] == item)
    return float(np.mean(right))


# Events with times: log-likelihood of times and types (nats an event), the expected time, the type.


def timed(minutes: float, path: Path, test: Path, **reading: Any) -> Measured:
    train, given = segue.read(path, **reading), segue.read(test, **reading)
    report = segue.fit(train, minutes=minutes, quiet=True, objective="timed").evaluate(given)
    assert isinstance(report, TimedEvaluation)
    scores = report.scores
    rival = next(name for name in scores if name.startswith("Hawkes"))
    gaps, of, exam, asked = (list[np.ndarray]() for _ in range(4))
    for data, times, types in ((train, gaps, of), (given, exam, asked)):
        for record in data:
            times.append(np.diff(record.channels["time"]))
            types.append(np.array(record.object))
    every, told, before = np.concatenate(gaps), np.concatenate(exam), np.concatenate([each[:-1] for each in of])
    # A log-normal gap for each type of the event before.
    logs, floor = np.log(np.maximum(every, 1e-9)), math.log(max(float(every[every > 0].min()), 1e-9))
    whole = logs.mean(), logs.std() + 1e-3
    known = {kind: (logs[before == kind].mean(), logs[before == kind].std() + 1e-3)
             for kind in np.unique(before) if (before == kind).sum() > 50}
    mean, spread = np.array([known.get(kind, whole) for kind in np.concatenate([each[:-1] for each in asked])]).T
    asks = np.maximum(np.log(np.maximum(told, 1e-9)), floor)
    normal = -0.5 * ((asks - mean) / spread) ** 2 - np.log(spread) - asks - 0.5 * math.log(2 * math.pi)
    first, total = Counter(zip(before.tolist(), np.concatenate([each[1:] for each in of]).tolist())), Counter(
        before.tolist())
    likeliest = {kind: max((c, b) for (a, b), c in first.items() if a == kind)[1] for kind in total}
    pairs = [pair for each in asked for pair in zip(each[:-1].tolist(), each[1:].tolist())]
    some = len(set(before.tolist())) + 1
    by_type = np.mean([math.log((first[pair] + 0.5) / (total[pair[0]] + 0.5 * some)) for pair in pairs])
    simple, names = "log-normal gap, Markov types", {SEGUE: OURS, "Poisson": "Poisson", "Hawkes": rival}

    def said(measure: str) -> dict[str, float]:
        return {name: value for name, own in names.items() if (value := getattr(scores[own], measure)) is not None}

    return {"log-likelihood": {SEGUE: -scores[OURS].nats, "Poisson": -scores["Poisson"].nats,
                               **({} if scores[rival].type is None else {"Hawkes": -scores[rival].nats}),
                               simple: float(normal.mean() + by_type)},
            "of the time": {SEGUE: -float(scores[OURS].time or 0), "Poisson": -float(scores["Poisson"].time or 0),
                            "Hawkes": -float(scores[rival].time or 0), simple: float(normal.mean())},
            "time RMSE": {**said("rmse"), "mean gap": float(np.sqrt(np.square(told - every.mean()).mean()))},
            "wrong types": {**said("error"), simple: float(np.mean([likeliest.get(a) != b for a, b in pairs]))}}


# Series: the next moments from places in the last part of each, by what lies before the part and by the moments before.


def series(minutes: float, grids: Sequence[np.ndarray], cuts: Sequence[int], columns: Sequence[str] = ("",),
           steps: int = AHEAD) -> Measured:
    """grids: (T, C) each, learned from up to `cuts`, forecast beyond."""
    def elements(grid: np.ndarray) -> list[str]:
        return as_elements({name: grid[:, c] for c, name in enumerate(columns)})

    model = segue.fit(segue.data.of([elements(grid[:cut]) for grid, cut in zip(grids, cuts) if cut], kind="series"),
                      minutes=minutes, quiet=True)
    places = [(row, place) for row, (grid, cut) in enumerate(zip(grids, cuts))
              for place in range(max(cut, steps), len(grid) - steps + 1)]
    places = [places[i] for i in np.unique(np.linspace(0, len(places) - 1, PLACES).astype(int))]
    draws = combined_forecasts(model, columns, [grids[row][:place] for row, place in places], steps)
    errors: dict[str, list[np.ndarray]] = defaultdict(list)
    scores: list[float] = []
    for c in range(len(columns)):
        learned = [grid[:cut, c] for grid, cut in zip(grids, cuts) if cut]
        lag = find_season(max(learned, key=len))
        line = linear(learned, steps, min(2 * steps, max(map(len, learned)) - steps - 1))
        for number, (row, place) in enumerate(places):
            past, truth = grids[row][:place, c], grids[row][place : place + steps, c]
            back = min(lag, len(past))
            told = {SEGUE: np.median(draws[number, :, :, c], 0), "last value": np.repeat(past[-1], steps),
                    "drift": past[-1] + (past[-1] - past[0]) / (len(past) - 1) * np.arange(1, steps + 1),
                    "season ago": np.array([past[-back + h % back] for h in range(steps)]), "linear": line(past)}
            size = naive_scale(grids[row][: cuts[row] or place, c], 1) or 1.0
            scores.append(crps(draws[number, :, :, c].T, truth) / size)
            for name, points in told.items():
                errors[name].append(np.abs(points - truth) / size)
    return {"MASE": {name: float(np.mean(each)) for name, each in errors.items()},
            "CRPS, as MASE": {SEGUE: float(np.mean(scores))}}


def linear(learned: Sequence[np.ndarray], steps: int, lags: int) -> Callable[[np.ndarray], np.ndarray]:
    """Ridge from the last moments to the next ones, as differences from the last one (as NLinear, Zeng et al. 2022)."""
    rows = [values[at : at + lags + steps] - values[at + lags - 1]
            for values in learned for at in range(len(values) - lags - steps + 1)]
    x, y = np.array(rows)[:, : lags - 1], np.array(rows)[:, lags:]
    weights = np.linalg.solve(x.T @ x + 1e-3 * (x.var() * len(x) + 1e-9) * np.eye(lags - 1), x.T @ y)

    def told(past: np.ndarray) -> np.ndarray:
        last = np.concatenate([np.full(max(0, lags - len(past)), past[0]), past])[-lags:]
        return past[-1] + (last[:-1] - past[-1]) @ weights

    return told


def table_of(path: Path, columns: Sequence[str], train: float, end: float = 1.0, **options: Any) -> Callable[..., Any]:
    """A table as one series, learned from up to a share of it."""
    def run(minutes: float) -> Measured:
        from segue.kinds.elements import as_columns

        columns_of = as_columns(segue.read(path, kind="series", columns=list(columns))[0].object)
        grid = np.stack([columns_of[name] for name in columns_of], 1)
        return series(minutes, [grid[: int(end * len(grid))]], [int(train * len(grid))], list(columns_of), **options)

    return run


def vowels(minutes: float, path: Path, test: Path) -> Measured:
    """Utterances of twelve numbers: the last five moments of others than were learned."""
    from segue.kinds.elements import as_columns

    parts = [[np.stack(list(as_columns(record.object).values()), 1) for record in segue.read(each)]
             for each in (path, test)]
    grids = [*parts[0], *parts[1]]
    return series(minutes, grids, [len(grid) for grid in parts[0]] + [0] * len(parts[1]),
                  [f"x{c + 1}" for c in range(grids[0].shape[1])], 5)


def made_up(sort: str, minutes: float, count: int = 24, length: int = 480) -> Measured:
    """Days with a trend, weeks of days, a walk, or an oscillation of a pace of its own; 24 series of each."""
    draw, grids = np.random.default_rng(1), []
    for _ in range(count):
        t, noise = np.arange(length), draw.standard_normal(length)
        if sort == "seasons":
            level, trend, height = draw.normal(50, 20), draw.normal(0, 0.05), draw.uniform(3, 12)
            values = level + trend * t + height * np.sin(2 * np.pi * (t / 24 + draw.random())) + 2 * noise
        elif sort == "walk":
            values = draw.normal(100, 30) + noise.cumsum()
        else:
            values, angle = np.zeros(length), 2 * np.pi / draw.uniform(9, 40)
            for i in range(2, length):
                values[i] = 2 * 0.98 * math.cos(angle) * values[i - 1] - 0.98**2 * values[i - 2] + noise[i]
        grids.append(values[:, None].round(3))
    return series(minutes, grids, [length - 96] * count)


# Music and molecules: bits, beside smoothed counts; and whether what is drawn are molecules.


def bits(minutes: float, parts: Callable[[], tuple[Data, Data]], samples: int = 0) -> Measured:
    train, test = parts()
    model = segue.fit(train, minutes=minutes, quiet=True)
    found = model.evaluate(test)
    best = min(value for name, value in found.baselines.items() if name.startswith("Kneser"))
    told: Measured = {f"bits a {found.unit}": {SEGUE: found.bits_per_unit, "n-gram": best,
                                               "frequencies": found.baselines["unigram"]},
                      "accuracy": {SEGUE: found.top["1"]}}
    if samples:
        learned = [record.object for record in train]
        start, end = model.codec.bos, model.codec.eos
        assert start is not None and end is not None
        ids = [np.append(model.codec.encode(each), end) for each in learned]
        counts = CountModel(model.codec.size, 5).fit([np.insert(each, 0, start) for each in ids])
        for name, decodable in ((SEGUE, model.decodable()), ("n-gram", counts)):
            answers = generate(decodable, [[start]] * samples, 120, "sample", "none", eos=model.ends)
            quality = molecule_quality([model.codec.decode(each.tokens) for each in answers], learned)
            for measure in ("valid", "unique", "novel"):
                told.setdefault(measure, {})[name] = getattr(quality, measure)
    return told


def by_name(path: Path, train: str, test: str) -> tuple[Data, Data]:
    """The records whose names say of which part they are."""
    data = segue.read(path)
    spans, names = data.spans(), [data.name(i) for i in range(len(data))]
    return data.view(spans[[train in name for name in names]]), data.view(spans[[test in name for name in names]])


def sets(folder: Path) -> dict[str, tuple[str, list[Path], Callable[[float], Measured]]]:
    """By name: the sort, the files, and what measures it in so many minutes."""
    def at(*names: str) -> list[Path]:
        return [folder / name for name in names]

    def given(sort: Callable[..., Measured], *names: str, **options: Any) -> tuple[str, list[Path], Any]:
        return sort.__name__, at(*names), lambda minutes: sort(minutes, *at(*names), **options)

    logged, music = "process-logs-next-element", at("jsb-chorales/jsb-chorales-16th.json.gz", "pop909-midi/pop909.zip")
    zinc = at("zinc250k-valtest/valid.smi.gz", "zinc250k-valtest/test.smi.gz")
    chembl = at("chembl-chem-xlstm/chembl31-mini-train.zip", "chembl-chem-xlstm/chembl31-test.zip")
    vowel = [f"japanese-vowels/JapaneseVowels_{part}.ts.gz" for part in ("TRAIN", "TEST")]
    weather, ecg = at("etth1/ETTh1.csv.gz"), at("ecg-mitdb-snippet/mitdb.csv.gz")
    seven = ("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT")
    return {
        "MovieLens": given(items, "movielens-latest-small-2016/ratings.csv.gz"),
        "Beauty, 5-core": given(items, "amazon-beauty-s3rec/Beauty.txt.gz"),
        "Beauty, all": given(items, "amazon-beauty-bert4rec/beauty.txt.gz"),
        "Last.fm": given(items, *(f"lastfm-listening-rmtpp/event-{part}.txt.gz" for part in ("train", "test"))),
        "BPI 2012": given(logs, f"{logged}/bpi12.csv.gz"),
        "Sepsis": given(logs, f"{logged}/sepsis.csv.gz"),
        "Receipt": given(logs, f"{logged}/receipt_phase.csv.gz"),
        "NASA": given(logs, f"{logged}/nasa_complete.txt.gz", kind="cases"),
        "permits": given(logs, "process-logs-timed/env_permit.csv.gz"),
        "HDFS": given(logs, "hdfs-log-keys/hdfs_train.txt.gz"),
        **{name: given(timed, f"tpp-{name}/train.jsonl.gz", f"tpp-{name}/test.jsonl.gz")
           for name in ("taxi", "taobao", "mathoverflow")},
        "ETTh1, oil temperature": ("series", weather, table_of(weather[0], ["OT"], 11520 / 17420, 14400 / 17420)),
        "ETTh1, seven columns": ("series", weather, table_of(weather[0], seven, 11520 / 17420, 14400 / 17420)),
        "ECG": ("series", ecg, table_of(ecg[0], ["data"], 0.8)),
        "vowels": ("series", at(*vowel), lambda minutes: vowels(minutes, *at(*vowel))),
        **{f"made up: {sort}": ("series", [], partial(made_up, sort)) for sort in ("seasons", "walk", "oscillation")},
        "JSB chorales": ("bits", music[:1], lambda minutes: bits(minutes, lambda: by_name(music[0], ":train:",
                                                                                          ":test:"))),
        "POP909": ("bits", music[1:], lambda minutes: bits(minutes, lambda: segue.read(music[1]).split(0.2))),
        "ZINC": ("bits", zinc, lambda minutes: bits(minutes, lambda: (segue.read(zinc[0]), segue.read(zinc[1])), 300)),
        "ChEMBL": ("bits", chembl, lambda minutes: bits(minutes, lambda: (segue.read(chembl[0]), segue.read(
            chembl[1]).split(0.04)[1]), 300)),
    }


TITLES = {"items": "Items", "logs": "Process and software logs", "timed": "Events with times",
          "series": "Measured numbers", "bits": "Music and molecules"}
LOWER = ("bits", "wrong", "time RMSE", "MASE", "CRPS")  # measures of which less is better begin so


def page(rows: list[dict[str, Any]]) -> str:
    lines = ["# What comes next, kind by kind", "",
             "Printed by `benchmarks/kinds.py` (which says what each method and split is): one thread, "
             f"{describe_machine()}. Both sides learned from the same sequences; minutes are those of "
             "`segue fit`. Best in bold.", ""]
    for sort, title in TITLES.items():
        mine = {(row["data"], row["minutes"]): row for row in rows if row["sort"] == sort}
        if not mine:
            continue
        methods = list(dict.fromkeys(name for row in mine.values() for each in row["found"].values() for name in each))
        lines += [f"## {title}", "", f"| data | minutes | measure | {' | '.join(methods)} |",
                  "|---|---|---|" + "---|" * len(methods)]
        for (data, minutes), row in mine.items():
            for measure, found in row["found"].items():
                best = (min if measure.startswith(LOWER) else max)(found.values())
                shown = {name: f"**{value:.4g}**" if value == best and len(found) > 1 else f"{value:.4g}"
                         for name, value in found.items()}
                cells = [shown.get(name, "") for name in methods]
                lines.append(f"| {data} | {minutes:g} | {measure} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="data sets (default: all)")
    parser.add_argument("--data", type=Path, metavar="FOLDER")
    parser.add_argument("--minutes", type=float, default=1.0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    time.monotonic = time.process_time  # by which `fit` keeps its time: a busy machine troubles none
    there = sets(given.data or Path())
    if strange := set(given.names) - set(there):
        parser.error(f"there is no {', '.join(strange)}: choose from {', '.join(there)}")
    for name, (sort, files, measure) in there.items():
        if given.data is None or (given.names and name not in given.names):
            continue
        if absent := [str(file) for file in files if not file.exists()]:
            print(f"{name}: {', '.join(absent)} is not there")
            continue
        begin = time.perf_counter()
        row = {"data": name, "sort": sort, "minutes": given.minutes, "found": measure(given.minutes)}
        print(row | {"seconds": round(time.perf_counter() - begin)}, flush=True)
        with open(RECORD, "a") as handle:
            handle.write(json.dumps(row) + "\n")
    (HERE / "kinds.md").write_text(page([json.loads(line) for line in RECORD.read_text().splitlines()]))


if __name__ == "__main__":
    main()
