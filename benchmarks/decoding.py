"""Drafts and searches side by side: against our own plain decoding, transformers and ctranslate2.

    python benchmarks/decoding.py searches-7m searches-100m     # greedy, beams, prompt lookup: same weights and prompts
    python benchmarks/decoding.py heads-attention heads-mamba   # draft heads on a model of 26M that learned
    python benchmarks/decoding.py edits                         # drafts from the source, on one of 29M that corrects
    python benchmarks/decoding.py --table

Models of the second line learn the Python standard library first (`--minutes`), then their heads (`--head-minutes` for
what they learn from, and again for each of three sorts); those of the third learn to correct spelling in the data sets
that `--data` has. All is kept in `--models`: a second run only measures. Needs the extra `bench`. Parts are kept in
results/decoding.jsonl, the page is results/decoding.md.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import replace
from difflib import SequenceMatcher
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from decode import HERE, PROMPT, SHAPES, machine, make_model, table

import segue
from segue.decoding import Continuation, generate
from segue.decoding.draft import CachedBlockDraft, Drafter, SourceCopy, TrieDraft
from segue.decoding.draft.heads import HeadsDraft
from segue.decoding.generate import make_cost
from segue.demo import standard_library
from segue.models import Decodable, Stack, StackConfig
from segue.models.compiled import compile_model
from segue.models.heads import DraftHeads
from segue.models.huggingface import from_huggingface
from segue.objectives import Batch, MaskedElements, NextElement
from segue.objectives.masked import masked_blocks
from segue.training.learn import learn
from segue.training.recipe import choose_heads
from segue.verbs.fitted import Fitted
from segue.verbs.speed_up import (
    DECODING_SETTINGS,
    HEAD_SORTS,
    HeadsTrainingData,
    choose_tree,
    count_hits,
    measure_drafters,
    sample_prompts,
    train_heads,
)

BEAM = {"num_beams": 4}
DIVERSE = {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}


Decode = Callable[[list[int]], list[int]]  # the tokens of a prompt -> those of the answer


def search_contenders(size: str, threads: int, tokens: int) -> dict[str, dict[str, Decode]]:
    """By search, by name: ours, and those that transformers or ctranslate2 have too, on the same random weights."""
    import ctranslate2

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        peer = make_model(f"llama-{size}", folder)
        stack, _ = from_huggingface(folder)
        converted = str(folder / "ctranslate2")
        ctranslate2.converters.TransformersConverter(str(folder)).convert(converted)
        generator = ctranslate2.Generator(converted, device="cpu", compute_type="float32", inter_threads=1,
                                          intra_threads=threads)
    model = compile_model(stack.eval(), "float32", threads)

    def segue_run(**options: Any) -> Decode:
        return lambda prompt: generate(model, [prompt], tokens, **options)[0].tokens

    def transformers_run(**options: Any) -> Decode:
        def run(prompt: list[int]) -> list[int]:
            ids = torch.tensor([prompt])
            with torch.inference_mode():
                return peer.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens,
                                     min_new_tokens=tokens, do_sample=False, pad_token_id=1,
                                     **options)[0, len(prompt) :].tolist()
        return run

    def ctranslate2_run(beams: int) -> Decode:
        return lambda prompt: generator.generate_batch([[f"t{token}" for token in prompt]], max_length=tokens,
                                                       min_length=tokens, beam_size=beams, sampling_topk=1,
                                                       include_prompt_in_result=False)[0].sequences_ids[0]

    return {
        "greedy": {"segue": segue_run(decoder="greedy"), "transformers": transformers_run(),
                   "ctranslate2": ctranslate2_run(1)},
        "beam, 4": {"segue": segue_run(decoder="beam", **BEAM), "transformers": transformers_run(**BEAM),
                    "ctranslate2": ctranslate2_run(4)},
        "diverse beam, 4 in 2 groups": {"segue": segue_run(decoder="diverse-beam", **DIVERSE),
                                        "transformers": transformers_run(**DIVERSE)},
        "greedy, prompt lookup": {"segue": segue_run(decoder="greedy", draft="lookup"),
                                  "transformers": transformers_run(prompt_lookup_num_tokens=10)},
        "greedy, trie": {"segue": segue_run(decoder="greedy", draft="trie")},
    }


def race(contenders: dict[str, Decode], prompts: list[list[int]],
         rounds: int) -> tuple[dict[str, float], dict[str, list[list[int]]], dict[str, str]]:
    """By contender: tokens per second in its best round, its answers, and the error of one that failed."""
    speeds: dict[str, float] = {}
    outputs: dict[str, list[list[int]]] = {}
    failures: dict[str, str] = {}
    for round_index in range(rounds + 1):  # the first warms up
        for name, run in contenders.items():
            if name in failures:
                continue
            start = time.perf_counter()
            try:
                outputs[name] = [run(prompt) for prompt in prompts]
            except Exception as error:  # a peer without this decoder
                failures[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:90]}"
                continue
            speed = sum(map(len, outputs[name])) / (time.perf_counter() - start)
            speeds[name] = max(speeds.get(name, 0.0), speed if round_index else 0.0)
    return speeds, outputs, failures


def measure_searches(size: str, threads: int, tokens: int, rounds: int) -> str:
    """The decoders that transformers or ctranslate2 have too, on a Llama shape with random weights."""
    contenders_of = search_contenders(size, threads, tokens)
    prompts = np.random.default_rng(0).integers(2, SHAPES[size]["vocabulary"], (2, PROMPT)).tolist()
    rows = []
    for search, contenders in contenders_of.items():
        speeds, outputs, failures = race(contenders, prompts, rounds)
        ratios = [f"{speeds['segue'] / speeds[peer]:.2f}" if peer in speeds else "-"
                  for peer in ("transformers", "ctranslate2")]
        reference = outputs.get("transformers", outputs["segue"])
        agreement = np.mean([a == b for x, y in zip(outputs["segue"], reference) for a, b in zip(x, y)])
        rows.append([search, f"{speeds['segue']:,.0f}", *ratios,
                     f"{agreement:.0%}" if "transformers" in outputs else "-",
                     "; ".join(f"{name}: {reason}" for name, reason in failures.items())])
    head = ["", "tokens/s", "times transformers", "times ctranslate2", "same tokens as transformers", ""]
    return (f"### Searches, Llama shape, {size}, batch 1, {tokens} tokens, float32\n\n" + table(head, rows)
            + f"\n\nBest of {rounds} rounds.")


WIDTH, DEPTH, SHALLOW = 512, 8, 2


def trained_model(mixer: str, minutes: float, models: Path) -> Fitted:
    """A model of bytes, 26M of attention, that learned the standard library's source: first as two layers, which learn
    four times as much text in their time, then as eight. One that was made before is used; killed, this goes on."""
    folder, deep = models / mixer, models / f"{mixer}-deep"
    if not folder.exists():
        data = segue.read(*map(str, standard_library()[0]), kind="code")
        if not (deep / "config.json").exists():
            fitted = segue.fit(data, out=models / f"{mixer}-shallow", minutes=0.6 * minutes, mixer=mixer, mix=False,
                               width=WIDTH, depth=SHALLOW, vocabulary=257, quiet=True)
            torch.manual_seed(0)
            stack = Stack(replace(fitted.model.config, mixers=[mixer] * DEPTH))
            stack.load_state_dict(fitted.model.state_dict(), strict=False)
            for block in stack.blocks[SHALLOW:]:  # which change nothing at first
                torch.nn.init.zeros_(block.get_parameter("mixer.out.weight"))
                torch.nn.init.zeros_(block.get_parameter("channel.out.weight"))
            fitted.model, fitted.report["plan"]["depth"] = stack.eval(), DEPTH
            fitted.save(deep)
        fitted = segue.load(deep)
        rates = {rate: 0.5 * fitted.report["plan"][rate] for rate in ("rate", "table_rate", "vector_rate")}
        fitted.update(data, "naive", minutes=0.4 * minutes, quiet=True, **rates)
        os.replace(deep, folder)
    return segue.load(folder)


def constant(value: Any) -> Callable[[], Any]:
    return lambda: value


def measure_heads(mixer: str, threads: int, tokens: int, minutes: float, head_minutes: float, models: Path) -> str:
    """Medusa, Hydra and Hydra++ heads on a model that learned source code, on held-out code and prose."""
    fitted, folder = trained_model(mixer, minutes, models), models / mixer
    train = segue.read(*map(str, standard_library()[0]), kind="code").encode(fitted.codec)
    stack = fitted.model.eval()
    assert isinstance(stack, Stack)
    model = compile_model(stack, "float32", threads)
    makers: dict[str, Callable[[], Any]] = {name: constant(name) for name in ("none", "lookup", "both")}
    notes, readings = [], None
    for sort, shape in HEAD_SORTS.items():
        weights_file, note_file = folder / f"{sort}.safetensors", folder / f"{sort}.txt"
        if not note_file.exists():
            readings = readings or HeadsTrainingData(fitted, model, train, 60 * head_minutes)
            torch.manual_seed(0)
            draft_heads = DraftHeads.for_base(stack, **shape, attention_heads=choose_heads(WIDTH))
            training = train_heads(draft_heads, fitted, readings, 60 * head_minutes, None, 0, True)
            tree_prompts = sample_prompts(train, 16)
            hits, trials = count_hits(draft_heads, stack, model, tree_prompts, tokens)
            drafter = choose_tree(draft_heads, hits / np.maximum(trials, 1)[:, None], model, tree_prompts[-1], 32)
            drafter.save(weights_file)
            note_file.write_text(f"{sort}: {training['parameters'] / 1e6:.1f}M parameters, {training['steps']} steps "
                                 f"on {readings.data.count:,} tokens, a tree of {drafter.nodes} nodes")
        drafter = HeadsDraft.load(weights_file, stack)
        makers[sort] = constant(drafter)
        notes.append(note_file.read_text())
    code = sample_prompts(segue.read(*map(str, standard_library()[1]), kind="code").encode(fitted.codec), 16)
    prose = sample_prompts(segue.read(str(prose_file(models)), kind="text").encode(fitted.codec), 16)
    rows = []
    for corpus, prompts in (("code", code), ("prose", prose)):
        for settings in DECODING_SETTINGS:
            measured = measure_drafters(model, makers, prompts, tokens, float("inf"), [settings])
            plain, medusa = measured["none"], measured["medusa"]
            for name, row in measured.items():
                rows.append([f"{corpus}, {settings['decoder']}, {name}", f"{row.tokens_per_pass:.2f}",
                             f"{row.tokens_per_pass / medusa.tokens_per_pass:.2f}", f"{row.tokens_per_second:,.0f}",
                             f"{row.tokens_per_second / plain.tokens_per_second:.2f}", f"{row.same} of {row.texts}"])
    size = sum(parameter.numel() for parameter in fitted.model.parameters()) / 1e6
    bits = fitted.report["updates"][-1]["matrix"]["scores"][-1][0]
    head = ["", "tokens a pass", "times medusa", "tokens/s", "times plain", "same texts"]
    return (f"### Draft heads on {mixer}, {size:.0f}M parameters, bytes\n\n" + table(head, rows) + "\n\n"
            + "; ".join(notes) + f"; the model has {bits:.2f} bits per held-out byte; {model.path}; {len(code)} "
            f"prompts each, {tokens} bytes after each, at temperature 1 where they are sampled.")


def prose_file(models: Path) -> Path:
    """The interpreter's own documentation, as text."""
    from pydoc_data.topics import topics

    path = models / "topics.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(topics.values()), encoding="utf-8")
    return path


# -- correcting: the answer mostly copies the source

END, BEGIN, MASK = 0, 128, 129  # ids; between them letters as ASCII has them
BLOCK = 7  # masks that the drafter of blocks fills in at once


def sentences(data: Path, part: str) -> dict[str, list[str]]:
    """Captions (Multi30k) and Java methods (CodeXGLUE) of a line's length, `part` being "train" or "test"."""
    files = {"captions": f"multi30k-en-de/{'train' if part == 'train' else 'test_2016_flickr'}.en.gz",
             "code": f"code-java-csharp/{part}.java.txt.gz"}
    return {name: [line for line in gzip.decompress((data / file).read_bytes()).decode("ascii", "ignore").splitlines()
                   if 30 < len(line) < 160] for name, file in files.items()}


def misspell(text: str, rate: float, random: np.random.Generator) -> str:
    """Of each word of three letters or more, with chance `rate`, two letters are exchanged, or one is dropped, doubled
    or another one."""
    def change(match: re.Match[str]) -> str:
        word, at = match[0], int(random.integers(len(match[0]) - 1))
        ways = (word[at + 1] + word[at], word[at + 1], word[at] * 2 + word[at + 1],
                chr(97 + int(random.integers(26))) + word[at + 1])
        return word[:at] + ways[random.integers(4)] + word[at + 2 :] if random.random() < rate else word

    return re.sub(r"[A-Za-z]{3,}", change, text)


def misspelt_batch(texts: list[str], rows: int, step: int) -> Batch:
    """Misspelt sentences of about one length, and how they are spelt."""
    random = np.random.default_rng([0, step])
    first = int(random.integers(0, len(texts) - rows))
    return with_prompt_mask(Batch.pairs([([*misspell(text, 0.08, random).encode()], [*text.encode(), END])
                                         for text in texts[first : first + rows]], BEGIN))


def with_prompt_mask(batch: Batch) -> Batch:
    """The source and what begins the answer are the prompt, which is read both ways."""
    return replace(batch, starts=None, prompt=(batch.tokens == BEGIN).cumsum(1).cumsum(1) <= 1)


def build_speller(vocabulary: int, width: int, layers: int) -> Stack:
    """Positions restart after the prompt, so that letters and their copies have the same ones."""
    torch.manual_seed(0)
    options = {"heads": width // 64, "partial": False, "qkv_bias": True}
    return Stack(StackConfig(vocabulary, width, ["palm"] * layers, {"palm": options}, embed_norm=True))


def trained_spellers(data: Path, models: Path, steps: int) -> tuple[Stack, Stack]:
    """A model that corrects spelling (29M parameters), and one that drafts blocks for it (1.6M)."""
    from safetensors.torch import load_model, save_model

    texts = sorted((text for part in sentences(data, "train").values() for text in part), key=len)
    draw = partial(misspelt_batch, texts, 16)
    masked = masked_blocks(draw, BLOCK, MASK, 3 * steps)
    writer, blocks = build_speller(BEGIN + 1, 768, 4), build_speller(MASK + 1, 256, 2)
    models.mkdir(parents=True, exist_ok=True)
    for name, model, batches, count, objective in (
            ("writer", writer, draw, steps, NextElement()),
            ("blocks", blocks, lambda step: with_prompt_mask(masked(step)), 3 * steps, MaskedElements(0.1))):
        file = models / f"{name}-{count}.safetensors"
        if not file.exists():
            start = time.perf_counter()
            learn(model, batches, count, rate=0.01, muon=True, precision="bfloat16", objective=objective)
            save_model(model, str(file))
            print(f"{name} learned for {(time.perf_counter() - start) / 60:.1f} minutes", flush=True)
        load_model(model, file)
    return writer.eval(), blocks.eval()


Draft = tuple[Callable[[], Drafter] | None, str]  # what makes a drafter, and the name of its acceptor


def best_answers(model: Decodable, drafts: dict[str, Draft], prompts: list[list[int]],
                 rounds: int) -> dict[str, tuple[float, list[Continuation]]]:
    """By draft: the answers, and the seconds of its best round without the reading of the prompts."""
    best: dict[str, tuple[float, list[Continuation]]] = {}
    # A drafter and what was measured of it are kept from text to text and from round to round.
    drafters = {name: (None if make is None else make(), acceptor) for name, (make, acceptor) in drafts.items()}
    costs = {name: make_cost(drafter) for name, (drafter, _) in drafters.items()}
    for _ in range(rounds):
        for name, (drafter, acceptor) in drafters.items():
            if isinstance(drafter, TrieDraft):  # not of answers to these very prompts
                drafter.answers = TrieDraft(query=4).answers
            answers = generate(model, prompts, 200, draft=drafter, acceptor=acceptor, eos=END, batch=1,
                               cost=costs[name])
            seconds = sum(answer.seconds["total"] - answer.seconds["prefill"] for answer in answers)
            if name not in best or seconds < best[name][0]:
                best[name] = seconds, answers
    return best


def similarity(answers: list[list[int]], targets: list[str]) -> float:
    """Mean ratio of equal letters, as difflib has it."""
    return float(np.mean([SequenceMatcher(None, answer, list(text.encode()), False).ratio()
                          for answer, text in zip(answers, targets)]))


def measure_edits(threads: int, rounds: int, count: int, steps: int, data: Path, models: Path) -> str:
    """Greedy corrections of held-out sentences without drafts and with: all take turns, the best round counts."""
    stack, small = trained_spellers(data, models, steps)
    model, blocks = (compile_model(network, "float32", threads) for network in (stack, small))
    drafts: dict[str, Draft] = {
        "none": (None, "walk"),
        "source (IAD)": (partial(SourceCopy, BEGIN), "walk"),
        "source as published": (partial(SourceCopy, BEGIN, reach=0), "walk"),
        "trie": (partial(TrieDraft, query=4), "walk"),
        "block (GAD)": (partial(CachedBlockDraft, blocks, BLOCK), "walk"),
        "block (GAD++)": (partial(CachedBlockDraft, blocks, BLOCK), "near-best")}
    rows = []
    for corpus, texts in sentences(data, "test").items():
        for rate in (0.05, 0.1):
            random = np.random.default_rng(1)
            targets = [texts[i] for i in random.permutation(len(texts))[:count]]
            prompts = [[*misspell(text, rate, random).encode(), BEGIN] for text in targets]
            best = best_answers(model, drafts, prompts, rounds)
            plain_seconds, plain_answers = best["none"]
            for name, (seconds, answers) in best.items():
                tokens, passes = (sum(getattr(answer, field) - 1 for answer in answers)
                                  for field in ("produced", "passes"))
                same = sum(answer.tokens == plain.tokens for answer, plain in zip(answers, plain_answers))
                rows.append([f"{corpus}, {rate:.0%} misspelt, {name}", f"{tokens / passes:.2f}",
                             f"{tokens / seconds:,.0f}", f"{plain_seconds / seconds:.2f}", f"{same} of {count}",
                             f"{similarity([answer.tokens for answer in answers], targets):.1%}",
                             f"{similarity([prompt[:-1] for prompt in prompts], targets):.1%}"])
    size = sum(parameter.numel() for parameter in stack.parameters()) / 1e6
    head = ["", "letters a pass", "letters/s", "times plain", "same texts", "right", "right in the source"]
    return (f"### Corrections by a model of {size:.0f}M parameters, greedy, batch 1\n\n" + table(head, rows)
            + f"\n\n{steps} steps of learning; {model.path}; {count} held-out sentences each, one after the other "
            f"by the same drafter, the reading of the source left out; best of {rounds} rounds.")


PAGE = """# Drafts and searches on a CPU

Printed by `python benchmarks/decoding.py`, with the names of its parts (needs `pip install 'segue[bench]'`).
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART")
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=30, help="of each model's training")
    parser.add_argument("--head-minutes", type=float, default=4, help="of the training of each sort of heads")
    parser.add_argument("--steps", type=int, default=160, help="of the training of the model that corrects")
    parser.add_argument("--count", type=int, default=24, help="of held-out sentences that are corrected")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("SEGUE_DATA", "../shared/data")))
    parser.add_argument("--models", type=Path, default=Path(tempfile.gettempdir()) / "segue-decoding-models")
    parser.add_argument("--table", action="store_true", help="write the page from the parts measured so far")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    threads, file = torch.get_num_threads(), HERE / "decoding.jsonl"
    for name in args.parts:
        sort, _, which = name.partition("-")
        with redirect_stderr(io.StringIO()):
            if sort == "searches":
                text = measure_searches(which, threads, args.tokens, args.rounds)
            elif sort == "edits":
                text = measure_edits(threads, args.rounds, args.count, args.steps, args.data, args.models)
            else:
                text = measure_heads(which, threads, args.tokens, args.minutes, args.head_minutes, args.models)
        print(text, flush=True)
        with open(file, "a") as handle:
            handle.write(json.dumps({"part": name, "text": text + f"\n\nOn {machine(threads)}."}) + "\n")
    parts = {row["part"]: row["text"] for row in map(json.loads, file.read_text().splitlines())}
    (HERE / "decoding.md").write_text(PAGE + "".join(f"\n{text}\n" for text in parts.values()))


if __name__ == "__main__":
    main()
