"""The command line: the verbs, typed. It parses, calls one library function, and prints; it knows nothing else.

Results go to stdout, messages to stderr. Exit code 0: done; 2: the user's mistake; 1: ours; 130: interrupted.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

import segue
from segue.errors import SegueError

app = typer.Typer(name="segue", add_completion=False, pretty_exceptions_enable=False,
                  help="Learn from sequences of any kind, continue them fast, and keep learning without forgetting.",
                  epilog="Start with: segue demo")

UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # the parser's own error, wherever typer keeps it
LEFT = "nothing is half-written; run the same command again to go on"


class Interrupted(Exception):
    """The user pressed Ctrl-C; the parser would swallow a KeyboardInterrupt and with it what was saved."""


def command(name: str, example: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function a command, with its example in --help and an interrupt reported by `main`."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> None:
            try:
                function(*args, **kwargs)
            except (KeyboardInterrupt, typer.Abort) as stop:  # Abort: Ctrl-C, or no more input, at a question
                raise Interrupted(*stop.args) from stop
            except BrokenPipeError:  # the parser would make a failure of it
                exit_quietly()

        app.command(name, epilog=f"Example: {example}")(run)
        return function

    return register


def show(renderable: Any) -> None:
    """Print a rich renderable or plain text to stdout."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 120)
    with console.capture() as text:  # rich, too, would make a failure of a pipe that is closed
        console.print(renderable, markup=False, highlight=False)
    print(text.get(), end="")


def show_json(value: Any, file: Path | None = None) -> None:
    """Data only: to stdout, or to a file."""
    if file is None:
        print(json.dumps(replace_nonfinite(value), indent=2, ensure_ascii=False))
    else:
        from segue.files import write_json

        write_json(file, replace_nonfinite(value))


def replace_nonfinite(value: Any) -> Any:
    """The same, with null for numbers that JSON does not know (not a number, infinite)."""
    if isinstance(value, dict):
        return {name: replace_nonfinite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [replace_nonfinite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def drop_unset(**options: Any) -> dict[str, Any]:
    """The options that were given: the library's own defaults stand for the others."""
    return {name: value for name, value in options.items() if value not in (None, [])}


def parse_settings(pairs: list[str] | None) -> dict[str, Any]:
    """['width=256', 'who=user'] -> {'width': 256, 'who': 'user'}: values are JSON where they can be, else text."""
    values: dict[str, Any] = {}
    for text in pairs or []:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise SegueError(f"'{text}' is not NAME=VALUE, for example width=256")
        try:
            values[name] = json.loads(value)
        except ValueError:
            values[name] = value
    return values


def read_files(paths: list[Path], kind: str | None = None, how: list[str] | None = None, fitted: Any = None,
               **defaults: Any) -> Any:
    """Read files, with the options of a fitted model if there is one. An error that asks for an option of the kind also
    says how to give it on the command line.
    defaults: options of the kind, overridden by those of --read."""
    options = defaults if fitted is None else fitted.reading | defaults
    try:
        return segue.read(*map(str, paths), **drop_unset(kind=kind), **options | parse_settings(how))
    except SegueError as error:
        if required := re.findall(r"\b([a-z_]+)=(?!=)", str(error)):
            typed = " and ".join("--kind" if name == "kind" else f"--read {name}=..."
                                 for name in dict.fromkeys(required))
            raise SegueError(f"{error} (on the command line: {typed})") from error
        raise


def set_prompt(file: Path) -> Any:
    """A prompt some parts of which have no order, from a JSON list."""
    from segue.decoding import SetPrompt
    from segue.files import read_json

    pieces = read_json(file)
    if not isinstance(pieces, list):
        raise SegueError(f"{file} holds no JSON list: write [text, [part, part], text]")
    return SetPrompt(pieces)


Paths = Annotated[list[Path], typer.Argument(metavar="PATH", show_default=False, help="Files, folders, archives or "
                                             "globs.")]
Model = Annotated[Path, typer.Argument(metavar="MODEL", show_default=False, help="A folder that fit wrote.")]
Kind = Annotated[str | None, typer.Option(metavar="K", help="What the files hold; found from the files if not said.")]
How = Annotated[list[str] | None, typer.Option("--read", metavar="NAME=VALUE", help="How the files are read, for "
                                               "example who=customer; may be repeated.")]
Choices = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Choose what else is chosen "
                                                   "for you, for example width=256; may be repeated.")]
Minutes = Annotated[float | None, typer.Option(metavar="M", help="How long to train.")]
Steps = Annotated[int | None, typer.Option(metavar="N", help="How many optimiser steps to train, instead of minutes.")]
Seed = Annotated[int | None, typer.Option(metavar="S", help="Fixes everything random.")]
Temperature = Annotated[float | None, typer.Option(metavar="T", help="Below 1 safer, above 1 more surprising.")]
TopK = Annotated[int | None, typer.Option(metavar="K", help="Only the K likeliest.")]
TopP = Annotated[float | None, typer.Option(metavar="P", help="Only the likeliest that have this much probability.")]
MinP = Annotated[float | None, typer.Option(metavar="P", help="Only those P times as likely as the best, at least.")]
Penalty = Annotated[float | None, typer.Option(metavar="R", help="Above 1: repeats less of what was said.")]
Weights = Annotated[str | None, typer.Option(metavar="W", help="float32, or int8: faster, a little worse.")]
State = Annotated[str | None, typer.Option(metavar="NAME", help="Begin in the state that the update of this name "
                                           "learned (--strategy state).")]
Bulk = Annotated[str | None, typer.Option("--device", metavar="NAME", help="Where it runs: cuda, cuda:1 or cpu "
                                          "(default: a GPU where there is one).")]
Single = Annotated[str | None, typer.Option("--device", metavar="NAME", help="Where it runs: cuda, cuda:1 or cpu "
                                            "(default: the CPU, which is faster for a few texts at once of a small "
                                            "model).")]
Stop = Annotated[list[str] | None, typer.Option(metavar="TEXT", help="Stop before this; may be repeated.")]
LearnDir = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where the model goes (default: over "
                                               "MODEL).")]
OutDir = Annotated[Path | None, typer.Option(metavar="DIR", help="Write a memory-mappable data set.")]
PrimeFile = Annotated[Path | None, typer.Option(metavar="F", help="Go on from the first sequence of a file.")]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the numbers here.")]


@command("read", "segue read genomes/*.fa.gz --out corpus")
def read(paths: Paths, kind: Kind = None, how: How = None, out: OutDir = None) -> None:
    """Say what the files hold: kind, sequences, lengths, vocabulary, examples, problems."""
    data = read_files(paths, kind, how)
    show(data.summary())
    if out is not None:
        data.save(out)
        print(f"written to {out}", file=sys.stderr)


@command("fit", "segue fit src/ --out model --minutes 5")
def fit(paths: Paths,
        out: Annotated[Path, typer.Option(metavar="DIR", help="Where the model goes. Run again: resumes.",
                                          show_default=False)],
        minutes: Minutes = None, steps: Steps = None,
        mixer: Annotated[str | None, typer.Option(metavar="PATTERN", help="The sequence mixers, for example "
                                                  "'attention' or 'mamba*3+attention'.")] = None,
        objective: Annotated[str | None, typer.Option(metavar="NAME", help="What the network learns by: next (the "
                                                      "next element; default), timed (when events come, beside "
                                                      "which), cloze (reads both ways, fills in masks), diffusion "
                                                      "(fills gaps, writes in any order), marginal (words of "
                                                      "DNA by their letters), unlikelihood, occupancy or "
                                                      "rollout-unlikelihood.")] = None,
        kind: Kind = None, seed: Seed = None, how: How = None, choices: Choices = None, device: Bulk = None) -> None:
    """Learn a model of the files. An interrupted or killed run goes on when the same command is run again."""
    check_duration(minutes, steps)
    options = parse_settings(choices) | drop_unset(minutes=minutes, steps=steps, mixer=mixer, seed=seed,
                                                   objective=objective, device=device)
    if twice := {"data", "out"} & options.keys():
        raise SegueError(f"{' and '.join(sorted(twice))} cannot be --set: give PATH and --out")
    data = read_files(paths, kind, how)
    fitted = segue.fit(data, out=out, **options)
    show(fitted.report)
    print(f"saved in {out}", file=sys.stderr)


@command("continue", "segue continue model 'def main(' -n 200 --decoder sample --seed 1")
def continue_(model: Model,
              prime: Annotated[str | None, typer.Argument(metavar="PRIME", show_default=False,
                                                          help="What to go on from.")] = None,
              prime_file: PrimeFile = None,
              parts: Annotated[Path | None, typer.Option(metavar="F", help="Go on from a prompt some parts of which "
                                                         "have no order: a file with a JSON list, text, list of "
                                                         "parts, text, ..., text.")] = None,
              n: Annotated[int | None, typer.Option("-n", metavar="N", help="How many elements to add (of measured "
                                                         "numbers, moments).")] = None,
              decoder: Annotated[str | None, typer.Option(metavar="NAME", help="greedy, sample, trie, lookup, "
                                                          "beam, diverse-beam, contrastive, exact or tree.")] = None,
              draft: Annotated[str | None, typer.Option(metavar="NAME", help="Who drafts, with any of them: trie, "
                                                        "lookup, source, both, counts, depth, heads, none, or the "
                                                        "folder of a small model.")] = None,
              temperature: Temperature = None, top_k: TopK = None, top_p: TopP = None, min_p: MinP = None,
              repetition_penalty: Penalty = None, stop: Stop = None, weights: Weights = None, seed: Seed = None,
              state: State = None,
              samples: Annotated[int | None, typer.Option(metavar="K", help="Draw K answers; of measured numbers they "
                                                          "give medians and intervals (100 if not said).")] = None,
              depth: Annotated[str | None, typer.Option(metavar="L", help="How many layers read each next element: 4, "
                                                        "or 8-3, from so many at the answer's beginning to so many at "
                                                        "its end. Another text, good if the model learned it so.")]
              = None,
              choices: Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any other option "
                                                                "of the decoder, named as in transformers, such as "
                                                                "num_beams=8 or no_repeat_ngram_size=3.")] = None,
              as_json: Annotated[bool, typer.Option("--json", help="Print data only.")] = False,
              how: How = None, device: Single = None,
              out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the continuation in the kind's "
                                                       "own file format (forecasts also: .png).")] = None) -> None:
    """Go on from a prime: what comes next?"""
    if sum(each is not None for each in (prime, prime_file, parts)) > 1:
        raise SegueError("give a prime, --prime-file or --parts, not both")
    begin = prime or prime_file if parts is None else set_prompt(parts)
    fitted = segue.load(model, device)
    if out is not None and out.suffix.lower() not in (".png", ".svg", ".pdf"):  # a forecast may be a picture
        fitted.kind.check_name(out)
    try:
        answer = fitted.continue_(begin, **parse_settings(choices) | drop_unset(
            n=n, decoder=decoder, draft=draft, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
            repetition_penalty=repetition_penalty, stop=stop, weights=weights, seed=seed, depth=depth,
            state=state, samples=samples, reading=parse_settings(how) or None))
    except SegueError as error:
        if prime is None or not os.path.exists(prime):
            raise
        raise SegueError(f"{error} (to go on from a file: --prime-file {prime})") from error
    if out is not None:
        answer.save(out)
    if as_json:
        show_json(answer.as_dict())
    elif out is None:
        print(answer.text)
    if not as_json:
        print(answer.note, file=sys.stderr)
    if prime is not None and len(prime) < 256 and os.path.isfile(prime):
        print(f"this continued the letters '{prime}'; to continue the file of that name: --prime-file", file=sys.stderr)


@command("write", "segue write story.json qwen --endpoint http://localhost:8000/v1 --premise 'A keeper finds a map.'")
def write(story: Annotated[Path, typer.Argument(metavar="STORY", show_default=False,
                                                help="The story's JSON file; one that exists is continued.")],
          model: Annotated[str, typer.Argument(metavar="MODEL", show_default=False,
                                               help="A folder, or a name behind --endpoint.")],
          endpoint: Annotated[str | None, typer.Option(metavar="URL", help="An OpenAI-compatible server, up to "
                                                       "/v1.")] = None,
          premise: Annotated[str | None, typer.Option(metavar="TEXT", help="What a new story is about.")] = None,
          steps: Annotated[int | None, typer.Option(metavar="N", help="Paragraphs to add (default 5).")] = None,
          plans: Annotated[str | None, typer.Option(metavar="WHO", help="Who picks what comes next: model (default), "
                                                    "first (no further calls), or ask, which asks you.")] = None,
          text: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all paragraphs as text.")] = None,
          ) -> None:
    """Write a long text paragraph by paragraph, with a memory in words that you may read and edit."""
    from segue.files import write_text
    from segue.verbs.write import text_model
    from segue.verbs.write import write as go_on

    if steps is not None and steps < 0:
        raise SegueError(f"--steps must not be below 0, not {steps}")

    def ask(current: Any) -> str:
        print(f"\n{current.paragraph}\n", *(f"{at}. {plan}" for at, plan in enumerate(current.plans, 1)), sep="\n")
        reply = typer.prompt("A number, or what is to happen").strip()
        return current.plans[int(reply) - 1] if reply in map(str, range(1, len(current.plans) + 1)) else reply

    current = go_on(story, text_model(model, endpoint), ask=ask,
                    **drop_unset(premise=premise, steps=steps, plans=plans))
    if text is not None:
        write_text(text, current.text + "\n")
    else:
        print(current.text)
    print(f"{current.step} paragraphs in {story}; the same command goes on", file=sys.stderr)


@command("update", "segue update model new/ --strategy replay --minutes 2")
def update(model: Model, paths: Paths,
           strategy: Annotated[str | None, typer.Option(metavar="NAME", help="Against forgetting: replay (default), "
                                                        "mir, gss, ewc, mas, local-mas, si, rwalk, l2, slnid, lwf, "
                                                        "der, der++, agem, gem, freeze, lora, o-lora, state, "
                                                        "merge, or naive; with settings, as ewc:strength=100, or "
                                                        "several, as 'mas + replay'.")] = None,
           minutes: Minutes = None, steps: Steps = None, how: How = None, choices: Choices = None,
           out: LearnDir = None, device: Bulk = None) -> None:
    """Learn new files on top of a model, and measure what was gained and what was forgotten."""
    check_duration(minutes, steps)
    fitted = segue.load(model)
    data = read_files(paths, fitted.kind.name, how, fitted)
    options = parse_settings(choices)
    if "data" in options:
        raise SegueError("data cannot be --set: give PATH")
    report = fitted.update(data, **options | drop_unset(strategy=strategy, minutes=minutes, steps=steps, out=out,
                                                        device=device))
    show(report)


@command("merge", "segue merge learned-on --plus instruct --minus base --out both")
def merge(model: Model,
          plus: Annotated[list[Path], typer.Option(metavar="MODEL", show_default=False, help="A model that was tuned "
                                                   "from the base; may be repeated.")],
          minus: Annotated[Path, typer.Option(metavar="MODEL", show_default=False, help="The base.")],
          out: Annotated[Path, typer.Option(metavar="DIR", show_default=False, help="Where the model goes.")],
          scale: Annotated[float | None, typer.Option(metavar="S", help="How much of the difference is added.")] = None,
          how: Annotated[str | None, typer.Option(metavar="NAME", help="How several are put together: sum (default), "
                                                  "ties or dare.")] = None,
          choices: Choices = None) -> None:
    """Add what a model learned to another of the same base, as a difference of weights; nothing is trained."""
    from segue.verbs.merge import merge as run

    options = parse_settings(choices) | drop_unset(scale=scale, how=how)
    merged, report = run(segue.load(model), [segue.load(folder) for folder in plus], segue.load(minus), **options)
    merged.save(out)
    show(report)
    print(f"saved in {out}", file=sys.stderr)


@command("prefer", "segue prefer model pairs.jsonl")
def prefer(model: Model,
           pairs: Annotated[Path, typer.Argument(metavar="PAIRS", show_default=False, help="A table with the columns "
                                                 "prompt, chosen and rejected (JSON Lines, CSV, Parquet ...).")],
           steps: Steps = None,
           rate: Annotated[float | None, typer.Option(metavar="R", help="How fast to learn.")] = None,
           beta: Annotated[float | None, typer.Option(metavar="B", help="How close to stay to the model as it was; "
                                                      "small values let it change more.")] = None,
           seed: Seed = None, json_file: JsonFile = None, out: LearnDir = None, device: Bulk = None) -> None:
    """Learn from pairs which of two continuations is better (DPO), and measure what that changed."""
    check_duration(None, steps)
    report = segue.load(model).prefer(pairs, **drop_unset(steps=steps, rate=rate, beta=beta, seed=seed, out=out,
                                                          device=device))
    show(report)
    if json_file is not None:
        show_json(report.to_dict(), json_file)


@command("speed-up", "segue speed-up model src/ --minutes 5")
def speed_up(model: Model, paths: Paths,
             minutes: Annotated[float | None, typer.Option(metavar="M", help="How long it may take.")] = None,
             json_file: JsonFile = None, how: How = None, device: Single = None) -> None:
    """Train draft heads, measure every drafter, keep the fastest: continue uses it from then on. No text changes."""
    check_duration(minutes, None)
    fitted = segue.load(model, device)
    report = fitted.speed_up(read_files(paths, fitted.kind.name, how, fitted), **drop_unset(minutes=minutes))
    show(report)
    if json_file is not None:
        show_json(report.to_dict(), json_file)


@command("evaluate", "segue evaluate model held-out/ --json scores.json")
def evaluate(model: Model, paths: Paths, json_file: JsonFile = None, weights: Weights = None, how: How = None,
             state: State = None,
             variants: Annotated[Path | None, typer.Option(metavar="VCF", help="Instead: how likely these variants of "
                                                           "the files' sequences are, the least likely first.")]
             = None, device: Bulk = None) -> None:
    """How well the model predicts the files, beside baselines on the same files."""
    fitted = segue.load(model)
    data = read_files(paths, fitted.kind.name, how, fitted)
    if variants is not None:
        rows = sorted(fitted.variants(data, variants), key=lambda row: row["score"])
        for row in rows[:20]:
            print(f"{row['sequence']}:{row['position']:,} {row['reference']} to {row['alternative']}: "
                  f"{row['score']:+.3f} nats")
        if len(rows) > 20:
            print(f"and {len(rows) - 20:,} more: --json FILE has all", file=sys.stderr)
        if json_file is not None:
            show_json(rows, json_file)
        return
    report = fitted.evaluate(data, **drop_unset(weights=weights, state=state, device=device))
    show(report)
    if (fitted.report.get("request") or {}).get("data") == data.fingerprint:
        print("the model was fitted on these very files: this is how well it remembers them", file=sys.stderr)
    if json_file is not None:
        show_json(report.to_dict(), json_file)


@command("embed", "segue embed model proteins.fasta --out vectors.npz")
def embed(model: Model, paths: Paths,
          out: Annotated[Path, typer.Option(metavar="FILE", show_default=False, help="Where the vectors and the names "
                                            "go: .npz or .parquet.")],
          pool: Annotated[str | None, typer.Option(metavar="NAME", help="mean of the elements' vectors (default), that "
                                                   "of the first or the last one, or both ends.")] = None,
          how: How = None, device: Bulk = None) -> None:
    """One vector for each sequence: to search, group and classify them by."""
    from segue.verbs.embed import WRITERS

    if out.suffix.lower() not in WRITERS:
        raise SegueError(f"{out}: vectors are written as {' or '.join(WRITERS)}; give --out one of these endings")
    fitted = segue.load(model)
    embeddings = fitted.embed(read_files(paths, fitted.kind.name, how, fitted), **drop_unset(pool=pool, device=device))
    embeddings.save(out)
    show(str(embeddings))
    print(f"written to {out}", file=sys.stderr)


@command("classify", "segue classify model train.csv --label intent --test test.csv")
def classify(model: Model,
             paths: Annotated[list[Path] | None, typer.Argument(metavar="PATH", show_default=False, help="Sequences "
                                                                "with classes; if none are given, --new is named by "
                                                                "what --save kept.")] = None,
             label: Annotated[str | None, typer.Option(metavar="COLUMN", help="The column of tables that says the "
                                                       "class (default: one called label, class, category, intent or "
                                                       "y, or that seems to), or a measured number.")] = None,
             test: Annotated[list[Path] | None, typer.Option(metavar="PATH", help="Measure on these, instead of on "
                                                             "parts of PATH; may be repeated.")] = None,
             new: Annotated[list[Path] | None, typer.Option(metavar="PATH", help="Say of which class these are; may be "
                                                            "repeated.")] = None,
             out: Annotated[Path | None, typer.Option(metavar="FILE", help="With --new: write their classes as a "
                                                      "CSV.")] = None,
             save: Annotated[bool, typer.Option("--save", help="Keep what was learned in the model's folder.")] = False,
             pool: Annotated[str | None, typer.Option(metavar="NAME", help="Which vector stands for a sequence: see "
                                                      "embed.")] = None,
             seed: Seed = None, json_file: JsonFile = None, how: How = None, device: Bulk = None) -> None:
    """Learn classes of sequences, those that files say, else a class a folder or file; or measured numbers."""
    from segue.verbs.classify import reading_options

    if out is not None and not new:
        raise SegueError("--out is for the classes of --new: give files of which the class is to be said")
    fitted = segue.load(model)
    class_options = reading_options(fitted.kind, label)
    data, test_data = (read_files(files, fitted.kind.name, how, fitted, **class_options) if files else None
                       for files in (paths, test))
    new_data = read_files(new, fitted.kind.name, how, fitted) if new else None
    try:
        result = fitted.classify(data, new_data, test=test_data, label=label, save=save,
                                 **drop_unset(pool=pool, seed=seed, device=device))
    except SegueError as error:
        raise SegueError(re.sub(r"\b(label|save)=(True)?", r"--\1", str(error))) from error
    show(result)
    if out is not None:
        result.save(out)
        print(f"written to {out}", file=sys.stderr)
    else:
        print(*result.lines()[:20], sep="\n", end="\n" if result.said else "")
        if len(result.said) > 20:
            print(f"and {len(result.said) - 20:,} more: --out FILE has all", file=sys.stderr)
    if json_file is not None:
        show_json(result.to_dict(), json_file)


@command("score", "segue score generated.txt --reference real.txt")
def score(paths: Paths,
          reference: Annotated[list[Path], typer.Option(metavar="PATH", show_default=False, help="Real sequences; may "
                                                        "be repeated.")],
          learned: Annotated[list[Path] | None, typer.Option(metavar="PATH", help="What was learned from, to see what "
                                                             "is copied; may be repeated.")] = None,
          model: Annotated[Path | None, typer.Option(metavar="MODEL", help="Compare by the vectors of this model, "
                                                     "instead of by n-grams.")] = None,
          pairs: Annotated[bool, typer.Option("--pairs", help="Each reference is the right answer to the sample of the "
                                              "same number.")] = False,
          most: Annotated[int | None, typer.Option("-n", metavar="N", help="Score so many at most.")] = None,
          kind: Kind = None, how: How = None, seed: Seed = None, json_file: JsonFile = None) -> None:
    """How good generated sequences are beside real ones: overlap, variety, copies, distance (of a text: its lines)."""
    from segue.verbs.score import score as run

    references = read_files(reference, kind, how)
    generated, training_data = (read_files(files, references.kind.name, how) if files else None
                                for files in (paths, learned))
    fitted = None if model is None else segue.load(model)
    report = run(generated, references, training_data, model=fitted, pairs=pairs, **drop_unset(most=most, seed=seed))
    show(report)
    if json_file is not None:
        show_json(report.to_dict(), json_file)


@command("compare", "segue compare events.csv --minutes 2")
def compare(paths: Annotated[list[Path] | None, typer.Argument(metavar="PATH", show_default=False,
                                                               help="Files, folders, archives or globs.")] = None,
            minutes: Minutes = None, json_file: JsonFile = None, kind: Kind = None, how: How = None,
            tasks: Annotated[str | None, typer.Option(metavar="NAMES", help="Instead of files: 'synthetic', or tasks "
                                                      "with commas between. Which mixer tracks and recalls what?")]
            = None,
            out: Annotated[Path | None, typer.Option(metavar="DIR", help="With --tasks: where the board and picture "
                                                     "go. Run again: goes on where it was.")] = None,
            seed: Seed = None, choices: Choices = None, device: Bulk = None) -> None:
    """Which method predicts these sequences best? Classical and neural, on one split. Or: which mixer learns what?"""
    data = read_files(paths, kind, how) if paths else None
    options = parse_settings(choices) | drop_unset(minutes=minutes, tasks=tasks, out=out, seed=seed, device=device)
    report = segue.compare(data, **options)
    show(report)
    if json_file is not None:
        show_json(report.to_dict(), json_file)


@command("serve", "segue serve model --port 8000")
def serve(model: Model,
          host: Annotated[str, typer.Option(metavar="H", help="Where to listen; others than this machine need "
                                            "--key.")] = "127.0.0.1",
          port: Annotated[int, typer.Option(metavar="P", help="The port.", min=1, max=65535)] = 8000,
          key: Annotated[str | None, typer.Option(metavar="K", envvar="SEGUE_KEY",
                                                  help="What clients must send.")] = None,
          rows: Annotated[int, typer.Option(metavar="N", help="Answers at once, at most.")] = 32,
          tokens: Annotated[int, typer.Option(metavar="N", help="Tokens those may hold, at most: bounds the memory.")]
          = 65_536,
          queue: Annotated[int, typer.Option(metavar="N", help="Requests that wait, at most; then 429.")] = 64,
          draft: Annotated[str | None, typer.Option(metavar="NAME", help="Who drafts: trie, lookup, source, both, "
                                                    "depth or heads.")] = None,
          weights: Weights = None, device: Single = None) -> None:
    """Answer the OpenAI completions API with a model, and show a page to try it on."""
    from segue.serving.serve import serve as run

    run(model, host, port, key, rows, tokens, queue, draft, weights or "float32", device)


@command("look", "segue look model 'to be or not to be' --out look.png")
def look(model: Model,
         text: Annotated[str | None, typer.Argument(metavar="INPUT", show_default=False,
                                                    help="The sequence to read.")] = None,
         file: Annotated[Path | None, typer.Option("--file", metavar="F", help="Read the first sequence of a file "
                                                   "instead, and measure on its first 64.")] = None,
         out: Annotated[Path, typer.Option(metavar="FILE", help="The picture.")] = Path("look.png"),
         state: State = None) -> None:
    """Draw what each element reads, layer by layer, and how much each layer and each head carries."""
    from segue.verbs.look import look as draw

    if (text is None) == (file is None):
        raise SegueError("give a sequence or --file, one of them")
    show(str(draw(segue.load(model), text if text is not None else file, out=out, state=state)))


@command("design", "segue design model --scores measured.csv -n 96 --out designs.csv")
def design(model: Model,
           scores: Annotated[Path, typer.Option(metavar="FILE", show_default=False, help="A table of measured "
                                                "sequences and their scores (CSV, TSV, Parquet, JSON Lines).")],
           n: Annotated[int | None, typer.Option("-n", metavar="N", help="How many to propose.")] = None,
           by: Annotated[str | None, typer.Option(metavar="NAME", help="bidirectional (default, any model); or with a "
                                                  "model of objective diffusion: fine-tune, guidance, smc or tds.")]
           = None,
           sequence: Annotated[str | None, typer.Option(metavar="COLUMN", help="Where the sequences are; found if not "
                                                        "said.")] = None,
           score: Annotated[str | None, typer.Option(metavar="COLUMN", help="Where the scores are; found if not "
                                                     "said.")] = None,
           lower: Annotated[bool, typer.Option("--lower", help="Lower scores are better.")] = False,
           positions: Annotated[str | None, typer.Option(metavar="P", help="The places that may change, as 39-41,54; "
                                                         "if not said, those at which the table's sequences "
                                                         "differ.")] = None,
           changes: Annotated[int | None, typer.Option(metavar="N", help="How many places may differ from the measured "
                                                       "sequence that a design begins at.")] = None,
           steps: Steps = None, seed: Seed = None, device: Single = None,
           as_json: Annotated[bool, typer.Option("--json", help="Print data only.")] = False,
           out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all of them as a CSV.")] = None,
           ) -> None:
    """Propose new DNA or protein sequences that are predicted to score high, from a table of measured ones."""
    check_duration(None, steps)
    choices = drop_unset(n=n, by=by, sequence=sequence, score=score, lower=lower or None, positions=positions,
                         changes=changes, steps=steps, seed=seed)
    try:
        designs = segue.load(model, device).design(scores, **choices)
    except SegueError as error:
        raise SegueError(re.sub(r"\b(sequence|score)=", r"--\1 ", str(error))) from error
    if out is not None:
        designs.save(out)
        print(f"{len(designs.rows)} designs written to {out}", file=sys.stderr)
    if as_json:
        show_json(designs.to_dict())
    else:
        show(designs)


@command("verify", "segue verify ifeval.jsonl responses.jsonl --json scores.json")
def verify(items: Annotated[Path, typer.Argument(metavar="ITEMS", show_default=False, help="Instructions, in the form "
                                                 "of IFEval's or FollowRAG's JSON lines.")],
           responses: Annotated[Path | None, typer.Argument(metavar="RESPONSES", show_default=False, help="JSON lines "
                                                            "with prompt (or key) and response; if not said, the items "
                                                            "have them.")] = None,
           json_file: JsonFile = None) -> None:
    """Which instructions do responses follow? Checked by programs, strictly and loosely."""
    from segue.verbs.verify import verify as check

    report = check(items, responses)
    show(report)
    if json_file is not None:
        show_json(report.to_dict(), json_file)


@command("papers", "segue papers --json")
def papers(as_json: Annotated[bool, typer.Option("--json", help="Print data only.")] = False) -> None:
    """Every paper the library knows: slug, title, status, parts."""
    from segue.papers import PAPERS

    rows = [{"slug": slug, "title": paper.title, "source": paper.source, "status": paper.status,
             "parts": list(paper.parts)} for slug, paper in PAPERS.items()]
    if as_json:
        show_json(rows)
        return
    from rich.table import Table

    table = Table("slug", "title", "status", "parts", box=None)
    table.columns[0].no_wrap = table.columns[2].no_wrap = True
    for slug, paper in PAPERS.items():
        source = f" ({paper.source})" if paper.source else ""
        table.add_row(slug, paper.title + source, paper.status, ", ".join(paper.parts))
    show(table)


@command("reproduce", "segue reproduce lookahead --scale smoke")
def reproduce(slug: Annotated[str, typer.Argument(metavar="SLUG", show_default=False, help="See: segue papers.")],
              scale: Annotated[str, typer.Option(metavar="S", help="smoke (seconds), cpu (minutes) or gpu.")] = "cpu",
              json_file: JsonFile = None,
              out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the report and the picture go. "
                                                       "Run again: goes on where it was.")] = None,
              seed: Seed = None,
              data: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder that holds the data sets a claim "
                                                        "reads, by name (or set SEGUE_DATA).")] = None) -> None:
    """Run a paper's headline claim: the table beside the paper's own figures, the verdict, the picture."""
    report = segue.reproduce(slug, **drop_unset(scale=scale, out=out, seed=seed, data=data))
    show(report)
    if json_file is not None:
        show_json(report.to_dict(), json_file)


@command("demo", "segue demo --minutes 2")
def demo(out: Annotated[Path, typer.Option(metavar="DIR", help="Where the models and the report go.")]
         = Path("demo-out"),
         minutes: Annotated[float, typer.Option(metavar="M", help="How long to learn.")] = 2.0) -> None:
    """Learn the Python standard library, continue a function, learn the manual; ends with a report to look at."""
    from segue.demo import demo as tour

    check_duration(minutes, None)
    tour(out, minutes)


@app.callback(invoke_without_command=True)
def top(context: typer.Context,
        version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(segue.__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


def check_duration(minutes: float | None, steps: int | None) -> None:
    """Refuse both together, and what is not positive, before anything is loaded."""
    if minutes is not None and steps is not None:
        raise SegueError("give --minutes or --steps, not both")
    for name, value in (("minutes", minutes), ("steps", steps)):
        if value is not None and not value > 0:
            raise SegueError(f"--{name} must be more than 0, not {value:g}")


def exit_quietly() -> NoReturn:
    """The reader of our output (head, less) has seen enough."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(0)


def fail(code: int, message: str) -> NoReturn:
    """End with one line on stderr."""
    print(f"segue: {message}", file=sys.stderr)
    raise SystemExit(code)


def format_usage_error(error: Any) -> str:
    """What was wrong on the command line, in one line, with the choices there are."""
    message, context = " ".join(error.format_message().split()).rstrip("."), error.ctx
    if context is None:
        return message
    choices = list(getattr(context.command, "commands", {})) if message.startswith("No such command") else \
        [name for parameter in context.command.params for name in parameter.opts if name.startswith("-")] \
        if message.startswith("No such option") else []
    if choices:
        message = f"{message.partition(' (Possible')[0]}; choose from {', '.join(choices)}"
    return f"{message} (see: {context.command_path} --help)"


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line; always ends in SystemExit."""
    try:
        code = app(args=arguments, prog_name="segue", standalone_mode=False)
        if code == 130:  # the parser's, of a Ctrl-C before the command began
            raise Interrupted
        sys.stdout.flush()
        raise SystemExit(code if isinstance(code, int) else 0)
    except UsageError as error:
        fail(2, format_usage_error(error))
    except SegueError as error:
        fail(2, str(error))
    except (Interrupted, KeyboardInterrupt) as stop:
        fail(130, f"interrupted; {stop.args[0] if stop.args else LEFT}")
    except BrokenPipeError:
        exit_quietly()
    except Exception as error:
        if os.environ.get("SEGUE_TRACEBACK"):
            traceback.print_exc()
        message = " ".join(str(error).split()) or "no message"
        fail(1, f"internal error: {type(error).__name__}: {message[:300]} (SEGUE_TRACEBACK=1 shows where)")
