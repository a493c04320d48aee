"""Toward General Instruction-Following Alignment for Retrieval-Augmented Generation (VIF-RAG: Dong et al. 2024, arXiv
2410.09584).

Verifier functions written by a model are cross-validated against test cases, and keep only training answers that follow
their instruction. Part one: how well the surviving functions agree with the true verifier (the paper's rule, and a
majority). Part two: models trained to answer from passages alone, with unverified instructions too, or with verified
ones, by instructions followed without and with passages, and answers. In Lilt, a language of verifiable instructions;
the verdict needs good functions to survive, always-true ones not, and verified data ahead without loss of answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from random import Random
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch

from segue.kinds.codecs import ItemCodec
from segue.papers.base import Claim, Row, Run, Verdict
from segue.programs import Local
from segue.programs.crosscheck import Case, cross_validate
from segue.programs.pipeline import Pipeline, Produced, Value
from segue.programs.sandbox import Sandbox
from segue.tasks import Answers, small_decoder
from segue.tasks.lilt import BOT, CODEC, ECHO, FAMILIES, USER, Constraint, Instruction, holds
from segue.training.learn import learn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The verifier functions that the programmed supervisor writes: for each family two correct checks and one off by one.
SOURCE = """def evaluate(response, argument):
    words = response.split()
    quoted = len(words) > 2 and words[0] == words[-1] == '"'
    inner = words[1:-1] if quoted else words
    same = [word.lower() for word in inner]
    return {}
"""
CHECKS = {
    "exactly": ("len(inner) == int(argument)", "int(argument) - len(inner) == 0", "len(inner) == int(argument) + 1"),
    "atleast": ("len(inner) >= int(argument)", "not len(inner) < int(argument)", "len(inner) > int(argument)"),
    "include": ("argument in same", "any(word == argument for word in same)", "argument in same[1:]"),
    "avoid": ("argument not in same", "all(word != argument for word in same)", "argument not in same[1:]"),
    "twice": ("same.count(argument) == 2", "sum(word == argument for word in same) == 2", "same.count(argument) > 2"),
    "start": ("same[:1] == [argument]", "bool(same) and same[0] == argument", "same[1:2] == [argument]"),
    "end": ("same[-1:] == [argument]", "bool(same) and same[-1] == argument", "same[-2:-1] == [argument]"),
    "upper": ("all(word.isupper() for word in inner)", "''.join(inner) == ''.join(inner).upper()",
              "all(word.isupper() for word in inner[1:])"),
    "lower": ("all(word.islower() for word in inner)", "''.join(inner) == ''.join(inner).lower()",
              "all(word.islower() for word in inner[1:])"),
    "quote": ("quoted", "len(inner) < len(words)", "words[1:2] == ['\"']"),
}
TRUE, CRASH = "True", "words[99] == argument"
FUNCTIONS, CASES, WRONG, DROPPED = 8, 24, 0.2, 0.6

COLOURS = ("red", "blue", "green", "black", "white", "brown", "pink", "grey")
PLACES = tuple(f"p{i}" for i in range(1, 10))
BOTH = ItemCodec([*CODEC.items, *COLOURS, *PLACES, "fact", "colour", "of"])
RAG, UNVERIFIED, VERIFIED = "passages alone", "unverified instructions", "verified instructions"
PAPER, MAJORITY = "one function keeps a case", "most functions keep a case"
RULES = {PAPER: 0.0, MAJORITY: 0.5}


def write_functions(family: str, random: Random) -> list[str]:
    """Candidate verifier functions of a family, of which half are wrong."""
    *correct_checks, off_by_one = CHECKS[family]
    correct = [SOURCE.format(check) for check in correct_checks]
    wrong = [SOURCE.format(off_by_one), SOURCE.format(TRUE), SOURCE.format(CRASH),
             correct[0].replace("words[1:-1] if quoted else words", "words"),
             correct[0].replace("word.lower()", "word")]
    return [random.choice(correct if random.random() < 0.5 else wrong) for _ in range(FUNCTIONS)]


def sample_case(family: str, random: Random) -> tuple[str, Constraint]:
    """An answer written for a constraint of the family or, with probability 1/2, for none; and the constraint."""
    while True:
        instruction = Instruction.sample(random)
        if family in dict(instruction.constraints):
            followed = Instruction(instruction.topic, ()) if random.random() < 0.5 else instruction
            return " ".join(followed.answer(random)), (family, dict(instruction.constraints)[family])


def sample_cases(family: str, count: int, random: Random, wrong: float = 0.0) -> list[Case]:
    """Test cases labelled by the true verifier, a share `wrong` of them with the wrong label."""
    samples = [sample_case(family, random) for _ in range(count)]
    return [([answer, constraint[1]], holds(constraint, answer.split()) != (random.random() < wrong))
            for answer, constraint in samples]


def survivors(seed: int, tests: int, support: float, families: Sequence[str],
              ) -> tuple[dict[str, list[str]], dict[str, float]]:
    """The functions of each family that survive cross-validation, and their agreement with the true verifier, before
    and after."""
    random, sandbox, kept = Random(f"functions {seed}"), Sandbox(seconds=2.0, needs=()), dict[str, list[str]]()
    before, after, correct_kept, always_true = list[float](), list[float](), list[bool](), 0
    for family in families:
        candidates = write_functions(family, random)
        cases = sample_cases(family, CASES, random, WRONG)
        kept[family] = cross_validate(candidates, cases, sandbox, support=support).functions
        # Drawn apart, so that the functions do not depend on how many tests there are.
        test_cases = sample_cases(family, tests, Random(f"tests {seed} {family}"))
        for source in dict.fromkeys(candidates):
            outputs = sandbox.run(source, "evaluate", [arguments for arguments, _ in test_cases])
            agreement = mean(output.value is label for output, (_, label) in zip(outputs, test_cases))
            before += [agreement] * candidates.count(source)
            after += [agreement] * (source in kept[family])
            correct_kept += [source in kept[family]] * (agreement == 1)
            always_true += source in kept[family] and source.endswith(f"return {TRUE}\n")
    return kept, {"before": mean(before), "after": mean(after) if after else 0.0, "recall": mean(correct_kept),
                  "always true": always_true, "families": sum(map(bool, kept.values()))}


def score_functions(seed: int, tests: int, support: float, families: Sequence[str]) -> dict[str, float]:
    return survivors(seed, tests, support, families)[1]


def write_answers(values: Sequence[Value], seed: int, families: Sequence[str]) -> list[list[dict[str, Any]]]:
    """Instructions with answers, which often violate one of the constraints."""
    rows = []
    for value in values:
        random = Random(f"answer {seed} {value['number']}")
        instruction = followed = Instruction.sample(random, among=families)
        if random.random() < DROPPED:
            constraints = random.sample(instruction.constraints, len(instruction.constraints) - 1)
            followed = Instruction(instruction.topic, tuple(constraints))
        rows.append([{"prompt": instruction.prompt, "answer": followed.answer(random)}])
    return rows


def find_violations(values: Sequence[Value], kept: dict[str, list[str]]) -> list[str]:
    """For each answer the family of a constraint that at most half of its functions accept (or that has no function);
    else ""."""
    sandbox, violated = Sandbox(seconds=2.0, needs=()), [""] * len(values)
    constraints = [(i, *constraint) for i, value in enumerate(values)
                   for constraint in Instruction.read(value["prompt"]).constraints]
    for family in kept:
        of_family = [(i, argument) for i, name, argument in constraints if name == family]
        calls = [(" ".join(values[i]["answer"]), argument) for i, argument in of_family]
        votes = [sandbox.run(source, "evaluate", calls) for source in kept[family]]
        for (i, _), *outputs in zip(of_family, *votes):
            if 2 * sum(output.value is True for output in outputs) <= len(outputs):
                violated[i] = family
    return violated


def verify_answers(kept: dict[str, list[str]], count: int, seed: int) -> Produced:
    """`count` instructions with answers, filtered by the functions."""
    return (Pipeline().write("answer", partial(write_answers, seed=seed, families=tuple(kept)))
            .keep("verify", partial(find_violations, kept=kept)).run({"number": number} for number in range(count)))


def sample_passages(random: Random) -> tuple[list[str], list[str], list[str]]:
    """Three facts, a question about one of them, and its answer."""
    places = random.sample(PLACES, 3)
    colours = [random.choice(COLOURS) for _ in places]
    facts = [word for place, colour in zip(places, colours) for word in ("fact", place, colour)]
    index = random.randrange(3)
    return facts, ["colour", "of", places[index]], [colours[index]]


def after_passages(facts: Sequence[str], prompt: Sequence[str]) -> list[str]:
    return [USER, *facts, *prompt[1:]]


def train_model(arm: str, rows: Sequence[tuple[list[str], list[str]]], steps: int, seed: int) -> Local:
    """Train a model to answer questions from passages, then also to follow the arm's instructions, half of them after
    passages."""
    def ask(random: Random) -> tuple[list[str], list[str]]:
        facts, question, answer = sample_passages(random)
        return [USER, *facts, *question, BOT], answer

    def follow(random: Random) -> tuple[list[str], list[str]]:
        prompt, answer = random.choice(rows)
        return (after_passages(sample_passages(random)[0], prompt) if random.random() < 0.5 else prompt), answer

    second_phase = {"ask": 0.9, "echo": 0.1} if arm == RAG else {"ask": 0.35, "follow": 0.6, "echo": 0.05}
    phases = {0: {"ask": 0.6, "echo": 0.4}, 3 * steps // 8: second_phase}
    task = Answers(BOTH, {"ask": ask, "follow": follow, "echo": ECHO}, phases)
    torch.manual_seed(seed)
    model = small_decoder(BOTH.size)
    learn(model, task.batches(96, seed), steps, rate=0.01, seed=seed, muon=True, cooldown=0.3)
    return Local(model.eval(), BOTH, batch=300)


def score_model(model: Local, tests: int, seed: int) -> dict[str, float]:
    """Shares of instructions followed (true verifier), without and with passages, and of questions answered right."""
    instructions = [Instruction.sample(Random(f"test {seed} {i}")) for i in range(tests)]
    passages = [sample_passages(Random(f"facts {seed} {i}")) for i in range(tests)]
    prompts_of = {"": [instruction.prompt for instruction in instructions],
                  " with passages": [after_passages(facts, instruction.prompt)
                                     for instruction, (facts, *_) in zip(instructions, passages)]}
    values = dict[str, float]()
    for context, prompts in prompts_of.items():
        for decoding, temperature in (("greedy", 0.0), ("drawn", 1.0)):
            replies = model.write([" ".join(prompt) for prompt in prompts], most=16, temperature=temperature, seed=seed)
            values[decoding + context] = mean(not instruction.violations(reply.text.split())
                                              for instruction, reply in zip(instructions, replies))
    replies = model.write([" ".join([USER, *facts, *question, BOT]) for facts, question, _ in passages], most=4)
    correct = mean(reply.text.split() == answer for reply, (*_, answer) in zip(replies, passages))
    return values | {"answers": correct}


@cache
def training_rows(seed: int, count: int, families: Sequence[str]) -> dict[str, list[tuple[list[str], list[str]]]]:
    """Pairs of prompt and answer by arm."""
    functions, _ = survivors(seed, 20, RULES[MAJORITY], families)
    verified = [(item.value["prompt"], item.value["answer"]) for item in verify_answers(functions, count, seed).items]
    unverified = [(row["prompt"], row["answer"]) for row, in
                  write_answers([{"number": i} for i in range(count)], seed, families)]
    return {RAG: [], UNVERIFIED: unverified, VERIFIED: verified}


def run_arm(arm: str, seed: int, steps: int, count: int, tests: int, families: Sequence[str]) -> dict[str, float]:
    """Train and score the model of an arm."""
    rows = training_rows(seed, count, families)[arm]
    correct = mean(not Instruction.read(prompt).violations(answer) for prompt, answer in rows) if rows else 0.0
    return score_model(train_model(arm, rows, steps, seed), tests, seed) | {"rows": len(rows), "right rows": correct}


def measure(run: Run) -> list[Row]:
    families = FAMILIES[: run.pick(1, len(FAMILIES))]
    setting = run.pick({"steps": 3, "count": 60, "tests": 6}, {"steps": 320, "count": 5000, "tests": 500})
    seeds, cases = range(run.seed, run.seed + run.pick(1, 2)), run.pick(10, 1000)
    cells = run.cells({f"{arm} {seed}": partial(run_arm, arm, seed, **setting, families=families) for seed in seeds
                       for arm in (VERIFIED, UNVERIFIED, RAG)}
                      | {f"{rule} {seed}": partial(score_functions, seed, cases, RULES[rule], families)
                         for rule in RULES for seed in range(run.seed, run.seed + run.pick(1, 3))})
    table: list[Row] = []
    for arm in (RAG, UNVERIFIED, VERIFIED, *RULES):
        results = [result for key, result in cells.items() if key.rsplit(" ", 1)[0] == arm]
        table.append({"part": "functions" if arm in RULES else "model", "arm": arm}
                     | {metric: mean(result[metric] for result in results) for metric in results[0]}
                     | ({} if arm in RULES else {"greedy by seed": [result["greedy"] for result in results],
                                                 "drawn by seed": [result["drawn"] for result in results]}))
    run.note(f"functions: for each of Lilt's {len(families)} families a programmed supervisor writes {FUNCTIONS}, half "
             f"of them off by one, deaf to quotes or case, always true, or crashing, and {CASES} cases, {WRONG:.0%} of "
             f"them wrong; all run in the sandbox; agreement with the true verifier on {cases} answers a family, in 3 "
             "draws")
    run.note(f"models: 0.35 million parameters, {setting['steps']} steps of 96 rows: three eighths of questions "
             "about passages and of rows that are said again, alike for all arms, and then 60% instructions (passages "
             f"alone: none), half of them behind passages; {setting['count']} instructions whose answers "
             f"forget a constraint {DROPPED:.0%} of the time, all of them or those that the surviving functions "
             f"({MAJORITY}) let through; {setting['tests']} held-out ones, by the true verifier")
    run.note("the form of the questions (the colour said next to its name) and learning them first were found in"
             " pilots on other seeds, of four settings: before, answers were 44 to 91% right; instructions "
             "verified for training are kept by a majority of functions, the paper's rule leaving one or two families "
             "in ten without any")
    return table


def judge(table: list[Row]) -> tuple[Verdict, str]:
    by_arm = {row["arm"]: row for row in table}
    alone, unverified, verified, kept = (by_arm[arm] for arm in (RAG, UNVERIFIED, VERIFIED, PAPER))
    reason = (f"functions agree with the truth {kept['before']:.1%} of the time before, {kept['after']:.1%} after, "
              f"recall {kept['recall']:.0%}, always-true ones left {kept['always true']:g}; verified data "
              f"{verified['greedy']:.1%} greedy and {verified['drawn']:.1%} drawn, unverified "
              f"{unverified['greedy']:.1%} and {unverified['drawn']:.1%}; behind passages "
              f"{verified['greedy with passages']:.1%}, {unverified['greedy with passages']:.1%} and "
              f"{alone['greedy with passages']:.1%} without instructions; answers {verified['answers']:.1%} and "
              f"{alone['answers']:.1%}")
    if kept["always true"] or verified["greedy"] <= unverified["greedy"]:
        return "refuted", reason
    confirmed = (verified["greedy"] >= unverified["greedy"] + 0.10 and verified["drawn"] >= unverified["drawn"] + 0.15
                 and kept["after"] >= 0.97 and kept["recall"] >= 0.8
                 and verified["greedy with passages"] >= alone["greedy with passages"] + 0.15
                 and verified["greedy with passages"] >= unverified["greedy with passages"] + 0.08
                 and verified["answers"] >= alone["answers"] - 0.02)
    return ("confirmed" if confirmed else "inconclusive"), reason


def draw(figure: Figure, table: list[Row]) -> None:
    left, right = figure.subplots(1, 2, width_ratios=(2, 3))
    rules = [row for row in table if row["part"] == "functions"]
    for group, metric in enumerate(("before", "after", "recall")):
        bars = left.bar([group * 3 + i for i in range(len(rules))], [100 * row[metric] for row in rules],
                        color=["C0", "C1"])
        left.bar_label(bars, fmt="%.0f", fontsize="small")
    left.set_xticks([0.5, 3.5, 6.5], ["agreement\nbefore", "agreement\nafter", "good ones\nkept"], fontsize="small")
    left.legend(handles=[left.patches[0], left.patches[1]], labels=[row["arm"] for row in rules], fontsize="small")
    left.set(title="functions", ylabel="%", ylim=(0, 130))
    models = [row for row in table if row["part"] == "model"]
    metrics = ("greedy", "drawn", "greedy with passages", "drawn with passages", "answers")
    for offset, row in enumerate(models):
        bars = right.bar([4 * i + offset for i in range(len(metrics))], [100 * row[metric] for metric in metrics],
                         color=f"C{offset + 2}", label=row["arm"])
        right.bar_label(bars, fmt="%.0f", fontsize="small")
    right.set_xticks([4 * i + 1 for i in range(len(metrics))], [metric.replace(" ", "\n") for metric in metrics],
                     fontsize="small")
    right.set(title="instructions followed, and questions answered", ylim=(0, 130))
    right.legend(fontsize="small")


CLAIM = Claim(
    slug="vif-rag",
    statement="Instructions whose answers were verified by functions that a model wrote, and that were held against "
              "each other, teach a model to follow instructions without losing its answers from passages.",
    rule="Lilt: refuted if a function that is always true survives, or unverified data do as well (greedy); confirmed "
         "if the surviving functions (of the paper's rule, where one keeps a case) agree with the truth at least 97% "
         "of the time and at least 80% of the good ones survive (mean of 3 draws), verified data are ahead of "
         "unverified by at least 10 points greedy and 15 drawn, "
         "and behind passages by 8 and ahead of passages alone by 15, with answers at most 2 points below those of "
         "passages alone (mean of 2 seeds); else inconclusive.",
    measure=measure, judge=judge, draw=draw,
    paper={"FollowRAG": "over 10% above fine-tuning on average (secondary source), on 4 backbones",
           "stable": "up to 4 constraints"},
)
