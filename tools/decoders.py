"""Write docs/composition.md: every decoder and drafter on every mixer and on models of transformers, run and compared.

    python tools/decoders.py            # all of it; run again, it goes on where it was
    python tools/decoders.py --quick    # short answers, for a look

Rows and columns are the tables' own (`MIXERS`, `DECODERS`, `DRAFTERS`, `ACCEPTORS`): a new name appears by itself.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segue.cells import Cells
from segue.decoding import ACCEPTORS, DECODERS, DRAFTERS, SetPrompt, generate
from segue.decoding.constrain import LegalNext, Pattern
from segue.decoding.draft import BlockDraft, ModelDraft
from segue.decoding.draft.heads import HeadsDraft
from segue.decoding.prompt import layout_with_sets
from segue.errors import SegueError
from segue.files import write_text
from segue.kinds.codecs import LetterCodec
from segue.mixers import MIXERS
from segue.models import Stack, StackConfig
from segue.models.base import Output
from segue.models.heads import DraftHeads
from segue.testing.decoding import Reread
from segue.training.recipe import cores, describe_machine

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "composition.md"
VOCABULARY, WIDTH = 13, 16
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5], [8, 9, 7, 9, 3, 2]]
SETS = ([3, 1, 4], [[1, 5], [9, 2, 6, 5], [3]], [5, 8])
LETTERS = LetterCodec("abcdefghijkl")  # with the end token, the models' vocabulary
# Blocks, windows and tables shorter than the answers, so that all parts have a say.
SHORT: dict[str, dict[str, Any]] = {
    "block-recurrent": {"block": 4, "memory": 3}, "dss": {"length": 16}, "hyena": {"horizon": 256},
    "jrt": {"prefix": 3}, "liquid-s4": {"dt_min": 0.1, "dt_max": 1.0}, "longvq": {"window": 4, "codes": 3, "keys": 4},
    "palm": {"prefix": 3},
}
STIFF = {"lssl"}  # state matrices that are stable as they are, and twice as large are not
STACKS = {name: [name] * 2 for name in MIXERS if MIXERS[name].causal} | {"mixed": ["mamba", "attention", "gru"]}
SMALL: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
                         "num_attention_heads": 4}
TRANSFORMERS: dict[str, dict[str, Any]] = {  # architectures, at least one for each way that the adapter has
    "GPT2": {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 160},
    "Llama": SMALL | {"num_key_value_heads": 2}, "GPTNeoX": SMALL,
    "Bloom": {"vocab_size": VOCABULARY, "hidden_size": 16, "n_layer": 2, "n_head": 4},
    "Mistral": SMALL | {"num_key_value_heads": 2, "sliding_window": 4},
    "FalconMamba": {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
    "RecurrentGemma": SMALL | {"num_hidden_layers": 3, "num_key_value_heads": 1, "head_dim": 4, "lru_width": 16,
                               "attention_window_size": 4},
}
# What a decoder cannot do without, and what keeps it short.
OPTIONS: dict[str, dict[str, Any]] = {
    "sample": {"temperature": 0.9}, "beam": {"num_beams": 3, "num_return_sequences": 2},
    "diverse-beam": {"num_beams": 4, "num_beam_groups": 2}, "tree": {"budget": 48, "chunk": 4},
    "contrastive": {"top_k": 3}, "exact": {"budget": 60},
    "conditional-beam": {"num_beams": 2, "attribute": lambda living, tokens: np.array(
        [[-abs(float(each.hidden[-1].sum())) - token / 9 for token in row] for each, row in zip(living, tokens)])},
}
SHORTER = {"exact": 6, "tree": 12}  # tokens of an answer
HEADER = """# What composes with what

Every decoder and every drafter on every mixer that can continue, on a mixed stack, and on models of transformers, as
`python tools/decoders.py` found when it last ran them: tiny random models in float64, three ragged prompts in one
batch, {tokens} tokens each (trees and exact search fewer). What is new in MIXERS, DECODERS or DRAFTERS appears by
itself.

- `=` **exact**: the very tokens of the reference. Of drafts that is the same model without a draft, greedy and sampled;
  of greedy, sampling and searches the same decoder over a model that keeps no state and reads everything again in its
  training form; of set prompts besides, the same answer whatever the order of the parts.
- `≈` **another text** by design: `rejection` keeps the distribution (tests hold that), the others are lossy.
- The number is tokens of an answer per pass of the model. Random models repeat themselves, so it shows that drafts are
  taken, not what they win on your data; `segue speed-up` measures that.
- `·` **not applicable**, for the reason below the table{wrong}.

"""
WRONG = "; `≠` differs: a mistake"


# --- the models ----------------------------------------------------------------------------------------------------


def native(name: str) -> tuple[Any, Reread]:
    torch.manual_seed(sum(map(ord, name)))
    options = {mixer: SHORT[mixer] for mixer in STACKS[name] if mixer in SHORT}
    model = Stack(StackConfig(VOCABULARY, WIDTH, STACKS[name], options)).double().eval().requires_grad_(False)
    for key, parameter in model.named_parameters():
        if name not in STIFF or ".recurrence." not in key:
            parameter.mul_(2.0)  # far from even scores
    return model, Reread(lambda tokens: model(tokens[None]), VOCABULARY)


def transformer(name: str) -> tuple[Any, Reread]:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    import transformers

    transformers.utils.logging.disable_progress_bar()
    from segue.models.huggingface import adapt

    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**TRANSFORMERS[name], bos_token_id=0, eos_token_id=1,
                                                    pad_token_id=None)
    source = transformers.AutoModelForCausalLM.from_config(config).eval()
    for key, parameter in source.named_parameters():
        if parameter.dim() > 1 and not key.endswith("A_log"):
            parameter.data.normal_(std=0.3)
    with tempfile.TemporaryDirectory() as folder:
        source.save_pretrained(folder)
        model = adapt(folder, torch.float64)

    def read(tokens: torch.Tensor) -> Output:
        with torch.no_grad():
            logits, hidden, _ = model._run(tokens[None], use_cache=False)
        return Output(logits, hidden)

    return model, Reread(read, VOCABULARY)


MODELS: dict[str, Callable[[str], tuple[Any, Reread]]] = {
    **dict.fromkeys(STACKS, native), **dict.fromkeys(TRANSFORMERS, transformer)}


# --- the cells -----------------------------------------------------------------------------------------------------


def drafters(model: Any) -> dict[str, Callable[[], Any]]:
    """Every drafter, by the name of its column: the table's, and those that need a model."""

    def small() -> ModelDraft:
        twin = copy.deepcopy(model)
        weights = twin.parameters() if isinstance(twin, torch.nn.Module) else twin.model.parameters()
        torch.manual_seed(1)
        for weight in weights:
            weight.data += 0.05 * weight.data.std(correction=0) * torch.randn_like(weight)
        return ModelDraft(twin, min_probability=0.0)

    def heads() -> HeadsDraft:
        return HeadsDraft(DraftHeads.for_base(model))

    def block() -> BlockDraft:
        torch.manual_seed(1)
        both_ways = {"attention": {"causal": False}}
        return BlockDraft(Stack(StackConfig(VOCABULARY + 1, WIDTH, ["attention"], both_ways)), length=6)

    makers = {name: partial(make, model) for name, make in DRAFTERS.items()}
    return makers | {"heads": heads, "small model": small, "block": block}


MODEL_DRAFTS = ("heads", "small model", "block")  # those that need a model
COLUMNS = [*DECODERS, *(name for name in (*DRAFTERS, *MODEL_DRAFTS) if name not in DECODERS),
           *(f"acceptor {name}" for name in ACCEPTORS if name != "walk"), "callback", "regex", "backspace",
           "sets"]


def same(actual: Sequence[Any], expected: Sequence[Any]) -> bool:
    return all((a.tokens, a.finish, [other.tokens for other in a.others]) ==
               (b.tokens, b.finish, [other.tokens for other in b.others])
               for a, b in zip(actual, expected, strict=True))


def with_sets(model: Any, n: int) -> tuple[list[Any], bool]:
    """Answers beside plain prompts, and whether they are those of a full forward for every token, in every order."""
    first, parts, last = SETS
    orders = [SetPrompt([first, list(order), last], canonical=False) for order in itertools.permutations(parts)]
    results = generate(model, [*PROMPTS[:2], orders[0]], n)
    exact = results[2].tokens == generate(model, orders[-1:], n)[0].tokens and same(
        results[:2], generate(model, PROMPTS[:2], n))
    tokens: list[int] = []
    for token in results[2].tokens:
        prompt = SetPrompt([first, parts, [*last, *tokens]], canonical=False)
        out = model.extend(torch.tensor([list(prompt)]), model.init_state(1), layout=layout_with_sets([prompt]))
        exact = exact and int(out.logits[0, -1].argmax()) == token
        tokens.append(token)
    return results, exact


def answers(model: Any, reference: Reread, column: str, n: int) -> tuple[list[Any], bool | None]:
    """Answers, and whether they equal those of the reference (None: they need not)."""
    def run(decoded: Any = model, **options: Any) -> list[Any]:
        return generate(decoded, PROMPTS, SHORTER.get(column, n), eos=VOCABULARY - 1, seed=1, adaptive=False, **options)

    if column == "sets":
        return with_sets(model, n)
    if column.startswith("acceptor "):
        return run(decoder="sample", draft="both", acceptor=column.removeprefix("acceptor ")), None
    if column == "backspace":
        results = run(backspace=5, draft="both")
        return results, same(results, run(reference, backspace=5))
    if column in ("callback", "regex"):
        rule = Pattern(LETTERS, "(abc|d?e)*[f-i]{0,9}") if column == "regex" else LegalNext(
            lambda said: [token for token in range(VOCABULARY) if (token + len(said)) % 3])
        results = run(processors=(rule,), draft="both")
        return results, same(results, run(processors=(rule,)))
    recipe, makers = DECODERS.get(column), drafters(model)
    if recipe is not None and recipe.draft is None:
        results = run(decoder=column, **OPTIONS.get(column, {}))
        return results, same(results, run(reference, decoder=column, **OPTIONS.get(column, {})))
    exact = True
    for decoder in ("sample", "greedy"):
        results = run(decoder=decoder, draft=makers[column if recipe is None else str(recipe.draft)]())
        exact = exact and same(results, run(decoder=decoder))
    return results, exact


def row(name: str, n: int) -> dict[str, Any]:
    """The cells of one model: [mark, tokens per pass, tokens per second], or the reason why there are none."""
    model, reference = MODELS[name](name)
    cells: dict[str, Any] = {}
    for column in COLUMNS:
        try:
            results, exact = answers(model, reference, column, n)
        except SegueError as error:
            cells[column] = str(error)
            continue
        produced, seconds = sum(result.produced for result in results), results[0].seconds["total"]
        passes = sum(result.passes for result in results)
        cells[column] = ["≈" if exact is None else "=" if exact else "≠", produced / passes, produced / seconds]
    return cells | {"path": model.path}


# --- the page ------------------------------------------------------------------------------------------------------


def table(title: str, cells: dict[str, dict[str, Any]], show: Callable[[dict[str, Any], str], str]) -> Iterator[str]:
    yield from (f"## {title}", "", f"| model | {' | '.join(column.replace('acceptor ', '') for column in COLUMNS)} |",
                "|---" * (len(COLUMNS) + 1) + "|")
    for name, row in cells.items():
        label = f"`{name}`" if name in STACKS else name
        yield f"| {label} | {' | '.join(show(row, column) for column in COLUMNS)} |"
    yield ""


def page(cells: dict[str, dict[str, Any]], n: int) -> str:
    def exact(row: dict[str, Any], column: str) -> str:
        cell = row[column]
        return "·" if isinstance(cell, str) else f"{cell[0]} {cell[1]:.1f}"

    def speed(row: dict[str, Any], column: str) -> str:
        cell = row[column]
        return "·" if isinstance(cell, str) else f"{cell[2] / row['greedy'][2]:.2g}"

    wrong = any("≠" in exact(row, column) for row in cells.values() for column in COLUMNS)
    reasons: dict[str, list[str]] = {}
    for name, row in cells.items():
        for column in COLUMNS:
            if isinstance(row[column], str):
                reason = re.sub(r"^(a )?[A-Z]\w+ ", "", row[column])  # the class is that of the model named beside it
                reasons.setdefault(f"{column}: {reason}", []).append(name)
    ways = sorted({row["path"].partition(", ")[2] for name, row in cells.items() if name in TRANSFORMERS})
    lines = [HEADER.replace("{tokens}", str(n)).replace("{wrong}", WRONG if wrong else ""),
             *table("Exact, and tokens per pass", cells, exact), "Not applicable:", "",
             *(f"- {reason} ({', '.join(names)})" for reason, names in sorted(reasons.items())), "",
             f"Models of transformers run in {len(ways)} ways here, measured while loading: {'; '.join(ways)}.", "",
             *table("Speed, times plain greedy decoding of the same model", cells, speed),
             f"Tokens per second of a pass over three rows, drafts always on, on {describe_machine()}; at this size "
             "the time is that of the bookkeeping, not of the model's arithmetic. How fast decoding is on real models "
             "stands in [decoding.md](decoding.md)."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="answers of 8 tokens")
    parser.add_argument("--out", type=Path, default=PAGE)
    parser.add_argument("--cells", type=Path, help="where rows that are done are kept (default: beside the page)")
    args = parser.parse_args()
    n = 8 if args.quick else 24
    cells = Cells(args.cells or args.out.with_suffix(".cells.json"))
    cells.meter = lambda count, name="": print(f"{count} of {len(MODELS)}: {name}", file=sys.stderr, flush=True)
    key = f"{n} tokens, {' '.join(COLUMNS)}"  # a new decoder asks all rows again
    rows = cells.compute({f"{name}; {key}": partial(row, name, n) for name in MODELS}, cores())
    write_text(args.out, page(dict(zip(MODELS, rows.values())), n))


if __name__ == "__main__":
    main()
