"""How fast files become tokens, beside what a user would otherwise write.

    python benchmarks/reading.py            # prints the table and writes results/reading.md

A genome of random bases as long as that of E. coli (FASTA, gzip) against Biopython; a log of a million events (CSV)
against the csv module; the standard library's source against plain reads; BPE of it against the tokenizers library.
"""

from __future__ import annotations

import csv
import gzip
import sysconfig
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import segue
from segue.training.recipe import describe_machine

BASES, EVENTS, TIMES = 4_600_000, 1_000_000, 3


def best_time(function: Callable[[], Any], times: int = TIMES) -> tuple[float, Any]:
    seconds = []
    for _ in range(times):
        begin = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - begin)
    return min(seconds), result


def write_genome(folder: Path) -> Path:
    letters = np.frombuffer(b"ACGT", np.uint8)[np.random.default_rng(0).integers(0, 4, BASES)].tobytes().decode()
    path = folder / "genome.fna.gz"
    path.write_bytes(gzip.compress(b">genome\n" + "\n".join(
        letters[at:at + 80] for at in range(0, BASES, 80)).encode() + b"\n", 1))
    return path


def write_events(folder: Path) -> Path:
    draw = np.random.default_rng(0)
    users, items = draw.integers(0, 20_000, EVENTS), draw.zipf(1.4, EVENTS) % 9_000
    when = draw.integers(1, 10 ** 9, EVENTS)
    path = folder / "events.csv"
    path.write_text("user,item,timestamp\n" + "".join(f"{u},{i},{t}\n" for u, i, t in zip(users, items, when)))
    return path


def read_by_csv(path: Path) -> dict[str, list[tuple[int, str]]]:
    groups = defaultdict(list)
    with open(path, newline="") as handle:
        for row in csv.DictReader(handle):
            groups[row["user"]].append((int(row["timestamp"]), row["item"]))
    for group in groups.values():
        group.sort(key=lambda event: event[0])
    return groups


def train_tokenizers(texts: list[str], vocabulary: int) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocabulary, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return tokenizer


def encode_by_tokenizers(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]


def measure() -> list[tuple[str, float, float | None, str]]:
    """(task, our seconds, the peer's seconds, the peer) of each row."""
    rows: list[tuple[str, float, float | None, str]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        fasta, table = write_genome(folder), write_events(folder)

        def biopython() -> int:
            from Bio import SeqIO

            with gzip.open(fasta, "rt") as handle:
                return sum(len(record.seq) for record in SeqIO.parse(handle, "fasta"))

        seconds, data = best_time(lambda: segue.read(fasta))
        rows.append((f"read a genome, {BASES / 1e6:.1f} M bases, FASTA gzip", seconds, best_time(biopython)[0],
                     "Biopython"))
        rows.append(("encode it, a base a token", best_time(lambda: data.encode(data.codec()))[0], None, ""))
        rows.append(("encode it, words of 6", best_time(lambda: data.encode(data.codec(k=6)))[0], None, ""))
        seconds, data = best_time(lambda: segue.read(table))
        peer_seconds = best_time(lambda: read_by_csv(table), 1)[0]
        rows.append((f"read {EVENTS:,} events, CSV, by user and time", seconds, peer_seconds, "csv module"))
        rows.append(("encode them", best_time(lambda: data.encode(data.codec()), 1)[0], None, ""))
        files = [path for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))
                 if not {"test", "tests", "idlelib", "lib2to3", "site-packages"} & set(path.parts)]
        seconds, data = best_time(lambda: segue.read(*map(str, files), kind="code"))
        peer_seconds, texts = best_time(lambda: [path.read_bytes() for path in files])
        rows.append((f"read {data.total / 1e6:.1f} MB of source, {len(data)} files", seconds, peer_seconds,
                     "read_bytes"))
        strings = [text.decode("utf-8", "replace") for text in texts]
        for vocabulary in (2048, 4096):
            seconds, codec = best_time(partial(data.codec, vocabulary=vocabulary), 2)
            peer_seconds, tokenizer = best_time(partial(train_tokenizers, strings, vocabulary), 2)
            rows.append((f"learn {vocabulary:,} merges of it", seconds, peer_seconds, "tokenizers"))
            seconds = best_time(partial(data.encode, codec), 2)[0]
            peer_seconds = best_time(partial(encode_by_tokenizers, tokenizer, strings), 2)[0]
            rows.append((f"encode it with {vocabulary:,}", seconds, peer_seconds, "tokenizers"))
        save_seconds = best_time(lambda: data.save(folder / "saved"), 1)[0]
        rows.append(("save it as a data set", save_seconds, None, ""))
        rows.append(("open that", best_time(lambda: segue.read(folder / "saved"))[0], None, ""))
    return rows


def main() -> None:
    lines = [f"On {describe_machine()}.", "", "| what | segue, s | peer, s | peer | ratio |", "|---|---|---|---|---|"]
    for task, seconds, peer_time, name in measure():
        comparison = f"{peer_time:.3f} | {name} | {peer_time / seconds:.1f}x" if peer_time else "| |"
        lines.append(f"| {task} | {seconds:.3f} | {comparison} |")
    text = "\n".join(lines)
    print(text)
    out = Path(__file__).parent / "results" / "reading.md"
    out.parent.mkdir(exist_ok=True)
    out.write_text("# Reading and encoding\n\n`python benchmarks/reading.py`\n\n" + text + "\n")


if __name__ == "__main__":
    main()
