"""Decoding speed on this CPU, side by side: Segue's compiled engine, plain torch, transformers and ctranslate2.

    python benchmarks/decode.py llama-7m gpt2-7m llama-100m gpt2-100m mixers floors drafts   # some minutes each
    python benchmarks/decode.py gpu                                                   # on a GPU, where there is one
    python benchmarks/decode.py --table                                               # the pages from the parts so far

Of each part one run: the same random weights (saved as a Hugging Face folder and converted by each), the same prompts,
the same number of tokens out, greedy; the contenders take turns and the best round of each counts. Needs the extra
`bench`. Each part is printed when it is measured. Parts are kept in results/decode.jsonl, the page is
results/decode.md: the latest of each on each processor. The page of the part gpu is results/decode-gpu.md.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flashrnn import peak

import segue
from segue.decoding import generate
from segue.demo import standard_library
from segue.errors import SegueError
from segue.mixers import MIXERS
from segue.models import Decodable, Stack, StackConfig
from segue.models.compiled import CompiledModel, compile_model
from segue.models.huggingface import from_huggingface
from segue.models.recorded import Recorded
from segue.training import recipe

PROMPT = 32
CONTEXT = 64  # tokens before a step that is timed
HERE = Path(__file__).parent / "results"
SHAPES = {"7m": {"width": 256, "layers": 8, "heads": 8, "gated": 704, "vocabulary": 2000},
          "100m": {"width": 768, "layers": 12, "heads": 12, "gated": 2048, "vocabulary": 20_000}}


def make_model(name: str, folder: Path) -> Any:
    """A transformers model with random weights, saved with a tokenizer of as many words."""
    import transformers
    from tokenizers import Tokenizer, models

    family, size = name.split("-")
    shape = SHAPES[size]
    torch.manual_seed(0)
    common = {"vocab_size": shape["vocabulary"], "bos_token_id": 0, "eos_token_id": 1, "initializer_range": 0.06}
    if family == "gpt2":
        config = transformers.GPT2Config(n_embd=shape["width"], n_layer=shape["layers"], n_head=shape["heads"],
                                         n_positions=2048, **common)
        model = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.LlamaConfig(hidden_size=shape["width"], intermediate_size=shape["gated"],
                                          num_hidden_layers=shape["layers"], num_attention_heads=shape["heads"],
                                          num_key_value_heads=shape["heads"], tie_word_embeddings=True,
                                          max_position_embeddings=2048, **common)
        model = transformers.LlamaForCausalLM(config)
    model.eval().save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(shape["vocabulary"])}, unk_token="t0"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, bos_token="t0", eos_token="t1",
                                         unk_token="t0").save_pretrained(folder)
    return model


Run = Callable[[list[list[int]], int], list[list[int]]]  # prompts, a number of tokens -> the tokens


def segue_run(model: Any) -> Run:
    return lambda prompts, n: [c.tokens for c in generate(model, prompts, n, decoder="greedy")]


def transformers_run(peer: Any, **options: Any) -> Run:
    def run(prompts: list[list[int]], n: int) -> list[list[int]]:
        with torch.inference_mode():
            ids = torch.tensor(prompts, device=peer.device)
            out = peer.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, min_new_tokens=n,
                                do_sample=False, pad_token_id=1, **options)
        return out[:, len(prompts[0]) :].tolist()

    return run


def contenders(name: str, folder: Path, threads: int) -> tuple[Stack, dict[str, Run]]:
    """The native model, and what decodes it, by the contender's name."""
    import ctranslate2

    peer = make_model(name, folder)
    stack, _ = from_huggingface(folder)
    stack.eval()

    def ctranslate(weights: str) -> Run:
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

    return stack, {"segue float32": segue_run(compile_model(stack, "float32", threads)),
                   "segue int8": segue_run(compile_model(stack, "int8", threads)),
                   "eager torch": segue_run(stack),
                   "transformers": transformers_run(peer),
                   "ctranslate2 float32": ctranslate("float32"),
                   "ctranslate2 int8": ctranslate("int8")}


def speeds(runs: dict[str, Run], batch: int, tokens: int, rounds: int, vocabulary: int,
           ) -> tuple[dict[str, float], dict[str, float]]:
    """Tokens per second of each contender (best round), and the share of its tokens equal to transformers'.

    min_length keeps every contender from stopping early; token 1 ends a text, and none of the prompts holds it.
    """
    draw = np.random.default_rng(0)
    prompts = draw.integers(2, vocabulary, (batch, PROMPT)).tolist()
    best: dict[str, float] = {name: 0.0 for name in runs}
    outputs: dict[str, list[list[int]]] = {}
    for run in runs.values():  # warm up: caches, threads, lazily compiled code
        run(prompts, 4)
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            outputs[name] = run(prompts, tokens)
            best[name] = max(best[name], batch * tokens / (time.perf_counter() - start))
    reference = np.array(outputs["transformers"])
    agreement = {}
    for name, output in outputs.items():
        assert all(len(row) == tokens for row in output), f"{name} stopped early"
        agreement[name] = float((np.array(output) == reference).mean())
    return best, agreement


def bandwidth(size: int, threads: int) -> float:
    """Bytes per second of a row-parallel matrix-vector product over `size` bytes of float32 weights: the better of
    torch's and one written here in Numba, which compilers turn into plain vector code."""
    import numba

    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    matrix = torch.from_numpy(np.ones((size // 4 // 768, 768), np.float32))  # numpy's arrays lie in large pages
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


def step_time(model: CompiledModel, nodes: int, context: int = CONTEXT, repeats: int = 40, best: bool = False,
              ) -> float:
    """Seconds of one `extend` of so many nodes (committed none): the best half's median, or the best."""
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
    return min(times) if best else statistics.median(sorted(times)[: repeats // 2])


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
    peers = [peer for peer in ("numba", "transformers", "ctranslate2") if find_spec(peer) is not None]
    versions = ", ".join(f"{peer} {version(peer)}" for peer in peers)
    return f"{recipe.describe_machine()}, {versions}; {threads} threads"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def measure_shape(name: str, threads: int, tokens: int, rounds: int) -> str:
    size = SHAPES[name.split("-")[1]]
    rows, single = [], dict[str, float]()
    with tempfile.TemporaryDirectory() as folder:
        stack, runs = contenders(name, Path(folder), threads)
    for batch in (1, 8):
        best, agreement = speeds(runs, batch, tokens, rounds, size["vocabulary"])
        single = single or best
        for run, speed in best.items():
            rows.append([f"{run}, batch {batch}", f"{speed:,.0f}", f"{speed / best['transformers']:.2f}",
                         f"{speed / best['ctranslate2 int8' if 'int8' in run else 'ctranslate2 float32']:.2f}",
                         f"{agreement[run]:.0%}"])
    exact, rounded = compile_model(stack, "float32", threads), compile_model(stack, "int8", threads)
    bytes_per_second = bandwidth(exact.program.weight_bytes, threads)
    floor = exact.program.weight_bytes / bytes_per_second
    time_1, time_8 = step_time(exact, 1), step_time(exact, 8)
    int8_time_1, int8_time_8 = step_time(rounded, 1), step_time(rounded, 8)
    products = 8 * exact.program.weight_bytes / 4 / peak("cpu", time.perf_counter)
    loss, top_agreement = int8_loss(exact, rounded)
    prompt_speed, torch_prompt_speed = prefill_speed(exact, 512), prefill_speed(stack, 512)
    speed = single["segue float32"]
    notes = [
        f"- floor: {exact.program.weight_bytes / 1e6:.0f} MB of weights at {bytes_per_second / 1e9:.1f} GB/s "
        f"(row-parallel matrix-vector product) allow {1 / floor:,.0f} tokens/s; reached "
        f"{speed:,.0f}, {speed * floor:.0%}",
        f"- 8 tokens at once cost {time_8 / time_1:.2f} times one token ({time_8 * 1e3:.2f} ms, {time_1 * 1e3:.2f} ms; "
        f"their multiply-adds alone would {products / time_1:.2f} times, at the speed of a large matrix product); int8 "
        f"{int8_time_8 / int8_time_1:.2f} times ({int8_time_8 * 1e3:.2f} ms, {int8_time_1 * 1e3:.2f} ms)",
        f"- int8 against our float32: {single['segue int8'] / speed:.2f} times as fast; its loss, at random weights: "
        f"{loss:.2g} bits per token (KL), the same first choice in {top_agreement:.1%}",
        f"- a prompt of 512 tokens: {prompt_speed:,.0f} tokens/s, plain torch {torch_prompt_speed:,.0f}",
    ]
    head = ["", "tokens/s", "times transformers", "times ctranslate2", "same tokens"]
    return (f"### {name}: {sum(p.numel() for p in stack.parameters()) / 1e6:.1f}M parameters\n\n" + table(head, rows)
            + "\n\n" + "\n".join(notes))


def measure_mixers(threads: int, tokens: int, rounds: int) -> str:
    """Every mixer that has a form for the engine, at width 256, 8 layers: against torch, and what 8 tokens cost."""
    rows = []
    for name in (*MIXERS, "mamba+attention"):
        torch.manual_seed(0)
        try:
            stack = Stack(StackConfig(2000, 256, (name.split("+") * 8)[:8])).eval()
            models = [compile_model(stack, weights, threads) for weights in ("float32", "int8")]
            runs: list[Decodable] = [*models, stack]
        except SegueError:  # not causal, or nothing for the engine
            continue
        best = [0.0, 0.0, 0.0]
        for _ in range(rounds):
            for index, run in enumerate(runs):
                start = time.perf_counter()
                generate(run, [[5] * PROMPT], tokens, decoder="greedy")
                best[index] = max(best[index], tokens / (time.perf_counter() - start))
        costs = [f"{step_time(model, 8) / step_time(model, 1):.2f}" for model in models]
        rows.append([name, *(f"{speed:,.0f}" for speed in best), f"{best[0] / best[2]:.1f}", *costs])
    head = ["mixer", "engine tokens/s", "int8", "plain torch", "times torch", "8 tokens cost, times one", "int8"]
    return "### Every mixer of the engine: width 256, 8 layers, batch 1\n\n" + table(head, rows)


def measure_floors(threads: int, tokens: int, rounds: int) -> str:
    """Every mixer of the engine at width 768, where a step is the reading of the weights: how near it comes to that.
    Steps of one token, of eight, and products over as many bytes take turns; of each the best counts."""
    rows = []
    for name in MIXERS:
        torch.manual_seed(0)
        stack = Stack(StackConfig(2000, 768, [name] * 4)).eval()
        row = [name]
        for weights in ("float32", "int8"):
            try:
                model = compile_model(stack, weights, threads)
            except SegueError:
                break
            size = model.program.step_bytes(CONTEXT)
            floor, time_1, time_8 = (min(times) for times in zip(*((
                size / bandwidth(size, threads), *(step_time(model, nodes, repeats=20, best=True) for nodes in (1, 8))
            ) for _ in range(rounds))))
            row += [f"{size / 1e6:.0f} MB", f"{floor / time_1:.0%}", f"{time_8 / time_1:.2f}"]
        else:
            rows.append(row)
    head = ["mixer", "weights and state", "of what the memory allows", "8 tokens cost, times one", "with int8 weights",
            "of what the memory allows", "8 tokens cost, times one"]
    return (f"### Every mixer of the engine: width 768, 4 layers, batch 1, {CONTEXT} tokens before\n\n"
            + table(head, rows) + "\n\n- what the memory allows: a row-parallel matrix-vector product over as many "
            "bytes as a step reads and writes, the best of all rounds")


def measure_drafts(threads: int, tokens: int, rounds: int) -> str:
    """What drafts gain on a trained model, and what int8 weights lose there."""
    train, test = standard_library()
    fitted = segue.fit(segue.read(*map(str, train), kind="code"), minutes=1.0, mix=False, quiet=True)
    stack, rows, answers = fitted.model.eval(), [], {}
    assert isinstance(stack, Stack)
    store = segue.read(*map(str, test), kind="code").encode(fitted.codec)
    prompts = [prompt for prompt in (store[i].ids[:256].tolist() for i in range(len(store))) if len(prompt) == 256]
    for weights in ("float32", "int8"):
        model = compile_model(stack, weights, threads)
        for decoder in ("greedy", "sample"):
            for draft in ("none", "lookup", "trie", "both"):
                best = 0.0
                for _ in range(rounds):
                    results = [generate(model, [prompt], 2 * tokens, decoder=decoder, draft=draft, seed=0)[0]
                               for prompt in prompts[:8]]
                    best = max(best, sum(len(a.tokens) for a in results) / sum(a.seconds["total"] for a in results))
                answers[weights, decoder, draft] = [a.tokens for a in results]
                agreement = sum(a == b for x, y in zip(answers[weights, decoder, draft],
                                                       answers[weights, decoder, "none"])
                                for a, b in zip(x, y)) / sum(len(x) for x in answers[weights, decoder, "none"])
                per_pass = sum(len(a.tokens) for a in results) / sum(a.passes for a in results)
                rows.append([f"{weights}, {decoder}", draft, f"{best:,.0f}", f"{per_pass:.2f}", f"{agreement:.1%}"])
    test_data = segue.read(*map(str, test[:8]), kind="code")
    exact, rounded = (fitted.evaluate(test_data, weights).bits_per_unit for weights in ("float32", "int8"))
    head = ["", "draft", "tokens/s", "tokens a pass", "same tokens as without"]
    return ("### Drafts, on a model of source code that trained for a minute\n\n" + table(head, rows)
            + f"\n\n- int8 weights: {rounded:.4f} bits per byte on held-out source, float32 {exact:.4f}")


def measure_gpu(threads: int, tokens: int, rounds: int) -> str:
    """On a GPU: our steps as a recorded graph, operation by operation, and transformers; then every mixer."""
    rows = []
    for name in ("llama-7m", "llama-100m", "gpt2-100m"):
        for precision in (torch.float32, torch.bfloat16):
            with tempfile.TemporaryDirectory() as folder:
                peer = make_model(name, Path(folder)).to("cuda", precision)
                stack = from_huggingface(Path(folder))[0].eval().to("cuda", precision)
            runs = {"segue": segue_run(Recorded(stack)), "segue, operation by operation": segue_run(stack),
                    "transformers": transformers_run(peer)}
            for batch in (1, 8):
                best, agreement = speeds(runs, batch, tokens, rounds, SHAPES[name.split("-")[1]]["vocabulary"])
                print(name, precision, batch, best, flush=True)
                rows += [[f"{name}, {str(precision).removeprefix('torch.')}, batch {batch}", run, f"{speed:,.0f}",
                          f"{speed / best['transformers']:.2f}", f"{agreement[run]:.0%}"]
                         for run, speed in best.items()]
    text = table(["", "", "tokens/s", "times transformers", "same tokens"], rows)
    lines = []
    for name in (*MIXERS, "mamba+attention"):
        torch.manual_seed(0)
        try:
            stack = Stack(StackConfig(2000, 256, (name.split("+") * 8)[:8])).eval().to("cuda")
            stack.init_state(1)
        except SegueError:  # not causal
            continue
        model = Recorded(stack)
        best, _ = speeds({"graph": segue_run(model), "transformers": segue_run(stack)}, 1, tokens, rounds, 2000)
        print(name, best, model.failure or "", flush=True)
        graph, plain = best["graph"], best["transformers"]
        cells = [f"{graph:,.0f}", f"{graph / plain:.1f}"] if model.recordings else ["-", "not recorded"]
        lines.append([name, cells[0], f"{plain:,.0f}", cells[1]])
    return (f"On {torch.cuda.get_device_name()}.\n\n{text}\n\n"
            "### Every mixer: width 256, 8 layers, batch 1, float32\n\n"
            + table(["mixer", "as a graph, tokens/s", "operation by operation", "times that"], lines))


PAGE = """# Decoding speed on a CPU

Printed by `python benchmarks/decode.py llama-7m gpt2-7m llama-100m gpt2-100m mixers floors drafts`
(needs
`pip install 'segue[bench]'`). Each part is one run: the same random weights, prompts of {prompt} tokens, greedy; the
contenders take turns, the best round of each counts, prompt included. *same tokens*: the share equal to those of
transformers; int8 differs, and over a long greedy answer one rounding that tips a tie changes all that follows.
*8 tokens*: a chain of 8, as a draft is.
"""


GPU_PAGE = """# Decoding speed on a GPU

Printed by `python benchmarks/decode.py gpu`: one run, the same random weights, prompts of {prompt} tokens, greedy; the
contenders take turns, the best round of each counts, prompt included. *same tokens*: the share equal to those of
transformers; in bfloat16 a rounding that tips a tie changes all that follows it.
"""


def page(title: str, rows: list[dict[str, str]]) -> str:
    """The latest of each part on each processor."""
    latest = {(row["machine"].partition(",")[0], row["part"]): row for row in rows}
    text, heading = title.format(prompt=PROMPT), ""
    for _, part in sorted(latest.items(), key=lambda pair: pair[0][0]):
        if part["machine"] != heading:
            heading = part["machine"]
            text += f"\nOn {heading}.\n"
        text += f"\n{part['text']}\n"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--table", action="store_true", help="write the page from the parts measured so far")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    threads = torch.get_num_threads()
    special: dict[str, Callable[[int, int, int], str]] = {
        "mixers": measure_mixers, "floors": measure_floors, "drafts": measure_drafts, "gpu": measure_gpu}
    HERE.mkdir(exist_ok=True)
    for name in args.parts:
        measure = special.get(name) or (lambda *a, name=name: measure_shape(name, *a))
        with redirect_stderr(io.StringIO()):  # progress bars of the converters
            text = measure(threads, args.tokens, args.rounds)
        text += f"\n\n{args.tokens} tokens, best of {args.rounds} rounds."
        print(text, flush=True)
        with open(HERE / "decode.jsonl", "a") as handle:
            handle.write(json.dumps({"part": name, "machine": machine(threads), "text": text}) + "\n")
    rows = [json.loads(line) for line in (HERE / "decode.jsonl").read_text().splitlines()]
    (HERE / "decode.md").write_text(page(PAGE, [row for row in rows if row["part"] != "gpu"]))
    if gpu_rows := [row for row in rows if row["part"] == "gpu"]:
        (HERE / "decode-gpu.md").write_text(page(GPU_PAGE, gpu_rows))


if __name__ == "__main__":
    main()
