"""Run functions that are not trusted, such as a model wrote: in a process of its own each, without files, network or
other processes, within limits of time and memory. What goes wrong is no verdict, and harms nobody."""

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
    """What one call gave. value: as JSON holds it. error: why there is none; "" where there is one."""

    value: Any = None
    error: str = ""

    @property
    def ok(self) -> bool:
        return not self.error


@dataclass
class Sandbox:
    """Runs Python source that is not trusted.

    seconds: for each call. memory: bytes for the process. imports: modules of the standard library that the source may
    import. strikes: so many calls that end their process (by looping, say) end the function. needs: walls without which
    nothing is run; () for programs that mean no harm, so that they run anywhere.
    walls, once something ran: "kernel" where it refuses all system calls but those of computing (Linux on x86-64 and
    ARM), and "interpreter", whose hooks refuse what it reports of, and which a program can get around.
    """

    seconds: float = 5.0
    memory: int = 256 * 2**20
    imports: Sequence[str] = IMPORTS
    strikes: int = 2
    needs: Sequence[str] = ("kernel",)
    walls: tuple[str, ...] = field(default=(), init=False)

    def run(self, source: str, function: str, calls: Sequence[Sequence[Any]]) -> list[Outcome]:
        """The outcome of each call, of one function with these JSON arguments; each process begins anew.
        A SegueError where a wall that it needs does not stand."""
        if os.name != "posix":
            raise SegueError("the sandbox needs Linux or macOS: run programs that are not trusted there")
        outcomes: list[Outcome] = []
        for _ in range(self.strikes):
            outcomes += self._process(source, function, list(calls[len(outcomes) :]))
            if len(outcomes) == len(calls):
                return outcomes
        return outcomes + [Outcome(error="given up after others")] * (len(calls) - len(outcomes))

    def _process(self, source: str, function: str, calls: list[Sequence[Any]]) -> list[Outcome]:
        """The outcomes up to the call that ended the process, that one too."""
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
    """JSON lines from a pipe, each within a time."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self.held, self.ended = descriptor, b"", False

    def next(self, seconds: float) -> dict[str, Any]:
        """The next line; {"error"} where none comes, after which nothing is read any more."""
        until = time.monotonic() + seconds
        with selectors.DefaultSelector() as waiting:
            waiting.register(self.descriptor, selectors.EVENT_READ)
            while b"\n" not in self.held:
                left = until - time.monotonic()
                more = os.read(self.descriptor, 65536) if left > 0 and waiting.select(left) else None
                if not more or len(self.held) > LONGEST:
                    self.ended = True
                    return {"error": "out of time" if more is None else "ended" if not more else "answer too long"}
                self.held += more
        line, _, self.held = self.held.partition(b"\n")
        with suppress(ValueError, RecursionError):
            if isinstance(found := json.loads(line), dict):
                return found
        self.ended = True  # whatever wrote this may have written more
        return {"error": "no answer"}
