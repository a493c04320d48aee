"""The batching engine answers each request as if it were alone; the API answers the official client."""

from __future__ import annotations

import asyncio
import json
import queue
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from weights import shake

from segue.decoding import generate
from segue.decoding.constrain import LegalNext
from segue.decoding.draft import TrieDraft
from segue.decoding.sampling import Sampling
from segue.errors import SegueError
from segue.kinds import KINDS
from segue.kinds.codecs import ByteCodec, ItemCodec, KmerCodec
from segue.models import Stack, StackConfig, compiled
from segue.models.compiled import accelerate, compile_model
from segue.serving.engine import AnswerUpdate, Engine, Overloaded, Request
from segue.serving.serve import bind_socket, make_server
from segue.testing.decoding import TableModel


def stack(*mixers: str, vocabulary: int = 11) -> Stack:
    torch.manual_seed(0)
    model = Stack(StackConfig(vocabulary, 16, list(mixers), {"attention": {"heads": 2}, "gla": {"heads": 2}})).eval()
    shake(model, 0.2)
    return model


class Asked:
    """A request, and what came back of it."""

    def __init__(self, engine: Engine, request: Request) -> None:
        self.request, self.news = request, queue.Queue[AnswerUpdate]()
        self.ticket = engine.submit(request, self.news.put)

    def answers(self) -> list[list[int]]:
        tokens: list[list[int]] = [[] for _ in range(self.request.count)]
        running = self.request.count
        while running:
            news = self.news.get(timeout=60)
            if news.error is not None:
                raise news.error
            tokens[news.index] += news.tokens
            running -= news.finish is not None
        return tokens


@pytest.fixture
def engines() -> Iterator[Any]:
    started: list[Engine] = []

    def make(model: Any, **options: Any) -> Engine:
        started.append(Engine(model, **options))
        return started[-1]

    yield make
    for engine in started:
        engine.close()


MODELS = {
    "attention": lambda: stack("attention", "attention").double(),
    "recurrent": lambda: stack("mamba", "lstm").double(),
    "mixed": lambda: stack("gla", "attention").double(),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("draft", [False, True])
def test_every_answer_equals_that_of_a_single_request(engines: Any, name: str, draft: bool) -> None:
    """Requests of all sorts come and go, three rows at a time; prompts share beginnings; pieces are short."""
    model = MODELS[name]()
    engine = engines(model, rows=3, piece=5, prefixes=200, draft=TrieDraft() if draft else None)
    torch.manual_seed(1)
    shared = torch.randint(11, (20,)).tolist()
    requests, expected = [], []
    for number in range(12):
        prompt = shared[: 5 * (number % 5)] + torch.randint(11, (1 + 3 * (number % 4),)).tolist()
        n, sampled = 3 + 5 * (number % 3), number % 2 == 1
        sampling = Sampling(sampled, temperature=0.9 if sampled else 1.0, top_k=5 if number % 4 == 3 else 0)
        requests.append(Asked(engine, Request(prompt, n, sampling, frozenset([0]), seed=number)))
        options = {"temperature": 0.9, "top_k": sampling.top_k} if sampled else {}
        expected.append(generate(model, [prompt], n, "sample" if sampled else "greedy", seed=number, eos=0, **options))
        if number % 3 == 0:
            time.sleep(0.01)  # so that some join a running batch
    for request, single in zip(requests, expected):
        assert request.answers() == [single[0].tokens]
    for _ in range(200):  # the engine counts just after it has told
        if engine.stats()["served"] == 12 and not engine.stats()["rows"]:
            break
        time.sleep(0.01)
    assert engine.stats()["served"] == 12 and not engine.stats()["rows"]
    assert not engine.loop._observed, "nothing is kept of answers that have ended"


def test_shared_prompt_beginnings_are_read_once(engines: Any) -> None:
    model = stack("attention", "attention").double()
    engine = engines(model, piece=64)
    beginning = torch.randint(11, (40,)).tolist()
    for end in ([1, 2], [3], [1, 2, 5]):
        assert Asked(engine, Request([*beginning, *end], 4)).answers()[0] == \
            generate(model, [[*beginning, *end]], 4)[0].tokens
    assert engine.stats()["prefix_hits"] == 2 and engine.stats()["prefix_tokens_saved"] >= 80


def test_several_answers_and_log_probabilities(engines: Any) -> None:
    model = stack("gru", "attention").double()
    engine = engines(model, piece=2)
    request = Request([1, 2, 3], 6, Sampling(True), count=3, seed=5, logprobs=2, prompt_logprobs=True)
    running = Asked(engine, request)
    first = running.news.get(timeout=60)
    assert first.prompt is not None and first.prompt[0] is None and len(first.prompt) == 3
    scores = model(torch.tensor([[1, 2, 3]])).logits.log_softmax(-1)[0].detach()
    for at, token in ((1, 2), (2, 3)):
        token_scores = first.prompt[at]
        assert token_scores is not None and token_scores[0] == pytest.approx(float(scores[at - 1, token]), abs=1e-9)
        assert token_scores[1][0][0] == int(scores[at - 1].argmax())
    rows = generate(model, [[1, 2, 3]] * 3, 6, "sample", seed=5)
    assert running.answers() == [row.tokens for row in rows]


def test_the_server_runs_the_compiled_engine(engines: Any) -> None:
    model = compile_model(stack("attention", "mamba"))
    engine = engines(model, piece=4)
    prompts = [[1, 2, 3, 4, 5, 6], [7], [1, 2, 3, 9]]
    requests = [Asked(engine, Request(prompt, 12)) for prompt in prompts]
    assert [request.answers()[0] for request in requests] == [answer.tokens for answer in generate(model, prompts, 12)]


class Slow(TableModel):
    """A table that takes its time, or breaks on a token."""

    def extend(self, tokens: Any, *rest: Any, **options: Any) -> Any:
        time.sleep(0.005)
        if bool((tokens == 6).any()):
            raise RuntimeError("this model breaks")
        return super().extend(tokens, *rest, **options)


def test_a_model_that_is_compiled_while_it_serves(engines: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Running answers end in torch, later ones begin in the compiled engine, and no state goes from one to the
    other."""
    is_warm = False
    monkeypatch.setattr(compiled, "is_warm", lambda: is_warm)
    monkeypatch.setattr(compiled, "compile_in_background", lambda: True)
    network = stack("attention", "gla")
    model = accelerate(network)
    engine, prefix = engines(model), [*range(10)] * 3
    requests = [Request(prefix, 3), Request([1, 2, 3], 300), Request([4, 5], 5), Request([*prefix, 1], 5)]
    expected = [generate(network, [request.prompt], request.n)[0].tokens for request in requests]
    assert Asked(engine, requests[0]).answers() == [expected[0]]
    running = Asked(engine, requests[1])
    first = running.news.get(timeout=60).tokens
    is_warm = True
    late = [Asked(engine, request) for request in requests[2:]]
    assert [asked.answers() for asked in late] == [[tokens] for tokens in expected[2:]]
    assert first + running.answers()[0] == expected[1] and "cpu kernels" in model.path


def test_bounds_overload_and_cancelling(engines: Any) -> None:
    engine = engines(Slow(7), rows=1, tokens=100_000, queue=2)
    running = Asked(engine, Request([1], 50_000))
    assert running.news.get(timeout=60).tokens
    waiting = [Asked(engine, Request([2], 3)) for _ in range(2)]
    with pytest.raises(Overloaded):
        engine.submit(Request([3], 3), print)
    with pytest.raises(SegueError, match="more than this server holds"):
        engine.submit(Request([3], 200_000), print)
    with pytest.raises(SegueError, match="vocabulary"):
        engine.submit(Request([7], 3), print)
    running.ticket.cancel()
    for request in waiting:
        assert len(request.answers()[0]) == 3
    assert engine.stats()["rows"] <= 1 and not engine.stats()["waiting"]


def test_a_failing_request_does_not_take_the_server_with_it(engines: Any) -> None:
    engine = engines(Slow(7))
    with pytest.raises(RuntimeError, match="breaks"):
        Asked(engine, Request([1, 6], 3)).answers()
    assert len(Asked(engine, Request([1], 3, stops=frozenset([6]))).answers()) == 1


def test_a_broken_request_leaves_the_others_alone(engines: Any) -> None:
    """No token may follow; the prompt cannot be read; nobody listens any more."""
    engine = engines(Slow(7))
    sound = Sampling(processors=(LegalNext(lambda tokens: range(6)),))
    running = Asked(engine, Request([1], 150, sound))
    assert running.news.get(timeout=60).tokens
    mute = Sampling(True, processors=(LegalNext(lambda tokens: range(6) if len(tokens) < 3 else []),))
    with pytest.raises(SegueError, match="no token can follow"):
        Asked(engine, Request([2], 9, mute)).answers()
    with pytest.raises(RuntimeError, match="breaks"):
        Asked(engine, Request([1, 6], 3)).answers()
    engine.submit(Request([2], 3), lambda news: news.nothing)  # type: ignore[attr-defined]
    assert [len(answer) for answer in running.answers()] == [149]


# The API.

LARGEST = 1 << 24  # bytes


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, Engine]]:
    uvicorn = pytest.importorskip("uvicorn")
    from segue.serving.api import create_app

    codec = ByteCodec()
    engine = Engine(stack("attention", "gru", vocabulary=codec.size), rows=4, queue=4, tokens=4000)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = uvicorn.Server(uvicorn.Config(create_app(engine, codec, "tiny", key="secret"), port=port,
                                            log_level="error"))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        assert thread.is_alive(), f"nothing listens at port {port}: was it taken meanwhile?"
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}", engine
    running.should_exit = True
    thread.join()


@pytest.fixture
def client(server: tuple[str, Engine]) -> Any:
    openai = pytest.importorskip("openai")
    return openai.OpenAI(base_url=f"{server[0]}/v1", api_key="secret", max_retries=0)


def test_completions_of_the_official_client(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    completion = client.completions.create(model="tiny", prompt="abc", max_tokens=20, seed=3, temperature=0.8)
    repeated = client.completions.create(model="tiny", prompt="abc", max_tokens=20, seed=3, temperature=0.8)
    assert completion.choices[0].text == repeated.choices[0].text and completion.choices[0].finish_reason in ("length",
                                                                                                              "stop")
    assert completion.usage.completion_tokens <= 20
    pieces = list(client.completions.create(model="tiny", prompt="abc", max_tokens=20, seed=3, temperature=0.8,
                                            stream=True, stream_options={"include_usage": True}))
    assert "".join(choice.text for piece in pieces for choice in piece.choices) == completion.choices[0].text
    assert pieces[-1].usage.total_tokens == completion.usage.total_tokens
    several = client.completions.create(model="tiny", prompt=["abc", "x"], max_tokens=5, n=2, seed=1)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    choices = client.completions.create(model="tiny", prompt=["abc", "abc"], max_tokens=20, n=2, temperature=2).choices
    assert len({choice.text for choice in choices}) == 4, "each choice is drawn by itself, of equal prompts too"


def test_log_probabilities_echo_and_stop(client: Any) -> None:
    completion = client.completions.create(model="tiny", prompt="hello", max_tokens=4, temperature=0,
                                           logprobs=2, echo=True)
    choice = completion.choices[0]
    assert choice.text.startswith("hello") and choice.logprobs.token_logprobs[0] is None
    assert len(choice.logprobs.tokens) == len(choice.logprobs.token_logprobs) == len(choice.logprobs.top_logprobs)
    assert all(value <= 0 for value in choice.logprobs.token_logprobs[1:])
    scored = client.completions.create(model="tiny", prompt="hello", max_tokens=0, logprobs=1, echo=True)
    assert scored.choices[0].text == "hello"
    n = len(scored.choices[0].logprobs.token_logprobs)
    assert scored.choices[0].logprobs.token_logprobs[1:] == pytest.approx(choice.logprobs.token_logprobs[1:n], abs=1e-5)
    text = client.completions.create(model="tiny", prompt="q", max_tokens=60, seed=8).choices[0].text
    stop = text[len(text) // 2]
    cut = client.completions.create(model="tiny", prompt="q", max_tokens=60, seed=8, stop=stop).choices[0]
    assert cut.text == text[: text.index(stop)] and cut.finish_reason == "stop"


def test_refusals(client: Any, server: tuple[str, Engine]) -> None:
    import openai

    for options, message in (({"max_tokens": -1}, "max_tokens"), ({"temperature": 9}, "temperature"),
                             ({"extra_body": {"colour": 1}}, "colour"),
                             ({"max_tokens": 10_000}, "more than this server"),
                             ({"suffix": "x"}, "suffix"), ({"prompt": [999_999]}, "vocabulary")):
        with pytest.raises(openai.BadRequestError, match=message):
            client.completions.create(**{"model": "tiny", "prompt": "a", "max_tokens": 3, **options})
    for body in (b'{"prompt": "a\\ud800"}', b'{"prompt": "a", "stop": "\\ud800"}', b"null"):
        request = urllib.request.Request(f"{server[0]}/v1/completions", body, {
            "Authorization": "Bearer secret", "Content-Type": "application/json"})
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request)
        assert refused.value.code == 400
    with pytest.raises(openai.NotFoundError, match="only 'tiny'"):
        client.completions.create(model="other", prompt="a")
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{server[0]}/v1", api_key="wrong", max_retries=0).models.list()


@pytest.fixture
def tiny(engines: Any) -> Any:
    """Answers to requests of one byte model, without a network."""
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    from segue.serving.api import create_app

    def make(codec: Any = None, key: str | None = None) -> Any:
        codec = codec or ByteCodec()
        engine = engines(stack("gru", vocabulary=codec.size), queue=4)
        return TestClient(create_app(engine, codec, "tiny", frozenset([codec.eos]), key), raise_server_exceptions=False)

    return make


def test_log_probabilities_follow_the_openai_definition(tiny: Any) -> None:
    """The chosen token is among the likeliest ones, and offsets are those of the text, held back or not."""
    client = tiny()
    ask = {"prompt": "ab", "max_tokens": 30, "temperature": 2, "logprobs": 1, "seed": 1}
    [choice] = client.post("/v1/completions", json=ask).json()["choices"]
    logprobs = choice["logprobs"]
    assert all(top[token] == logprob for top, token, logprob in zip(logprobs["top_logprobs"], logprobs["tokens"],
                                                                    logprobs["token_logprobs"]))
    assert 2 in (sizes := {len(top) for top in logprobs["top_logprobs"]}) and sizes <= {1, 2}
    assert logprobs["text_offset"][0] == 0 and logprobs["text_offset"] == sorted(logprobs["text_offset"])
    streamed = [json.loads(line[6:])["choices"][0] for line in client.post(
        "/v1/completions", json=ask | {"stream": True, "stop": "never said"}).text.split("\n\n")[:-2]]
    assert "".join(piece["text"] for piece in streamed) == choice["text"]
    assert [offset for piece in streamed for offset in piece["logprobs"]["text_offset"]] == logprobs["text_offset"]


def test_impossible_tokens_have_log_probability_minus_9999(engines: Any) -> None:
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    from segue.serving.api import create_app

    codec = ByteCodec()
    model = TableModel(codec.size)
    model.table[..., :97] = model.table[..., 99:] = -torch.inf
    client = TestClient(create_app(engines(model), codec, "tiny"))
    ask = {"prompt": "ab?a", "max_tokens": 2, "logprobs": 3, "echo": True}
    logprobs = client.post("/v1/completions", json=ask).json()["choices"][0]["logprobs"]
    assert logprobs["token_logprobs"][codec.bos is not None :][2] == -9999 == min(logprobs["top_logprobs"][-1].values())


def test_unsupported_options_are_refused_in_openai_format(tiny: Any) -> None:
    client = tiny(key="k")
    assert client.post("/v1/completions", content=b"x" * (LARGEST + 1)).status_code == 401, "no key, so nothing is read"
    client.headers["Authorization"] = "Bearer k"
    assert client.get("/v1/models/tiny").json()["id"] == "tiny"
    nan = b'{"prompt": "a", "temperature": NaN}'
    for method, path, body, status, message in (
            ("POST", "/v1/chat/completions", b"{}", 404, "/v1/completions"),
            ("GET", "/v1/completions", b"", 405, "POST"),
            ("GET", "/v1/models/other", b"", 404, "only 'tiny'"), ("POST", "/v1/completions", b"{", 400, "body: JSON"),
            ("POST", "/v1/completions", nan, 400, "temperature"),
            ("POST", "/v1/completions", b'{"prompt": "a", "logit_bias": {"5": 1e9}}', 400, "100"),
            ("POST", "/v1/completions", b'{"prompt": ["a", "b", "c", "d", "e"]}', 400, "4 at once"),
            ("POST", "/v1/completions", b"x" * (LARGEST + 1), 413, "16 MiB"),
            ("POST", "/v1/completions", iter([b"x" * (1 << 23)] * 3), 413, "16 MiB")):
        answer = client.request(method, path, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == status and message in answer.json()["error"]["message"], answer.text
        assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
    form = client.post("/v1/completions", content=b'{"prompt": "a"}', headers={"Content-Type": "application/x-form"})
    assert form.status_code == 400 and "Content-Type: application/json" in form.json()["error"]["message"]


def test_a_closing_server_answers_503(tiny: Any) -> None:
    client = tiny()
    with client:  # its end closes the engine
        assert client.get("/health").json()["status"] == "ok"
    answer = client.post("/v1/completions", json={"prompt": "a"})
    assert answer.status_code == 503 and answer.json()["error"]["type"] == "server_error"


def test_a_server_that_is_told_to_end_ends_answers_in_words(engines: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("uvicorn")
    from segue.serving.api import create_app

    monkeypatch.setattr("segue.serving.serve.SHUTDOWN_SECONDS", 0.2)
    codec = ByteCodec()
    engine = engines(Slow(codec.size, sharpness=0.0), tokens=10_000)
    with bind_socket("127.0.0.1", 0) as door:
        running = make_server(create_app(engine, codec, "tiny"), engine)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [door]}, daemon=True)
        thread.start()
        request = urllib.request.Request(f"http://127.0.0.1:{door.getsockname()[1]}/v1/completions", json.dumps({
            "prompt": "a", "max_tokens": 9_000, "stream": True, "logit_bias": {"6": -100}}).encode(),
            {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            assert answer.readline().startswith(b"data: {")
            running.should_exit = True
            assert b"the server is closing" in answer.read()
        thread.join(30)
        assert not thread.is_alive()


def test_a_client_that_leaves_before_the_first_piece_frees_its_row(engines: Any) -> None:
    pytest.importorskip("fastapi")
    from segue.serving.api import create_app

    codec = ByteCodec()
    engine = engines(Slow(codec.size, sharpness=0.0), tokens=100_000)
    body = json.dumps({"prompt": "a", "max_tokens": 50_000, "stream": True, "logit_bias": {"6": -100}}).encode()
    messages = iter([{"type": "http.request", "body": body}])

    async def receive() -> Any:
        return next(messages, {"type": "http.disconnect"})

    async def send(message: Any) -> None:  # a network that is not ready at once, so that the answer is dropped here
        await asyncio.sleep(0)

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "raw_path": b"/v1/completions",
             "query_string": b"", "headers": [(b"content-type", b"application/json")]}

    async def leave() -> None:
        await create_app(engine, codec, "tiny")(scope, receive, send)
        while any(engine.stats()[name] for name in ("waiting", "reading", "answering", "rows")):
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(leave(), 10))


def test_kmer_tokens_are_counted_in_bases(tiny: Any) -> None:
    client = tiny(KmerCodec(3))
    for stream in (False, True):
        ask = {"prompt": "ACGTT", "max_tokens": 7, "seed": 2, "stream": stream, "logit_bias": {str(64 + 17): -100}}
        answer = client.post("/v1/completions", json=ask).text
        pieces = [json.loads(line[6:]) for line in answer.split("\n\n")[:-2]] if stream else [json.loads(answer)]
        text = "".join(piece["choices"][0]["text"] for piece in pieces)
        assert len(text) == 7 and pieces[-1]["choices"][0]["finish_reason"] == "length", text


def test_a_typed_prompt_is_parsed_by_its_kind(engines: Any) -> None:
    pytest.importorskip("fastapi")
    from segue.serving.api import Completion, CompletionJob

    codec = ItemCodec(["Create Fine", "Send Fine", "Payment"])
    for typed in ("Create Fine → Payment", "Create Fine, Payment"):
        body = Completion(prompt=[typed, "Payment"])

        async def prompts(body: Completion) -> list[list[int]]:
            engine = engines(stack("gru", vocabulary=codec.size))
            return CompletionJob(engine, codec, frozenset(), body, (), KINDS["events"]).prompts

        assert asyncio.run(prompts(body)) == [[codec.bos, 0, 2], [codec.bos, 2]]


def test_a_taken_port_is_refused() -> None:
    with bind_socket("127.0.0.1", 0) as listener, pytest.raises(SegueError, match="choose another --port"):
        bind_socket("127.0.0.1", listener.getsockname()[1])
    with pytest.raises(SegueError, match="cannot listen on no-such-host"):
        bind_socket("no-such-host.invalid", 8000)


def test_overload_is_429_and_a_lost_client_frees_its_row(client: Any, server: tuple[str, Engine]) -> None:
    import openai

    engine = server[1]
    streams = [client.completions.create(model="tiny", prompt="z", max_tokens=900, stream=True, seed=i)
               for i in range(4)]
    for stream in streams:
        next(iter(stream))
    refused = 0
    waiting = []
    for i in range(8):
        try:
            waiting.append(client.completions.create(model="tiny", prompt="y", max_tokens=900, stream=True, seed=i))
        except openai.RateLimitError:
            refused += 1
    assert refused >= 2
    for stream in [*streams, *waiting]:
        stream.close()
    for _ in range(200):
        if not (engine.stats()["rows"] or engine.stats()["waiting"] or engine.stats()["answering"]):
            break
        time.sleep(0.05)
    assert not engine.stats()["answering"] and not engine.stats()["waiting"]
