"""Text models: one contract for our own stacks, scripts and endpoints."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, ClassVar

import pytest
import torch

from segue.errors import SegueError
from segue.kinds.codecs import ByteCodec, ItemCodec
from segue.models import Stack, StackConfig
from segue.programs import Counted, Endpoint, Local, Scripted, TextModel

WORDS = ItemCodec(["a", "b", "c", "."])


def local(codec: ByteCodec | ItemCodec) -> TextModel:
    torch.manual_seed(0)
    return Local(Stack(StackConfig(codec.size, 16, ["gru"])).eval().requires_grad_(False), codec)


@pytest.mark.parametrize("codec", [ByteCodec(), WORDS], ids=["bytes", "words"])
def test_a_prompt_gets_the_same_reply_alone_and_among_others(codec: ByteCodec | ItemCodec) -> None:
    model, prompts = local(codec), ["a b", "c", "a b c a b c"]
    together = model.write(prompts, most=6)
    assert [reply.text for reply in together] == [model.write([prompt], most=6)[0].text for prompt in prompts]
    assert all(reply.logprob is not None and reply.logprob < 0 for reply in together)


def test_samples_depend_on_the_seed_and_differ_within_a_call() -> None:
    model = local(WORDS)
    samples = [reply.text for reply in model.write(["a"] * 8, most=8, temperature=1.0, seed=3)]
    assert samples == [reply.text for reply in model.write(["a"] * 8, most=8, temperature=1.0, seed=3)]
    assert len(set(samples)) > 1


def test_a_reply_ends_before_its_stop_string() -> None:
    full = local(WORDS).write(["a"], most=12, temperature=1.0, seed=5)[0].text.split()
    cut = local(WORDS).write(["a"], most=12, temperature=1.0, seed=5, stop=[full[-1]])[0]
    assert cut.finish == "stop" and cut.text.split() == full[: full.index(full[-1])]


def test_scripts_and_budgets() -> None:
    script = Scripted(["one. two", "three"])
    counted = Counted(script, limit=2)
    assert [reply.text for reply in counted.write(["p", "q"], stop=["."])] == ["one", "three"]
    assert counted.calls == 2 and script.prompts == ["p", "q"]
    with pytest.raises(SegueError, match="budget of 2"):
        counted.write(["r"])
    with pytest.raises(SegueError, match="no reply left for call 3"):
        script.write(["r"])


def test_a_missing_endpoint_is_reported() -> None:
    pytest.importorskip("openai")
    endpoint = Endpoint("x", "http://127.0.0.1:9/v1")
    endpoint.client = endpoint.client.with_options(max_retries=0)  # which the client waits before
    with pytest.raises(SegueError, match="did not answer as 'x': Connection error"):
        endpoint.write(["p"])


class Answers(BaseHTTPRequestHandler):
    """Sends to each path its entry in `said`: a status and a body. asked: the paths and bodies so far."""

    said: ClassVar[dict[str, tuple[int, str]]] = {}
    asked: ClassVar[list[tuple[str, dict[str, Any]]]] = []
    timeout = 10  # seconds for one who says nothing, since the others wait for him

    def do_POST(self) -> None:
        self.asked.append((self.path, json.loads(self.rfile.read(int(self.headers["content-length"])))))
        status, body = self.said.get(self.path, (404, '{"detail": "Not Found"}'))
        self.send_response(status)
        self.send_header("content-type", "application/json" if body.startswith("{") else "text/html")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    pytest.importorskip("openai")
    Answers.said, Answers.asked = {}, []
    server = HTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield Endpoint("x", f"http://127.0.0.1:{server.server_port}/v1", "k")
    server.shutdown()
    server.server_close()


def test_an_endpoint_answers_by_chats_or_by_completions(endpoint: Endpoint) -> None:
    Answers.said = {"/v1/completions": (200, '{"choices": [{"text": "c", "finish_reason": "length"}]}')}
    assert [(reply.text, reply.finish) for reply in endpoint.write(["p", "q"], most=3)] == [("c", "length")] * 2
    assert [path for path, _ in Answers.asked] == ["/v1/chat/completions", "/v1/completions", "/v1/completions"]
    assert Answers.asked[-1][1]["prompt"] == "q" and Answers.asked[-1][1]["max_tokens"] == 3
    endpoint.chat = True
    Answers.said = {"/v1/chat/completions": (200, '{"choices": [{"message": {"content": "d"}}]}')}
    assert endpoint.write(["p"])[0].text == "d"


@pytest.mark.parametrize(("status", "body", "message"), [
    (200, "<html>a page</html>", "is no answer"), (200, '{"error": {"message": "no credit"}}', "is no answer"),
    (200, '{"choices": []}', "is no answer"), (200, '{"choi', "is no answer"), (401, '{"error": "bad key"}', "401"),
    (404, "<html>" + "a page\n" * 1000, "404")])
def test_malformed_answers_give_one_line_errors(endpoint: Endpoint, status: int, body: str, message: str) -> None:
    Answers.said = {"/v1/chat/completions": (status, body)}
    with pytest.raises(SegueError, match=f"did not answer as 'x': .*{message}.*check the URL") as error:
        endpoint.write(["p"])
    assert len(str(error.value)) < 800
