"""Draw docs/decoding.png, and write its table into docs/decoding.md: quality, diversity and speed of every decoder.

    python tools/tradeoffs.py            # about five minutes on two cores; run again, it goes on where it was
    python tools/tradeoffs.py --quick    # a look at the wiring

A small model of the plays of Shakespeare (without the data set: of the standard library's source) continues held-out
places in every way. A larger model that read the same plays, and did not write the answers, judges them.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from statistics import mean
from textwrap import fill
from typing import Any

import numpy as np
import torch

import segue
from segue.analysis.texts import distinct, log_likelihoods, repetition, sentence_bleu
from segue.cells import Cells
from segue.decoding import generate
from segue.decoding.draft import ModelDraft
from segue.decoding.search import foresee
from segue.files import write_picture, write_text
from segue.models.compiled import compile_model
from segue.models.depth import DepthSchedule, Scheduled
from segue.objectives import Batch
from segue.training.learn import learn
from segue.training.recipe import cores, describe_machine

ROOT = Path(__file__).resolve().parents[1]
PAGE, PICTURE = ROOT / "docs" / "decoding.md", ROOT / "docs" / "decoding.png"
BEGIN, END = "<!-- written by tools/tradeoffs.py -->\n", "<!-- to here -->\n"
PROMPT, ANSWER, LIST = 24, 40, 4  # tokens of a prompt and of an answer; answers to each prompt


@dataclass(frozen=True)
class Way:
    """A way to decode. family: how it is drawn. options: of `generate`. listed: with these it gives a list of answers;
    without, LIST samples if it samples, else one answer again and again. draft: the text of greedy decoding, faster or
    slower. model: what runs, of `Models`."""

    family: str
    options: dict[str, Any] = field(default_factory=dict)
    listed: dict[str, Any] = field(default_factory=dict)
    draft: str | None = None
    model: str = "engine"


BEAMS = {"num_return_sequences": LIST}
WAYS: dict[str, Way] = {
    "greedy": Way("likeliest"),
    "no 3 tokens twice": Way("likeliest", {"no_repeat_ngram_size": 3}),
    "repetition penalty 1.2": Way("likeliest", {"repetition_penalty": 1.2}),
    "sample": Way("sampling", {"decoder": "sample"}),
    "temperature 0.7": Way("sampling", {"decoder": "sample", "temperature": 0.7}),
    "top-k 20": Way("sampling", {"decoder": "sample", "top_k": 20}),
    "top-p 0.9": Way("sampling", {"decoder": "sample", "top_p": 0.9}),
    "min-p 0.1": Way("sampling", {"decoder": "sample", "min_p": 0.1}),
    "typical-p 0.9": Way("sampling", {"decoder": "sample", "typical_p": 0.9}),
    "sample, typical acceptor": Way("sampling", {"decoder": "sample", "draft": "both", "acceptor": "typical"}),
    "beams": Way("searches", {"decoder": "beam", "num_beams": 4}, BEAMS),
    "beams, no 3 tokens twice": Way("searches", {"decoder": "beam", "num_beams": 4, "no_repeat_ngram_size": 3}, BEAMS),
    "diverse beams": Way("searches", {"decoder": "diverse-beam", "num_beams": 4}, BEAMS),
    "conditional beams": Way("searches", {"decoder": "conditional-beam", "num_beams": 4}, BEAMS),
    "contrastive": Way("searches", {"decoder": "contrastive"}),
    "tree": Way("searches", {"decoder": "tree", "budget": 400}, BEAMS),
    "exact, 400 passes": Way("searches", {"decoder": "exact", "budget": 400}, BEAMS),
    "half the layers": Way("fewer layers", model="shallow"),
    "draft: trie": Way("drafts", draft="trie"),
    "draft: lookup": Way("drafts", draft="lookup"),
    "draft: both": Way("drafts", draft="both"),
    "draft: small model": Way("drafts", draft="small"),
    "draft: depth": Way("drafts", draft="depth"),
}
TRUTH = "the plays themselves"
COLOURS = {"likeliest": "#1f4e79", "sampling": "#c0392b", "searches": "#2e8b57", "fewer layers": "#8e44ad",
           "drafts": "#7f8c8d", TRUTH: "#000000"}


def texts(quick: bool) -> tuple[str, str, str]:
    """The name of the text, the part to learn and the part held out."""
    folders = [Path(os.environ.get("SEGUE_DATA", ROOT.parent / "shared" / "data")), ROOT / "shared" / "data"]
    file = next((path for folder in folders if (path := folder / "tiny-shakespeare" / "input.txt").exists()), None)
    if file is not None:
        name, text = "the plays of Shakespeare", file.read_text(encoding="utf-8")
    else:
        sources = sorted(Path(json.__file__).parents[1].glob("*.py"))
        name, text = "the standard library's source", "\n".join(path.read_text("utf-8", "replace") for path in sources)
        text = text[:1_200_000]
    text = text[:60_000] if quick else text
    return name, text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]


class Models:
    """The models that write and the one that judges, fitted once and kept in a folder."""

    def __init__(self, folder: Path, quick: bool) -> None:
        self.folder, self.quick = folder, quick
        self.name, self.learned, self.held = texts(quick)

    def _fit(self, name: str, steps: int, **choices: Any) -> Any:
        steps = steps // 20 if self.quick else steps
        return segue.fit([self.learned], out=self.folder / name, steps=steps, held_out=[self.held], mix=False, heads=4,
                         context=128, rows=16, **choices)

    @cached_property
    def fitted(self) -> Any:
        return self._fit("writer", 300, width=128, depth=4, vocabulary=512)

    @cached_property
    def judge(self) -> Any:
        return self._fit("judge", 400, width=192, depth=4, codec=self.fitted.codec, seed=1).model

    @cached_property
    def small(self) -> Any:
        return compile_model(self._fit("small", 150, width=64, depth=2, codec=self.fitted.codec, seed=2).model)

    @cached_property
    def engine(self) -> Any:
        return compile_model(self.fitted.model)

    @cached_property
    def shallow(self) -> Any:
        """The writer after some steps with half of its layers."""
        stack = copy.deepcopy(self.fitted.model)
        scheduled = Scheduled(stack, DepthSchedule.times(2, len(stack.blocks), ANSWER))
        tokens = torch.from_numpy(np.asarray(self.fitted.codec.encode(self.learned), np.int64))

        def batches(step: int) -> Batch:
            random = np.random.default_rng(step)
            begin = torch.from_numpy(random.integers(0, len(tokens) - PROMPT - ANSWER - 1, (16, 1)))
            rows = tokens[begin + torch.arange(PROMPT + ANSWER + 1)]
            prompt = (torch.arange(PROMPT + ANSWER) < PROMPT).expand(len(rows), -1)
            return Batch(rows[:, :-1], rows[:, 1:].masked_fill(prompt, -1), prompt=prompt)

        learn(scheduled, batches, 4 if self.quick else 80, rate=0.003, muon=True)
        return scheduled

    @cached_property
    def attribute(self) -> Any:
        """Predicts whether an answer will hold a run of four tokens twice."""
        places = range(0, len(self.held) // 2, max(len(self.held) // (2 * (20 if self.quick else 150)), 1))
        prompts = [self.fitted.codec.encode(self.held[start : start + 200]).tolist()[:PROMPT] for start in places]
        answers = [prompt + continuation.tokens for temperature in (0.3, 0.8) for prompt, continuation in zip(
            prompts, generate(self.engine, prompts, ANSWER, "sample", temperature=temperature, seed=9))]
        labels = [has_no_repeats(answer[PROMPT:]) for answer in answers]
        labels[:2] = [True, False]  # both there, whatever was drawn
        return foresee(self.fitted.model, answers, labels, PROMPT, steps=20 if self.quick else 300).attribute

    @cached_property
    def places(self) -> list[tuple[list[int], list[int]]]:
        """Prompts from the latter half of what was held out, and what follows there."""
        tokens = self.fitted.codec.encode(self.held).tolist()
        starts = np.linspace(len(tokens) // 2, len(tokens) - PROMPT - ANSWER - 1, 4 if self.quick else 16).astype(int)
        return [(tokens[at : at + PROMPT], tokens[at + PROMPT : at + PROMPT + ANSWER]) for at in starts]


def has_no_repeats(tokens: Sequence[int]) -> bool:
    return repetition(tokens, 4) == 0.0


def options_of(models: Models, name: str) -> dict[str, Any]:
    decoding = WAYS[name]
    extra = {"attribute": models.attribute, "holds": has_no_repeats} if name == "conditional beams" else {}
    draft = {} if decoding.draft is None else {
        "draft": ModelDraft(models.small) if decoding.draft == "small" else decoding.draft}
    return {**decoding.options, **extra, **draft}


def measure_answers(models: Models, name: str) -> dict[str, float]:
    """Quality and diversity of the answers to all prompts."""
    prompts = [prompt for prompt, _ in models.places]
    if name == TRUTH:
        lists = [[truth] for _, truth in models.places]
    else:
        decoding, options = WAYS[name], options_of(models, name)
        model = getattr(models, decoding.model)
        seeds = range(LIST) if decoding.options.get("decoder") == "sample" else [0]
        runs = [generate(model, prompts, ANSWER, seed=seed, **options, **decoding.listed) for seed in seeds]
        lists = [[result.tokens for run in runs for result in (run[at], *run[at].others)] for at in range(len(prompts))]
        lists = [(answers * LIST)[:LIST] for answers in lists]
    first_answers = [answers[0] for answers in lists]
    values = {"rep-4": mean(repetition(answer, 4) for answer in first_answers)}
    for scorer, model in (("model", models.fitted.model), ("judge", models.judge)):
        values[scorer] = mean(log_likelihoods(model, prompt, [answer])[0] / len(answer)
                              for prompt, answer in zip(prompts, first_answers))
    if name != TRUTH:
        values["distinct-2"] = mean(distinct(answers, 2) for answers in lists)
        values["self-BLEU"] = mean(sentence_bleu(answer, [*answers[:at], *answers[at + 1 :]])
                                   for answers in lists for at, answer in enumerate(answers))
    return values


def measure_speeds(models: Models, rounds: int) -> dict[str, float]:
    """Tokens per second of one answer at a time, times greedy decoding's: best of some rounds, taken in turn."""
    best: dict[tuple[str, int], float] = {}
    prompts = [prompt for prompt, _ in models.places[:6]]
    for seed in range(rounds):
        for index, prompt in enumerate(prompts):
            for name in WAYS:
                options, model = options_of(models, name), getattr(models, WAYS[name].model)
                begin = time.perf_counter()
                answer, = generate(model, [prompt], ANSWER, seed=seed, **options)
                seconds = (time.perf_counter() - begin) / len(answer.tokens)
                best[name, index] = min(seconds, best.get((name, index), math.inf))
    seconds_by_name = {name: sum(best[name, index] for index in range(len(prompts))) for name in WAYS}
    return {name: seconds_by_name["greedy"] / seconds for name, seconds in seconds_by_name.items()} | {
        "tokens/s": len(prompts) / seconds_by_name["greedy"]}


# --- the picture ---------------------------------------------------------------------------------------------------


def draw(measured: dict[str, dict[str, float]], speeds: dict[str, float], figure: Any) -> None:
    plane, bars = figure.subplots(1, 2, width_ratios=[1.25, 1])
    points = {name: (values["judge"], values["distinct-2"]) for name, values in measured.items()
              if "distinct-2" in values}
    for family, colour in COLOURS.items():
        xy = [points[name] for name in points if WAYS[name].family == family]
        if xy:
            plane.scatter(*zip(*xy), s=46, color=colour, label=family, zorder=3)
    plane.axvline(measured[TRUTH]["judge"], color="black", lw=1, ls=":")
    plane.set_xlabel("the judge's log-likelihood of an answer, nats per token (right: likelier)")
    plane.set_ylabel(f"distinct-2 of {LIST} answers to one prompt (up: more diverse)")
    plane.margins(0.14)
    plane.legend(loc="lower left", fontsize=9, frameon=False)
    plane.set_title("quality and diversity", fontsize=11, loc="left")
    plane.annotate(TRUTH, (measured[TRUTH]["judge"], 0.6), (4, 0), xycoords=("data", "axes fraction"),
                   textcoords="offset points", ha="left", fontsize=9)
    plane.grid(alpha=0.25)
    names = list(reversed(WAYS))
    bars.barh(names, [speeds[name] for name in names], color=[COLOURS[WAYS[name].family] for name in names], height=0.7)
    for row, name in enumerate(names):
        bars.annotate(f"{speeds[name]:.2g}", (speeds[name], row), (4, 0), textcoords="offset points", va="center",
                      fontsize=9, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5})
    bars.axvline(1, color="black", lw=1, ls=":")
    bars.set_xscale("log")
    bars.set_xticks([0.03, 0.1, 0.3, 1, 3], ["0.03", "0.1", "0.3", "1", "3"])
    bars.minorticks_off()
    bars.margins(x=0.12, y=0.01)
    bars.set_xlabel("speed of one answer, times greedy decoding (log scale)")
    bars.set_title("speed", fontsize=11, loc="left")
    figure.canvas.draw()
    label(plane, points, figure.canvas.get_renderer())


def label(axes: Any, points: dict[str, tuple[float, float]], renderer: Any) -> None:
    """Each point's name beside it, where no other name or point is; with a line where that is farther away."""
    spots = axes.transData.transform(list(points.values()))
    taken = [spot + np.array([[-6, -6], [6, 6]]) for spot in spots]
    taken += [np.array(box.get_window_extent(renderer)) for box in [axes.get_legend(), *axes.texts]]
    frame = np.array(axes.get_window_extent(renderer))
    scale = 72 / axes.figure.dpi
    for (name, xy), spot in sorted(zip(points.items(), spots), key=lambda pair: -pair[1][1]):
        text = axes.annotate(name, xy, (0, 0), textcoords="offset points", fontsize=9, va="center",
                             color=COLOURS[WAYS[name].family])
        wide, tall = np.ptp(np.array(text.get_window_extent(renderer)), axis=0)
        best: tuple[float, Any, Any] | None = None
        for distance in range(8, 130, 6):
            for angle in np.linspace(0, 2 * np.pi, 24, endpoint=False):
                direction = np.array([np.cos(angle), np.sin(angle)])
                centre = spot + direction * distance + np.array([wide / 2 * np.sign(np.round(direction[0], 6)), 0])
                half = np.array([wide / 2 + 2, tall / 2 + 1])
                box = np.array([centre - half, centre + half])
                outside = (box[0] < frame[0]).any() or (box[1] > frame[1]).any()
                hits = sum(bool((box[0] < other[1]).all() and (other[0] < box[1]).all()) for other in taken)
                cost = 1000 * outside + 100 * hits + distance / 10
                if best is None or cost < best[0]:
                    best = cost, centre, box
            if best is not None and best[0] < 100:
                break
        assert best is not None
        taken.append(best[2])
        text.remove()
        axes.annotate(name, xy, tuple((best[1] - spot) * scale), textcoords="offset points", fontsize=9, ha="center",
                      va="center", color=COLOURS[WAYS[name].family],
                      arrowprops={"arrowstyle": "-", "lw": 0.6, "color": "#999999", "shrinkA": 0, "shrinkB": 4})


def table(measured: dict[str, dict[str, float]], speeds: dict[str, float]) -> str:
    lines = ["| | judge | model | rep-4 | distinct-2 | self-BLEU | speed |", "| ---" + " | ---:" * 6 + " |"]
    for name, values in measured.items():
        variety = (f"{values['distinct-2']:.2f} | {values['self-BLEU']:.0f}" if "distinct-2" in values else "· | ·")
        speed = f"{speeds[name]:.2g}" if name in speeds else "·"
        lines.append(f"| {name} | {values['judge']:.2f} | {values['model']:.2f} | {values['rep-4']:.2f} | {variety} | "
                     f"{speed} |")
    drafts = ", ".join(f"{name.removeprefix('draft: ')} {speeds[name]:.2g}" for name in WAYS
                       if WAYS[name].family == "drafts")
    return ("\n".join(lines) + f"\n\nGreedy decoding with drafts gives the same text, at {drafts} times the speed "
            "(for a model this small, which seldom repeats itself, drafts cost more than they save).\n")


def section(models: Models, measured: dict[str, dict[str, float]], speeds: dict[str, float]) -> str:
    size, other = (sum(p.numel() for p in model.parameters()) / 1e6 for model in (models.fitted.model, models.judge))
    text = f"""`python tools/tradeoffs.py` lets a model of {size:.1f}M parameters, which has read {models.name}, go on
        from {len(models.places)} held-out places by {ANSWER} tokens in every way. Judge and model: log-likelihood of an
        answer in nats per token, by a model of {other:.1f}M that read the same, and by the one that wrote it; rep-4:
        the share of runs of four tokens that the answer held before; distinct-2 and self-BLEU: of {LIST} answers to one
        prompt (who gives one answer gives it {LIST} times); speed: of one answer, times greedy decoding, which says
        {speeds["tokens/s"]:,.0f} tokens/s here ({describe_machine()})."""
    picture = "![Quality, diversity and speed of every decoder](decoding.png)"
    return f"{picture}\n\n{fill(' '.join(text.split()), 118)}\n\n{table(measured, speeds)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="models that learned next to nothing, four prompts")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "tradeoffs", help="where the work is kept")
    args = parser.parse_args()
    work = args.work / ("quick" if args.quick else "full")
    models, cells = Models(work, args.quick), Cells(work / "cells.json")
    torch.set_num_threads(cores())
    work.mkdir(parents=True, exist_ok=True)
    names = [TRUTH, *(name for name in WAYS if WAYS[name].family != "drafts")]
    cells.meter = lambda count, name="": print(f"{count} of {len(names) + 1}: {name}", file=sys.stderr, flush=True)
    jobs: dict[str, Callable[[], Any]] = {name: partial(measure_answers, models, name) for name in names}
    measured = cells.compute(jobs | {"speed": partial(measure_speeds, models, 1 if args.quick else 3)}, 1)
    speeds = measured.pop("speed")
    write_picture(work / "decoding.png" if args.quick else PICTURE, partial(draw, measured, speeds), (13, 7.2))
    text = section(models, measured, speeds)
    if args.quick:
        print(text)
        return
    page = PAGE.read_text(encoding="utf-8")
    start, end = page.index(BEGIN) + len(BEGIN), page.index(END)
    write_text(PAGE, f"{page[:start]}\n{text}\n{page[end:]}")


if __name__ == "__main__":
    main()
