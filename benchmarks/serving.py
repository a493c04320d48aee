"""Serving speed: `segue serve` and `transformers serve` on the same folder, with 1, 8 and 32 streams; and a soak.

    python benchmarks/serving.py llama-7m llama-100m     # the tables
    python benchmarks/serving.py --soak 10               # ten minutes of mixed requests, some of them cancelled

Both answer the same OpenAI completions over HTTP on the loopback interface, greedy, streamed. Each stream asks again as
soon as it is answered. The first text of a stream is its first token's. Every answer is compared with the one that the
same server gave when it was asked alone. Needs the extra `bench`. The page is results/serving.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

import httpx
import numpy as np
import torch
from decode import HERE, PROMPT, SHAPES, machine, make, table

STREAMS = (1, 8, 32)


@dataclass
class Tally:
    """What streams were told. first: seconds to the first text of each answer."""

    tokens: int = 0
    answers: int = 0
    wrong: int = 0
    first: list[float] = field(default_factory=list)


@contextmanager
def server(command: list[str], port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A server process that answers /health or /v1/models, stopped at the end."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"HF_HUB_OFFLINE": "1"})
        try:
            wait_for(process, port, log)
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_for(process: subprocess.Popen[bytes], port: int, log: IO[bytes]) -> None:
    until = time.monotonic() + 600  # kernels may have to be compiled first
    while time.monotonic() < until:
        if process.poll() is not None:
            log.seek(0)
            raise SystemExit(f"the server stopped: {log.read().decode()[-2000:]}")
        try:
            if httpx.get(f"http://127.0.0.1:{port}/v1/models", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.2)
    raise SystemExit("the server did not answer")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def commands(folder: Path, port: int) -> dict[str, list[str]]:
    here = Path(sys.executable).parent
    return {"segue serve": [str(here / "segue"), "serve", str(folder), "--port", str(port)],
            "transformers serve": [str(here / "transformers"), "serve", str(folder), "--port", str(port),
                                   "--device", "cpu", "--dtype", "float32"],
            "transformers serve, continuous batching": [
                str(here / "transformers"), "serve", str(folder), "--port", str(port), "--device", "cpu", "--dtype",
                "float32", "--continuous-batching"]}


def body(model: str, prompt: str, tokens: int) -> dict[str, Any]:
    return {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True}


async def ask(client: httpx.AsyncClient, url: str, request: dict[str, Any], drop_after: int | None = None,
              ) -> tuple[str, int, float]:
    """The text, the number of pieces, and the seconds to the first; `drop_after` pieces the client hangs up."""
    begin, first, text, pieces = time.perf_counter(), 0.0, "", 0
    async with client.stream("POST", url, json=request) as response:
        if response.status_code != 200:
            raise RuntimeError(f"{response.status_code}: {(await response.aread()).decode()[:300]}")
        async for line in response.aiter_lines():
            if not line.startswith("data:") or line.endswith("[DONE]"):
                continue
            said = json.loads(line[5:])["choices"]
            if said and said[0].get("text"):
                first = first or time.perf_counter() - begin
                text += said[0]["text"]
                pieces += 1
                if drop_after is not None and pieces >= drop_after:
                    break
    return text, pieces, first


def prompts(vocabulary: int, count: int) -> list[str]:
    draw = np.random.default_rng(0)
    return [" ".join(f"t{token}" for token in row) for row in draw.integers(2, vocabulary, (count, PROMPT))]


async def stream(client: httpx.AsyncClient, url: str, model: str, asked: list[str], known: dict[str, str],
                 tokens: int, until: float, tally: Tally) -> None:
    """Ask one prompt after another until the time is over."""
    for prompt in asked * 1000:
        if time.perf_counter() > until:
            return
        text, _, first = await ask(client, url, body(model, prompt, tokens))
        tally.tokens += text.count("t")  # the words of these models are t0, t1, ...
        tally.answers += 1
        tally.first.append(first)
        tally.wrong += text != known[prompt]


async def load(url: str, model: str, vocabulary: int, tokens: int, seconds: float) -> list[tuple[int, Tally, float]]:
    """Tallies of 1, 8 and 32 streams, each for so many seconds, and how long they took."""
    found = []
    async with httpx.AsyncClient(timeout=600) as client:
        texts = prompts(vocabulary, 8)
        known = {prompt: (await ask(client, url, body(model, prompt, tokens)))[0] for prompt in texts}
        for count in STREAMS:
            tally, begin = Tally(), time.perf_counter()
            await asyncio.gather(*(stream(client, url, model, texts[k % 8 :] + texts[: k % 8], known, tokens,
                                          begin + seconds, tally) for k in range(count)))
            found.append((count, tally, time.perf_counter() - begin))
    return found


def measure(name: str, tokens: int, seconds: float) -> str:
    rows, port = [], free_port()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / name
        make(name, folder)
        speeds: dict[int, float] = {}
        for who, command in commands(folder, port).items():
            model = name if who.startswith("segue") else str(folder)
            try:
                with server(command, port):
                    found = asyncio.run(load(f"http://127.0.0.1:{port}/v1/completions", model,
                                             SHAPES[name.split("-")[1]]["vocabulary"], tokens, seconds))
            except (RuntimeError, httpx.HTTPError, SystemExit) as error:
                reason = str(error).strip().splitlines()[-1][:120] if str(error).strip() else type(error).__name__
                rows.append([who, *["-"] * 5, reason])
                continue
            for count, tally, took in found:
                speed = tally.tokens / took
                if who == "segue serve":
                    speeds[count] = speed
                rows.append([who, str(count), f"{speed:,.0f}", f"{speeds.get(count, 0) / max(speed, 1e-9):.1f}",
                             f"{statistics.median(tally.first) * 1e3:,.0f}",
                             f"{np.quantile(tally.first, 0.95) * 1e3:,.0f}", f"{tally.wrong} of {tally.answers}"])
    head = ["", "streams", "tokens/s", "segue is so many times as fast", "first text, ms: median", "95%",
            "answers that differ from the one alone"]
    return (f"### {name}, {tokens} tokens behind prompts of {PROMPT}, {seconds:g} s each\n\n" + table(head, rows))


def resident(pid: int) -> float:
    """Megabytes of memory that a process holds."""
    with open(f"/proc/{pid}/status") as handle:
        return next(int(line.split()[1]) / 1024 for line in handle if line.startswith("VmRSS"))


async def wander(client: httpx.AsyncClient, url: str, texts: list[str], known: dict[tuple[str, int], str], until: float,
                 seed: int, tally: Tally) -> None:
    """Ask for answers of all lengths, hang up on every fifth, now and then wait."""
    draw = random.Random(seed)
    while time.perf_counter() < until:
        prompt, tokens = draw.choice(list(known))
        drop = draw.randrange(1, tokens) if draw.random() < 0.2 else None
        text, _, first = await ask(client, url, body("llama-7m", prompt, tokens), drop)
        whole = known[prompt, tokens]
        tally.answers += 1
        tally.tokens += text.count("t")  # the words of these models are t0, t1, ...
        tally.first.append(first)
        tally.wrong += (not whole.startswith(text)) if drop is not None else text != whole
        if draw.random() < 0.1:
            await asyncio.sleep(draw.random())


def soak(minutes: float) -> str:
    """Sixteen clients of all manners; the server's memory is read every few seconds."""
    port, memory = free_port(), []

    async def run(pid: int) -> Tally:
        url, tally = f"http://127.0.0.1:{port}/v1/completions", Tally()
        async with httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=64)) as client:
            texts = prompts(SHAPES["7m"]["vocabulary"], 24)
            known = {(prompt, tokens): (await ask(client, url, body("llama-7m", prompt, tokens)))[0]
                     for prompt in texts for tokens in (8, 40, 120)}
            until = time.perf_counter() + 60 * minutes

            async def watch() -> None:
                while time.perf_counter() < until:
                    memory.append(resident(pid))
                    await asyncio.sleep(max(0.5, 60 * minutes / 200))

            await asyncio.gather(watch(), *(wander(client, url, texts, known, until, k, tally) for k in range(16)))
            await asyncio.sleep(1)
            health = (await client.get(f"http://127.0.0.1:{port}/health")).json()
        print(json.dumps(health), flush=True)
        return tally

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "llama-7m"
        make("llama-7m", folder)
        with server(commands(folder, port)["segue serve"], port) as process:
            tally = asyncio.run(run(process.pid))
    fifth = max(1, len(memory) // 5)
    begin, end = statistics.median(memory[fifth : 2 * fifth]), statistics.median(memory[-fifth:])
    return (f"### Soak: {minutes:g} minutes, 16 clients, answers of 8 to 120 tokens, a fifth of them hung up on\n\n"
            f"- {tally.answers:,} answers, {tally.tokens:,} tokens; {tally.wrong} differ from the one alone\n"
            f"- memory of the server: {begin:,.0f} MB in the second fifth of the time, {end:,.0f} MB in the last "
            f"({end - begin:+.0f})\n- first text: median {statistics.median(tally.first) * 1e3:,.0f} ms")


PAGE = """# Serving speed on a CPU

Printed by `python benchmarks/serving.py llama-7m llama-100m` and `--soak 10` (needs `pip install 'segue[bench]'`):
random weights, greedy, streamed over HTTP on one machine, client and server sharing its cores.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", metavar="SHAPE")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--soak", type=float, metavar="MINUTES")
    args = parser.parse_args()
    parts = {name: partial(measure, name, args.tokens, args.seconds) for name in args.shapes}
    if args.soak:
        parts["soak"] = partial(soak, args.soak)
    file = HERE / "serving.jsonl"
    for name, part in parts.items():
        text = part()
        print(text, flush=True)
        with open(file, "a") as handle:
            text += f"\n\nOn {machine(torch.get_num_threads())}."
            handle.write(json.dumps({"part": name, "text": text}) + "\n")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    (HERE / "serving.md").write_text(PAGE + "".join(f"\n{text}\n" for text in
                                                    {row["part"]: row["text"] for row in rows}.values()))


if __name__ == "__main__":
    main()
