"""`serve`: run the API server for a saved model, until interrupted."""

from __future__ import annotations

import math
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from segue.decoding.draft import DRAFTERS
from segue.errors import SegueError, require
from segue.serving.engine import Engine
from segue.verbs.fitted import load

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

SHUTDOWN_SECONDS = 5.0  # that running answers have left once the server is asked to stop


def serve(folder: str | Path, host: str = "127.0.0.1", port: int = 8000, key: str | None = None, rows: int = 32,
          tokens: int = 65_536, queue: int = 64, draft: str | None = None, weights: str = "float32",
          device: str | None = None) -> None:
    """Serve the OpenAI completions API with the model in `folder`.

    host, port: where to listen; any host but the loopback interface needs a key. rows, tokens, queue: answers at once,
    tokens that these may hold, waiting requests (see `Engine`). draft: a name in DRAFTERS, or the "heads" that
    `speed_up` trained, for all requests; it changes no token. weights: "float32" or "int8". device: as of `segue.load`.
    """
    for library in ("uvicorn", "fastapi"):
        require(library, extra="serve")
    from segue.serving.api import create_app

    if host not in ("127.0.0.1", "localhost", "::1") and key is None:
        raise SegueError(f"{host} can be reached by others: give a key (--key), or listen on 127.0.0.1")
    if draft is not None and draft not in (*DRAFTERS, "heads"):
        raise SegueError(f"draft '{draft}' is unknown: choose from {', '.join(DRAFTERS)}, heads")
    with bind_socket(host, port) as listener:  # first, so that a taken port is reported before the model is loaded
        fitted = load(folder, device)
        if draft == "heads" and fitted.heads is None:
            raise SegueError(f"draft 'heads' needs trained heads: run segue speed-up {folder} first")
        model = fitted.decodable(weights)
        drafter = None if draft is None else fitted.heads if draft == "heads" else DRAFTERS[draft](model)
        engine = Engine(model, rows=rows, tokens=tokens, queue=queue, draft=drafter)
        try:
            app = create_app(engine, fitted.codec, Path(folder).resolve().name, frozenset(fitted.ends), key,
                             fitted.processors, fitted.kind)
            engine.warm()
            print(f"{engine.model.path}; the page is at http://{host}:{port}/, the API at http://{host}:{port}/v1 "
                  "(ctrl-C ends)", file=sys.stderr)
            make_server(app, engine).run(sockets=[listener])
        except KeyboardInterrupt:
            raise KeyboardInterrupt("the server has ended") from None
        finally:
            engine.close()


def make_server(app: FastAPI, engine: Engine) -> uvicorn.Server:
    """The HTTP server. Asked to stop, it waits for running answers; after SHUTDOWN_SECONDS the engine ends them, and
    their clients get an error."""
    import uvicorn

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            timer = threading.Timer(SHUTDOWN_SECONDS, engine.close)
            timer.start()
            await super().shutdown(sockets)
            timer.cancel()

    return Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2 * math.ceil(SHUTDOWN_SECONDS)))


def bind_socket(host: str, port: int) -> socket.socket:
    """A listening socket, or a SegueError that says why there is none."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise SegueError(f"cannot listen on {host}, port {port} ({error.strerror}): choose another --port or --host") \
            from error
