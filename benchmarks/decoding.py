"""Drafts and searches side by side: against our own plain decoding, transformers and ctranslate2.

    python benchmarks/decoding.py searches-7m searches-100m     # greedy, beams, prompt lookup: same weights and prompts
    python benchmarks/decoding.py heads-attention heads-mamba   # draft heads on a model of 26M that learned
    python benchmarks/decoding.py --table

Models of the second line learn the Python standard library first (`--minutes`), then their heads (`--head-minutes` for
what they learn from, and again for each of three sorts). All is kept in `--models`: a second run only measures. Needs
the extra `bench`. Parts are kept in results/decoding.jsonl, the page is results/decoding.md.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from decode import HERE, PROMPT, SHAPES, machine, make, table

import segue
from segue.decoding import generate
from segue.decoding.draft.heads import HeadsDraft
from segue.demo import standard_library
from segue.models import Stack
from segue.models.compiled import compile_model
from segue.models.heads import DraftHeads
from segue.models.huggingface import from_huggingface
from segue.training.recipe import heads_of
from segue.verbs.fitted import Fitted
from segue.verbs.speed_up import (
    SORTS,
    WAYS,
    Readings,
    beginnings,
    best_tree,
    count_on_own_text,
    measure,
    train_heads,
)

BEAM = {"num_beams": 4}
DIVERSE = {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}


def searches(size: str, threads: int, tokens: int, rounds: int) -> str:
    """The decoders that transformers or ctranslate2 have too, on a Llama shape with random weights."""
    import ctranslate2

    name = f"llama-{size}"
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        peer = make(name, folder)
        stack, _ = from_huggingface(folder)
        converted = str(folder / "ctranslate2")
        ctranslate2.converters.TransformersConverter(str(folder)).convert(converted)
        other = ctranslate2.Generator(converted, device="cpu", compute_type="float32", inter_threads=1,
                                      intra_threads=threads)
    model = compile_model(stack.eval(), "float32", threads)
    draw = np.random.default_rng(0)
    prompts = draw.integers(2, SHAPES[size]["vocabulary"], (2, PROMPT)).tolist()

    def ours(**options: Any) -> Callable[[list[int]], list[int]]:
        return lambda prompt: generate(model, [prompt], tokens, **options)[0].tokens

    def theirs(**options: Any) -> Callable[[list[int]], list[int]]:
        def run(prompt: list[int]) -> list[int]:
            ids = torch.tensor([prompt])
            with torch.inference_mode():
                return peer.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens,
                                     min_new_tokens=tokens, do_sample=False, pad_token_id=1,
                                     **options)[0, len(prompt) :].tolist()
        return run

    def converted_run(beams: int) -> Callable[[list[int]], list[int]]:
        return lambda prompt: other.generate_batch([[f"t{token}" for token in prompt]], max_length=tokens,
                                                   min_length=tokens, beam_size=beams, sampling_topk=1,
                                                   include_prompt_in_result=False)[0].sequences_ids[0]

    runs: dict[str, dict[str, Callable[[list[int]], list[int]]]] = {
        "greedy": {"segue": ours(decoder="greedy"), "transformers": theirs(), "ctranslate2": converted_run(1)},
        "beam, 4": {"segue": ours(decoder="beam", **BEAM), "transformers": theirs(**BEAM),
                    "ctranslate2": converted_run(4)},
        "diverse beam, 4 in 2 groups": {"segue": ours(decoder="diverse-beam", **DIVERSE),
                                        "transformers": theirs(**DIVERSE)},
        "greedy, prompt lookup": {"segue": ours(decoder="greedy", draft="lookup"),
                                  "transformers": theirs(prompt_lookup_num_tokens=10)},
        "greedy, trie": {"segue": ours(decoder="greedy", draft="trie")},
    }
    rows = []
    for what, contenders in runs.items():
        best: dict[str, float] = {}
        said: dict[str, list[list[int]]] = {}
        failed: dict[str, str] = {}
        for turn in range(rounds + 1):  # the first warms up
            for who, run in contenders.items():
                if who in failed:
                    continue
                start = time.perf_counter()
                try:
                    said[who] = [run(prompt) for prompt in prompts]
                except Exception as error:  # a peer without this decoder
                    failed[who] = f"{type(error).__name__}: {str(error).splitlines()[0][:90]}"
                    continue
                speed = sum(map(len, said[who])) / (time.perf_counter() - start)
                best[who] = max(best.get(who, 0.0), speed if turn else 0.0)
        mine = best["segue"]
        ratios = [f"{mine / best[who]:.2f}" if who in best else "-" for who in ("transformers", "ctranslate2")]
        truth = said.get("transformers", said["segue"])
        same = np.mean([a == b for x, y in zip(said["segue"], truth) for a, b in zip(x, y)])
        rows.append([what, f"{mine:,.0f}", *ratios, f"{same:.0%}" if "transformers" in said else "-",
                     "; ".join(f"{who}: {why}" for who, why in failed.items())])
    head = ["", "tokens/s", "times transformers", "times ctranslate2", "same tokens as transformers", ""]
    return (f"### Searches, Llama shape, {size}, batch 1, {tokens} tokens, float32\n\n" + table(head, rows)
            + f"\n\nBest of {rounds} rounds.")


WIDTH, DEPTH, SHALLOW = 512, 8, 2


def learned(mixer: str, minutes: float, models: Path) -> Fitted:
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
                torch.nn.init.zeros_(block.mixer.out.weight)
                torch.nn.init.zeros_(block.channel.out.weight)
            fitted.model, fitted.report["plan"]["depth"] = stack.eval(), DEPTH
            fitted.save(deep)
        fitted = segue.load(deep)
        rates = {rate: 0.5 * fitted.report["plan"][rate] for rate in ("rate", "table_rate", "vector_rate")}
        fitted.update(data, "naive", minutes=0.4 * minutes, quiet=True, **rates)
        os.replace(deep, folder)
    return segue.load(folder)


def heads(mixer: str, threads: int, tokens: int, minutes: float, head_minutes: float, models: Path) -> str:
    """Medusa, Hydra and Hydra++ heads on a model that learned source code, on held-out code and prose."""
    fitted, folder = learned(mixer, minutes, models), models / mixer
    train = segue.read(*map(str, standard_library()[0]), kind="code").encode(fitted.codec)
    model = compile_model(fitted.model.eval(), "float32", threads)
    makers: dict[str, Callable[[], Any]] = {name: lambda name=name: name for name in ("none", "lookup", "both")}
    notes, readings = [], None
    for sort, shape in SORTS.items():
        kept, note = folder / f"{sort}.safetensors", folder / f"{sort}.txt"
        if not note.exists():
            readings = readings or Readings(fitted, model, train, 60 * head_minutes)
            torch.manual_seed(0)
            trained = DraftHeads.on(fitted.model, **shape, attention_heads=heads_of(WIDTH))
            done = train_heads(trained, fitted, readings, 60 * head_minutes, None, 0, True)
            asks = beginnings(train, 16)
            hits, asked = count_on_own_text(trained, fitted.model, model, asks, tokens)
            drafter = best_tree(trained, hits / np.maximum(asked, 1)[:, None], model, asks[-1], 32)
            drafter.save(kept)
            note.write_text(f"{sort}: {done['parameters'] / 1e6:.1f}M parameters, {done['steps']} steps on "
                            f"{readings.text.count:,} tokens, a tree of {drafter.nodes} nodes")
        drafter = HeadsDraft.load(kept, fitted.model)
        makers[sort] = lambda drafter=drafter: drafter
        notes.append(note.read_text())
    code = beginnings(segue.read(*map(str, standard_library()[1]), kind="code").encode(fitted.codec), 16)
    prose = beginnings(segue.read(str(prose_file(models)), kind="text").encode(fitted.codec), 16)
    rows = []
    for where, prompts in (("code", code), ("prose", prose)):
        for way in WAYS:
            measured = measure(model, makers, prompts, tokens, float("inf"), [way])
            plain, medusa = measured["none"], measured["medusa"]
            for name, row in measured.items():
                rows.append([f"{where}, {way['decoder']}, {name}", f"{row.tokens_per_pass:.2f}",
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
    parser.add_argument("--models", type=Path, default=Path(tempfile.gettempdir()) / "segue-decoding-models")
    parser.add_argument("--table", action="store_true", help="write the page from the parts measured so far")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    threads, file = torch.get_num_threads(), HERE / "decoding.jsonl"
    for name in args.parts:
        sort, _, which = name.partition("-")
        with redirect_stderr(io.StringIO()):
            text = searches(which, threads, args.tokens, args.rounds) if sort == "searches" else \
                heads(which, threads, args.tokens, args.minutes, args.head_minutes, args.models)
        print(text, flush=True)
        with open(file, "a") as handle:
            handle.write(json.dumps({"part": name, "text": text + f"\n\nOn {machine(threads)}."}) + "\n")
    parts = {row["part"]: row["text"] for row in map(json.loads, file.read_text().splitlines())}
    (HERE / "decoding.md").write_text(PAGE + "".join(f"\n{text}\n" for text in parts.values()))


if __name__ == "__main__":
    main()
