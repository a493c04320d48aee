"""A sandbox for untrusted functions, such as a model wrote: each runs in its own process, without files, network or
other processes, within limits of time and memory. Failures are reported as errors of the calls."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segue.errors import SegueError

IMPORTS = ("re", "json", "math", "string", "collections", "itertools", "functools", "statistics", "unicodedata",
           "datetime", "random", "textwrap", "heapq", "bisect", "operator", "typing")
LONGEST = 1_000_000  # bytes of an answer


@dataclass(frozen=True)
class Outcome:
    """The result of one call. value: as JSON represents it. error: why there is no value; "" if there is one."""

    value: Any = None
    error: str = ""

    @property
    def ok(self) -> bool:
        return not self.error


@dataclass
class Sandbox:
    """Runs untrusted Python source.

    seconds: limit of each call. memory: limit of the process in bytes. imports: modules of the standard library that
    the source may import. strikes: number of calls that may end their process (by looping, for example) before the
    function is given up. needs: walls without which nothing is run; () for trusted programs, which run anywhere.
    walls, after a run: "kernel" if a filter refuses all system calls that computing does not need (Linux on x86-64 and
    ARM), and "interpreter", audit hooks, which a program can circumvent.
    """

    seconds: float = 5.0
    memory: int = 256 * 2**20
    imports: Sequence[str] = IMPORTS
    strikes: int = 2
    needs: Sequence[str] = ("kernel",)
    walls: tuple[str, ...] = field(default=(), init=False)

    def run(self, source: str, function: str, calls: Sequence[Sequence[Any]]) -> list[Outcome]:
        """The outcomes of calls of one function with these JSON arguments. Raises SegueError if a needed wall is
        missing."""
        if os.name != "posix":
            raise SegueError("the sandbox needs Linux or macOS: run programs that are not trusted there")
        outcomes: list[Outcome] = []
        for _ in range(self.strikes):
            outcomes += self._process(source, function, list(calls[len(outcomes) :]))
            if len(outcomes) == len(calls):
                return outcomes
        return outcomes + [Outcome(error="given up after others")] * (len(calls) - len(outcomes))

    def _process(self, source: str, function: str, calls: list[Sequence[Any]]) -> list[Outcome]:
        """The outcomes up to and including the call that ended the process."""
        job = {"source": source, "function": function, "calls": calls, "imports": list(self.imports),
               "needs": list(self.needs), "memory": self.memory, "seconds": self.seconds}
        child = subprocess.Popen([sys.executable, "-I", "-S", str(Path(__file__).with_name("jail.py"))],
                                 stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={},
                                 cwd="/", close_fds=True, start_new_session=True)
        assert child.stdin is not None and child.stdout is not None
        try:
            lines = _Lines(child.stdout.fileno())
            try:
                child.stdin.write(json.dumps(job).encode() + b"\n")
                child.stdin.close()
            except BrokenPipeError:
                pass
            start = lines.next(30.0)
            if "walls" not in start:
                raise SegueError(f"the sandbox did not start ({start['error']}): give it more memory than "
                                 f"{self.memory} bytes")
            self.walls = tuple(start["walls"])
            if missing := [wall for wall in self.needs if wall not in self.walls]:
                raise SegueError(f"there is no {missing[0]} wall here around programs that are not trusted (Linux on "
                                 "x86-64 and ARM has one): run them there or, if they mean no harm, with needs=()")
            loaded = lines.next(self.seconds)
            if "error" in loaded:
                return [Outcome(error=loaded["error"])] * len(calls)
            outcomes: list[Outcome] = []
            for _ in calls:
                answer = lines.next(self.seconds)
                outcomes.append(Outcome(answer.get("value"), answer.get("error", "")))
                if lines.ended:
                    break
            return outcomes
        finally:
            child.kill()
            child.wait()
            child.stdout.close()


class _Lines:
    """Reads JSON lines from a pipe, each within a time limit."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self.buffer, self.ended = descriptor, b"", False

    def next(self, seconds: float) -> dict[str, Any]:
        """The next line, or {"error"}, after which nothing more is read."""
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self.descriptor, selectors.EVENT_READ)
            while b"\n" not in self.buffer:
                remaining = deadline - time.monotonic()
                received = os.read(self.descriptor, 65536) if remaining > 0 and selector.select(remaining) else None
                if not received or len(self.buffer) > LONGEST:
                    self.ended = True
                    return {"error": "out of time" if received is None else "answer too long" if received else "ended"}
                self.buffer += received
        line, _, self.buffer = self.buffer.partition(b"\n")
        with suppress(ValueError, RecursionError):
            if isinstance(value := json.loads(line), dict):
                return value
        self.ended = True  # whatever wrote this may have written more
        return {"error": "no answer"}
