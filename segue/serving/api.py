"""The OpenAI completions API in front of an engine: the official client and curl work unchanged.

`segue serve MODEL` runs it on the loopback interface. Beside /v1/completions and /v1/models there are /health, with the
engine's numbers, and a page for people at /. All else is refused in OpenAI's words.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib import resources
from typing import Annotated, Any

from fastapi import FastAPI
from fastapi import HTTPException as BodyTooLarge  # of what reading a body raises, fastapi lets only its own through
from fastapi import Request as HTTPRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from segue.decoding.continuation import (
    Stops,
    Telling,
    enough,
    lead_of,
    open_prompt,
    prime_object,
    prime_tokens,
    sayable,
    unknown_in,
    until_of,
)
from segue.decoding.generate import Until
from segue.decoding.healing import Healing, spelling
from segue.decoding.prompt import OpenPrompt
from segue.decoding.sampling import Leaning, Processor, Sampling
from segue.errors import SegueError
from segue.kinds import Codec, Kind
from segue.models.base import begin_token
from segue.serving.engine import Closing, Engine, News, Overloaded, Request, Ticket

LARGEST = 1 << 24  # bytes of a body: more than all the prompts that an engine holds
UNLIKELY = -9999.0  # OpenAI's log-probability of what is next to impossible; JSON knows no infinity
TOO_LARGE = f"the request is larger than {LARGEST >> 20} MiB: send fewer or shorter prompts"


class StreamOptions(BaseModel):
    """include_usage: end a stream with the number of tokens."""
    include_usage: bool = False


class Completion(BaseModel):
    """The body of a request, as OpenAI documents it; top_k, min_p and repetition_penalty are ours."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: str = ""
    prompt: str | list[str] | list[int] | list[list[int]] = ""
    max_tokens: int | None = Field(16, ge=0)
    temperature: float | None = Field(1.0, ge=0, le=2)
    top_p: float | None = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    min_p: float = Field(0.0, ge=0, le=1)
    repetition_penalty: float = Field(1.0, gt=0)
    frequency_penalty: float | None = Field(0.0, ge=-2, le=2)
    presence_penalty: float | None = Field(0.0, ge=-2, le=2)
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100)]] | None = None
    n: int | None = Field(1, ge=1, le=128)
    best_of: int | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool | None = False
    stop: str | list[str] | None = None
    seed: int | None = None
    suffix: str | None = None
    user: str | None = None


class Refused(Exception):
    """A request that gets an error instead of an answer."""

    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param = status, param


def refusal(status: int, message: str, param: str | None = None) -> JSONResponse:
    """An error as OpenAI's API words it; `param`: the part of the request that is to blame."""
    headers = {"Retry-After": "1"} if status == 429 else None
    return JSONResponse({"error": wrong(status, message, param)}, status, headers)


def wrong(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """The body of a `refusal`."""
    kind = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}.get(
        status, "server_error" if status >= 500 else "invalid_request_error")
    return {"message": message, "type": kind, "param": param, "code": None}


def status_of(error: Exception) -> int:
    """Of the answer that tells an error: the client's, the moment's, or ours."""
    statuses = {Overloaded: 429, Closing: 503, SegueError: 400}
    return next((status for sort, status in statuses.items() if isinstance(error, sort)), 500)


def refuse(app: FastAPI) -> None:
    """Errors become answers, worded as OpenAI's."""

    @app.exception_handler(Refused)
    async def refused(_: HTTPRequest, error: Refused) -> JSONResponse:
        return refusal(error.status, str(error), error.param)

    @app.exception_handler(SegueError)
    @app.exception_handler(Exception)
    async def mistaken(_: HTTPRequest, error: Exception) -> JSONResponse:
        return refusal(status_of(error), str(error) or type(error).__name__)

    @app.exception_handler(HTTPException)
    async def elsewhere(http: HTTPRequest, error: HTTPException) -> JSONResponse:
        if error.status_code in (404, 405):
            return refusal(error.status_code, f"{http.method} {http.url.path} is not offered here: a model that "
                           "continues sequences answers POST /v1/completions (there are no chats)")
        return refusal(error.status_code, str(error.detail))

    @app.exception_handler(RequestValidationError)
    async def invalid(http: HTTPRequest, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = next((place for place in first["loc"][1:2] if isinstance(place, str)), None)
        if where is None and "json" not in http.headers.get("content-type", ""):  # curl -d alone says it is a form
            return refusal(400, "body: send a JSON object, with the header Content-Type: application/json")
        return refusal(400, f"{where or 'body'}: {first['msg']}", where)


class Door:
    """Before a request is read: who has no key, or brings too much, is refused. An ASGI application around another."""

    def __init__(self, app: ASGIApp, key: str | None) -> None:
        self.app, self.key = app, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers, left = Headers(scope=scope), LARGEST
        sent = headers.get("authorization", "").removeprefix("Bearer ")
        if self.key is not None and scope["path"].startswith("/v1") and \
                not secrets.compare_digest(sent.encode("latin-1"), self.key.encode()):
            answer = refusal(401, "send the key of this server as 'Authorization: Bearer KEY'")
            return await answer(scope, receive, send)
        if (length := headers.get("content-length", "0")).isdecimal() and int(length) > LARGEST:
            return await refusal(413, TOO_LARGE)(scope, receive, send)

        async def counted() -> Message:  # a body may come without saying how long it is
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise BodyTooLarge(413, TOO_LARGE)
            return message

        await self.app(scope, counted, send)


class Answering:
    """One HTTP request: its prompts become requests to the engine, the news of those one queue."""

    def __init__(self, engine: Engine, codec: Codec, eos: frozenset[int], body: Completion,
                 processors: tuple[Processor, ...] = (), kind: Kind | None = None) -> None:
        self.engine, self.codec, self.body, self.kind = engine, codec, body, kind
        self.n, self.said = body.n or 1, 0
        self.queue: asyncio.Queue[tuple[int, News]] = asyncio.Queue()
        if body.suffix or body.best_of not in (None, self.n):
            raise Refused(400, "suffix, and best_of other than n, are not offered here",
                          "suffix" if body.suffix else "best_of")
        n = 16 if body.max_tokens is None else body.max_tokens
        if n == 0 and not body.echo:
            raise Refused(400, "max_tokens must be at least 1, or echo the prompt", "max_tokens")
        stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
        self.stops = Stops(stops, codec) if stops else None
        self.most = n if codec.counted else None
        self.prompts = self._prompts(body.prompt)
        lead = lead_of(codec, engine.model)
        self.leads: list[bytes | str] = [getattr(prompt, "rest", lead) for prompt in self.prompts]
        seed = secrets.randbits(63) if body.seed is None else body.seed
        bias = {token: value for token, value in (body.logit_bias or {}).items() if value}
        if any(not 0 <= token < engine.model.vocabulary for token in bias):
            raise Refused(400, "logit_bias names a token outside the vocabulary", "logit_bias")
        leaning = Leaning(tuple(bias.items()), body.frequency_penalty or 0.0, body.presence_penalty or 0.0)
        healing = (Healing(spelling(codec)),) if any(isinstance(one, OpenPrompt) for one in self.prompts) else ()
        processors = (*processors, *sayable(codec), *(() if leaning == Leaning() else (leaning,)), *healing)
        sampling = Sampling(True, 1.0 if body.temperature is None else body.temperature, body.top_k, body.top_p or 1.0,
                            body.min_p, repetition_penalty=body.repetition_penalty, processors=processors)
        told = n == 0 or (bool(body.echo) and body.logprobs is not None)
        self.requests = [Request(prompt, n + getattr(prompt, "taken", 0), sampling, eos, self.n, seed, place * self.n,
                                 body.logprobs, told, self._until(lead))
                         for place, (prompt, lead) in enumerate(zip(self.prompts, self.leads))]
        self.tickets: list[Ticket] = []

    def _until(self, lead: bytes | str) -> Until:
        stop = until_of(self.stops, len(lead))
        return stop if self.most is None else enough(self.codec, self.most + len(lead), stop)

    def _prompts(self, prompt: Any) -> list[list[int]]:
        many = prompt if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else [prompt]
        if len(many) > self.engine.queue:
            raise Refused(400, f"{len(many)} prompts are more than may wait here: send {self.engine.queue} at once at "
                          "most", "prompt")
        found, model = [], self.engine.model
        for one in many:
            if isinstance(one, str):
                prime = one if self.kind is None else prime_object(self.kind, one, self.codec)
                unknown_in(self.codec, prime)
                ids = list(prime_tokens(self.codec, prime, model))
                if begin_token(model) is None and not self.body.echo and self.body.logprobs is None:
                    ids = open_prompt(self.codec, ids)  # else tokens are told one by one, and these are not the text's
            else:
                ids = list(one)
            if (begin := begin_token(model)) is not None:
                if self.body.echo:
                    raise Refused(400, "an encoder-decoder does not echo what it read", "echo")
                if begin not in ids:
                    ids = model.prompt(ids)  # type: ignore[attr-defined]
            if not ids:
                raise Refused(400, "the prompt is empty", "prompt")
            found.append(ids)
        return found

    def _deliver(self, place: int) -> Callable[[News], None]:
        home = asyncio.get_running_loop()

        def deliver(news: News) -> None:  # from the engine's thread
            home.call_soon_threadsafe(self.queue.put_nowait, (place, news))

        return deliver

    def submit(self) -> None:
        """All prompts, or none where there is no room."""
        try:
            for place, request in enumerate(self.requests):
                self.tickets.append(self.engine.submit(request, self._deliver(place)))
        except SegueError:
            self.cancel()
            raise

    def cancel(self) -> None:
        for ticket in self.tickets:
            ticket.cancel()

    async def choices(self) -> AsyncIterator[dict[str, Any]]:
        """What becomes certain of each choice, as OpenAI puts it: text, logprobs, finish_reason."""
        tellings = [Telling(self.codec, self.stops, lead, self.most) for lead in self.leads for _ in range(self.n)]
        places = [Places(self.codec, lead) for lead in self.leads for _ in range(self.n)]
        open_, echoed = len(tellings), set[int]()
        while open_:
            place, news = await self.queue.get()
            if news.error is not None:
                raise news.error
            if self.body.echo and place not in echoed:
                echoed.add(place)
                for index in range(place * self.n, (place + 1) * self.n):
                    yield self._echo(place, index, news, places[index])
            if news.prompt is not None:
                continue
            index = place * self.n + news.index
            self.said += len(news.tokens)
            _, text, finish = tellings[index](news.tokens, news.finish)
            open_ -= finish is not None
            if text or news.tokens or finish:
                yield self._choice(index, text, news.tokens, news.logprobs, news.tops, finish, places[index])

    def _echo(self, place: int, index: int, news: News, places: Places) -> dict[str, Any]:
        ids, given = self.prompts[place], news.prompt or []
        logprobs: list[Any] = [None if one is None else one[0] for one in given]
        tops: list[Any] = [None if one is None else one[1] for one in given]
        text = Telling(self.codec)(ids, "length")[1]
        return self._choice(index, text, ids if given else [], logprobs, tops, None, places)

    def _choice(self, index: int, text: str, tokens: list[int], logprobs: list[Any], tops: list[Any],
                finish: str | None, places: Places) -> dict[str, Any]:
        told = None
        if self.body.logprobs is not None:
            names = list(map(self.codec.token, tokens))
            logprobs = [None if own is None else max(own, UNLIKELY) for own in logprobs]
            alternatives = None if not self.body.logprobs else [None if top is None else {
                self.codec.token(each): max(value, UNLIKELY) for each, value in top} | {name: own}
                for name, own, top in zip(names, logprobs, tops)]
            told = {"tokens": names, "token_logprobs": logprobs, "top_logprobs": alternatives,
                    "text_offset": list(map(places, tokens))}
        reason = None if finish is None else "length" if finish == "length" else "stop"
        return {"index": index, "text": text, "logprobs": told, "finish_reason": reason}

    @property
    def usage(self) -> dict[str, int]:
        read = sum(map(len, self.prompts))
        return {"prompt_tokens": read, "completion_tokens": self.said, "total_tokens": read + self.said}


class Places:
    """Where in the text of a choice each token begins, asked for in order."""

    def __init__(self, codec: Codec, lead: bytes | str) -> None:
        self.telling, self.length = Telling(codec, None, lead), 0

    def __call__(self, token: int) -> int:
        place = self.length
        self.length += len(self.telling([token], None)[1])
        return place


async def whole(answering: Answering, http: HTTPRequest) -> list[dict[str, Any]] | None:
    """All choices, once they are complete; None if the client goes before."""
    choices = [{"index": index, "text": "", "logprobs": None, "finish_reason": None}
               for index in range(len(answering.prompts) * answering.n)]

    async def collect() -> None:
        async for piece in answering.choices():
            merge(choices, piece)

    work = asyncio.create_task(collect())
    try:
        while not (await asyncio.wait([work], timeout=0.5))[0]:
            if await http.is_disconnected():
                return None
        await work
        return choices
    finally:
        work.cancel()
        answering.cancel()  # what is finished does not mind


async def events(answering: Answering, frame: dict[str, Any]) -> AsyncIterator[str]:
    """The pieces of all choices as they come, each a server-sent event in the frame of the answer."""
    options = answering.body.stream_options
    counted = options is not None and options.include_usage
    frame = frame | {"usage": None} if counted else frame
    try:
        async for piece in answering.choices():
            yield f"data: {json.dumps(frame | {'choices': [piece]})}\n\n"
        if counted:
            yield f"data: {json.dumps(frame | {'choices': [], 'usage': answering.usage})}\n\n"
        yield "data: [DONE]\n\n"
    except Exception as error:  # the status is long sent: say it in the stream
        yield f"data: {json.dumps({'error': wrong(status_of(error), str(error))})}\n\n"


class Streamed(StreamingResponse):
    """`events` as an answer. However it ends its rows are free: the client may go before the first piece, and then
    nothing of `events` has run."""

    def __init__(self, answering: Answering, frame: dict[str, Any]) -> None:
        super().__init__(events(answering, frame), media_type="text/event-stream")
        self.answering = answering

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.answering.cancel()


def merge(choices: list[dict[str, Any]], piece: dict[str, Any]) -> None:
    """Add a piece to the choice it belongs to."""
    choice = choices[piece["index"]]
    choice["text"] += piece["text"]
    choice["finish_reason"] = piece["finish_reason"] or choice["finish_reason"]
    if piece["logprobs"] is not None:
        have = choice["logprobs"] or {name: [] for name in piece["logprobs"]}
        choice["logprobs"] = {name: None if values is None else [*(have[name] or []), *values]
                              for name, values in piece["logprobs"].items()}


def create_app(engine: Engine, codec: Codec, name: str, eos: frozenset[int] = frozenset(),
               key: str | None = None, processors: tuple[Processor, ...] = (), kind: Kind | None = None) -> FastAPI:
    """name: of the model, in answers. eos: tokens that end an answer. key: what clients must send as a bearer token
    (None: nothing). processors: those of every answer. kind: how a typed prompt becomes a sequence (None: as it is).
    The engine is closed with the app."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.close)

    app = FastAPI(title="segue", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Door, key=key)
    refuse(app)

    @app.post("/v1/completions", response_model=None)
    async def completions(body: Completion, http: HTTPRequest) -> JSONResponse | StreamingResponse:
        if body.model not in ("", name):
            raise Refused(404, f"there is no model '{body.model}' here, only '{name}'", "model")
        # In a thread: a long prompt is not encoded while the answers of others wait.
        answering = await asyncio.to_thread(Answering, engine, codec, eos, body, processors, kind)
        answering.submit()
        frame = {"id": f"cmpl-{secrets.token_hex(12)}", "object": "text_completion", "created": int(time.time()),
                 "model": name}
        if body.stream:
            return Streamed(answering, frame)
        choices = await whole(answering, http)
        if choices is None:
            return refusal(400, "the client has gone")
        return JSONResponse(frame | {"choices": choices, "usage": answering.usage})

    own = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "segue"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [own]}

    @app.get("/v1/models/{model}")
    async def model(model: str) -> dict[str, Any]:
        if model != name:
            raise Refused(404, f"there is no model '{model}' here, only '{name}'", "model")
        return own

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "model": name, "path": engine.model.path, **engine.stats()}

    @app.get("/", response_class=HTMLResponse)
    async def page() -> str:
        return resources.files("segue.serving").joinpath("page.html").read_text(encoding="utf-8")

    return app
