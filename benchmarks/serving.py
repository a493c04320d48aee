"""Serving speed: `segue serve` and `transformers serve` on the same folder, with 1, 8 and 32 streams; and a soak.

    python benchmarks/serving.py llama-7m llama-100m     # the tables
    python benchmarks/serving.py --soak 10               # ten minutes of mixed requests, some of them cancelled

Both answer the same OpenAI completions over HTTP on the loopback interface, greedy, streamed. Each stream asks again as
soon as it is answered. The first text of a stream is that of its first token. Every answer is compared with the one
that the same server gave when it was asked alone. Needs the extra `bench`. The page is results/serving.md.
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
from decode import HERE, PROMPT, SHAPES, machine, make_model, table

STREAMS = (1, 8, 32)


@dataclass
class Tally:
    """Answers of the streams, counted. wrong: those that differ from the reference. first: seconds to the first text of
    each answer."""

    tokens: int = 0
    answers: int = 0
    wrong: int = 0
    first: list[float] = field(default_factory=list)


@contextmanager
def server(command: list[str], port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A server process that answers /v1/models, stopped at the end."""
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
    deadline = time.monotonic() + 600  # kernels may have to be compiled first
    while time.monotonic() < deadline:
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
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def commands(folder: Path, port: int) -> dict[str, list[str]]:
    bin_folder = Path(sys.executable).parent
    return {"segue serve": [str(bin_folder / "segue"), "serve", str(folder), "--port", str(port)],
            "transformers serve": [str(bin_folder / "transformers"), "serve", str(folder), "--port", str(port),
                                   "--device", "cpu", "--dtype", "float32"],
            "transformers serve, continuous batching": [
                str(bin_folder / "transformers"), "serve", str(folder), "--port", str(port), "--device", "cpu",
                "--dtype", "float32", "--continuous-batching"]}


def completion_request(model: str, prompt: str, tokens: int) -> dict[str, Any]:
    return {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True}


async def complete(client: httpx.AsyncClient, url: str, request: dict[str, Any], drop_after: int | None = None,
                   ) -> tuple[str, int, float]:
    """The text, the number of pieces, and the seconds to the first; `drop_after` pieces the client hangs up."""
    begin, first, text, pieces = time.perf_counter(), 0.0, "", 0
    async with client.stream("POST", url, json=request) as response:
        if response.status_code != 200:
            raise RuntimeError(f"{response.status_code}: {(await response.aread()).decode()[:300]}")
        async for line in response.aiter_lines():
            if not line.startswith("data:") or line.endswith("[DONE]"):
                continue
            choices = json.loads(line[5:])["choices"]
            if choices and choices[0].get("text"):
                first = first or time.perf_counter() - begin
                text += choices[0]["text"]
                pieces += 1
                if drop_after is not None and pieces >= drop_after:
                    break
    return text, pieces, first


def prompts(vocabulary: int, count: int) -> list[str]:
    draw = np.random.default_rng(0)
    return [" ".join(f"t{token}" for token in row) for row in draw.integers(2, vocabulary, (count, PROMPT))]


async def run_stream(client: httpx.AsyncClient, url: str, model: str, prompts_in_turn: list[str],
                     references: dict[str, str], tokens: int, deadline: float, tally: Tally) -> None:
    """Ask one prompt after another until the time is over."""
    for prompt in prompts_in_turn * 1000:
        if time.perf_counter() > deadline:
            return
        text, _, first = await complete(client, url, completion_request(model, prompt, tokens))
        tally.tokens += text.count("t")  # the words of these models are t0, t1, ...
        tally.answers += 1
        tally.first.append(first)
        tally.wrong += text != references[prompt]


async def measure_load(url: str, model: str, vocabulary: int, tokens: int,
                       seconds: float) -> list[tuple[int, Tally, float]]:
    """Tallies of 1, 8 and 32 streams, each for so many seconds, and how long they took."""
    tallies = []
    async with httpx.AsyncClient(timeout=600) as client:
        texts = prompts(vocabulary, 8)
        references = {prompt: (await complete(client, url, completion_request(model, prompt, tokens)))[0]
                      for prompt in texts}
        for count in STREAMS:
            tally, begin = Tally(), time.perf_counter()
            await asyncio.gather(*(run_stream(client, url, model, texts[k % 8 :] + texts[: k % 8], references, tokens,
                                              begin + seconds, tally) for k in range(count)))
            tallies.append((count, tally, time.perf_counter() - begin))
    return tallies


def measure(name: str, tokens: int, seconds: float) -> str:
    rows, port = [], free_port()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / name
        make_model(name, folder)
        speeds: dict[int, float] = {}
        for server_name, command in commands(folder, port).items():
            model = name if server_name.startswith("segue") else str(folder)
            try:
                with server(command, port):
                    tallies = asyncio.run(measure_load(f"http://127.0.0.1:{port}/v1/completions", model,
                                                       SHAPES[name.split("-")[1]]["vocabulary"], tokens, seconds))
            except (RuntimeError, httpx.HTTPError, SystemExit) as error:
                reason = str(error).strip().splitlines()[-1][:120] if str(error).strip() else type(error).__name__
                rows.append([server_name, *["-"] * 5, reason])
                continue
            for count, tally, elapsed in tallies:
                speed = tally.tokens / elapsed
                if server_name == "segue serve":
                    speeds[count] = speed
                rows.append([server_name, str(count), f"{speed:,.0f}", f"{speeds.get(count, 0) / max(speed, 1e-9):.1f}",
                             f"{statistics.median(tally.first) * 1e3:,.0f}",
                             f"{np.quantile(tally.first, 0.95) * 1e3:,.0f}", f"{tally.wrong} of {tally.answers}"])
    head = ["", "streams", "tokens/s", "segue is so many times as fast", "first text, ms: median", "95%",
            "answers that differ from the one alone"]
    return (f"### {name}, {tokens} tokens behind prompts of {PROMPT}, {seconds:g} s each\n\n" + table(head, rows))


def resident(pid: int) -> float:
    """Megabytes of memory that a process holds."""
    with open(f"/proc/{pid}/status") as handle:
        return next(int(line.split()[1]) / 1024 for line in handle if line.startswith("VmRSS"))


async def run_random_client(client: httpx.AsyncClient, url: str, texts: list[str],
                            references: dict[tuple[str, int], str], deadline: float, seed: int, tally: Tally) -> None:
    """Ask for answers of all lengths, hang up on every fifth, now and then wait."""
    draw = random.Random(seed)
    while time.perf_counter() < deadline:
        prompt, tokens = draw.choice(list(references))
        drop = draw.randrange(1, tokens) if draw.random() < 0.2 else None
        text, _, first = await complete(client, url, completion_request("llama-7m", prompt, tokens), drop)
        reference = references[prompt, tokens]
        tally.answers += 1
        tally.tokens += text.count("t")  # the words of these models are t0, t1, ...
        tally.first.append(first)
        tally.wrong += (not reference.startswith(text)) if drop is not None else text != reference
        if draw.random() < 0.1:
            await asyncio.sleep(draw.random())


def soak(minutes: float) -> str:
    """Sixteen random clients; the server's memory is read every few seconds."""
    port, memory = free_port(), []

    async def run(pid: int) -> Tally:
        url, tally = f"http://127.0.0.1:{port}/v1/completions", Tally()
        async with httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=64)) as client:
            texts = prompts(SHAPES["7m"]["vocabulary"], 24)
            references = {(prompt,
                           tokens): (await complete(client, url, completion_request("llama-7m", prompt, tokens)))[0]
                          for prompt in texts for tokens in (8, 40, 120)}
            deadline = time.perf_counter() + 60 * minutes

            async def watch() -> None:
                while time.perf_counter() < deadline:
                    memory.append(resident(pid))
                    await asyncio.sleep(max(0.5, 60 * minutes / 200))

            await asyncio.gather(watch(), *(run_random_client(client, url, texts, references, deadline, k, tally)
                                            for k in range(16)))
            await asyncio.sleep(1)
            health = (await client.get(f"http://127.0.0.1:{port}/health")).json()
        print(json.dumps(health), flush=True)
        return tally

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "llama-7m"
        make_model("llama-7m", folder)
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
