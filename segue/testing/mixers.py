"""`check_mixer`: does a sequence mixer keep its contract (`segue.mixers.base.Mixer`)?"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from segue.mixers.base import Mixer
from segue.mixers.layout import Layout
from segue.mixers.state import State
from segue.models.base import Decoding
from segue.parallel import Communicator, ContextShard, simulate
from segue.parallel.context import is_recurrent, run_recurrent
from segue.testing.contract import LIFE, Case, Checker, by_document, check_refused, draw_cases

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 8e-2}
"""Largest error allowed, relative to the larger of 1 and the largest output: float64 for agreement of forms, the
others for distance from float64."""


def check_mixer(make: Mixer | Callable[[int], Mixer], widths: tuple[int, ...] = (8,), seed: int = 0, examples: int = 10,
                prompt: int = 0, relative: bool = True, device: str = "cpu", compiled: bool = False,
                shrink: bool = True, only: str | None = None) -> dict[str, float]:
    """Check every ability that a mixer declares; `ContractBroken` says what fails, where and by how much.

    make: a mixer, or a function from a width D to a mixer (then a fresh one is checked for each of `widths`).
    examples: drawn cases per property (shapes, trees, pieces, lives; by hypothesis, the same for the same `seed`).
    prompt: with `needs_whole_prompt`, the least number of tokens in a prompt.
    relative: outputs depend on differences of positions only, so that shifting all positions changes nothing.
    compiled: also compare with `torch.compile` (slow).
    shrink: search for the smallest failing case before failing.
    only: check only properties whose name contains this.

    Returns the largest error seen in float64, by property.
    """
    errors: dict[str, float] = {}
    for index, width in enumerate(widths):
        if isinstance(make, Mixer):
            if index:
                break
            mixer, fresh = copy.deepcopy(make), copy.deepcopy(make)
        else:
            mixer, fresh = _build(make, width, seed), _build(make, width, seed + 1)
        checker = _MixerChecker(mixer, fresh, seed, examples, prompt, device, shrink)
        for name, error in checker.run(relative, compiled, only).items():
            errors[name] = max(errors.get(name, 0.0), error)
    return errors


def check_state(make: Mixer | Callable[[int], Mixer], width: int = 8, seed: int = 0, examples: int = 10,
                prompt: int = 0, device: str = "cpu", shrink: bool = True) -> dict[str, float]:
    """Check the decoding states of a mixer alone (`segue.mixers.state.State`): extended in pieces, ragged rows and
    trees, committed, selected, joined, rewound, put back, all in any order, they go on as if read from the beginning.

    Part of `check_mixer`, whose arguments these are. Returns the largest error seen in float64, by property.
    """
    mixer = copy.deepcopy(make) if isinstance(make, Mixer) else _build(make, width, seed)
    checker = _MixerChecker(mixer, mixer, seed, examples, prompt, device, shrink)
    with torch.no_grad():
        for name, body in LIFE.items():
            checker.check.property(name, lambda case, body=body: body(checker, case),  # type: ignore[misc]
                                   draw_cases(checker.least))
    return checker.check.errors


def _build(make: Callable[[int], Mixer], width: int, seed: int) -> Mixer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mixer = make(width)
        for parameter in mixer.parameters():  # biases that begin at zero would hide mistakes
            parameter.data += 0.05 * torch.randn_like(parameter)
    return mixer


class _MixerChecker:
    """The subject of the properties: the mixer in float64, evaluating."""

    def __init__(self, mixer: Mixer, fresh: Mixer, seed: int, examples: int, prompt: int, device: str,
                 shrink: bool) -> None:
        self.mixer = mixer.double().eval().to(device)
        self.fresh, self.device = fresh.double().eval().to(device), device
        self.check = Checker(type(mixer).__name__, examples, seed, shrink)
        self.tolerance = TOLERANCE[torch.float64]
        self.least = max(prompt, 1) if mixer.needs_whole_prompt else 0

    # The four that `segue.testing.contract.Subject` asks for.

    def draw(self, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        return torch.randn(*shape, self.mixer.width, generator=generator, dtype=torch.float64).to(self.device)

    def init(self, batch: int, history: int = 0) -> State:
        return self.mixer.init_state(batch, history)

    def extend(self, x: Tensor, state: Decoding, parents: Tensor | None = None) -> Tensor:
        assert isinstance(state, State)
        before = {name: tensor.detach().clone() for name, tensor in state.tensors().items()}
        y = self.mixer.extend(x, state, parents)
        for name, tensor in state.tensors().items():
            self.check.require(tensor.shape == before[name].shape and torch.equal(tensor, before[name]),
                               f"extend changed '{name}' of the state, but only commit may")
        return y

    def truth(self, x: Tensor) -> Tensor:
        return self.mixer(x[None])[0]

    def run(self, relative: bool, compiled: bool, only: str | None) -> dict[str, float]:
        mixer, check = self.mixer, self.check
        cases = draw_cases(self.least)
        drawn: dict[str, Callable[[Case], None]] = {"padding": self.padding}
        single: dict[str, Callable[[], None]] = {
            "declarations": self.declarations, "gradients": self.gradients, "dtypes": self.dtypes, "long": self.long,
            "save and load": self.save_and_load, "empty": self.empty,
        }
        if mixer.causal:
            drawn |= {name: (lambda case, body=body: body(self, case)) for name, body in LIFE.items()}  # type: ignore[misc]
            drawn |= {"causality": self.causality, "forward from a state": self.forward_from_state,
                      "positions": self.positions, "initial state": self.initial_state}
            if is_recurrent(mixer):
                drawn["over ranks"] = self.over_ranks
            single |= {"causality by gradient": self.causality_by_gradient, "size of the state": self.size,
                       "gradients of decoding": self.gradients_of_decoding,
                       "refused calls": lambda: check_refused(self)}
        if mixer.resettable:
            drawn["packed"] = self.packed
            if mixer.causal and not self.least:
                drawn["packed, decoding"] = self.packed_decoding
        if mixer.sets:
            drawn["sets"] = self.sets
        if mixer.linear_in_values:
            drawn["matrix"] = self.matrix
        if relative:
            single["shifted positions"] = self.shifted
        if compiled:
            single["compiled"] = self.compiled
        with torch.no_grad():
            for name, body in drawn.items():
                if only is None or only in name:
                    check.property(name, body, cases)
        for name, body_ in single.items():
            if only is None or only in name:
                check.check_once(name, body_)
        return check.errors

    # Forms.

    def forward_from_state(self, case: Case) -> None:
        """`forward` in chunks, each from the state that the last left, is the training form in one."""
        x = self.draw((case.batch, case.longest), case.generator())
        state, outputs = self.init(case.batch), []
        for begin, end in case.edges(case.longest, self.least):
            outputs.append(self.mixer(x[:, begin:end], state=state))
            state.commit()
        self.check.agree("forward in chunks", torch.cat(outputs, 1), self.mixer(x), self.tolerance)

    def over_ranks(self, case: Case) -> None:
        """Ranks that hand their states on to each other read as one (see `Recurrence.state_factors`)."""
        length = case.longest - case.longest % 3
        x, shard = self.draw((case.batch, length), case.generator()), ContextShard(3, "contiguous")
        if not length:
            return
        starts = self._starts(case)[:, :length] if self.mixer.resettable and case.seed % 2 else None
        whole = Layout.chain((case.batch, length), starts=starts, device=self.device)

        def body(comm: Communicator) -> Tensor:
            share, positions = (shard.take(y, comm.rank) for y in (x, whole.positions))
            rank_layout = Layout(positions, starts=None if starts is None else shard.take(starts, comm.rank))
            return run_recurrent(self.mixer, share, rank_layout, comm, shard)

        self.check.agree("forward over three ranks", shard.join(simulate(3, body)), self.mixer(x, whole),
                         self.tolerance)

    def causality(self, case: Case) -> None:
        x = self.draw((case.batch, case.longest + 1), case.generator())
        cut = self.least + case.picks[0] % (case.longest + 1 - self.least)
        changed = x.clone()
        changed[:, cut:] = self.draw((case.batch, case.longest + 1 - cut), torch.Generator().manual_seed(case.seed + 1))
        self.check.agree(f"forward before {cut} after a change of the future", self.mixer(changed)[:, :cut],
                         self.mixer(x)[:, :cut], self.tolerance)

    def causality_by_gradient(self) -> None:
        length = self.least + 20
        x = self.draw((2, length), torch.Generator().manual_seed(0)).requires_grad_()
        y = self.mixer(x)
        for cut in range(self.least, length):
            grad, = torch.autograd.grad(y[:, : cut + 1].sum(), x, retain_graph=True)
            self.check.agree(f"gradient of later inputs at outputs up to {cut}", grad[:, cut + 1 :],
                             torch.zeros_like(grad[:, cut + 1 :]), 1e-12)
            grad, = torch.autograd.grad(y[:, cut].square().sum(), x, retain_graph=True)
            self.check.require(bool((grad[:, cut] != 0).any()), f"output {cut} has no gradient of its own input")

    def padding(self, case: Case) -> None:
        """A row gives the same alone and padded in a batch. (Padding that a non-causal mixer must not see is a
        document of its own.)"""
        x = self.draw((case.batch, case.longest), case.generator())
        layout = None
        if not self.mixer.causal:
            if not self.mixer.resettable:
                return
            starts = torch.arange(case.longest) == torch.tensor(case.lengths)[:, None]
            layout = Layout.chain((case.batch, case.longest), starts=starts.to(self.device))
        y = self.mixer(x, layout)
        for row, length in enumerate(case.lengths):
            self.check.agree(f"row {row} of {length} tokens in a padded batch", y[row, :length],
                             self.truth(x[row, :length]), self.tolerance)

    def matrix(self, case: Case) -> None:
        x = self.draw((case.batch, case.longest), case.generator())
        matrix = self.mixer.matrix(x)
        if self.mixer.causal and not self.least:
            self.check.require(bool((matrix.triu(1) == 0).all()), "matrix has entries above its diagonal")
        self.check.agree("output(matrix @ values)", self.mixer.output(matrix @ self.mixer.values(x), x), self.mixer(x),
                         self.tolerance)

    # Documents and positions.

    def _starts(self, case: Case) -> Tensor:
        """Random starts of documents; the first node may continue what was before."""
        return (torch.rand(case.batch, case.longest, generator=case.generator()) < 0.2).to(self.device)

    def packed(self, case: Case) -> None:
        x = self.draw((case.batch, case.longest), case.generator())
        starts = self._starts(case)
        y = self.mixer(x, Layout.chain((case.batch, case.longest), starts=starts))
        for row in range(case.batch):
            heads = torch.nonzero(starts[row])[:, 0].tolist()
            self.check.agree(f"forward, row {row} of documents that start at {heads}", y[row],
                             by_document(x[row], starts[row], self.truth), self.tolerance)

    def packed_decoding(self, case: Case) -> None:
        """Documents in the decoding form, also split over calls, in rows of different lengths."""
        x = self.draw((case.batch, case.longest), case.generator())
        starts = self._starts(case)
        heads = [torch.nonzero(row)[:, 0].tolist() for row in starts]
        state = self.init(case.batch, history=2)
        for begin, end in case.edges(case.longest):
            counts = [min(max(length - begin, 0), end - begin) for length in case.lengths]
            y = self.mixer.extend(x[:, begin:end], state, starts=starts[:, begin:end])
            for row, count in enumerate(counts):
                expected = by_document(x[row, : begin + count], starts[row, : begin + count], self.truth)[begin:]
                self.check.agree(f"extend from {begin}, row {row} of documents that start at {heads[row]}",
                                 y[row, :count], expected, self.tolerance)
            if case.seed % 2:  # as a path, which takes another road
                width = max(counts)
                index = torch.arange(width, device=self.device)
                state.commit(torch.where(index < torch.tensor(counts, device=self.device)[:, None], index, -1))
            else:
                state.commit(counts=torch.tensor(counts, device=self.device))
        continuation = self.draw((case.batch, 3), torch.Generator().manual_seed(case.seed + 1))
        for begin, label in ((0, "extend after the documents"), (1, "extend after rewind to inside a document")):
            y = self.mixer.extend(continuation[:, begin:], state)
            for row, length in enumerate(case.lengths):
                joined = torch.cat([x[row, :length], continuation[row]])
                joined_starts = torch.cat([starts[row, :length], starts.new_zeros(3)])
                self.check.agree(f"{label}, row {row} of documents that start at {heads[row]}", y[row],
                                 by_document(joined, joined_starts, self.truth)[length + begin :], self.tolerance)
            state.commit()
            state.rewind(2)

    def positions(self, case: Case) -> None:
        """Positions are what they are said to be, with gaps and jumps, and not an index nor the length of a cache."""
        generator = case.generator()
        x = self.draw((case.batch, case.longest), generator)
        steps = torch.randint(1, 5, (case.batch, case.longest), generator=generator)
        if self.least:
            steps[:, : self.least] = 1
        positions = (steps.cumsum(1) - 1).to(self.device)
        expected = self.mixer(x, Layout(positions))
        state, outputs = self.init(case.batch), []
        for begin, end in case.edges(case.longest, self.least):
            outputs.append(self.mixer.extend(x[:, begin:end], state, positions=positions[:, begin:end]))
            state.commit()
        self.check.agree("extend with gaps between positions", torch.cat(outputs, 1), expected, self.tolerance)
        if case.longest:
            self.check.require(torch.equal(state.positions, positions[:, -1] + 1),
                               "after commit the state's positions are not the last given ones plus one")

    def sets(self, case: Case) -> None:
        """A part is read as if it stood alone behind what came before; what follows a set does not know the order of
        its parts, in one forward, from the cache, and in a row beside one without sets."""
        generator = case.generator()
        sizes = torch.randint(0, 5, (5,), generator=generator).tolist()
        before, *parts, after = (self.draw((1, size), generator) for size in sizes)
        after = torch.cat([after, self.draw((1, 3), generator)], 1)
        expected: Tensor | None = None
        for order in ([0, 1, 2], [2, 0, 1], [1, 0, 2]):
            pieces = [before, *(parts[part] for part in order), after]
            first = [0, *[sizes[0]] * 3, sizes[0] + max(sizes[1:4])]
            positions = torch.cat([torch.arange(x.shape[1]) + start for x, start in zip(pieces, first)])
            set_marks = torch.cat([torch.tensor([[1, part] if 0 < index < 4 else [0, 0]]).expand(x.shape[1], 2)
                                   for index, (part, x) in enumerate(zip([0, *order, 0], pieces))])
            set_marks = set_marks[None].to(self.device)
            layout = Layout(positions[None].to(self.device), sets=set_marks)
            x = torch.cat(pieces, 1)
            y = self.mixer(x, layout)
            expected = y[:, -after.shape[1] :] if expected is None else expected
            self.check.agree(f"what follows a set in the order {order}", y[:, -after.shape[1] :], expected,
                             self.tolerance)
            for index, part in enumerate(order):
                if not sizes[1 + part]:
                    continue
                begin = sizes[0] + sum(sizes[1 + plain_row] for plain_row in order[:index])
                alone = self.mixer(torch.cat([before, parts[part]], 1))[:, sizes[0] :]
                self.check.agree("a part beside others and alone", y[:, begin : begin + sizes[1 + part]], alone,
                                 self.tolerance)
            n, state = x.shape[1] - 2, self.init(2)
            joint_layout = Layout(torch.cat([layout.positions[:, :n], torch.arange(n, device=self.device)[None]]),
                                  sets=torch.cat([set_marks[:, :n], torch.zeros_like(set_marks[:, :n])]))
            plain_row = self.draw((1, x.shape[1]), generator)
            self.mixer(torch.cat([x, plain_row])[:, :n], joint_layout, state)
            state.commit()
            for step in (n, n + 1):
                z = self.mixer.extend(torch.cat([x, plain_row])[:, step : step + 1], state)
                state.commit()
                self.check.agree("a step behind a set", z[:1], y[:, step : step + 1], self.tolerance)
                self.check.agree("a step beside a row with sets", z[1:], self.mixer(plain_row)[:, step : step + 1],
                                 self.tolerance)
            state.rewind(torch.tensor([after.shape[1], 0], device=self.device))
            if max(sizes[1:4]):
                self.check.refuses("going back into a set",
                                   lambda state=state: state.rewind(torch.tensor([1, 0])))  # type: ignore[misc]

    def shifted(self) -> None:
        """A million positions later nothing is lost, in float64 and in float32."""
        x = self.draw((2, 24), torch.Generator().manual_seed(1))
        if self.least:
            return
        for dtype in (torch.float64, torch.float32):
            mixer, y = copy.deepcopy(self.mixer).to(dtype), self.mixer(x)
            first = torch.tensor([10**6, 123_456], device=self.device)
            output = mixer(x.to(dtype), Layout.chain((2, 24), first))
            self.check.agree("forward at positions from 1,000,000", output, y, TOLERANCE[dtype])
            if not mixer.causal:
                continue
            state = mixer.init_state(2)
            state.positions = first
            outputs = []
            for begin, end in ((0, 10), (10, 11), (11, 24)):
                outputs.append(mixer.extend(x[:, begin:end].to(dtype), state))
                state.commit()
            self.check.agree("extend at positions from 1,000,000", torch.cat(outputs, 1), y, TOLERANCE[dtype])

    # The state as a thing of its own.

    def initial_state(self, case: Case) -> None:
        """A state can be taken out as tensors and put in again, into a fresh one of as many rows, which goes on and
        back like it, but not beyond where it was loaded."""
        rows = [self.draw((1, length), case.generator())[0] for length in case.lengths]
        state = self.init(case.batch, history=2)
        x = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        self.mixer.extend(x, state)
        state.commit(counts=torch.tensor(case.lengths, device=self.device))
        loaded = self.init(case.batch, history=2)
        loaded.load({name: tensor.clone() for name, tensor in state.tensors().items()})
        self.check.refuses("going back before what was loaded", lambda: loaded.rewind(1))
        x = self.draw((case.batch, 3), case.generator())
        for label in ("loaded from its tensors", "loaded and rewound"):
            self.check.agree(f"extend of a state {label}", self.mixer.extend(x, loaded), self.mixer.extend(x, state),
                             self.tolerance)
            for current in (state, loaded):
                current.commit()
                current.rewind(2)

    def size(self) -> None:
        """A constant state stays within its size however long the sequence; another one grows, or says too little."""
        with torch.no_grad():
            state, sizes = self.init(1, history=3), []
            x = self.draw((1, 100), torch.Generator().manual_seed(0))
            shapes = {}
            for count in range(1, 12):
                for piece in x.split([50, 1, 49], 1):
                    self.mixer.extend(piece, state)
                    state.commit()
                sizes.append(memory(state))
                shapes[count] = {name: tuple(tensor.shape) for name, tensor in state.tensors().items()}
        if self.mixer.constant_state:
            self.check.require(max(sizes[6:]) <= max(sizes[:6]), f"the state is declared constant, but holds {sizes} "
                               f"bytes after each 100 tokens; its tensors: {shapes[1]}, then {shapes[11]}")
        else:
            self.check.require(sizes[-1] > sizes[0], f"the state is declared to grow, but holds {sizes} bytes: "
                               "declare constant_state")

    # Gradients.

    def _gradcheck(self, label: str, function: Callable[..., Tensor], inputs: list[Tensor]) -> None:
        names = [name for name, _ in self.mixer.named_parameters()]
        values = [parameter.detach().clone().requires_grad_() for parameter in self.mixer.parameters()]
        module = _Calling(self.mixer, function)

        def call(*tensors: Tensor) -> Tensor:
            parameters = {f"mixer.{name}": tensor for name, tensor in zip(names, tensors)}
            return torch.func.functional_call(module, parameters, tuple(tensors[len(names) :]))

        try:
            # All of them as one input, moved in one direction: two calls, not two for each tensor. Cloned, as pairs
            # that are viewed as complex numbers must lie at even places.
            flat = torch.cat([tensor.detach().flatten() for tensor in (*values, *inputs)]).requires_grad_()
            sizes = [tensor.numel() for tensor in (*values, *inputs)]
            torch.autograd.gradcheck(lambda flat: call(*(part.view(tensor.shape).clone() for part, tensor in zip(
                flat.split(sizes), (*values, *inputs)))), flat, fast_mode=True, atol=1e-6, rtol=1e-5)
        except RuntimeError as error:
            self.check.fail(f"{label}: {error}")
        outputs = call(*values, *inputs)
        grads = torch.autograd.grad(outputs.square().sum(), (*values, *inputs), allow_unused=True)
        missing = [name for name, value, grad in zip([*names, *(f"input {i}" for i in range(len(inputs)))],
                                                     (*values, *inputs), grads)
                   if value.numel() and (grad is None or not bool(grad.any()))]
        self.check.require(not missing, f"{label}: no gradient reaches {missing}")

    def gradients(self) -> None:
        generator = torch.Generator().manual_seed(0)
        length = self.least + 5
        x = self.draw((2, length), generator).requires_grad_()
        self._gradcheck("gradcheck of forward", lambda mixer, x: mixer(x), [x])
        if self.mixer.resettable and not self.least:
            starts = torch.zeros(2, length, dtype=torch.bool, device=self.device)
            starts[0, 2] = starts[1, 0] = starts[1, 3] = True
            layout = Layout.chain((2, length), starts=starts)
            self._gradcheck("gradcheck of forward with documents", lambda mixer, x: mixer(x, layout), [x])
            x = x.detach().requires_grad_()
            grad, = torch.autograd.grad(self.mixer(x, layout)[0, 2:].sum(), x)
            self.check.agree("gradient of the document before", grad[0, :2], torch.zeros_like(grad[0, :2]), 1e-12)

    def gradients_of_decoding(self) -> None:
        """Gradients flow through extend, commit, trees and into an initial state, as through one long forward."""
        generator = torch.Generator().manual_seed(0)
        base = self.init(2)
        with torch.no_grad():
            self.mixer.extend(self.draw((2, self.least + 2), generator), base)
            base.commit()
        float_tensors = {name: tensor for name, tensor in base.tensors().items() if tensor.is_floating_point()}
        tensors = [tensor.detach().clone().requires_grad_() for tensor in float_tensors.values()]
        x = self.draw((2, 5), generator).requires_grad_()
        tree = torch.tensor([[-1, 0, 0, 1, -1], [-1, 0, 1, 2, 3]], device=self.device)

        def start(values: tuple[Tensor, ...]) -> State:
            state = base.snapshot()
            state.load({**base.tensors(), **dict(zip(float_tensors, values))})
            return state

        def decode(mixer: Mixer, x: Tensor, *values: Tensor) -> Tensor:
            state = start(values)
            outputs = [mixer.extend(x, state)]
            state.commit(counts=torch.tensor([3, 5], device=x.device))
            outputs.append(mixer.extend(x, state, tree))
            state.commit(torch.tensor([[0, 1, 3], [0, 1, -1]], device=x.device))
            outputs.append(mixer.extend(x, state))
            return torch.cat(outputs, 1)

        self._gradcheck("gradcheck of extend and commit", decode, [x, *tensors])
        self._gradcheck("gradcheck of forward from a state", lambda mixer, x, *values: mixer(x, state=start(values)),
                        [x, *tensors])

        # The gradients of a run in pieces are those of the run in one.
        x = self.draw((2, self.least + 20), generator)
        weights = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(self.device)
        expected = torch.autograd.grad((self.mixer(x) * weights).sum(), list(self.mixer.parameters()))
        state, outputs = self.init(2), []
        for piece in x.split([self.least + 3, 1, 16], 1):
            outputs.append(self.mixer.extend(piece, state))
            state.commit()
        pieces = torch.autograd.grad((torch.cat(outputs, 1) * weights).sum(), list(self.mixer.parameters()))
        for (name, _), a, b in zip(self.mixer.named_parameters(), pieces, expected):
            self.check.agree(f"gradient of '{name}' through pieces", a, b, 1e-8)

    # Numbers, saving, and what must be refused.

    def dtypes(self) -> None:
        """Away from float64 no further than rounding, in every form; nothing changes the dtype on the way."""
        x = self.draw((2, self.least + 40), torch.Generator().manual_seed(0))
        for dtype in (torch.float32, torch.bfloat16):
            mixer = copy.deepcopy(self.mixer).to(dtype)
            rounded = copy.deepcopy(mixer).double()
            with torch.no_grad():
                expected = rounded(x.to(dtype).double())
                self._close(mixer, x.to(dtype), expected, dtype)
            y = mixer(x.to(dtype))
            self.check.agree(f"forward in {dtype}, with gradients", y, expected, TOLERANCE[dtype])
            y.float().square().sum().backward()
            self._short(x.to(dtype).double(), rounded).square().sum().backward()
            for (name, parameter), exact in zip(mixer.named_parameters(), rounded.parameters()):
                grad = parameter.grad
                self.check.require(grad is not None and bool(grad.isfinite().all()),
                                   f"the gradient of '{name}' in {dtype} is missing or not finite")
                if dtype == torch.float32 and grad is not None and exact.grad is not None:
                    self.check.agree(f"gradient of '{name}' in float32", grad, exact.grad, 10 * TOLERANCE[dtype])
        mixer = copy.deepcopy(self.mixer).float()
        with torch.no_grad(), torch.autocast(self.device.split(":")[0], torch.bfloat16):
            self._close(mixer, x.float(), self.mixer(x), torch.bfloat16, "under autocast", same_dtype=False)

    def _close(self, mixer: Mixer, x: Tensor, expected: Tensor, dtype: torch.dtype, context: str = "",
               same_dtype: bool = True) -> None:
        forms: dict[str, Tensor] = {"forward": mixer(x)}
        if mixer.causal:
            state, outputs = mixer.init_state(len(x)), []
            for piece in x.split([self.least + 4, 1, x.shape[1] - self.least - 5], 1):
                outputs.append(mixer.extend(piece, state))
                state.commit(counts=torch.tensor([piece.shape[1]] * len(x), device=x.device))
            forms["extend"] = torch.cat(outputs, 1)
            state = mixer.init_state(len(x))
            mixer.extend(x[:, :-3], state)
            state.commit()
            chain = torch.tensor([[-1, 0, 1]] * len(x), device=x.device)
            forms["a tree"] = torch.cat([outputs[0][:, :0], mixer.extend(x[:, -3:], state, chain)], 1)
            state.commit(torch.tensor([[0, 1, 2]] * len(x), device=x.device))
            self._ragged(mixer, x)
        for name, y in forms.items():
            self.check.require(not same_dtype or y.dtype == x.dtype, f"{name} of {x.dtype} gives {y.dtype}")
            self.check.agree(f"{name} in {str(dtype).removeprefix('torch.')} {context}", y, expected[:, -y.shape[1] :],
                             TOLERANCE[dtype])

    def _ragged(self, mixer: Mixer, x: Tensor) -> None:
        """The rare roads of a state work in every dtype, which stays that of the state's making."""
        state = mixer.init_state(len(x), history=2)
        kinds = {name: tensor.dtype for name, tensor in state.tensors().items()}
        mixer.extend(x, state)
        state.commit(counts=torch.tensor([x.shape[1], self.least + 2], device=x.device))
        if mixer.resettable and not self.least:
            starts = torch.zeros(2, 4, dtype=torch.bool, device=x.device)
            starts[0, 1] = starts[1, 3] = True
            mixer.extend(x[:, :4], state, starts=starts)
            state.commit(counts=torch.tensor([4, 3], device=x.device))
        state.rewind(torch.tensor([0, 2], device=x.device))
        state = state.select(torch.tensor([1, 0], device=x.device))
        mixer.extend(x[:, :2], state, torch.tensor([[-1, -1]] * 2, device=x.device))
        state.commit(torch.tensor([[1], [-1]], device=x.device))
        for name, tensor in state.tensors().items():
            self.check.require(tensor.dtype == kinds[name],
                               f"'{name}' of the state was {kinds[name]}, now {tensor.dtype}")

    def long(self) -> None:
        """Rows longer than those drawn, in float64 and float32 and as they lie in a transposed tensor (where other
        kernels may run): as in short pieces, also as packed documents and padded, and the input stays as it was."""
        n, generator = self.least + (150 if self.mixer.causal else 40), torch.Generator().manual_seed(0)
        x, continuation = self.draw((2, n), generator), self.draw((2, 3), generator)
        starts = torch.zeros(2, n, dtype=torch.bool, device=self.device)
        starts[0, [n // 3, 2 * n // 3]] = starts[1, [2, n - 1]] = True
        counts = [n, n // 2]
        with torch.no_grad():
            expected = {"forward": self._short(x)}
            if self.mixer.resettable:
                expected["forward of documents"] = torch.stack([
                    by_document(row, row_starts, lambda row: self._short(row[None])[0]) for row,
                    row_starts in zip(x, starts)])
            if self.mixer.causal:
                expected["extend"] = expected["forward"]
                expected["extend of padded rows"] = torch.cat([
                    self._short(torch.cat([row[:count], more])[None])[:, -3:]
                    for row, count, more in zip(x, counts, continuation)])
            for dtype in (torch.float64, torch.float32):
                mixer = copy.deepcopy(self.mixer).to(dtype)
                inputs = x.to(dtype).transpose(0, 1).contiguous().transpose(0, 1)
                copy_, outputs_by_form = inputs.clone(), {"forward": mixer(inputs)}
                if mixer.resettable:
                    outputs_by_form["forward of documents"] = mixer(inputs, Layout.chain((2, n), starts=starts))
                if mixer.causal:
                    state, outputs = mixer.init_state(2), []
                    for piece in inputs.split([n - 20, 1, 19], 1):
                        outputs.append(mixer.extend(piece, state))
                        state.commit()
                    outputs_by_form["extend"] = torch.cat(outputs, 1)
                    state = mixer.init_state(2, history=2)
                    mixer.extend(inputs, state)
                    state.commit(counts=torch.tensor(counts, device=self.device))
                    outputs_by_form["extend of padded rows"] = mixer.extend(continuation.to(dtype), state)
                self.check.require(torch.equal(inputs, copy_), "the mixer changed the inputs it was given")
                for name, y in outputs_by_form.items():
                    self.check.agree(f"{name} of {n} tokens", y, expected[name], TOLERANCE[dtype])

    def _short(self, x: Tensor, mixer: Mixer | None = None) -> Tensor:
        """Outputs (B, T, D), of a causal mixer in pieces of 20 tokens: too few for compiled loops."""
        mixer, first = mixer or self.mixer, self.least + 20
        if not mixer.causal or x.shape[1] <= first:
            return mixer(x)
        state, outputs = mixer.init_state(len(x)), []
        for piece in (x[:, :first], *x[:, first:].split(20, 1)):
            outputs.append(mixer.extend(piece, state))
            state.commit()
        return torch.cat(outputs, 1)

    def save_and_load(self) -> None:
        from safetensors.torch import load, save

        x = self.draw((2, self.least + 9), torch.Generator().manual_seed(0))
        with torch.no_grad():
            y = self.mixer(x)
            self.fresh.load_state_dict(load(save({k: v.contiguous() for k, v in self.mixer.state_dict().items()})))
            self.check.agree("forward after save and load", self.fresh(x), y, 0.0)
            self.check.agree("forward of a deep copy", copy.deepcopy(self.mixer)(x), y, 0.0)
            recast = copy.deepcopy(self.mixer).to(torch.bfloat16).to(torch.float64)
            recast.load_state_dict(self.mixer.state_dict())
            self.check.agree("forward after a cast to bfloat16 and back, with the same weights", recast(x), y, 0.0)

    def empty(self) -> None:
        """No rows, or no tokens, are not special."""
        width = self.mixer.width
        for shape in ((0, self.least + 3), (2, 0), (0, 0)):
            x = self.draw(shape, torch.Generator().manual_seed(0))
            self.check.require(self.mixer(x).shape == (*shape, width),
                               f"forward of {shape} gives {self.mixer(x).shape}")
            if not self.mixer.causal:
                continue
            state = self.init(shape[0], history=2)
            for nodes in (x, x[:, :1]):
                y = self.mixer.extend(nodes, state)
                self.check.require(y.shape[0] == shape[0] and y.shape[2] == width, f"extend of {shape} gives {y.shape}")
                state.commit(counts=torch.zeros(shape[0], dtype=torch.long, device=self.device))
            state.rewind(0)
            state = state.select(torch.zeros(0, dtype=torch.long, device=self.device)).snapshot()
            x = self.draw((0, 2), torch.Generator())
            parents = torch.zeros(0, 2, dtype=torch.long, device=self.device)
            self.check.require(self.mixer.extend(x, state, parents).shape == (0, 2, width), "extend of no rows fails")
            state.commit(parents)
            state = self.init(1)  # rows may go, and come again
            self.mixer.extend(self.draw((1, self.least + 1), torch.Generator()), state)
            state.commit()
            state = state.select(torch.zeros(0, dtype=torch.long, device=self.device))
            self.check.require(state.batch == 0 and self.mixer.extend(x, state).shape == (0, 2, width),
                               "a state whose rows are all dropped cannot be extended")

    def declarations(self) -> None:
        mixer, check = self.mixer, self.check
        ids = {id(parameter) for parameter in mixer.parameters()}
        check.require(all(id(parameter) in ids for parameter in mixer.state_parameters()),
                      "state_parameters holds tensors that are not parameters of the mixer")
        x = self.draw((1, self.least + 3), torch.Generator().manual_seed(0))
        if not mixer.causal:
            check.refuses("extend of a mixer that is not causal", lambda: mixer.extend(x, mixer.init_state(1)))
        if not mixer.resettable:
            starts = torch.zeros(1, x.shape[1], dtype=torch.bool, device=self.device)
            starts[0, 1] = True
            check.refuses("a start inside a sequence of a mixer that is not resettable",
                          lambda: mixer(x, Layout.chain((1, x.shape[1]), starts=starts)))
            if mixer.causal:
                check.refuses("a start inside extend of a mixer that is not resettable",
                              lambda: mixer.extend(x, mixer.init_state(1), starts=starts))
        if not mixer.sets:
            sets = torch.ones(1, x.shape[1], 2, dtype=torch.long, device=self.device)
            check.refuses("sets of a mixer that does not take them",
                          lambda: mixer(x, Layout(torch.arange(x.shape[1], device=self.device)[None], sets=sets)))
        if not mixer.linear_in_values:
            for what in (lambda: mixer.matrix(x), lambda: mixer.values(x), lambda: mixer.output(x, x)):
                check.refuses("matrix, values and output of a mixer that is not linear in its values", what)
        check.require(mixer(x).shape == x.shape, f"forward of {tuple(x.shape)} gives {tuple(mixer(x).shape)}")

    def compiled(self) -> None:
        x = self.draw((2, self.least + 16), torch.Generator().manual_seed(0))
        torch.compiler.reset()  # else what was compiled before counts against the limit of recompiling
        compiled = torch.compile(self.mixer)
        with torch.no_grad():
            self.check.agree("compiled forward", compiled(x), self.mixer(x), 1e-7)
        x.requires_grad_()
        a, = torch.autograd.grad(compiled(x).square().sum(), x)
        b, = torch.autograd.grad(self.mixer(x).square().sum(), x)
        self.check.agree("gradient of the compiled forward", a, b, 1e-7)


class _Calling(nn.Module):
    """Lets `functional_call` run any method of a mixer with other parameters."""

    def __init__(self, mixer: Mixer, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.mixer, self.function = mixer, function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(self.mixer, *inputs)


def _tensors(thing: Any, seen: set[int]) -> Iterator[Tensor]:
    """Every tensor that a state holds on to, wherever it keeps it; modules are not part of a state."""
    if id(thing) in seen or isinstance(thing, nn.Module):
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, dict):
        for value in thing.values():
            yield from _tensors(value, seen)
    elif isinstance(thing, list | tuple):
        for value in thing:
            yield from _tensors(value, seen)
    elif hasattr(thing, "__dict__"):
        yield from _tensors(vars(thing), seen)


def memory(state: State) -> int:
    """Bytes of all storages that a state keeps alive."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
                for tensor in _tensors(state, set())}
    return sum(storages.values())


__all__ = ["TOLERANCE", "check_mixer", "memory"]
