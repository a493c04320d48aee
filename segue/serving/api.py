"""The OpenAI completions API in front of an engine: the official client and curl work unchanged.

`segue serve MODEL` runs it on the loopback interface. Besides /v1/completions and /v1/models there are /health, with
the engine's counters, and a web page at /. Everything else gets an error in OpenAI's format.
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
    StreamDecoder,
    answer_lead,
    codec_processors,
    count_unknown,
    open_prompt,
    prime_object,
    prime_tokens,
    stop_condition,
    unit_limit_condition,
)
from segue.decoding.generate import Until
from segue.decoding.healing import Healing, spelling_of
from segue.decoding.prompt import OpenPrompt
from segue.decoding.sampling import LogitBias, Processor, Sampling
from segue.errors import SegueError
from segue.kinds import Codec, Kind
from segue.models.base import begin_token
from segue.serving.engine import AnswerUpdate, Closing, Engine, Overloaded, Request, Ticket

MAX_BODY_BYTES = 1 << 24  # more than all the prompts that an engine holds
MIN_LOGPROB = -9999.0  # OpenAI's value for tokens of (nearly) no probability; JSON has no infinity
TOO_LARGE = f"the request is larger than {MAX_BODY_BYTES >> 20} MiB: send fewer or shorter prompts"


class StreamOptions(BaseModel):
    """include_usage: end a stream with the token counts."""
    include_usage: bool = False


class Completion(BaseModel):
    """The body of a completion request, as OpenAI documents it; top_k, min_p and repetition_penalty are extensions."""

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
    """A request that gets an error in place of an answer. param: the part of the request that is to blame."""

    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param = status, param


def error_response(status: int, message: str, param: str | None = None) -> JSONResponse:
    """An error response in OpenAI's format. param: the part of the request that is to blame."""
    headers = {"Retry-After": "1"} if status == 429 else None
    return JSONResponse({"error": error_body(status, message, param)}, status, headers)


def error_body(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """The `error` object of an `error_response`."""
    kind = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}.get(
        status, "server_error" if status >= 500 else "invalid_request_error")
    return {"message": message, "type": kind, "param": param, "code": None}


def status_of(error: Exception) -> int:
    """The HTTP status of an error: 429 and 503 for a full or closing engine, 400 for a client's mistake, else 500."""
    statuses = {Overloaded: 429, Closing: 503, SegueError: 400}
    return next((status for kind, status in statuses.items() if isinstance(error, kind)), 500)


def add_error_handlers(app: FastAPI) -> None:
    """Turn exceptions into error responses in OpenAI's format."""

    @app.exception_handler(Refused)
    async def refused(_: HTTPRequest, error: Refused) -> JSONResponse:
        return error_response(error.status, str(error), error.param)

    @app.exception_handler(SegueError)
    @app.exception_handler(Exception)
    async def mistaken(_: HTTPRequest, error: Exception) -> JSONResponse:
        return error_response(status_of(error), str(error) or type(error).__name__)

    @app.exception_handler(HTTPException)
    async def elsewhere(http: HTTPRequest, error: HTTPException) -> JSONResponse:
        if error.status_code in (404, 405):
            return error_response(error.status_code, f"{http.method} {http.url.path} is not offered here: a model that "
                                  "continues sequences answers POST /v1/completions (there are no chats)")
        return error_response(error.status_code, str(error.detail))

    @app.exception_handler(RequestValidationError)
    async def invalid(http: HTTPRequest, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        parameter = next((place for place in first["loc"][1:2] if isinstance(place, str)), None)
        if parameter is None and "json" not in http.headers.get("content-type", ""):  # curl -d alone says it is a form
            return error_response(400, "body: send a JSON object, with the header Content-Type: application/json")
        return error_response(400, f"{parameter or 'body'}: {first['msg']}", parameter)


class RequestGuard:
    """ASGI middleware that refuses requests without the key or with too large a body, before they are read."""

    def __init__(self, app: ASGIApp, key: str | None) -> None:
        self.app, self.key = app, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers, bytes_left = Headers(scope=scope), MAX_BODY_BYTES
        given_key = headers.get("authorization", "").removeprefix("Bearer ")
        if self.key is not None and scope["path"].startswith("/v1") and \
                not secrets.compare_digest(given_key.encode("latin-1"), self.key.encode()):
            refusal = error_response(401, "send the key of this server as 'Authorization: Bearer KEY'")
            return await refusal(scope, receive, send)
        if (length := headers.get("content-length", "0")).isdecimal() and int(length) > MAX_BODY_BYTES:
            return await error_response(413, TOO_LARGE)(scope, receive, send)

        async def limited_receive() -> Message:  # for bodies without a content-length
            nonlocal bytes_left
            message = await receive()
            bytes_left -= len(message.get("body", b""))
            if bytes_left < 0:
                raise BodyTooLarge(413, TOO_LARGE)
            return message

        await self.app(scope, limited_receive, send)


class CompletionJob:
    """One HTTP request: each of its prompts becomes a request to the engine, whose updates go to one queue."""

    def __init__(self, engine: Engine, codec: Codec, eos: frozenset[int], body: Completion,
                 processors: tuple[Processor, ...] = (), kind: Kind | None = None) -> None:
        self.engine, self.codec, self.body, self.kind = engine, codec, body, kind
        self.n, self.generated = body.n or 1, 0
        self.queue: asyncio.Queue[tuple[int, AnswerUpdate]] = asyncio.Queue()
        if body.suffix or body.best_of not in (None, self.n):
            raise Refused(400, "suffix, and best_of other than n, are not offered here",
                          "suffix" if body.suffix else "best_of")
        n = 16 if body.max_tokens is None else body.max_tokens
        if n == 0 and not body.echo:
            raise Refused(400, "max_tokens must be at least 1, or echo the prompt", "max_tokens")
        stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
        self.stops = Stops(stops, codec) if stops else None
        self.max_units = n if codec.counted else None
        self.prompts = self._prompts(body.prompt)
        lead = answer_lead(codec, engine.model)
        self.leads: list[bytes | str] = [getattr(prompt, "removed_text", lead) for prompt in self.prompts]
        seed = secrets.randbits(63) if body.seed is None else body.seed
        bias = {token: value for token, value in (body.logit_bias or {}).items() if value}
        if any(not 0 <= token < engine.model.vocabulary for token in bias):
            raise Refused(400, "logit_bias names a token outside the vocabulary", "logit_bias")
        leaning = LogitBias(tuple(bias.items()), body.frequency_penalty or 0.0, body.presence_penalty or 0.0)
        healing = (Healing(spelling_of(codec)),) if any(isinstance(one, OpenPrompt) for one in self.prompts) else ()
        processors = (*processors, *codec_processors(codec), *(() if leaning == LogitBias() else (leaning,)), *healing)
        sampling = Sampling(True, 1.0 if body.temperature is None else body.temperature, body.top_k, body.top_p or 1.0,
                            body.min_p, repetition_penalty=body.repetition_penalty, processors=processors)
        prompt_logprobs = n == 0 or (bool(body.echo) and body.logprobs is not None)
        self.requests = [Request(prompt, n + getattr(prompt, "removed_count", 0), sampling, eos, self.n, seed,
                                 number * self.n, body.logprobs, prompt_logprobs, self._until(lead))
                         for number, (prompt, lead) in enumerate(zip(self.prompts, self.leads))]
        self.tickets: list[Ticket] = []

    def _until(self, lead: bytes | str) -> Until:
        """The condition that ends an answer at a stop string or at its limit of base units."""
        stop = stop_condition(self.stops, len(lead))
        return stop if self.max_units is None else unit_limit_condition(self.codec, self.max_units + len(lead), stop)

    def _prompts(self, prompt: Any) -> list[list[int]]:
        """The prompts of the body as token ids."""
        prompts = prompt if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else [prompt]
        if len(prompts) > self.engine.queue:
            raise Refused(400, f"{len(prompts)} prompts are more than may wait here: send {self.engine.queue} at once "
                          "at most", "prompt")
        token_ids, model = [], self.engine.model
        for item in prompts:
            if isinstance(item, str):
                prime = item if self.kind is None else prime_object(self.kind, item, self.codec)
                count_unknown(self.codec, prime)
                ids = list(prime_tokens(self.codec, prime, model))
                if begin_token(model) is None and not self.body.echo and self.body.logprobs is None:
                    ids = open_prompt(self.codec, ids)  # not where the reply lists the prompt's tokens one by one
            else:
                ids = list(item)
            if (begin := begin_token(model)) is not None:
                if self.body.echo:
                    raise Refused(400, "an encoder-decoder does not echo what it read", "echo")
                if begin not in ids:
                    ids = model.prompt(ids)  # type: ignore[attr-defined]
            if not ids:
                raise Refused(400, "the prompt is empty", "prompt")
            token_ids.append(ids)
        return token_ids

    def _deliver(self, number: int) -> Callable[[AnswerUpdate], None]:
        """A callback that queues the updates of prompt `number`."""
        loop = asyncio.get_running_loop()

        def deliver(update: AnswerUpdate) -> None:  # called from the engine's thread
            loop.call_soon_threadsafe(self.queue.put_nowait, (number, update))

        return deliver

    def submit(self) -> None:
        """Submit all prompts; if one is refused, cancel the others."""
        try:
            for number, request in enumerate(self.requests):
                self.tickets.append(self.engine.submit(request, self._deliver(number)))
        except SegueError:
            self.cancel()
            raise

    def cancel(self) -> None:
        for ticket in self.tickets:
            ticket.cancel()

    async def choices(self) -> AsyncIterator[dict[str, Any]]:
        """Yields pieces of the choices in OpenAI's format as they come: text, logprobs, finish_reason."""
        leads = [lead for lead in self.leads for _ in range(self.n)]
        decoders = [StreamDecoder(self.codec, self.stops, lead, self.max_units) for lead in leads]
        offsets = [TextOffsets(self.codec, lead) for lead in leads]
        unfinished, echoed = len(leads), set[int]()
        while unfinished:
            number, update = await self.queue.get()
            if update.error is not None:
                raise update.error
            if self.body.echo and number not in echoed:
                echoed.add(number)
                for index in range(number * self.n, (number + 1) * self.n):
                    yield self._echo(number, index, update, offsets[index])
            if update.prompt is not None:
                continue
            index = number * self.n + update.index
            self.generated += len(update.tokens)
            _, text, finish = decoders[index](update.tokens, update.finish)
            unfinished -= finish is not None
            if text or update.tokens or finish:
                yield self._choice(index, text, update.tokens, update.logprobs, update.top_logprobs, finish,
                                   offsets[index])

    def _echo(self, number: int, index: int, update: AnswerUpdate, offsets: TextOffsets) -> dict[str, Any]:
        """The prompt as the first piece of a choice."""
        ids, scores = self.prompts[number], update.prompt or []
        logprobs: list[Any] = [None if score is None else score[0] for score in scores]
        tops: list[Any] = [None if score is None else score[1] for score in scores]
        text = StreamDecoder(self.codec)(ids, "length")[1]
        return self._choice(index, text, ids if scores else [], logprobs, tops, None, offsets)

    def _choice(self, index: int, text: str, tokens: list[int], logprobs: list[Any], tops: list[Any],
                finish: str | None, offsets: TextOffsets) -> dict[str, Any]:
        """A piece of a choice in OpenAI's format."""
        scores = None
        if self.body.logprobs is not None:
            names = list(map(self.codec.token, tokens))
            logprobs = [None if logprob is None else max(logprob, MIN_LOGPROB) for logprob in logprobs]
            alternatives = None if not self.body.logprobs else [None if top is None else {
                self.codec.token(token): max(value, MIN_LOGPROB) for token, value in top} | {name: logprob}
                for name, logprob, top in zip(names, logprobs, tops)]
            scores = {"tokens": names, "token_logprobs": logprobs, "top_logprobs": alternatives,
                      "text_offset": list(map(offsets, tokens))}
        reason = None if finish is None else "length" if finish == "length" else "stop"
        return {"index": index, "text": text, "logprobs": scores, "finish_reason": reason}

    @property
    def usage(self) -> dict[str, int]:
        """Token counts in OpenAI's format."""
        prompt = sum(map(len, self.prompts))
        return {"prompt_tokens": prompt, "completion_tokens": self.generated, "total_tokens": prompt + self.generated}


class TextOffsets:
    """The offset in a choice's text at which each token begins; call it with the tokens in order."""

    def __init__(self, codec: Codec, lead: bytes | str) -> None:
        self.decoder, self.length = StreamDecoder(codec, None, lead), 0

    def __call__(self, token: int) -> int:
        offset = self.length
        self.length += len(self.decoder([token], None)[1])
        return offset


async def collect_choices(job: CompletionJob, http: HTTPRequest) -> list[dict[str, Any]] | None:
    """All choices, once they are complete; None if the client disconnects before."""
    choices = [{"index": index, "text": "", "logprobs": None, "finish_reason": None}
               for index in range(len(job.prompts) * job.n)]

    async def collect() -> None:
        async for piece in job.choices():
            merge_piece(choices, piece)

    task = asyncio.create_task(collect())
    try:
        while not (await asyncio.wait([task], timeout=0.5))[0]:
            if await http.is_disconnected():
                return None
        await task
        return choices
    finally:
        task.cancel()
        job.cancel()  # no effect on answers that are finished


async def stream_events(job: CompletionJob, frame: dict[str, Any]) -> AsyncIterator[str]:
    """Yields the pieces of all choices as server-sent events. frame: the fields that all events share."""
    options = job.body.stream_options
    with_usage = options is not None and options.include_usage
    frame = frame | {"usage": None} if with_usage else frame
    try:
        async for piece in job.choices():
            yield f"data: {json.dumps(frame | {'choices': [piece]})}\n\n"
        if with_usage:
            yield f"data: {json.dumps(frame | {'choices': [], 'usage': job.usage})}\n\n"
        yield "data: [DONE]\n\n"
    except Exception as error:  # the status line is sent already: report the error in the stream
        yield f"data: {json.dumps({'error': error_body(status_of(error), str(error))})}\n\n"


class EventStream(StreamingResponse):
    """The response of `stream_events`. It frees the job's rows however it ends, also if the client disconnects before
    the first piece, when nothing of `stream_events` has run."""

    def __init__(self, job: CompletionJob, frame: dict[str, Any]) -> None:
        super().__init__(stream_events(job, frame), media_type="text/event-stream")
        self.job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.job.cancel()


def merge_piece(choices: list[dict[str, Any]], piece: dict[str, Any]) -> None:
    """Add a piece to the choice it belongs to."""
    choice = choices[piece["index"]]
    choice["text"] += piece["text"]
    choice["finish_reason"] = piece["finish_reason"] or choice["finish_reason"]
    if choice["logprobs"] is None:
        choice["logprobs"] = piece["logprobs"]
    else:
        for name, values in piece["logprobs"].items():
            if values is not None:
                choice["logprobs"][name] += values


def create_app(engine: Engine, codec: Codec, name: str, eos: frozenset[int] = frozenset(),
               key: str | None = None, processors: tuple[Processor, ...] = (), kind: Kind | None = None) -> FastAPI:
    """The ASGI application; it closes the engine when it shuts down.

    name: of the model, in answers. eos: tokens that end an answer. key: what clients must send as a bearer token (None:
    nothing). processors: of every answer. kind: parses text prompts into sequences (None: they are encoded as they
    are).
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.close)

    app = FastAPI(title="segue", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(RequestGuard, key=key)
    add_error_handlers(app)

    @app.post("/v1/completions", response_model=None)
    async def completions(body: Completion, http: HTTPRequest) -> JSONResponse | StreamingResponse:
        if body.model not in ("", name):
            raise Refused(404, f"there is no model '{body.model}' here, only '{name}'", "model")
        # In a thread, so that encoding a long prompt does not block the event loop.
        job = await asyncio.to_thread(CompletionJob, engine, codec, eos, body, processors, kind)
        job.submit()
        frame = {"id": f"cmpl-{secrets.token_hex(12)}", "object": "text_completion", "created": int(time.time()),
                 "model": name}
        if body.stream:
            return EventStream(job, frame)
        choices = await collect_choices(job, http)
        if choices is None:
            return error_response(400, "the client has disconnected")
        return JSONResponse(frame | {"choices": choices, "usage": job.usage})

    model_card = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "segue"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model_card]}

    @app.get("/v1/models/{model}")
    async def model(model: str) -> dict[str, Any]:
        if model != name:
            raise Refused(404, f"there is no model '{model}' here, only '{name}'", "model")
        return model_card

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "model": name, "path": engine.model.path, **engine.stats()}

    @app.get("/", response_class=HTMLResponse)
    async def page() -> str:
        return resources.files("segue.serving").joinpath("page.html").read_text(encoding="utf-8")

    return app
