"""The process inside the sandbox (`segue.programs.sandbox`): runs one untrusted function on many inputs. A script of
the standard library only; it imports nothing of Segue.

It reads one JSON line, {"source", "function", "calls", "imports", "needs", "memory", "seconds"}, reports which walls
are up, ends if a needed one is missing, and answers each call with one line, {"value"} or {"error"}.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib
import io
import json
import os
import platform
import resource
import struct
import sys
from collections.abc import Callable
from typing import Any

# Numbers of the system calls that computing needs: memory, locks, clocks, and pipes that are already open.
ALLOWED = {
    "x86_64": (0xC000003E, (0, 1, 3, 5, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 28, 39, 60, 131, 186, 202, 228, 230,
                            231, 318)),
    "aarch64": (0xC00000B7, (57, 62, 63, 64, 80, 93, 94, 98, 113, 115, 124, 132, 134, 135, 139, 172, 178, 214, 215,
                             216, 222, 226, 233, 278)),
}
HARMLESS = {"compile", "exec", "import", "builtins.id", "object.__getattr__", "object.__setattr__",
            "object.__delattr__", "sys._getframe", "sys._getframemodulename", "code.__new__", "array.__new__",
            "marshal.loads", "time.sleep", "sys.unraisablehook", "sys.excepthook"}
FORBIDDEN = ("open", "input", "breakpoint", "exit", "quit", "help")


def kernel_filter() -> bool:
    """Let the kernel refuse all but the allowed system calls from here on (seccomp): no files, network or processes,
    even if the code subverts the interpreter. False where seccomp is not available."""
    if sys.platform != "linux" or platform.machine() not in ALLOWED:
        return False
    import ctypes

    architecture, numbers = ALLOWED[platform.machine()]
    load, equal, return_ = 0x20, 0x15, 0x06  # of the packet filter language: load a word, compare, return
    kill, refuse, allow = 0x80000000, 0x00050000 | 1, 0x7FFF0000  # 1: "operation not permitted"
    lines = [(load, 0, 0, 4), (equal, 1, 0, architecture), (return_, 0, 0, kill), (load, 0, 0, 0)]
    lines += [(equal, len(numbers) - index, 0, number) for index, number in enumerate(numbers)]
    lines += [(return_, 0, 0, refuse), (return_, 0, 0, allow)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))
    filter_program = struct.pack("HxxxxxxP", len(lines), ctypes.addressof(program))
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, set_filter, mode = 38, 22, 2
    return libc.prctl(no_new_privileges, 1, 0, 0, 0) == 0 and libc.prctl(set_filter, mode, filter_program, 0, 0) == 0


def interpreter_filter() -> None:
    """Let the interpreter refuse every audited event that plain computing does not need (PEP 578)."""
    def hook(event: str, arguments: Any) -> None:
        if event not in HARMLESS:
            raise PermissionError(f"{event} is not allowed")

    sys.addaudithook(hook)


def importer(allowed: set[str]) -> Callable[..., Any]:
    def load(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        if level or name.partition(".")[0] not in allowed:
            raise ImportError(f"import of {name} is not allowed")
        return __import__(name, globals, locals, fromlist, level)

    return load


def main() -> None:
    job = json.loads(sys.stdin.readline())
    for name in job["imports"]:
        importlib.import_module(name)
    out = os.dup(1)
    os.closerange(3, out)
    for kind, limit in ((resource.RLIMIT_AS, job["memory"]), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0),
                        (resource.RLIMIT_CPU, int(job["seconds"] * len(job["calls"])) + 2)):
        with contextlib.suppress(ValueError, OSError):  # not every system has each limit
            resource.setrlimit(kind, (limit, limit))
    walls = ["kernel"] if kernel_filter() else []
    interpreter_filter()

    def reply(answer: dict[str, Any]) -> None:
        os.write(out, json.dumps(answer).encode() + b"\n")

    reply({"walls": [*walls, "interpreter"]})
    if not {*job["needs"]} <= {*walls, "interpreter"}:
        return
    sys.stdout = sys.stderr = io.StringIO()
    safe_builtins = {name: value for name, value in vars(builtins).items() if name not in FORBIDDEN}
    safe_builtins["__import__"] = importer(set(job["imports"]))
    namespace: dict[str, Any] = {"__name__": "untrusted", "__builtins__": safe_builtins}
    try:
        exec(compile(job["source"], "untrusted", "exec"), namespace)
        function = namespace[job["function"]]
        reply({"value": None})
    except BaseException as error:
        reply({"error": f"{type(error).__name__}: {error}"[:200]})
        return
    for arguments in job["calls"]:
        try:
            reply({"value": function(*arguments)})
        except MemoryError:
            reply({"error": "MemoryError"})
        except BaseException as error:
            reply({"error": f"{type(error).__name__}: {error}"[:200]})


if __name__ == "__main__":
    main()
