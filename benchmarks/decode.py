"""Decoding speed on this CPU, side by side: Segue's compiled engine, plain torch, transformers and ctranslate2.

    python benchmarks/decode.py [--models llama-7m,gpt2-100m,...] [--tokens 128] [--rounds 3] [--page docs/speed.md]

One run, the same random weights (saved as a Hugging Face folder and converted by each), the same prompts, the same
number of tokens out, greedy; the contenders take turns and the best round of each counts. Needs the extra `bench`.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segue.decoding import generate
from segue.models import Stack, StackConfig
from segue.models.compiled import CompiledModel, compile_model
from segue.models.huggingface import from_huggingface

PROMPT = 32
SHAPES = {"7m": {"width": 256, "layers": 8, "heads": 8, "gated": 704, "vocabulary": 2000},
          "100m": {"width": 768, "layers": 12, "heads": 12, "gated": 2048, "vocabulary": 20_000}}


def make(name: str, folder: Path) -> Any:
    """A transformers model with random weights, saved with a tokenizer of as many words."""
    import transformers
    from tokenizers import Tokenizer, models

    family, size = name.split("-")
    s = SHAPES[size]
    torch.manual_seed(0)
    common = {"vocab_size": s["vocabulary"], "bos_token_id": 0, "eos_token_id": 1, "initializer_range": 0.06}
    if family == "gpt2":
        config = transformers.GPT2Config(n_embd=s["width"], n_layer=s["layers"], n_head=s["heads"], n_positions=2048,
                                         **common)
        model = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.LlamaConfig(hidden_size=s["width"], intermediate_size=s["gated"],
                                          num_hidden_layers=s["layers"], num_attention_heads=s["heads"],
                                          num_key_value_heads=s["heads"], tie_word_embeddings=True,
                                          max_position_embeddings=2048, **common)
        model = transformers.LlamaForCausalLM(config)
    model.eval().save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(s["vocabulary"])}, unk_token="t0"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, bos_token="t0", eos_token="t1",
                                         unk_token="t0").save_pretrained(folder)
    return model


def contenders(name: str, folder: Path, threads: int) -> dict[str, Callable[[list[list[int]], int], list[list[int]]]]:
    """By name: a function from prompts and a number of tokens to the tokens."""
    import ctranslate2

    peer = make(name, folder)
    stack, _ = from_huggingface(folder)
    stack.eval()

    def ours(model: Any) -> Callable[[list[list[int]], int], list[list[int]]]:
        return lambda prompts, n: [c.tokens for c in generate(model, prompts, n, decoder="greedy")]

    def transformers_generate(prompts: list[list[int]], n: int) -> list[list[int]]:
        with torch.inference_mode():
            ids = torch.tensor(prompts)
            out = peer.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, min_new_tokens=n,
                                do_sample=False, pad_token_id=1)
        return out[:, len(prompts[0]) :].tolist()

    def ctranslate(weights: str) -> Callable[[list[list[int]], int], list[list[int]]]:
        place = str(folder / f"ctranslate2-{weights}")
        ctranslate2.converters.TransformersConverter(str(folder)).convert(
            place, quantization=None if weights == "float32" else weights)
        generator = ctranslate2.Generator(place, device="cpu", compute_type=weights, inter_threads=1,
                                          intra_threads=threads)

        def run(prompts: list[list[int]], n: int) -> list[list[int]]:
            words = [[f"t{token}" for token in prompt] for prompt in prompts]
            results = generator.generate_batch(words, max_length=n, min_length=n, sampling_topk=1, beam_size=1,
                                               include_prompt_in_result=False, max_batch_size=len(prompts))
            return [result.sequences_ids[0] for result in results]

        return run

    return {"segue float32": ours(compile_model(stack, "float32", threads)),
            "segue int8": ours(compile_model(stack, "int8", threads)),
            "eager torch": ours(stack),
            "transformers": transformers_generate,
            "ctranslate2 float32": ctranslate("float32"),
            "ctranslate2 int8": ctranslate("int8")}


def speeds(runs: dict[str, Callable], batch: int, tokens: int, rounds: int, vocabulary: int,
           ) -> tuple[dict[str, float], dict[str, float]]:
    """Tokens per second of each contender (best round), and the share of its tokens equal to transformers'.

    min_length keeps every contender from stopping early; token 1 ends a text, and none of the prompts holds it.
    """
    draw = np.random.default_rng(0)
    prompts = draw.integers(2, vocabulary, (batch, PROMPT)).tolist()
    best: dict[str, float] = {name: 0.0 for name in runs}
    said: dict[str, list[list[int]]] = {}
    for run in runs.values():  # warm up: caches, threads, lazily compiled code
        run(prompts, 4)
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            said[name] = run(prompts, tokens)
            best[name] = max(best[name], batch * tokens / (time.perf_counter() - start))
    truth = np.array(said["transformers"])
    same = {}
    for name, answer in said.items():
        assert all(len(row) == tokens for row in answer), f"{name} stopped early"
        same[name] = float((np.array(answer) == truth).mean())
    return best, same


def bandwidth(size: int, threads: int) -> float:
    """Bytes per second of a row-parallel matrix-vector product over `size` bytes of float32 weights: the better of
    torch's and one written here in Numba, which compilers turn into plain vector code."""
    import numba

    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    matrix = torch.randn(size // 4 // 768, 768)
    vector = torch.randn(768)

    @numba.njit(fastmath=True, parallel=True)
    def product(w, x, y):  # type: ignore[no-untyped-def]
        for i in numba.prange(w.shape[0]):
            total = np.float32(0)
            for j in range(w.shape[1]):
                total += w[i, j] * x[j]
            y[i] = total

    arrays = matrix.numpy(), vector.numpy(), np.empty(len(matrix), np.float32)
    best = float("inf")
    for attempt in (lambda: product(*arrays), lambda: torch.mv(matrix, vector)):
        attempt()
        for _ in range(15):
            start = time.perf_counter()
            attempt()
            best = min(best, time.perf_counter() - start)
    return matrix.numel() * 4 / best


def step_time(model: CompiledModel, nodes: int, context: int = 64, repeats: int = 40) -> float:
    """Seconds of one `extend` of so many nodes (committed none), best half's median."""
    state = model.init_state(1)
    draw = torch.Generator().manual_seed(0)
    model.extend(torch.randint(model.vocabulary, (1, context), generator=draw), state)
    state.commit()
    tokens = torch.randint(model.vocabulary, (1, nodes), generator=draw)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        model.extend(tokens, state)
        times.append(time.perf_counter() - start)
    return statistics.median(sorted(times)[: repeats // 2])


def prefill_speed(model: Any, tokens: int, repeats: int = 3) -> float:
    """Prompt tokens per second, for a prompt of so many."""
    prompt = torch.randint(2, model.vocabulary, (1, tokens), generator=torch.Generator().manual_seed(0))
    best = float("inf")
    for _ in range(repeats):
        state = model.init_state(1)
        start = time.perf_counter()
        with torch.inference_mode():
            model.extend(prompt, state, at=torch.tensor([[tokens - 1]]))
        best = min(best, time.perf_counter() - start)
    return tokens / best


def int8_loss(exact: CompiledModel, rounded: CompiledModel) -> tuple[float, float]:
    """Of the int8 weights: mean Kullback-Leibler divergence (bits per token) from float32, and agreement of the top
    token, over 512 positions."""
    ids = torch.randint(2, exact.vocabulary, (4, 128), generator=torch.Generator().manual_seed(1))
    a, b = (model.extend(ids, model.init_state(4)).logits.double().log_softmax(-1) for model in (exact, rounded))
    bits = float((a.exp() * (a - b)).sum(-1).mean() / np.log(2))
    return bits, float((a.argmax(-1) == b.argmax(-1)).double().mean())


def machine(threads: int) -> str:
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    versions = ", ".join(f"{p} {version(p)}" for p in ("torch", "numba", "transformers", "ctranslate2"))
    return f"{name}, {os.cpu_count()} cores, {threads} threads; Python {platform.python_version()}, {versions}"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def measure_shape(name: str, threads: int, args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    size = SHAPES[name.split("-")[1]]
    values: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        runs = contenders(name, Path(folder), threads)
    rows, ratios = [], []
    for batch in (1, 8):
        best, same = speeds(runs, batch, args.tokens, args.rounds, size["vocabulary"])
        values[f"batch {batch}"] = best
        for run, speed in best.items():
            cells = [f"{run}, batch {batch}", f"{speed:,.0f}", f"{speed / best['transformers']:.2f}",
                     f"{speed / best['ctranslate2 int8' if 'int8' in run else 'ctranslate2 float32']:.2f}",
                     f"{same[run]:.0%}"]
            rows.append(cells)
    stack = Stack(StackConfig(size["vocabulary"], size["width"], ["attention"] * size["layers"],
                              {"attention": {"heads": size["heads"]}})).eval()
    exact, rounded = compile_model(stack, "float32", threads), compile_model(stack, "int8", threads)
    moved = bandwidth(exact.program.weight_bytes, threads)
    floor = exact.program.weight_bytes / moved
    one, eight = step_time(exact, 1), step_time(exact, 8)
    one8, eight8 = step_time(rounded, 1), step_time(rounded, 8)
    loss, agree = int8_loss(exact, rounded)
    long, long_torch = prefill_speed(exact, 512), prefill_speed(stack, 512)
    speed = values["batch 1"]["segue float32"]
    values |= {"bandwidth": moved, "floor": 1 / floor, "of floor": speed * floor, "one": one, "eight": eight,
               "one int8": one8, "eight int8": eight8, "int8 bits": loss, "int8 agreement": agree, "prefill": long,
               "prefill torch": long_torch}
    ratios = [
        f"- floor: {exact.program.weight_bytes / 1e6:.0f} MB of weights at {moved / 1e9:.1f} GB/s (row-parallel "
        f"matrix-vector product) allow {1 / floor:,.0f} tokens/s; reached {speed:,.0f}, {speed * floor:.0%}",
        f"- 8 tokens at once cost {eight / one:.2f} times one token ({eight * 1e3:.2f} ms, {one * 1e3:.2f} ms); int8 "
        f"{eight8 / one8:.2f} times ({eight8 * 1e3:.2f} ms, {one8 * 1e3:.2f} ms)",
        f"- int8 against our float32: {values['batch 1']['segue int8'] / speed:.2f} times as fast; its loss, at random "
        f"weights: {loss:.2g} bits per token (KL), the same first choice in {agree:.1%}",
        f"- a prompt of 512 tokens: {long:,.0f} tokens/s, plain torch {long_torch:,.0f}",
    ]
    title = f"### {name}: {sum(p.numel() for p in stack.parameters()) / 1e6:.1f}M parameters\n\n"
    head = ["", "tokens/s", "times transformers", "times ctranslate2", "same tokens"]
    return title + table(head, rows) + "\n\n" + "\n".join(ratios) + "\n", values


def measure_mixers(threads: int, args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Every mixer at width 256, 8 layers: the engine against plain torch, and what 8 tokens cost."""
    rows, values = [], {}
    for name in ("attention", "lstm", "gru", "mamba", "gla", "mamba+attention"):
        mixers = (name.split("+") * 8)[:8]
        torch.manual_seed(0)
        stack = Stack(StackConfig(2000, 256, mixers)).eval()
        model = compile_model(stack, "float32", threads)
        found = {}
        for label, run in (("engine", model), ("torch", stack)):
            best = 0.0
            for _ in range(args.rounds):
                start = time.perf_counter()
                generate(run, [[5] * PROMPT], args.tokens, decoder="greedy")
                best = max(best, args.tokens / (time.perf_counter() - start))
            found[label] = best
        one, eight = step_time(model, 1), step_time(model, 8)
        rows.append([name, f"{found['engine']:,.0f}", f"{found['torch']:,.0f}",
                     f"{found['engine'] / found['torch']:.1f}", f"{eight / one:.2f}"])
        values[name] = found | {"one": one, "eight": eight}
    head = ["mixer", "engine tokens/s", "torch tokens/s", "times", "8 tokens cost, times one"]
    return "### Every mixer: width 256, 8 layers, batch 1, float32\n\n" + table(head, rows) + "\n", values


PAGE = """# Decoding speed on a CPU

Printed by `python benchmarks/decode.py --page docs/speed.md` (needs `pip install 'segue[bench]'`): one run, the same
random weights, prompts of {prompt} tokens, {tokens} tokens out, greedy; the contenders take turns, the best of
{rounds} rounds counts, prompt included. *same tokens*: the share equal to those of transformers; int8 differs, and
over a long greedy answer one rounding that tips a tie changes all that follows.

Machine: {machine}

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="gpt2-7m,llama-7m,gpt2-100m,llama-100m,mixers")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--page", help="write the page here")
    parser.add_argument("--json", help="write the numbers here")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    threads = torch.get_num_threads()
    page = PAGE.format(prompt=PROMPT, tokens=args.tokens, rounds=args.rounds, machine=machine(threads))
    print(page, flush=True)
    numbers: dict[str, Any] = {"machine": machine(threads)}
    for name in args.models.split(","):
        with redirect_stderr(io.StringIO()):  # progress bars of the converters
            text, numbers[name] = measure_mixers(threads, args) if name == "mixers" else \
                measure_shape(name, threads, args)
        print(text, flush=True)
        page += text + "\n"
    if args.page:
        Path(args.page).write_text(page.rstrip() + "\n")
    if args.json:
        Path(args.json).write_text(json.dumps(numbers, indent=2))


if __name__ == "__main__":
    sys.exit(main())
