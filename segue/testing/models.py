"""`check_model`: does a whole model keep the decoding contract (`segue.models.base.Decodable`)?

It knows only the protocol, so it checks native stacks, compiled engines, adapters and mixtures alike. What only a
native model has (a training form, packed documents, a config) is checked of those besides. To an encoder-decoder each
drawn row is source, begin and target.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from segue.mixers.layout import Layout
from segue.mixers.state import State
from segue.models.base import Decodable, Decoding, begin_token
from segue.models.seq2seq import EncoderDecoder
from segue.models.stack import Stack
from segue.testing.contract import LIFE, Case, Checker, by_document, check_refused, draw_cases, node_paths, prefill
from segue.testing.mixers import TOLERANCE

NATIVE = (Stack, EncoderDecoder)


def check_model(model: Decodable, tolerance: float | None = None, seed: int = 0, examples: int = 10, prompt: int = 0,
                longest: int = 40, hidden: bool = True, device: str = "cpu", shrink: bool = True,
                only: str | None = None) -> dict[str, float]:
    """Check a model that can be decoded; `ContractBroken` says what fails, where and by how much.

    tolerance: largest error allowed, relative to the largest logit (default: 1e-9 of a native model, which is checked
        as a copy in float64; 1e-4 of any other).
    examples: drawn cases per property (by hypothesis, the same for the same `seed`). longest: tokens in a drawn row.
    prompt: the least number of tokens in a first `extend`, for models whose prompt must be whole (of an encoder-decoder
        at least 2: begin is put somewhere among them, behind one token at least).
    hidden: the model gives hidden states, and they must agree too.
    device: where tokens go. shrink: search for the smallest failing case before failing.
    only: check only properties whose name contains this.

    Returns the largest error seen in float64, by property.
    """
    if isinstance(model, NATIVE):
        model = copy.deepcopy(model).double().eval().to(device)
    checker = _ModelChecker(model, tolerance, seed, examples, prompt, hidden, device, shrink)
    return checker.run(longest, only)


class _ModelChecker:
    def __init__(self, model: Decodable, tolerance: float | None, seed: int, examples: int, prompt: int,
                 hidden: bool, device: str, shrink: bool) -> None:
        native = isinstance(model, NATIVE)
        self.begin = begin_token(model)
        self.model, self.hidden, self.device, self.least = model, hidden, device, prompt
        name = f"Stack {'+'.join(model.config.mixers)}" if isinstance(model, Stack) else type(model).__name__
        self.check = Checker(name, examples, seed, shrink)
        self.tolerance = tolerance or (TOLERANCE[torch.float64] if native else TOLERANCE[torch.float32])

    # What `segue.testing.contract.Subject` asks for.

    def draw(self, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        return torch.randint(self.begin or self.model.vocabulary, shape, generator=generator).to(self.device)

    def with_begin(self, x: Tensor) -> Tensor:
        """Tokens (B, N) from the beginning of rows as the model reads them: of an encoder-decoder with a begin, at a
        place that follows from the first token."""
        if self.begin is None:
            return x
        return x.scatter(1, 1 + x[:, :1] % (self.least - 1), self.begin)

    def init(self, batch: int, history: int = 0) -> Decoding:
        return self.model.init_state(batch, history)

    def extend(self, x: Tensor, state: Decoding, parents: Tensor | None = None) -> Tensor:
        if len(x) and not bool(state.positions.any()):
            x = self.with_begin(x)
        copy_ = x.clone()
        output = self.model.extend(x, state, parents)
        self.check.require(torch.equal(x, copy_), "extend changed the tokens it was given")
        self.check.require(output.logits.shape == (*x.shape, self.model.vocabulary),
                           f"extend of {tuple(x.shape)} tokens gives logits {tuple(output.logits.shape)}")
        if not self.hidden:
            return output.logits
        self.check.require(output.hidden.shape[:2] == x.shape,
                           f"extend of {tuple(x.shape)} tokens gives hidden states {tuple(output.hidden.shape)}")
        return torch.cat([output.logits.double(), output.hidden.double()], -1)

    def truth(self, x: Tensor) -> Tensor:
        return self.extend(x[None], self.init(1))[0].clone()

    def run(self, longest: int, only: str | None) -> dict[str, float]:
        drawn: dict[str, Callable[[Case], None]] = {
            **{name: (lambda case, body=body: body(self, case)) for name, body in LIFE.items()},  # type: ignore[misc]
            "at": self.at,
        }
        single: dict[str, Callable[[], None]] = {"protocol": self.protocol, "refused tokens": self.refused,
                                                 "refused calls": lambda: check_refused(self), "no rows": self.no_rows}
        if isinstance(self.model, Stack):
            drawn["packed"] = self.packed
        if isinstance(self.model, NATIVE):
            drawn["forward"] = self.forward
            single |= {"gradients": self.gradients, "dtypes": self.dtypes, "config": self.config}
        cases = draw_cases(self.least, longest)
        with torch.no_grad():
            for name, body_ in single.items():
                if only is None or only in name:
                    with torch.set_grad_enabled(name == "gradients"):
                        self.check.check_once(name, body_)
            for name, body in drawn.items():
                if only is None or only in name:
                    self.check.property(name, body, cases)
        return self.check.errors

    # Any model.

    def protocol(self) -> None:
        model, check = self.model, self.check
        check.require(isinstance(model, Decodable), "it lacks something of segue.models.base.Decodable")
        check.require(isinstance(model.vocabulary, int) and model.vocabulary > 0, "vocabulary must be a positive int")
        check.require(isinstance(model.path, str) and bool(model.path), "path must say which code runs")
        state = self.init(2)
        check.require(state.batch == 2 and state.positions.tolist() == [0, 0], "a fresh state stands at position 0")
        x = self.draw((2, self.least + 2), torch.Generator().manual_seed(0))
        y = self.extend(x, state)
        check.agree("the same extend again", self.extend(x, self.init(2)), y, 1e-12)

    def refused(self) -> None:
        for token in (self.model.vocabulary, -1):
            state = self.init(1)
            x = self.draw((1, self.least + 2), torch.Generator().manual_seed(0))
            x = self.with_begin(x)
            x[0, -1] = token
            self.check.refuses(f"token {token} of a vocabulary of {self.model.vocabulary}",
                               lambda x=x, state=state: self.model.extend(x, state))  # type: ignore[misc]
            self.check.refuses("commit of refused tokens", state.commit)

    def no_rows(self) -> None:
        """All rows of a served batch may leave."""
        state = prefill(self, [self.draw((1, self.least + 2), torch.Generator().manual_seed(0))[0]])
        state = state.select(torch.zeros(0, dtype=torch.long, device=self.device))
        y = self.extend(torch.zeros(0, 2, dtype=torch.long, device=self.device), state)
        self.check.require(state.batch == 0 and y.shape[:2] == (0, 2), f"extend of no rows gives {tuple(y.shape)}")
        state.commit()

    def at(self, case: Case) -> None:
        """Only the logits that are wanted, of a chain and of a tree."""
        generator = case.generator()
        rows = [self.draw((1, length), generator)[0] for length in case.lengths]
        state = prefill(self, rows)
        size = len(case.parents[0])
        x = self.draw((case.batch, size), generator)
        indices = torch.tensor([[(pick + i) % size for i in range(1 + case.seed % 4)] for pick in case.picks],
                               device=self.device)
        for label, parents in (("a tree", torch.tensor(case.parents, device=self.device)), ("a chain", None)):
            everything = self.model.extend(x, state, parents).logits.clone()
            selected = self.model.extend(x, state, parents, at=indices).logits
            expected = everything.gather(1, indices[..., None].expand(-1, -1, everything.shape[-1]))
            self.check.agree(f"logits of nodes {indices.tolist()} of {label}", selected, expected, self.tolerance)
        path = node_paths(list(range(-1, size - 1)))[case.picks[0] % size]
        state.commit(torch.tensor([path] * case.batch, device=self.device))
        continuation = self.draw((case.batch, 1), generator)
        y = self.extend(continuation, state)
        for row, tokens in enumerate(rows):
            expected = self.truth(torch.cat([tokens, x[row, : len(path)], continuation[row]]))[-1:]
            self.check.agree(f"extend after a commit of what was given with at, row {row}", y[row], expected,
                             self.tolerance)

    # Native models.

    def _forward(self, tokens: Tensor, layout: Layout | None = None) -> Tensor:
        output = self.model(tokens, layout)  # type: ignore[operator]
        return torch.cat([output.logits, output.hidden], -1) if self.hidden else output.logits

    def forward(self, case: Case) -> None:
        """The training form is the decoding form, and sees no later token."""
        x = self.with_begin(self.draw((case.batch, case.longest), case.generator()))
        y = self._forward(x)
        self.check.agree("forward", y, self.extend(x, self.init(case.batch)), self.tolerance)
        if case.longest > self.least:
            cut = self.least + case.picks[0] % (case.longest - self.least)
            changed = x.clone()
            changed[:, cut:] = (changed[:, cut:] + 1) % (self.begin or self.model.vocabulary)
            self.check.agree(f"forward before {cut} after a change of the future", self._forward(changed)[:, :cut],
                             y[:, :cut], self.tolerance)

    def packed(self, case: Case) -> None:
        """Documents packed in a row are as if run apart, in training and in decoding."""
        assert isinstance(self.model, Stack)
        generator = case.generator()
        x = self.draw((case.batch, case.longest), generator)
        starts = (torch.rand(x.shape, generator=generator) < 0.2).to(self.device)
        expected_rows = torch.stack([by_document(row, row_starts, self.truth) for row, row_starts in zip(x, starts)])
        layout = Layout.chain((case.batch, case.longest), starts=starts)
        self.check.agree("forward of packed documents", self._forward(x, layout), expected_rows, self.tolerance)
        if self.least:
            return
        state = self.model.init_state(case.batch)
        for begin, end in case.edges(case.longest):
            output = self.model.extend(x[:, begin:end], state, starts=starts[:, begin:end])
            y = torch.cat([output.logits, output.hidden], -1) if self.hidden else output.logits
            self.check.agree(f"extend of packed documents from {begin}", y, expected_rows[:, begin:end], self.tolerance)
            state.commit()

    def gradients(self) -> None:
        """Every parameter learns, and learns the same through the decoding form."""
        assert isinstance(self.model, NATIVE)
        model = self.model
        x = self.with_begin(self.draw((2, self.least + 12), torch.Generator().manual_seed(0)))
        parameters = dict(model.named_parameters())

        def gradients(logits: Tensor) -> dict[str, Any]:
            predicted = slice(self.least, -1)  # what a prompt says of itself need not mean anything
            loss = torch.nn.functional.cross_entropy(logits[:, predicted].flatten(0, 1),
                                                     x[:, self.least + 1 :].flatten())
            return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)))

        expected = gradients(model(x).logits)
        missing = [name for name, grad in expected.items() if grad is None or not bool(grad.any())]
        self.check.require(not missing, f"no gradient reaches {missing}")
        state, outputs = model.init_state(2), []
        for piece in x.split([self.least + 4, 1, 7], 1):
            outputs.append(model.extend(piece, state).logits)
            state.commit()
        for name, grad in gradients(torch.cat(outputs, 1)).items():
            self.check.agree(f"gradient of '{name}' through extend", grad, expected[name], 1e-8)

    def dtypes(self) -> None:
        assert isinstance(self.model, NATIVE)
        x = self.with_begin(self.draw((2, self.least + 20), torch.Generator().manual_seed(0)))
        for dtype in (torch.float32, torch.bfloat16):
            model = copy.deepcopy(self.model).to(dtype)
            expected = copy.deepcopy(model).double()(x).logits
            state = model.init_state(2)
            prompt = model.extend(x[:, :-3], state)
            state.commit(counts=torch.tensor([x.shape[1] - 3] * 2, device=self.device))
            chain = torch.tensor([[-1, 0, 1]] * 2, device=self.device)
            tree = model.extend(x[:, -3:], state, chain)
            state.commit(chain + 1)
            for label, y, columns in (("forward", model(x).logits, slice(None)),
                                      ("extend", prompt.logits, slice(0, -3)),
                                      ("a tree", tree.logits, slice(-3, None))):
                self.check.require(y.dtype == dtype, f"{label} in {dtype} gives logits in {y.dtype}")
                self.check.agree(f"{label} in {str(dtype).removeprefix('torch.')}", y, expected[:, columns],
                                 TOLERANCE[dtype])

    def config(self) -> None:
        """The same model again from its saved form: a config in JSON and a state dict."""
        model: Any = self.model
        config = type(model.config).from_dict(json.loads(json.dumps(model.config.to_dict())))
        restored = type(model)(config).double().eval().to(self.device)
        restored.load_state_dict(model.state_dict())
        x = self.with_begin(self.draw((2, self.least + 9), torch.Generator().manual_seed(0)))
        self.check.agree("forward of the model made again", restored(x).logits,
                         self._forward(x)[..., : model.vocabulary], 0.0)
        limit = 0 if self.begin is not None else config.learned_positions
        if limit:
            x = self.draw((1, limit), torch.Generator().manual_seed(0))
            state = self.model.init_state(1)
            assert isinstance(state, State)
            self.model.extend(x, state)
            state.commit()
            self.check.refuses("a token beyond the learned positions", lambda: self.model.extend(x[:, :1], state))
            self.check.require(state.positions.tolist() == [limit], "a refused token has moved the state")


__all__ = ["check_model"]
