"""Text in, text out: all that programs know of a model, be it ours, a Hugging Face one, an endpoint or a script."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from segue.decoding.continuation import continue_objects
from segue.errors import SegueError, require

if TYPE_CHECKING:
    from segue.kinds.codecs import Codec
    from segue.models.base import Decodable


@dataclass(frozen=True)
class Reply:
    """A model's reply. text: without the stop string. finish: "stop" (it ended, or wrote a stop string) or "length".
    logprob: the sum over its tokens in nats, None if the model does not report it."""

    text: str
    finish: str = "stop"
    logprob: float | None = None


class TextModel(Protocol):
    """A model that answers texts. `write` answers many prompts, each as if it were alone."""

    def write(self, prompts: Sequence[str], *, most: int = 256, stop: Sequence[str] = (), temperature: float = 0.0,
              top_p: float = 1.0, seed: int = 0) -> list[Reply]:
        """One reply per prompt, in order. most: tokens in each. stop: strings that end a reply. temperature: 0 is
        greedy. seed: of sampling; the same prompt twice in a call gets two samples."""
        ...


class Local:
    """Any model with its codec, in this process: fitted ones (`Local(fitted.decodable(), fitted.codec)`), our own
    stacks, Hugging Face folders. Where the codec's objects are lists of items, words between blanks are the items.

    batch: prompts that run together at most.
    """

    def __init__(self, model: Decodable, codec: Codec, batch: int = 64) -> None:
        self.model, self.codec, self.batch = model, codec, batch
        self.words = isinstance(codec.decode([]), list)

    def write(self, prompts: Sequence[str], *, most: int = 256, stop: Sequence[str] = (), temperature: float = 0.0,
              top_p: float = 1.0, seed: int = 0) -> list[Reply]:
        primes: list[Any] = [prompt.split() for prompt in prompts] if self.words else list(prompts)
        options: dict[str, Any] = {"decoder": "greedy"}
        if temperature > 0:
            options = {"decoder": "sample", "temperature": temperature, "top_p": top_p,
                       "seed": [seed * 1_000_003 + row for row in range(len(primes))]}
        answers = continue_objects(self.model, self.codec, primes, most, draft="none", stop=stop, logprobs=True,
                                   batch=self.batch, **options) if primes else []
        return [Reply(answer.text or "", "length" if answer.finish == "length" else "stop",
                      None if answer.logprobs is None else float(sum(answer.logprobs))) for answer in answers]


class Endpoint:
    """A model behind an OpenAI-compatible endpoint, hosted or local. One that has no chats, such as `segue serve`'s, is
    asked to complete the prompts.

    model: its name there. url: the base, ending in /v1. key: defaults to the environment's OPENAI_API_KEY.
    """

    def __init__(self, model: str, url: str | None = None, key: str | None = None) -> None:
        self.openai = require("openai", "programs")
        self.model, self.chat = model, True
        self.client = self.openai.OpenAI(base_url=url, api_key=key or os.environ.get("OPENAI_API_KEY", "none"))

    def write(self, prompts: Sequence[str], *, most: int = 256, stop: Sequence[str] = (), temperature: float = 0.0,
              top_p: float = 1.0, seed: int = 0) -> list[Reply]:
        return [self._reply(prompt, max_tokens=most, stop=list(stop) or None, temperature=temperature, top_p=top_p,
                            seed=seed * 1_000_003 + row) for row, prompt in enumerate(prompts)]

    def _reply(self, prompt: str, **options: Any) -> Reply:
        try:
            choice = self._complete(prompt, model=self.model, **options).choices[0]
            text = choice.message.content if self.chat else choice.text
            return Reply(text or "", "length" if choice.finish_reason == "length" else "stop")
        except self.openai.OpenAIError as error:
            what, cause = str(error)[:500], error
        except (AttributeError, IndexError, TypeError, ValueError) as error:  # a page, or an error with 200
            what, cause = "what it sent is no answer", error
        raise SegueError(f"{self.client.base_url} did not answer as '{self.model}': {what}; check the URL (it ends in "
                         "/v1), the model's name and the key") from cause

    def _complete(self, prompt: str, **options: Any) -> Any:
        if self.chat:
            try:
                return self.client.chat.completions.create(messages=[{"role": "user", "content": prompt}], **options)
            except self.openai.NotFoundError:
                completion = self.client.completions.create(prompt=prompt, **options)
                self.chat = False
                return completion
        return self.client.completions.create(prompt=prompt, **options)


class Scripted:
    """Canned replies, for tests of programs: by a function of the prompt, or in order. prompts: received so far."""

    def __init__(self, replies: Callable[[str], str] | Iterable[str]) -> None:
        self.reply = replies if callable(replies) else None
        self.queue = iter(()) if callable(replies) else iter(replies)
        self.prompts: list[str] = []

    def write(self, prompts: Sequence[str], *, most: int = 256, stop: Sequence[str] = (), temperature: float = 0.0,
              top_p: float = 1.0, seed: int = 0) -> list[Reply]:
        replies = []
        for prompt in prompts:
            self.prompts.append(prompt)
            text = next(self.queue, None) if self.reply is None else self.reply(prompt)
            if text is None:
                raise SegueError(f"the script has no reply left for call {len(self.prompts)}")
            replies.append(Reply(min((text.split(mark)[0] for mark in stop), key=len, default=text)))
        return replies


@dataclass
class Counted:
    """Counts a model's calls and limits them. calls: prompts answered so far. limit: their maximum; more raise
    SegueError (default: none)."""

    model: TextModel
    limit: int | None = None
    calls: int = field(default=0, init=False)

    def write(self, prompts: Sequence[str], **options: Any) -> list[Reply]:
        if self.limit is not None and self.calls + len(prompts) > self.limit:
            raise SegueError(f"the budget of {self.limit} calls is used up: give a larger one")
        self.calls += len(prompts)
        return self.model.write(prompts, **options)
