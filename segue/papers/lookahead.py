"""Lookahead: An Inference Acceleration Framework for LLMs with Lossless Generation Accuracy (Zhao et al. 2024,
arXiv 2312.12728).

Drafts are retrieved from a trie of text already seen (the prompt and earlier answers), and a whole tree of branches is
verified in one pass. The task is copy-editing: the prompt is a sentence with mistakes (JFLEG and Multi30k), the answer
the corrected sentence, much of which the trie can supply.

Compared by tokens per pass against plain greedy decoding: one branch, parallel branches and a tree, each with a cold
trie and with one warmed by earlier answers; and, as the control, a tree with shuffled tokens. The claim holds if no
answer changes, the warm tree gives at least 2 tokens per pass, tree >= branches >= one branch, warm >= cold, and the
control gains nothing.
"""

from __future__ import annotations

import zipfile
from difflib import SequenceMatcher
from functools import cache, partial
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from segue.decoding import Continuation, generate
from segue.decoding.draft import Tree, TrieDraft
from segue.models.stack import Stack, StackConfig
from segue.objectives import Batch
from segue.papers.base import Claim, Row, Run, Verdict
from segue.papers.corpora import captions, frequent_word_ids
from segue.training.learn import learn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEPARATOR, END, UNKNOWN, WORDS = 0, 1, 2, 3  # ids; words begin at WORDS
NODES, BRANCH = 64, 12
MODES = ("one", "par", "hier")
Pair = tuple[list[int], list[int]]  # a sentence with mistakes, and the correct one


# --- the task ----------------------------------------------------------------------------------------------------


def add_mistakes(words: list[int], vocabulary: int, random: np.random.Generator, rate: float = 0.15) -> list[int]:
    """Each word may be dropped, doubled, exchanged with the next or replaced by another one."""
    noisy: list[int] = []
    place = 0
    while place < len(words):
        word, kind = words[place], random.random() / rate
        if kind < 0.25:
            pass
        elif kind < 0.5:
            noisy += [word, word]
        elif kind < 0.75 and place + 1 < len(words):
            noisy += [words[place + 1], word]
            place += 1
        elif kind < 1:
            noisy.append(int(random.integers(WORDS, vocabulary)))
        else:
            noisy.append(word)
        place += 1
    return noisy or words


def synthetic_pairs(count: int, vocabulary: int, random: np.random.Generator) -> list[Pair]:
    """Sentences of a random grammar, for wiring: after each word one of four may come."""
    follow = random.integers(WORDS, vocabulary, (vocabulary, 4))
    pairs = []
    for _ in range(count):
        words = [int(random.integers(WORDS, vocabulary))]
        for _ in range(int(random.integers(5, 12))):
            words.append(int(follow[words[-1], random.integers(4)]))
        pairs.append((add_mistakes(words, vocabulary, random), words))
    return pairs


def load_pairs(jfleg: Path, multi30k: Path, vocabulary: int, train: int, num_tests: int,
               random: np.random.Generator) -> tuple[list[Pair], list[Pair]]:
    """Learners' sentences with their four corrections (JFLEG), and captions (Multi30k) with made mistakes; the held-out
    pairs are half of each, from the sets' own test parts."""
    with zipfile.ZipFile(jfleg / "jfleg.zip") as archive:
        def lines(name: str) -> list[list[str]]:
            return [line.lower().split() for line in archive.read(name).decode("utf-8").splitlines()]

        dev = [pair for ref in range(4) for pair in zip(lines("dev/dev.src"), lines(f"dev/dev.ref{ref}"))]
        test = list(zip(lines("test/test.src"), lines("test/test.ref0")))

    clean, clean_held = captions(multi30k, "train")[:train], captions(multi30k, "test_2016_flickr")
    all_words = (word for texts in (*dev, clean) for words in texts for word in words)
    ids = frequent_word_ids(all_words, vocabulary - WORDS, WORDS)

    def encode(words: list[str]) -> list[int]:
        return [ids.get(word, UNKNOWN) for word in words]

    def short(pairs: list[Pair]) -> list[Pair]:
        return [pair for pair in pairs if all(3 <= len(side) <= 40 for side in pair)]

    def noisy(sentences: list[list[str]]) -> list[Pair]:
        return [(add_mistakes(encode(words), vocabulary, random), encode(words)) for words in sentences]

    learners = short([(encode(source), encode(target)) for source, target in dev])
    tests = short([(encode(source), encode(target)) for source, target in test])
    synthetic, synthetic_test = short(noisy(clean)), short(noisy(clean_held))
    chosen = [pool[i] for pool in (tests, synthetic_test) for i in random.permutation(len(pool))[: num_tests // 2]]
    return learners + synthetic, chosen


# --- the model ---------------------------------------------------------------------------------------------------


def train_editor(pairs: list[Pair], vocabulary: int, width: int, layers: int, steps: int, rows: int, seed: int
                 ) -> Stack:
    """A decoder-only model of: mistaken sentence, separator, correct sentence, end. Only the latter half is scored.

    Half of the rows are of random words, which can only be copied: a small model learns to copy sooner by them.
    """
    torch.manual_seed(seed)
    model = Stack(StackConfig(vocabulary, width, ["attention"] * layers, channel="mlp", activation="gelu"))
    # Batches hold sentences of about one length, so that little of them is padding.
    ordered = sorted(pairs, key=lambda pair: len(pair[0]) + len(pair[1]))

    def batch(step: int) -> Batch:
        random = np.random.default_rng([seed, step])
        start = int(random.integers(0, max(len(ordered) - rows, 1)))
        chosen = ordered[start : start + rows]
        for place in range(len(chosen) // 2):
            words = random.integers(WORDS, vocabulary, len(chosen[place][1])).tolist()
            chosen[place] = add_mistakes(words, vocabulary, random), words
        return Batch.pairs([(source, [*target, END]) for source, target in chosen], SEPARATOR)

    learn(model, batch, steps, seed=seed, decay=0.01)
    return model.eval()


# --- the measurement ---------------------------------------------------------------------------------------------


class Shuffled(TrieDraft):
    """The negative control: the draft's shape stays, its tokens are exchanged for others."""

    exchange: np.ndarray

    def propose(self, tips: Any) -> list[Tree]:
        return [Tree([int(self.exchange[token]) for token in tree.tokens], tree.parents)
                for tree in super().propose(tips)]


def edit(model: Stack, prompts: list[list[int]], drafter: Any, n: int) -> list[Continuation]:
    """Greedy answers, one prompt after the other. drafter: None, one that is kept, or a function that makes one."""
    return [generate(model, [prompt], n, draft=drafter() if callable(drafter) else drafter, eos=END, adaptive=False)[0]
            for prompt in prompts]


def summary(answers: list[Continuation], plain: list[list[int]]) -> dict[str, Any]:
    produced = sum(answer.produced for answer in answers)
    passes = sum(answer.passes for answer in answers)
    return {"tokens per pass": round(produced / passes, 4),
            "different answers": sum(answer.tokens != tokens for answer, tokens in zip(answers, plain)),
            "ms per token": round(1e3 * sum(answer.seconds["total"] for answer in answers) / produced, 3),
            "retrieval ms per pass": round(1e3 * sum(answer.seconds["draft"] for answer in answers) / passes, 3),
            "nodes per pass": round(sum(answer.drafted for answer in answers) / passes, 1)}


def measure(run: Run) -> list[Row]:
    vocabulary, num_tests, earlier = run.pick(60, 2000), run.pick(4, 200), run.pick(8, 1000)
    random = np.random.default_rng(run.seed)
    jfleg, multi30k = run.dataset("jfleg"), run.dataset("multi30k-en-de")
    if jfleg is None or multi30k is None:
        pairs, tests = synthetic_pairs(80, vocabulary, random), synthetic_pairs(num_tests, vocabulary, random)
    else:
        pairs, tests = load_pairs(jfleg, multi30k, vocabulary, 29_000, num_tests, random)
        run.note("a model of two layers, width 128, over 2,000 words in lower case; half of the held-out sentences are "
                 "captions with made mistakes")
    run.note("decoding in float64, so that the same text means the same; batch 1; the prompt's pass is counted")
    longest = 48
    prompts = [[*source, SEPARATOR] for source, _ in tests]

    @cache
    def model() -> Stack:
        return train_editor(pairs, vocabulary, run.pick(32, 128), run.pick(1, 2), run.pick(20, 2200), run.pick(8, 32),
                            run.seed).double()

    @cache
    def answers() -> tuple[list[list[int]], list[list[int]]]:
        """What is said to the held-out prompts without drafts, and earlier to training prompts."""
        chosen = [[*pairs[i][0], SEPARATOR] for i in random.permutation(len(pairs))[:earlier]]
        before = generate(model(), chosen, longest, eos=END, batch=64)
        plain = generate(model(), prompts, longest, eos=END, batch=64)
        return [answer.tokens for answer in plain], [[*answer.tokens, END] for answer in before]

    def plain() -> dict[str, Any]:
        texts, _ = answers()
        right = mean(SequenceMatcher(None, words, target, False).ratio() for words, (_, target) in zip(texts, tests))
        exact = mean(float(words == target) for words, (_, target) in zip(texts, tests))
        copied = mean(float(words == source) for words, (source, _) in zip(texts, tests))
        return summary(edit(model(), prompts, None, longest), texts) | {
            "words right": round(right, 4), "sentences right": round(exact, 4), "mere copies": round(copied, 4)}

    def drafted(mode: Any, warm: bool, shuffled: bool = False) -> dict[str, Any]:
        texts, before = answers()

        def make() -> TrieDraft:
            drafter = (Shuffled if shuffled else TrieDraft)(nodes=NODES, branch=BRANCH, mode=mode)
            if isinstance(drafter, Shuffled):
                drafter.exchange = np.random.default_rng(run.seed).permutation(vocabulary)
            return drafter

        drafter: Any = make
        if warm:
            drafter = make()
            drafter.warm(before)
        return summary(edit(model(), prompts, drafter, longest), texts)

    table = [{"trie": "none", "mode": "plain", **run.cell("plain", plain)}]
    for trie in ("cold", "warm"):
        for mode in MODES:
            cell = run.cell(f"{trie} {mode}", partial(drafted, mode, trie == "warm"))
            table.append({"trie": trie, "mode": mode, **cell})
    shuffled = run.cell("shuffled", lambda: drafted("hier", True, True))
    table.append({"trie": "shuffled", "mode": "hier", **shuffled})
    columns = dict.fromkeys(name for row in table for name in row)
    return [{name: row.get(name, "") for name in columns} for row in table]


RULE = (
    "Two hundred held-out sentences, greedy, at most 64 nodes a pass and branches of 12. Refuted if a single answer "
    "differs from plain decoding, if the warm tree (hier) gives fewer than 1.3 tokens a pass, or if the warm single "
    "branch gives 99% of the warm tree or more. Confirmed if no answer differs, the warm tree gives 2.0 tokens a pass "
    "or more, warm hier >= par >= one (1% is allowed for in each), warm >= cold for each mode (1% likewise), and the "
    "tree with shuffled tokens gives at most 1.1. A model whose answers match less than 60% of the correct words has "
    "not learned the task: inconclusive, as is anything else.")


def judge(table: list[Row]) -> tuple[Verdict, str]:
    rows = {(row["trie"], row["mode"]): row for row in table}
    rate = {name: row["tokens per pass"] for name, row in rows.items()}
    different = sum(row["different answers"] for row in table)
    one, par, hier = (rate["warm", mode] for mode in MODES)
    right = rows["none", "plain"]["words right"]
    reason = (f"{different} answers differ; warm tokens a pass: one branch {one:.2f}, side by side {par:.2f}, tree "
              f"{hier:.2f}; cold tree {rate['cold', 'hier']:.2f}; shuffled {rate['shuffled', 'hier']:.2f}; "
              f"{right:.0%} of the words are right")
    if different:
        return "refuted", reason
    if right < 0.6:
        return "inconclusive", reason
    if hier < 1.3 or one >= 0.99 * hier:
        return "refuted", reason
    ordered = hier >= 0.99 * par and par >= 0.99 * one
    warmer = all(rate["warm", mode] >= 0.99 * rate["cold", mode] for mode in MODES)
    if hier >= 2.0 and ordered and warmer and rate["shuffled", "hier"] <= 1.1:
        return "confirmed", reason
    return "inconclusive", reason


def draw(figure: Figure, table: list[Row]) -> None:
    axes = figure.subplots()
    rows = {(row["trie"], row["mode"]): row["tokens per pass"] for row in table}
    for offset, (trie, colour) in enumerate((("cold", "#9fb3c8"), ("warm", "#2f6fb3"))):
        places = [place + 0.38 * (offset - 0.5) for place in range(len(MODES))]
        bars = axes.bar(places, [rows[trie, mode] for mode in MODES], 0.36, color=colour, label=f"{trie} trie")
        axes.bar_label(bars, fmt="%.2f", padding=2)
    axes.axhline(1, color="#52606d", linewidth=1)
    axes.axhline(rows["shuffled", "hier"], color="#c0504d", linestyle=":", label="tree with shuffled tokens")
    axes.set(xticks=range(len(MODES)), xticklabels=["one branch", "branches side by side", "tree"],
             ylabel="tokens per forward pass", title="Copy-editing, greedy, the same text in every case")
    axes.legend(frameon=False)


CLAIM = Claim(
    "lookahead",
    "Drafts retrieved from a trie of the prompt and of earlier answers make decoding several times faster without "
    "changing a token; many branches beat one, a tree beats branches side by side, and a warm trie beats a cold one.",
    RULE, measure, judge, draw,
    {"Llama2-7b, Dolly-15k, tokens/s": "50.4 to 106.8 (2.12x)", "Llama2-7b, GSM8k": "2.79x",
     "Llama2-7b, HumanEval-x": "3.16x", "AntGLM-10b, private retrieval set": "5.36x on A100, 5.18x on A10",
     "retrieval set, one branch and many (not verified)": "3.16x and 5.03x"})
