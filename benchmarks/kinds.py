"""How well `segue fit --minutes 1` predicts what comes next, beside baselines of ten lines, kind by kind.

    python benchmarks/kinds.py --data FOLDER [--minutes 1] [NAME ...]     # measure, and write results/kinds.md
    python benchmarks/kinds.py                                            # write the page from all that was measured

FOLDER holds a folder for each data set (see `sets`); what is not there is left out, synthetic series need none. Both
sides learn from the same sequences and are scored on the same others: a data set's own parts where it has some, the
last item of each user for items, and else sequences drawn by a hash. One thread, and minutes of its processor time.
Nothing is chosen on what is scored. A row is printed for each data set, and kept in results/kinds.jsonl.
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
    train, test_data = (data.split(by="last")[0], data) if test is None else (data, segue.read(test))
    model = segue.fit(train, minutes=minutes, quiet=True)
    assert isinstance(model.codec, ItemCodec)
    known = len(model.codec.items)
    sequences = [ids[ids <= known] for ids in (model.codec.encode(record.object) for record in test_data)
                 if len(ids) > 1]
    sequences = [sequences[i] for i in np.unique(np.linspace(0, len(sequences) - 1, USERS).astype(int))]
    histories, targets = [ids[:-1] for ids in sequences], [int(ids[-1]) for ids in sequences]
    train_ids = [ids[ids < known] for ids in (model.codec.encode(record.object) for record in train)]
    no_repeats = all(len(np.unique(ids)) == len(ids) for ids in train_ids)
    network = DecodablePredictor(model.decodable(), model.codec.bos, length=model.context - 1)
    rank_arrays = {SEGUE: rank_next(network, histories, targets, items=known, drop_seen=no_repeats, rows=64)}
    for name, scores in item_scores(train_ids, known).items():
        rank_arrays[name] = np.array([
            ranks(np.array(scores(ids), float)[None], np.array([item]),
                  seen=[ids[ids < known]] if no_repeats else None)[0]
            if item < known else np.inf for ids, item in zip(histories, targets)])
    results = {name: ranking(result, (10,)) for name, result in rank_arrays.items()}
    return {"HR@10": {name: result.hits[10] for name, result in results.items()},
            "NDCG@10": {name: result.ndcg[10] for name, result in results.items()}}


def item_scores(train_ids: Sequence[np.ndarray], known: int) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """The baselines: each gives scores (known,) of all items after a history of ids."""
    popularity = np.bincount(np.concatenate(train_ids), minlength=known)
    successors = defaultdict[int, Counter[int]](Counter)
    for ids in train_ids:
        for previous, item in zip(ids.tolist(), ids[1:].tolist()):
            successors[previous][item] += 1
    users_by_item, items_by_user = [set[int]() for _ in range(known)], [np.unique(ids) for ids in train_ids]
    for user, ids in enumerate(items_by_user):
        for item in ids.tolist():
            users_by_item[item].add(user)

    def markov(ids: np.ndarray) -> np.ndarray:
        scores = popularity / (popularity.sum() + 1)
        for item, count in successors[int(ids[-1])].items() if len(ids) and ids[-1] < known else ():
            scores[item] += count
        return scores

    def neighbours(ids: np.ndarray) -> np.ndarray:
        """The sum of the cosines of all items of the history."""
        weight, scores = defaultdict[int, float](float), popularity / 1e9
        for item in set(ids[ids < known].tolist()):
            for user in users_by_item[item]:
                weight[user] += 1 / math.sqrt(len(users_by_item[item]))
        for user, share in weight.items():
            scores[items_by_user[user]] += share
        return scores / np.sqrt(np.maximum(popularity, 1))

    return {"popularity": lambda ids: popularity, "Markov, last item": markov, "item-kNN, cosine": neighbours}


# Logs: the next activity of a case, its end among them.


def logs(minutes: float, path: Path, **reading: Any) -> Measured:
    train, test = segue.read(path, **reading).split(0.2)
    model = segue.fit(train, minutes=minutes, quiet=True)
    end = model.codec.eos
    assert end is not None
    train_cases, test_cases = ([np.append(model.codec.encode(record.object), end) for record in data]
                               for data in (train, test))
    test_cases = test_cases[: 1 + int(np.searchsorted(np.cumsum([*map(len, test_cases)]), TESTED))]
    evaluation = evaluate(DecodablePredictor(model.decodable(), model.codec.bos), test_cases)
    cut = len(train_cases) * 4 // 5
    order = max(range(1, 9), key=lambda k: accuracy(most_frequent_next(train_cases[:cut], k), train_cases[cut:], k))
    smoothed = CountModel(model.codec.size, min(range(1, 9), key=lambda k: evaluate(
        CountModel(model.codec.size, k, "witten-bell").fit(train_cases[:cut]), train_cases[cut:]).bits), "witten-bell")
    return {"accuracy": {SEGUE: evaluation.accuracy,
                         "successor": accuracy(most_frequent_next(train_cases, 1), test_cases, 1),
                         "counts of order k": accuracy(most_frequent_next(train_cases, order), test_cases, order)},
            "bits an event": {SEGUE: evaluation.bits,
                              "counts of order k": evaluate(smoothed.fit(train_cases), test_cases).bits}}


def most_frequent_next(cases: Sequence[np.ndarray], order: int) -> dict[tuple[int, ...], int]:
    """The most frequent activity after each run of up to `order` activities."""
    tallies: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for ids in map(np.ndarray.tolist, cases):
        for place, item in enumerate(ids):
            for k in range(min(order, place) + 1):
                tallies[tuple(ids[place - k : place])][item] += 1
            if place <= order:
                tallies[-1, *ids[:place]][item] += 1  # the whole case
    return {context: counts.most_common(1)[0][0] for context, counts in tallies.items()}


def accuracy(best: dict[tuple[int, ...], int], cases: Sequence[np.ndarray], order: int) -> float:
    """Share of activities predicted right, each by the longest context that was seen."""
    hits = []
    for ids in map(np.ndarray.tolist, cases):
        for place, item in enumerate(ids):
            contexts = [(-1, *ids[:place])] if place <= order else []
            contexts += [tuple(ids[place - k : place]) for k in range(min(order, place), -1, -1)]
            hits.append(best[next(context for context in contexts if context in best)] == item)
    return float(np.mean(hits))


# Events with times: log-likelihood of times and types (nats an event), the expected time, the type.


def timed(minutes: float, path: Path, test: Path, **reading: Any) -> Measured:
    train, test_data = segue.read(path, **reading), segue.read(test, **reading)
    report = segue.fit(train, minutes=minutes, quiet=True, objective="timed").evaluate(test_data)
    assert isinstance(report, TimedEvaluation)
    scores = report.scores
    hawkes = next(name for name in scores if name.startswith("Hawkes"))
    train_gaps, train_types, test_gaps, test_types = (list[np.ndarray]() for _ in range(4))
    for data, times, types in ((train, train_gaps, train_types), (test_data, test_gaps, test_types)):
        for record in data:
            times.append(np.diff(record.channels["time"]))
            types.append(np.array(record.object))
    pairs = [pair for types in test_types for pair in zip(types[:-1].tolist(), types[1:].tolist())]
    time_likelihood = log_normal_likelihood(train_gaps, train_types, test_gaps, test_types)
    type_likelihood, mistakes = markov_types(train_types, pairs)
    simple, names = "log-normal gap, Markov types", {SEGUE: OURS, "Poisson": "Poisson", "Hawkes": hawkes}
    mean_gap = np.concatenate(train_gaps).mean()

    def by_method(measure: str) -> dict[str, float]:
        return {name: value for name, key in names.items() if (value := getattr(scores[key], measure)) is not None}

    return {"log-likelihood": {SEGUE: -scores[OURS].nats, "Poisson": -scores["Poisson"].nats,
                               **({} if scores[hawkes].type is None else {"Hawkes": -scores[hawkes].nats}),
                               simple: time_likelihood + type_likelihood},
            "of the time": {SEGUE: -float(scores[OURS].time or 0), "Poisson": -float(scores["Poisson"].time or 0),
                            "Hawkes": -float(scores[hawkes].time or 0), simple: time_likelihood},
            "time RMSE": {**by_method("rmse"),
                          "mean gap": float(np.sqrt(np.square(np.concatenate(test_gaps) - mean_gap).mean()))},
            "wrong types": {**by_method("error"), simple: mistakes}}


def log_normal_likelihood(train_gaps: Sequence[np.ndarray], train_types: Sequence[np.ndarray],
                          test_gaps: Sequence[np.ndarray], test_types: Sequence[np.ndarray]) -> float:
    """Mean over the test gaps, in nats, of a log-normal law of the gap for each type of the event before it."""
    gaps, previous = np.concatenate(train_gaps), np.concatenate([types[:-1] for types in train_types])
    log_gaps = np.log(np.maximum(gaps, 1e-9))
    floor = math.log(max(float(gaps[gaps > 0].min()), 1e-9))
    overall = log_gaps.mean(), log_gaps.std() + 1e-3
    fits = {kind: (log_gaps[previous == kind].mean(), log_gaps[previous == kind].std() + 1e-3)
            for kind in np.unique(previous) if (previous == kind).sum() > 50}
    mean, spread = np.array([fits.get(kind, overall)
                             for kind in np.concatenate([types[:-1] for types in test_types])]).T
    targets = np.maximum(np.log(np.maximum(np.concatenate(test_gaps), 1e-9)), floor)
    nats = -0.5 * ((targets - mean) / spread) ** 2 - np.log(spread) - targets - 0.5 * math.log(2 * math.pi)
    return float(nats.mean())


def markov_types(train_types: Sequence[np.ndarray], pairs: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """Of the type after each type, smoothed counts: mean log-likelihood of the test pairs, in nats, and the share of
    them whose second is not the likeliest."""
    previous = np.concatenate([types[:-1] for types in train_types]).tolist()
    following = np.concatenate([types[1:] for types in train_types]).tolist()
    transitions, totals = Counter(zip(previous, following)), Counter(previous)
    likeliest = {kind: max((c, b) for (a, b), c in transitions.items() if a == kind)[1] for kind in totals}
    smoothing = 0.5 * (len(set(previous)) + 1)
    likelihood = np.mean([math.log((transitions[pair] + 0.5) / (totals[pair[0]] + smoothing)) for pair in pairs])
    return float(likelihood), float(np.mean([likeliest.get(a) != b for a, b in pairs]))


# Series: the next moments from origins in the last part of each, from what lies before the part and the moments before.


def series(minutes: float, grids: Sequence[np.ndarray], cuts: Sequence[int], columns: Sequence[str] = ("",),
           steps: int = AHEAD) -> Measured:
    """grids: (T, C) each, learned from up to `cuts`, forecast beyond."""
    def elements(grid: np.ndarray) -> list[str]:
        return as_elements({name: grid[:, c] for c, name in enumerate(columns)})

    model = segue.fit(segue.data.of([elements(grid[:cut]) for grid, cut in zip(grids, cuts) if cut], kind="series"),
                      minutes=minutes, quiet=True)
    origins = [(row, origin) for row, (grid, cut) in enumerate(zip(grids, cuts))
               for origin in range(max(cut, steps), len(grid) - steps + 1)]
    origins = [origins[i] for i in np.unique(np.linspace(0, len(origins) - 1, PLACES).astype(int))]
    samples = combined_forecasts(model, columns, [grids[row][:origin] for row, origin in origins], steps)
    errors: dict[str, list[np.ndarray]] = defaultdict(list)
    scores: list[float] = []
    for c in range(len(columns)):
        train_values = [grid[:cut, c] for grid, cut in zip(grids, cuts) if cut]
        lag = find_season(max(train_values, key=len))
        ridge = linear(train_values, steps, min(2 * steps, max(map(len, train_values)) - steps - 1))
        for index, (row, origin) in enumerate(origins):
            past, truth = grids[row][:origin, c], grids[row][origin : origin + steps, c]
            season = min(lag, len(past))
            forecasts = {SEGUE: np.median(samples[index, :, :, c], 0), "last value": np.repeat(past[-1], steps),
                         "drift": past[-1] + (past[-1] - past[0]) / (len(past) - 1) * np.arange(1, steps + 1),
                         "season ago": np.array([past[-season + h % season] for h in range(steps)]),
                         "linear": ridge(past)}
            scale = naive_scale(grids[row][: cuts[row] or origin, c], 1) or 1.0
            scores.append(crps(samples[index, :, :, c].T, truth) / scale)
            for name, points in forecasts.items():
                errors[name].append(np.abs(points - truth) / scale)
    return {"MASE": {name: float(np.mean(method_errors)) for name, method_errors in errors.items()},
            "CRPS, as MASE": {SEGUE: float(np.mean(scores))}}


def linear(train_values: Sequence[np.ndarray], steps: int, lags: int) -> Callable[[np.ndarray], np.ndarray]:
    """Ridge from the last moments to the next ones, as differences from the last one (as NLinear, Zeng et al. 2022)."""
    rows = [values[start : start + lags + steps] - values[start + lags - 1]
            for values in train_values for start in range(len(values) - lags - steps + 1)]
    x, y = np.array(rows)[:, : lags - 1], np.array(rows)[:, lags:]
    weights = np.linalg.solve(x.T @ x + 1e-3 * (x.var() * len(x) + 1e-9) * np.eye(lags - 1), x.T @ y)

    def forecast(past: np.ndarray) -> np.ndarray:
        last = np.concatenate([np.full(max(0, lags - len(past)), past[0]), past])[-lags:]
        return past[-1] + (last[:-1] - past[-1]) @ weights

    return forecast


def table_series(path: Path, columns: Sequence[str], train: float, end: float = 1.0,
                 **options: Any) -> Callable[..., Any]:
    """A table as one series, learned from up to a share of it."""
    def run(minutes: float) -> Measured:
        from segue.kinds.elements import as_columns

        columns_of = as_columns(segue.read(path, kind="series", columns=list(columns))[0].object)
        grid = np.stack([columns_of[name] for name in columns_of], 1)
        return series(minutes, [grid[: int(end * len(grid))]], [int(train * len(grid))], list(columns_of), **options)

    return run


def vowels(minutes: float, path: Path, test: Path) -> Measured:
    """Utterances of twelve numbers: the last five moments of those in `test`."""
    from segue.kinds.elements import as_columns

    parts = [[np.stack(list(as_columns(record.object).values()), 1) for record in segue.read(file)]
             for file in (path, test)]
    grids = [*parts[0], *parts[1]]
    return series(minutes, grids, [len(grid) for grid in parts[0]] + [0] * len(parts[1]),
                  [f"x{c + 1}" for c in range(grids[0].shape[1])], 5)


def synthetic(sort: str, minutes: float, count: int = 24, length: int = 480) -> Measured:
    """Daily seasons with a trend, random walks, or oscillations of one frequency each: `count` series of `sort`."""
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
    evaluation = model.evaluate(test)
    best_ngram = min(value for name, value in evaluation.baselines.items() if name.startswith("Kneser"))
    results: Measured = {f"bits a {evaluation.unit}": {SEGUE: evaluation.bits_per_unit, "n-gram": best_ngram,
                                                       "frequencies": evaluation.baselines["unigram"]},
                         "accuracy": {SEGUE: evaluation.top["1"]}}
    if samples:
        train_texts = [record.object for record in train]
        start, end = model.codec.bos, model.codec.eos
        assert start is not None and end is not None
        ids = [np.append(model.codec.encode(text), end) for text in train_texts]
        counts = CountModel(model.codec.size, 5).fit([np.insert(text, 0, start) for text in ids])
        for name, decodable in ((SEGUE, model.decodable()), ("n-gram", counts)):
            answers = generate(decodable, [[start]] * samples, 120, "sample", "none", eos=model.ends)
            quality = molecule_quality([model.codec.decode(text.tokens) for text in answers], train_texts)
            for measure in ("valid", "unique", "novel"):
                results.setdefault(measure, {})[name] = getattr(quality, measure)
    return results


def split_by_name(path: Path, train: str, test: str) -> tuple[Data, Data]:
    """The records whose names hold `train`, and those whose names hold `test`."""
    data = segue.read(path)
    spans, names = data.spans(), [data.name(i) for i in range(len(data))]
    return data.view(spans[[train in name for name in names]]), data.view(spans[[test in name for name in names]])


def sets(folder: Path) -> dict[str, tuple[str, list[Path], Callable[[float], Measured]]]:
    """By name: the sort, the files, and the function that measures it in so many minutes."""
    def paths(*names: str) -> list[Path]:
        return [folder / name for name in names]

    def entry(sort: Callable[..., Measured], *names: str, **options: Any) -> tuple[str, list[Path], Any]:
        return sort.__name__, paths(*names), lambda minutes: sort(minutes, *paths(*names), **options)

    logs_folder = "process-logs-next-element"
    music = paths("jsb-chorales/jsb-chorales-16th.json.gz", "pop909-midi/pop909.zip")
    zinc = paths("zinc250k-valtest/valid.smi.gz", "zinc250k-valtest/test.smi.gz")
    chembl = paths("chembl-chem-xlstm/chembl31-mini-train.zip", "chembl-chem-xlstm/chembl31-test.zip")
    vowel_files = [f"japanese-vowels/JapaneseVowels_{part}.ts.gz" for part in ("TRAIN", "TEST")]
    weather, ecg = paths("etth1/ETTh1.csv.gz"), paths("ecg-mitdb-snippet/mitdb.csv.gz")
    columns = ("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT")
    return {
        "MovieLens": entry(items, "movielens-latest-small-2016/ratings.csv.gz"),
        "Beauty, 5-core": entry(items, "amazon-beauty-s3rec/Beauty.txt.gz"),
        "Beauty, all": entry(items, "amazon-beauty-bert4rec/beauty.txt.gz"),
        "Last.fm": entry(items, *(f"lastfm-listening-rmtpp/event-{part}.txt.gz" for part in ("train", "test"))),
        "BPI 2012": entry(logs, f"{logs_folder}/bpi12.csv.gz"),
        "Sepsis": entry(logs, f"{logs_folder}/sepsis.csv.gz"),
        "Receipt": entry(logs, f"{logs_folder}/receipt_phase.csv.gz"),
        "NASA": entry(logs, f"{logs_folder}/nasa_complete.txt.gz", kind="cases"),
        "permits": entry(logs, "process-logs-timed/env_permit.csv.gz"),
        "HDFS": entry(logs, "hdfs-log-keys/hdfs_train.txt.gz"),
        **{name: entry(timed, f"tpp-{name}/train.jsonl.gz", f"tpp-{name}/test.jsonl.gz")
           for name in ("taxi", "taobao", "mathoverflow")},
        "ETTh1, oil temperature": ("series", weather, table_series(weather[0], ["OT"], 11520 / 17420, 14400 / 17420)),
        "ETTh1, seven columns": ("series", weather, table_series(weather[0], columns, 11520 / 17420, 14400 / 17420)),
        "ECG": ("series", ecg, table_series(ecg[0], ["data"], 0.8)),
        "vowels": ("series", paths(*vowel_files), lambda minutes: vowels(minutes, *paths(*vowel_files))),
        **{f"made up: {sort}": ("series", [], partial(synthetic, sort)) for sort in ("seasons", "walk", "oscillation")},
        "JSB chorales": ("bits", music[:1], lambda minutes: bits(minutes, lambda: split_by_name(music[0], ":train:",
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
        latest = {(row["data"], row["minutes"]): row for row in rows if row["sort"] == sort}
        if not latest:
            continue
        methods = list(dict.fromkeys(name for row in latest.values() for methods_of in row["found"].values()
                                     for name in methods_of))
        lines += [f"## {title}", "", f"| data | minutes | measure | {' | '.join(methods)} |",
                  "|---|---|---|" + "---|" * len(methods)]
        for (data, minutes), row in latest.items():
            for measure, by_method in row["found"].items():
                best = (min if measure.startswith(LOWER) else max)(by_method.values())
                shown = {name: f"**{value:.4g}**" if value == best and len(by_method) > 1 else f"{value:.4g}"
                         for name, value in by_method.items()}
                cells = [shown.get(name, "") for name in methods]
                lines.append(f"| {data} | {minutes:g} | {measure} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="data sets (default: all)")
    parser.add_argument("--data", type=Path, metavar="FOLDER")
    parser.add_argument("--minutes", type=float, default=1.0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    time.monotonic = time.process_time  # by which `fit` keeps its time: a busy machine troubles none
    available = sets(args.data or Path())
    if unknown := set(args.names) - set(available):
        parser.error(f"there is no {', '.join(unknown)}: choose from {', '.join(available)}")
    for name, (sort, files, measure) in available.items():
        if args.data is None or (args.names and name not in args.names):
            continue
        if missing := [str(file) for file in files if not file.exists()]:
            print(f"{name}: {', '.join(missing)} is not there")
            continue
        begin = time.perf_counter()
        row = {"data": name, "sort": sort, "minutes": args.minutes, "found": measure(args.minutes)}
        print(row | {"seconds": round(time.perf_counter() - begin)}, flush=True)
        with open(RECORD, "a") as handle:
            handle.write(json.dumps(row) + "\n")
    (HERE / "kinds.md").write_text(page([json.loads(line) for line in RECORD.read_text().splitlines()]))


if __name__ == "__main__":
    main()
