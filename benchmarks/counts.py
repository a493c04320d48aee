"""Count models and their mixture with a network on the demo's data: bits per byte of held-out files, seconds, speed.

    python benchmarks/counts.py [--minutes 2] [--quick] [--out benchmarks/results/counts.md]

Trains on the Python standard library's own source files and scores those that the demo holds out, every byte once
(with each file's end). Seconds are of one processor. Nothing is tuned on the held-out files: trust and gate are fitted
on training files that are set aside first. It prints the table, which --out writes, too. --minutes: also `fit` for so
long, with and without counts. --quick: one vocabulary, one window.
"""

from __future__ import annotations

import argparse
import lzma
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segue.data import read
from segue.demo import standard_library
from segue.files import write_text
from segue.models.counts import BlendedCounts, CountModel, documents_bits, split_held_out
from segue.training.recipe import describe_machine


def xz_bits(contents: bytes) -> int:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 26}]
    return 8 * len(lzma.compress(contents, format=lzma.FORMAT_RAW, filters=filters))


def encode_files(files: list[Path], codec: Any) -> list[np.ndarray]:
    return [np.append(ids, codec.eos).astype(np.int32)
            for ids in codec.encode_many([path.read_bytes().decode("utf-8", "replace") for path in files])]


def timed(action: Callable[[], Any]) -> tuple[Any, float]:
    begin = time.process_time()
    value = action()
    return value, time.process_time() - begin


def rows(quick: bool, minutes: float) -> Iterator[tuple[str, float, str]]:
    """(model, bits per byte, speeds) of each row of the table."""
    train, test = standard_library()
    train_bytes, test_bytes = (b"".join(path.read_bytes() for path in files) for files in (train, test))
    size = len(test_bytes)
    yield "xz -9e of the held-out files", xz_bits(test_bytes) / size, ""
    beyond = xz_bits(train_bytes + test_bytes) - xz_bits(train_bytes)
    yield "xz -9e, the training files as its prefix", beyond / size, ""

    documents = [[np.append(np.frombuffer(path.read_bytes(), np.uint8).astype(np.int32), 256) for path in files]
                 for files in (train, test)]
    for smoothing, order in (("witten-bell", 5), ("witten-bell", 8), ("kneser-ney", 8)):
        model, counting = timed(lambda: CountModel(257, order, smoothing).fit(documents[0]))  # noqa: B023
        bits, scoring = timed(lambda: documents_bits(model, documents[1]))  # noqa: B023
        speeds = f"counted in {counting:.1f} s, scored in {scoring:.1f} s"
        yield f"bytes, order {order}, {smoothing}", bits / size, speeds

    for vocabulary in (2048,) if quick else (1024, 2048, 4096, 8192):
        codec = read(*train, kind="code").codec(vocabulary=vocabulary)
        train_ids, test_ids = encode_files(train, codec), encode_files(test, codec)
        model = CountModel(codec.size, 5, "kneser-ney").fit(train_ids)
        yield f"{vocabulary} tokens, order 5, kneser-ney", documents_bits(model, test_ids) / size, ""
        for window in (8192,) if quick or vocabulary != 2048 else (1024, 4096, 8192, 32768):
            yield blended(train_ids, test_ids, codec.size, window, size)
    if minutes:
        from segue.verbs.fit import fit

        for mix in (False, True):
            fitted = fit(read(*train, kind="code"), held_out=read(*test, kind="code"), minutes=minutes, mix=mix)
            yield (f"network of {minutes:g} minutes" + " and counts" * mix, fitted.report["held_out"]["bits_per_unit"],
                   f"{fitted.report['tokens']:,} tokens learned; {fitted.report['held_out']['path']}")


def blended(train: list[np.ndarray], test: list[np.ndarray], vocabulary: int, window: int,
            size: int) -> tuple[str, float, str]:
    counted, set_aside = split_held_out(train)
    model = BlendedCounts(vocabulary, window)
    _, counting = timed(lambda: model.count(counted))
    _, trusting = timed(lambda: model.learn_trust(set_aside))
    model.count(train)
    bits, scoring = timed(lambda: documents_bits(model, test))
    state, tokens = model.init_state(1), torch.from_numpy(np.concatenate(test)[:3000].astype(np.int64))[None]
    model.extend(tokens, state, at=torch.tensor([[2999]]))
    state.commit()

    def decode() -> None:
        for i in range(300):
            model.extend(tokens[:, i:i + 1], state)
            state.commit()

    _, decoding = timed(decode)
    return (f"{vocabulary} tokens, blended counts, window {window}", bits / size,
            f"counted in {counting:.1f} s, trust in {trusting:.1f} s, scored {sum(map(len, test)) / scoring:,.0f} "
            f"tokens/s, decodes {300 / decoding:,.0f} tokens/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1 if not options.minutes else torch.get_num_threads())
    blended([np.arange(40) % 7] * 40, [np.arange(3500) % 7], 8, 64, 1)  # compile, apart from what is timed
    lines = ["# Count models on the standard library's source", "",
             f"Printed by `python benchmarks/counts.py` on {describe_machine()}, seconds are of one processor.", "",
             "| model | bits per byte | |", "| --- | --- | --- |"]
    print("\n".join(lines))
    for name, bits, speed in rows(options.quick, options.minutes):
        lines.append(f"| {name} | {bits:.3f} | {speed} |")
        print(lines[-1], flush=True)
    if options.out:
        write_text(options.out, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
