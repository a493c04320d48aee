"""The tour: learn the Python standard library, continue a half-written function, learn the manual, write a report.

Everything it reads is on every machine with Python; nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import html
import io
import lzma
import math
import shutil
import sysconfig
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segue.errors import SegueError
from segue.files import write_json, write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from segue.decoding.draft import TrieDraft
    from segue.verbs.fitted import Fitted

SKIPPED = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "pydoc_data", "__pycache__"}

PRIME = '''\
def read_header(stream, limit=65536):
    """Read one header line from stream and split it into a name and a value.

    Raises ValueError if the line is too long or has no colon.
    """
    line = stream.readline(limit + 1)
    if len(line) > limit:
        raise ValueError("'''


# -- what is learned


def is_held_out(name: str, share: int) -> bool:
    """One name in `share`, picked by its hash: the same on every machine."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % share == 0


def standard_library() -> tuple[list[Path], list[Path]]:
    """Source files of this interpreter's standard library, for training and held out (one in 20, by hash)."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(path for path in root.rglob("*.py")
                   if SKIPPED.isdisjoint(path.relative_to(root).parts[:-1]) and path.stat().st_size)
    if len(files) < 100:
        raise SegueError(f"only {len(files)} source files of the standard library are in {root}; "
                         "the demo needs them: on Debian, apt install libpython3-stdlib")
    held = [path for path in files if is_held_out(path.relative_to(root).as_posix(), 20)]
    return [path for path in files if path not in set(held)], held


def documentation(folder: Path) -> list[Path]:
    """The interpreter's own manual (what `help("for")` shows), written to files."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise SegueError("this Python has no pydoc_data.topics, which the demo learns from: "
                         "on Debian, apt install libpython3-stdlib") from error
    for name, text in topics.items():
        write_text(folder / f"{name}.txt", text)
    return sorted(folder.glob("*.txt"))


def megabytes(files: Iterable[Path]) -> float:
    return sum(path.stat().st_size for path in files) / 1e6


# -- the tour

NGRAM = 8  # bytes of context of the n-gram baseline
TOKENS = 200  # added to the half-written function
STRATEGIES = ("naive", "replay")


def demo(out: str | Path = "demo-out", minutes: float = 2.0, update_minutes: float = 0.5, quiet: bool = False) -> Path:
    """Run the whole tour: fit, evaluate, continue, update and report; returns the report's path.

    out: folder for the models and the report. minutes: of learning; update_minutes: of learning on, each of two times.
    Interrupted while learning, it goes on from there the next time. What an earlier tour has finished is removed; a
    folder that holds anything else is refused.
    """
    from segue.data import read
    from segue.training.recipe import describe_machine
    from segue.verbs.fit import fit

    begin, folder = time.monotonic(), Path(out)
    if folder.exists() and not (folder / "manual").is_dir() and (not folder.is_dir() or any(folder.iterdir())):
        raise SegueError(f"{folder} holds no earlier tour, and is not empty: choose another place (--out)")
    train, held = standard_library()
    manual = documentation(folder / "manual")
    say(f"Learning {len(train)} source files of the standard library ({megabytes(train):.1f} MB) for {minutes:g} "
        f"minutes; {len(held)} others ({megabytes(held):.1f} MB) are held out.")
    for name in ("model", *STRATEGIES):  # what an earlier tour finished; an unfinished one goes on
        if (folder / name / "config.json").exists():
            shutil.rmtree(folder / name)
    held_out = read(*held, kind="code")
    model = fit(read(*train, kind="code"), held_out=held_out, out=folder / "model", minutes=minutes, quiet=quiet)
    evaluation = model.evaluate(held_out)  # all of them: the scores of the fit are of a sample
    scores = {OURS: evaluation.bits_per_unit, **evaluation.baselines, **baselines(train, held)}
    say("\nHeld-out bits per byte:")
    for name in sorted(scores, key=lambda name: scores[name]):
        say(f"  {scores[name]:.3f}  {name}")
    facts = {
        "data": {"train_files": len(train), "train_megabytes": megabytes(train), "held_files": len(held),
                 "held_megabytes": megabytes(held), "manual_files": len(manual),
                 "manual_megabytes": megabytes(manual)},
        "fit": {"choice": model.report["choice"], "seconds": model.report["seconds"], "curve": curve(model)},
        "scores": scores, **continued(model), "update": updated(folder, manual, update_minutes, quiet),
        "machine": describe_machine(), "seconds": time.monotonic() - begin,
    }
    write_json(folder / "report.json", facts)
    write_text(folder / "report.html", page(facts))
    say(f"\nDone in {facts['seconds'] / 60:.1f} minutes. The report: {(folder / 'report.html').resolve()}")
    return folder / "report.html"


def curve(model: Fitted) -> list[tuple[float, float]]:
    """(seconds, held-out bits per byte) while the network learned; a sample of the held-out files, to lose no time."""
    report, held = model.report, model.report["held_out"]
    per_byte = held["elements"] / held["units"] / math.log(2)
    return [(report["seconds"] * entry["step"] / report["steps"], entry["held_out"] * per_byte)
            for entry in report["curve"]]


def say(text: str) -> None:
    print(text, flush=True)


def baselines(train: list[Path], held: list[Path]) -> dict[str, float]:
    """Bits per held-out byte of baselines without a network: `xz` after the training text, and an n-gram model."""
    import numpy as np

    from segue.models.counts import CountModel, documents_bits

    train_bytes, held_bytes = ([path.read_bytes() for path in files] for files in (train, held))
    size = sum(map(len, held_bytes))
    packed = [len(lzma.compress(b"".join(part), preset=9 | lzma.PRESET_EXTREME))
              for part in (train_bytes, train_bytes + held_bytes)]
    counts = CountModel(256, NGRAM, "kneser-ney").fit([np.frombuffer(content, np.uint8) for content in train_bytes])
    bits = documents_bits(counts, [np.frombuffer(content, np.uint8) for content in held_bytes])
    return {"xz -9e after the library": 8 * (packed[1] - packed[0]) / size,
            f"bytes, Kneser-Ney of order {NGRAM}": float(bits / size)}


def trie_of(model: Fitted) -> TrieDraft:
    """A trie that has read the pieces of the library which go with the model for replay."""
    from segue.decoding.draft import TrieDraft

    trie = TrieDraft(nodes=32)
    if model.memory is not None:
        trie.warm([piece.tolist() for piece in model.memory.replay.pieces])
    return trie


def continued(model: Fitted) -> dict[str, Any]:
    """Continue the half-written function by plain decoding and with the trie draft; the fastest of three runs each."""
    def fastest(draft: Callable[[], Any]) -> Any:
        answers = [model.continue_(PRIME, n=TOKENS, decoder="greedy", draft=draft()) for _ in range(3)]
        return max(answers, key=lambda answer: answer.tokens_per_second)

    trie = trie_of(model)  # kept from one answer to the next, as a server keeps it
    for draft in ("none", trie):  # the first calls warm the machine up
        model.continue_(PRIME, n=TOKENS, decoder="greedy", draft=draft)
    answers = {"plain": fastest(lambda: "none"), "trie draft": fastest(lambda: trie_of(model)),
               "trie draft, asked again": fastest(lambda: trie)}
    baseline, *drafted = answers.values()
    all_same = all(answer.tokens == baseline.tokens for answer in drafted)
    say(f"\nA half-written function, continued:\n\n{PRIME}{baseline.text}\n")
    for name, answer in answers.items():
        say(f"  {name}: {answer.tokens_per_second:.0f} tokens/s, {answer.tokens_per_pass:.2f} tokens a forward pass")
    say(f"  the texts {'are the same' if all_same else 'DIFFER'}; {baseline.path}")
    return {"prime": PRIME, "pieces": drafted[-1].pieces, "same": all_same,
            "answers": {name: answer.as_dict() for name, answer in answers.items()}}


def updated(folder: Path, manual: list[Path], minutes: float, quiet: bool) -> dict[str, Any]:
    """Update the model of the library on the manual with each strategy, always from the same weights.

    Returns strategy -> {"library" or "manual": (before, after)}, bits per byte on held-out pieces.
    """
    from segue.data import read
    from segue.verbs.fitted import load

    data, moves = read(*manual, kind="text"), {}
    for strategy in STRATEGIES:
        shutil.copytree(folder / "model", folder / strategy, dirs_exist_ok=True)
        result = load(folder / strategy).update(data, strategy=strategy, minutes=minutes, name="manual", quiet=quiet)
        before, after = result.matrix.scores.tolist()
        moves[strategy] = {"library": (before[0], after[0]), "manual": (before[-1], after[-1])}
        say(f"\nLearning the manual, {strategy}:" if strategy == STRATEGIES[0] else f"\nThe same, with {strategy}:")
        for dataset, (start, end) in moves[strategy].items():
            say(f"  {dataset}: {start:.3f} before, {end:.3f} after ({'forgotten' if end > start else 'gained'} "
                f"{abs(end - start):.3f} bits per byte)")
    return moves


# -- the report

OURS = "segue"
INK, GREY, BETTER, WORSE = "#2b5d9b", "#b9c2cc", "#2e7d4f", "#b3502d"

STYLE = """
:root { color-scheme: light }
body { font: 16px/1.55 system-ui, sans-serif; color: #1f2933; max-width: 60rem; margin: 2.5rem auto; padding: 0 1rem }
h1 { font-size: 1.9rem; margin-bottom: .2rem } h2 { font-size: 1.25rem; margin-top: 2.6rem }
p.lead, .small { color: #52606d } .small { font-size: .85rem }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(12rem, 1fr)); gap: .8rem; margin: 1.4rem 0 }
.card { background: #f4f7fa; border-radius: .6rem; padding: .9rem 1rem }
.card b { display: block; font-size: 1.7rem; line-height: 1.2; color: #2b5d9b }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem } .pictures svg { flex: 1 1 26rem; max-width: 100%; height: auto }
table { border-collapse: collapse; margin: .8rem 0 } th { font-weight: 600 }
td, th { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid #e1e7ec; text-align: left; vertical-align: top }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
pre { background: #f4f7fa; border-radius: .6rem; padding: 1rem; overflow-x: auto; font-size: .85rem; line-height: 1.6 }
pre .prime { color: #7b8794 } pre .a { background: #d9e7f7 } pre .b { background: #dff0e0 }
"""


def picture(size: tuple[float, float], paint: Callable[[Axes], None]) -> str:
    """A picture as SVG for the page; text is kept as text, in the page's font."""
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "segue", "font.family": "sans-serif", "font.size": 10,
                  "axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        paint(figure.subplots())
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg"):]


def paint_curve(axes: Axes, curve: list[tuple[float, float]], scores: dict[str, float]) -> None:
    """curve: (seconds, held-out bits per byte) of the network alone. scores: ours and the baselines, drawn as lines."""
    end = max(seconds for seconds, _ in curve) / 60
    lines = {name: bits for name, bits in scores.items() if bits < 2 * scores[OURS]}
    for number, (name, bits) in enumerate(sorted(lines.items(), key=lambda line: line[1])):
        axes.axhline(bits, color=INK if name == OURS else GREY, linewidth=1, linestyle=":")
        if name == OURS:
            axes.annotate(" segue, when all is done", (0, bits), ha="left", va="bottom", fontsize=8, color=INK)
        else:
            axes.annotate(name, (end if number % 2 else 0.6 * end, bits), ha="right", va="bottom", fontsize=8,
                          color="#52606d")
    axes.plot([seconds / 60 for seconds, _ in curve], [bits for _, bits in curve], color=INK, marker="o", markersize=3)
    axes.set(xlabel="minutes of training the network", ylabel="held-out bits per byte", xlim=(0, end),
             ylim=(0.95 * min(scores.values()), 1.3 * max(lines.values())))


def paint_bars(axes: Axes, scores: dict[str, float]) -> None:
    names = sorted(scores, key=lambda name: scores[name], reverse=True)
    bars = axes.barh(names, [scores[name] for name in names], color=[INK if name == OURS else GREY for name in names])
    axes.bar_label(bars, [f"{scores[name]:.3f}" for name in names], padding=3)
    axes.set(xlabel="held-out bits per byte (shorter is better)", xlim=(0, 1.15 * max(scores.values())))


def paint_moves(axes: Axes, moves: dict[str, dict[str, tuple[float, float]]]) -> None:
    """An arrow from before to after the update. moves: strategy -> {"library" or "manual": (before, after)}."""
    rows = [(dataset, strategy) for dataset in ("library", "manual") for strategy in reversed(moves)]
    for row, (dataset, strategy) in enumerate(rows):
        before, after = moves[strategy][dataset]
        colour = WORSE if after > before else BETTER
        axes.annotate("", (after, row), (before, row), arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 2})
        axes.plot([before], [row], marker="o", color=colour, markersize=4)
        axes.annotate(f"{before:.3f} to {after:.3f}", (max(before, after), row), (10, 0), va="center", color=colour,
                      textcoords="offset points")
    low, high = (f(value for move in moves.values() for pair in move.values() for value in pair) for f in (min, max))
    axes.set(xlabel="held-out bits per byte (left is better)", yticks=range(len(rows)), ylim=(-0.6, len(rows) - 0.4),
             xlim=(low - 0.1 * (high - low), high + 0.35 * (high - low)),
             yticklabels=[f"{dataset}, {strategy}" for dataset, strategy in rows])


def table(rows: list[list[str]]) -> str:
    """The first row is the head; the first column is text, the others are numbers."""
    def line(row: list[str], cell: str) -> str:
        return "".join(f"<{cell}{' class=n' if i else ''}>{html.escape(text)}</{cell}>" for i, text in enumerate(row))

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows[1:])
    return f"<table><tr>{line(rows[0], 'th')}</tr>{body}</table>"


def shaded(prime: str, passes: list[str]) -> str:
    """The prime in grey, then what each forward pass added, in alternating shades."""
    spans = [f'<span class="{"ab"[i % 2]}">{html.escape(text)}</span>' for i, text in enumerate(passes)]
    return f'<pre><span class="prime">{html.escape(prime)}</span>{"".join(spans)}</pre>'


def page(facts: dict[str, Any]) -> str:
    """The whole report as one HTML page that needs nothing else."""
    data, training, scores = facts["data"], facts["fit"], facts["scores"]
    answers, moves = facts["answers"], facts["update"]
    baseline, *_, warm = answers.values()
    forgot = {strategy: after - before for strategy, move in moves.items() for before, after in [move["library"]]}
    gained = {strategy: before - after for strategy, move in moves.items() for before, after in [move["manual"]]}
    best_baseline = min((name for name in scores if name != OURS), key=lambda name: scores[name])
    cards = [
        (f"{scores[OURS]:.3f}", f"bits per byte on held-out files, after {training['seconds'] / 60:.1f} minutes"),
        (f"{scores[best_baseline]:.3f}", f"the best baseline ({best_baseline})"),
        (f"{warm['tokens_per_second'] / baseline['tokens_per_second']:.1f}×",
         "as fast with the trie draft, asked again; the same text"),
        (f"{forgot['replay']:+.3f}", f"bits forgotten with replay; {forgot['naive']:+.3f} without"),
    ]
    decoding = [["decoder", "tokens per second", "tokens per forward pass", "forward passes"]]
    for name, answer in answers.items():
        speed, per_pass = answer["tokens_per_second"], answer["tokens_per_pass"]
        decoding.append([name, f"{speed:.0f}", f"{per_pass:.2f}", str(answer["passes"])])
    updating = [["strategy", "library before", "library after", "forgotten", "manual before", "manual after", "gained"]]
    for strategy, move in moves.items():
        updating.append([strategy, *(f"{bits:.3f}" for bits in move["library"]), f"{forgot[strategy]:+.3f}",
                         *(f"{bits:.3f}" for bits in move["manual"]), f"{gained[strategy]:+.3f}"])
    same_note = "All texts are the same, token by token." if facts["same"] else "The texts differ."
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Segue: the demo's report</title><style>{STYLE}</style>
<h1>Segue learned the Python standard library</h1>
<p class="lead">{data['train_files']} source files ({data['train_megabytes']:.1f} MB) to learn from,
{data['held_files']} others ({data['held_megabytes']:.1f} MB) kept apart by the hash of their names.</p>
<div class="cards">{''.join(f'<div class="card"><b>{big}</b>{html.escape(small)}</div>' for big, small in cards)}</div>
<h2>Learning</h2><p>{html.escape(training['choice'])}</p>
<div class="pictures">{picture((5.6, 3.6), lambda axes: paint_curve(axes, training['curve'], scores))}
{picture((5.6, 3.6), lambda axes: paint_bars(axes, scores))}</div>
<p class="small">All on the same split; 'after the library', xz has packed the training text first.</p>
<h2>Continuing a half-written function</h2>
<p>Grey is what was given; each shade is what one forward pass of the model added when it was asked again, drafting from
a trie. That trie has read the pieces of the library which go with the model for replay, and keeps what was answered;
drafts that do not pay are switched off. {same_note}</p>
{shaded(facts['prime'], facts['pieces'])}{table(decoding)}
<p class="small">{html.escape(baseline['path'])}</p>
<h2>Learning on: the interpreter's manual</h2>
<p>The same model then learned {data['manual_files']} pages of documentation ({data['manual_megabytes']:.2f} MB), twice
from the same start: naively, and with replay of what it had learned before. Green arrows are gains, red ones are what
was forgotten.</p>
<div class="pictures">{picture((9, 3), lambda axes: paint_moves(axes, moves))}</div>{table(updating)}
<p class="small">{html.escape(facts['machine'])}. {facts['seconds'] / 60:.1f} minutes in all.
Made by <code>segue demo</code>.</p>
</html>
"""
