"""Hydra: Sequentially-Dependent Draft Heads for Medusa Decoding (Ankner et al. 2024, arXiv 2402.05109).

Draft heads are trained on a frozen character model of TinyShakespeare. A Medusa head predicts from the base's hidden
state alone, a Hydra head also sees the tokens drafted before its own. Compared, by tokens per pass of the base and by
agreement with its greedy text: Medusa, a Medusa with as many parameters as Hydra, Hydra, a Hydra that sees only the
drafted tokens, and variants (distilled, Hydra++).

The claim holds if Hydra gives clearly more tokens per pass than Medusa, its later heads agree more often, and no text
changes; it is refuted if size alone, or the drafted tokens alone, do as well.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from segue.decoding import generate
from segue.decoding.draft.heads import HeadsDraft, default_tree
from segue.mixers.layout import Layout
from segue.mixers.state import State
from segue.models import Stack, StackConfig
from segue.models.heads import DraftHeads
from segue.objectives import Batch, DraftHeadsLoss, generator_of
from segue.papers.base import Claim, Row, Run, Verdict
from segue.training.learn import learn, random_windows
from segue.verbs.speed_up import count_hits

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEADS, CONTEXT, ROWS = 4, 96, 16
CHAIN = tuple((0,) * size for size in range(1, HEADS + 1))
TREE = default_tree(HEADS, 16)
# Two layers of Hydra hold 5, 7, 9 and 11 square matrices, as many as eight layers of four Medusa heads.
ARMS: dict[str, dict[str, Any]] = {
    "medusa": {"sequential": False, "layers": 2},
    "medusa, as large": {"sequential": False, "layers": 8},
    "hydra": {"layers": 2},
    "hydra, hidden state unseen": {"layers": 2},
    "hydra, distilled": {"layers": 2},
    "hydra++": {"layers": 4, "window": CONTEXT},
}


class TokensOnlyHeads(DraftHeads):
    """The control: heads that see only the drafted tokens, the hidden state being zeroed."""

    def condition(self, hidden: Tensor, layout: Layout | None = None, state: State | None = None) -> Tensor:
        return torch.zeros_like(super().condition(hidden, layout, state))


def synthetic_text(count: int) -> Tensor:
    """Characters of a random bigram grammar with three successors each."""
    random = np.random.default_rng(0)
    follow, text = random.integers(0, 20, (20, 3)), [0]
    for _ in range(count):
        text.append(int(follow[text[-1], random.integers(3)]))
    return torch.tensor(text)


@cache
def text(path: Path | None) -> tuple[Tensor, Tensor]:
    """Training characters, and the last tenth, held out. path None: synthetic text."""
    if path is None:
        ids = synthetic_text(4000)
    else:
        characters = np.frombuffer((path / "input.txt").read_bytes(), np.uint8)
        ids = torch.from_numpy(np.unique(characters, return_inverse=True)[1])
    return ids[: len(ids) * 9 // 10], ids[len(ids) * 9 // 10 :]


def batches(ids: Tensor, seed: int) -> Callable[[int], Batch]:
    """Step -> a batch of random windows of the text."""
    def batch(step: int) -> Batch:
        rows = random_windows(ids, ROWS, CONTEXT, generator_of(seed, step))
        return Batch(rows[:, :-1], rows[:, 1:])

    return batch


@cache
def train_base(path: Path | None, width: int, depth: int, steps: int, seed: int) -> Stack:
    train = text(path)[0]
    torch.manual_seed(seed)
    base = Stack(StackConfig(int(train.max()) + 1, width, ["attention"] * depth))
    learn(base, batches(train, seed), steps, seed=seed)
    return base.eval()


def score(arm: str, path: Path | None, width: int, depth: int, base_steps: int, steps: int, prompts: int, n: int,
          seed: int) -> dict[str, Any]:
    """Train the heads of an arm, then decode with them, in float64 so that rounding changes no token."""
    base = train_base(path, width, depth, base_steps, seed).float()
    train, test = text(path)
    torch.manual_seed(seed)
    heads = (TokensOnlyHeads if "unseen" in arm else DraftHeads).for_base(base, heads=HEADS, **ARMS[arm])
    learn(heads, batches(train, seed + 1), steps, rate=1e-3, seed=seed,
          objective=DraftHeadsLoss(base, distil=arm in ("hydra, distilled", "hydra++")))
    base, heads = base.double(), heads.double().eval()
    places = np.linspace(0, len(test) - CONTEXT, prompts).astype(int)
    primes = [test[place : place + CONTEXT // 2].tolist() for place in places]
    result: dict[str, Any] = {"parameters": sum(parameter.numel() for parameter in heads.parameters())}
    same = []
    for name, options, paths in (("chain", {"decoder": "greedy"}, CHAIN), ("tree", {"decoder": "greedy"}, TREE),
                                 ("sampled", {"decoder": "sample", "temperature": 1.0}, CHAIN)):
        plain = generate(base, primes, n, seed=seed, **options)
        drafted = generate(base, primes, n, seed=seed, draft=HeadsDraft(heads, paths), adaptive=False,
                           **options)
        # The first token comes from the prompt's own pass.
        result[name] = sum(answer.produced - 1 for answer in drafted) / sum(answer.passes - 1 for answer in drafted)
        same += [one.tokens == two.tokens for one, two in zip(plain, drafted)]
    hits, totals = count_hits(heads, base, base, primes, n, [{"decoder": "greedy"}])
    result |= {f"head {k + 1}": float(hits[k, 0] / totals[k]) for k in range(HEADS)}
    return result | {"same texts": sum(same) / len(same)}


def measure(run: Run) -> list[Row]:
    path = run.dataset("tiny-shakespeare")
    width, depth, base_steps, steps = run.pick((32, 1, 5, 3), (128, 4, 600, 400))
    prompts, n = run.pick((2, 12), (24, 64))
    run.note(f"a base of {depth} layers of width {width}, {base_steps} steps; heads {steps} steps, {ROWS} rows of "
             f"{CONTEXT} characters; {prompts} held-out prompts, {n} characters after each; agreement is with the "
             "base's own greedy text")
    return [{"heads": arm} | run.cell(arm, partial(score, arm, path, width, depth, base_steps, steps, prompts, n,
                                                   run.seed)) for arm in ARMS]


def judge(table: list[Row]) -> tuple[Verdict, str]:
    rows = {row["heads"]: row for row in table}
    hydra, medusa = rows["hydra"], rows["medusa"]
    ratio = hydra["chain"] / medusa["chain"]
    large = hydra["chain"] / rows["medusa, as large"]["chain"]
    unseen = hydra["chain"] / rows["hydra, hidden state unseen"]["chain"]
    gain = 100 * sum(hydra[f"head {k}"] - medusa[f"head {k}"] for k in (3, 4)) / 2
    same = all(row["same texts"] == 1 for row in table)
    reason = (f"Hydra gives {ratio:.2f} times Medusa's tokens per pass, {large:.2f} times those of a Medusa as large, "
              f"{unseen:.2f} times those of a Hydra that sees no hidden state; heads 3 and 4 agree {gain:+.0f} points; "
              f"texts are {'the same' if same else 'NOT the same'} as without drafts")
    if ratio < 1.1 or large < 1.1 or unseen <= 1 or not same:
        return "refuted", reason
    return ("confirmed" if ratio >= 1.25 and gain >= 20 else "inconclusive"), reason


def draw(figure: Figure, table: list[Row]) -> None:
    passes, agreement = figure.subplots(1, 2)
    for index, name in enumerate(("chain", "tree", "sampled")):
        passes.barh([at + 0.27 * (index - 1) for at in range(len(table))], [row[name] for row in table], 0.26,
                    label=name)
    passes.set_yticks(range(len(table)), [row["heads"] for row in table])
    passes.invert_yaxis()
    passes.set(xlabel="tokens per pass of the base", title="Drafted by a chain of 4, a tree of 16")
    passes.legend(fontsize="small")
    for row in table:
        agreement.plot(range(1, HEADS + 1), [row[f"head {k}"] for k in range(1, HEADS + 1)], marker="o",
                       label=row["heads"])
    agreement.set(xlabel="head", ylabel="likeliest token is the base's", ylim=(0, 1.4),  # above one: the legend
                  xticks=range(1, HEADS + 1), yticks=[0, 0.2, 0.4, 0.6, 0.8, 1], title="Agreement with the base")
    agreement.legend(fontsize="small", loc="upper right")


CLAIM = Claim(
    slug="hydra-heads",
    statement="Draft heads that see the tokens drafted before their own guess further ahead than Medusa heads, so more "
              "tokens are accepted per pass, and the text stays the same.",
    rule="confirmed if on the chain Hydra gives at least 1.25 times Medusa's tokens per pass of the base and its heads "
         "3 and 4 agree with the base at least 20 points more often on average; refuted if the ratio is below 1.1, or "
         "below 1.1 against a Medusa of as many parameters, or if a Hydra that does not see the hidden state does as "
         "well, or if any text differs from that without drafts; else inconclusive.",
    measure=measure, judge=judge, draw=draw,
    paper={"Hydra++ over Medusa, Vicuna on MT-Bench": "up to 1.31 times",
           "Hydra++ over plain decoding": "2.70 times",
           "Medusa over plain decoding": "over 2.2 times"},
)
