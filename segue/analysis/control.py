"""Control of a fixed model by a prompt: which elements become its most probable next one when a few elements are put in
front of the input (Bhargava et al. 2023, arXiv 2310.04444).

The system is any model that scores a next element. Its state x is a sequence of ids, and the control u is a short
sequence in front of it; y is reached if it is the argmax after u + x. A search can prove that an element is reachable,
not that it is unreachable. Two functions can: `brute_force`, which tries every control, and `attention_bounds`, which
excludes outputs of one attention head from its weights alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from segue.errors import SegueError
from segue.mixers.attention import attend
from segue.mixers.layout import Layout
from segue.models.base import Decodable, needs_whole_prompt, set_prompt_lengths
from segue.models.stack import Stack

Ids = Sequence[int]
SCORED = 1 << 16  # elements read at a time


@dataclass
class Control:
    """Searches the controls of one state of one model.

    model: anything decodable; a `Stack` gives gradients too, others are searched by scores alone. state: x, the ids
    after the control (at least one, or `begin`). begin: ids before it (a begin-of-text token), never part of the
    control. allowed: ids that a control may hold (default: all). tried: the number of controls scored so far.
    """

    model: Decodable
    state: Ids
    begin: Ids = ()
    allowed: Sequence[int] | None = None
    tried: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if not self.state and not self.begin:
            raise SegueError("there is no state to control: give the ids that the model reads behind the control")
        allowed = range(self.model.vocabulary) if self.allowed is None else self.allowed
        self.ids = torch.tensor(list(allowed))
        if isinstance(self.model, Stack):
            self.model.eval()

    @property
    def guided(self) -> bool:
        """Whether the model gives gradients with respect to its inputs."""
        return isinstance(self.model, Stack) and not self.model.config.inputs

    def rows(self, controls: Tensor) -> Tensor:
        """(B, k) controls -> (B, n) the model's input: begin, control, state."""
        begin, state = (torch.tensor(list(part), dtype=torch.long).expand(len(controls), -1) for part in
                        (self.begin, self.state))
        return torch.cat([begin, controls, state], 1)

    @torch.no_grad()
    def scores(self, controls: Tensor, target: int = 0) -> tuple[Tensor, Tensor]:
        """(B, k) -> (B,) the most probable next id after each control and the state, and (B,) the log-probability of
        the target."""
        top, log_prob = [], []
        self.tried += len(controls)
        rows = self.rows(controls)
        for chunk in rows.split(max(1, SCORED // rows.shape[1])):
            state = self.model.init_state(len(chunk))
            set_prompt_lengths(self.model, state, torch.full((len(chunk),), chunk.shape[1]))
            last = torch.full((len(chunk), 1), chunk.shape[1] - 1, device=state.positions.device)
            logits = self.model.extend(chunk.to(state.positions.device), state, at=last).logits[:, -1]
            top.append(logits.argmax(-1).cpu())
            log_prob.append(logits.float().log_softmax(-1)[:, target].cpu())
        return torch.cat(top), torch.cat(log_prob)

    def gradient(self, control: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
        """(k, V): the gradient of `loss` of the next element's log-probabilities (V,) by the one-hot rows of a control
        (k,)."""
        model = self.model
        if not isinstance(model, Stack):
            raise SegueError(f"a {type(model).__name__} gives no gradient of its ids: search by scores")
        weight = model.head.weight
        rows = F.one_hot(self.rows(control[None]).to(weight.device), model.vocabulary).to(weight.dtype)
        first = len(self.begin)
        one_hot = rows[:, first : first + len(control)].clone().requires_grad_()
        prompt = torch.ones(1, rows.shape[1], dtype=torch.bool, device=rows.device) if needs_whole_prompt(model) else \
            None
        layout = Layout.chain((1, rows.shape[1]), device=rows.device, prompt=prompt)
        with torch.enable_grad():
            inputs = torch.cat([rows[:, :first], one_hot, rows[:, first + len(control) :]], 1)
            logits = model(inputs, layout).logits[0, -1]
            return torch.autograd.grad(loss(logits.log_softmax(-1)), one_hot)[0][0].cpu()


@dataclass(frozen=True)
class Found:
    """The result of a search. control: u. reached: whether the target is the argmax after it. loss: of the target
    there, nats. tried: the number of controls scored. how: the search that gave it."""

    control: tuple[int, ...]
    reached: bool
    loss: float
    tried: int
    how: str


def brute_force(task: Control, k: int) -> dict[int, tuple[int, ...]]:
    """Every element that some control of at most k ids reaches, exactly, each with a shortest control for it."""
    reached: dict[int, tuple[int, ...]] = {}
    for size in range(k + 1):
        products = itertools.product(task.ids.tolist(), repeat=size)
        while chunk := list(itertools.islice(products, SCORED)):
            controls = torch.tensor(chunk, dtype=torch.long).view(len(chunk), size)
            for control, top in zip(chunk, task.scores(controls)[0].tolist()):
                reached.setdefault(top, control)
    return reached


def greedy_backward(task: Control, target: int, k: int) -> Found:
    """A control built from its end: up to k times, the id in front that makes the target most probable, or one that
    reaches it, which ends the search. Exact for k = 1."""
    control, tried_before = torch.zeros(0, dtype=torch.long), task.tried
    top, log_prob = (x[0] for x in task.scores(control[None], target))
    while len(control) < k and int(top) != target:
        longer = torch.cat([task.ids[:, None], control.expand(len(task.ids), -1)], 1)
        tops, log_probs = task.scores(longer, target)
        best = _best(tops, log_probs, target)
        control, top, log_prob = longer[best], tops[best], log_probs[best]
    return Found(tuple(control.tolist()), int(top) == target, -float(log_prob), task.tried - tried_before,
                 f"greedy, k = {k}")


def _best(tops: Tensor, log_probs: Tensor, target: int) -> int:
    """The index of the first scored control that reaches the target, else of the one with the highest log-probability.
    (The control with the highest one need not reach it where another does.)"""
    reached = (tops == target).nonzero()
    return int(reached[0]) if len(reached) else int(log_probs.argmax())


def gcg(task: Control, target: int, k: int, steps: int = 34, candidates: int = 768, top: int = 128,
        start: Ids = (), patience: int = 8, seed: int = 0) -> Found:
    """Greedy coordinate gradient (Zou et al. 2023, arXiv 2307.15043): k ids; each step replaces one, by the best of
    `candidates` replacements drawn among the `top` ids at each position by the gradient.

    Duplicates are scored once, and steps without an improvement are not taken; after `patience` of those in a row the
    search restarts at random ids. The best control of all is returned. start: a shorter control to begin with, at the
    right end (default: random ids). Stops as soon as the target is reached. For a model without gradients replacements
    are drawn from all ids; `Found.how` says so.
    """
    generator, tried_before = torch.Generator().manual_seed(seed), task.tried
    if len(start) > k:
        raise SegueError(f"a control of {len(start)} ids does not begin one of {k}: choose a larger k")

    def random_control(*suffix: int) -> tuple[Tensor, Tensor, Tensor]:
        """A random control with this suffix, the argmax after it, and the target's log-probability."""
        prefix = task.ids[torch.randint(len(task.ids), (k - len(suffix),), generator=generator)]
        control = torch.cat([prefix, torch.tensor(suffix, dtype=torch.long)])
        tops, log_probs = task.scores(control[None], target)
        return control, tops[0], log_probs[0]

    control, first, log_prob = best = random_control(*start)
    failures = 0
    for _ in range(steps if k else 0):
        if int(best[1]) == target:
            break
        if failures == patience:
            (control, first, log_prob), failures = random_control(), 0
        else:
            gradient = task.gradient(control, lambda log_probs: -log_probs[target]) if task.guided else None
            swapped = _swaps(task.ids, control, gradient, candidates, top, generator)
            firsts, log_probs = task.scores(swapped, target)
            index = _best(firsts, log_probs, target)
            if log_probs[index] > log_prob or int(firsts[index]) == target:
                control, first, log_prob, failures = swapped[index], firsts[index], log_probs[index], 0
            else:
                failures += 1
        if log_prob > best[2] or int(first) == target:
            best = control, first, log_prob
    return Found(tuple(best[0].tolist()), int(best[1]) == target, -float(best[2]), task.tried - tried_before,
                 f"{'gcg' if task.guided else 'random swaps'}, k = {k}")


def _swaps(ids: Tensor, control: Tensor, gradient: Tensor | None, count: int, top: int,
           generator: torch.Generator) -> Tensor:
    """Up to `count` controls (B, k) that differ from one (k,) by one id, drawn among the `top` ids at its position with
    the lowest gradient (k, V) of the loss; without a gradient among all ids."""
    favoured = ids.expand(len(control), -1)
    if gradient is not None:
        favoured = ids[gradient[:, ids].topk(min(top, len(ids)), largest=False).indices]
    position, choice = (torch.randint(below, (count,), generator=generator) for below in favoured.shape)
    swapped = control.repeat(count, 1)
    swapped[torch.arange(count), position] = favoured[position, choice]
    return swapped.unique(dim=0)


@dataclass(frozen=True)
class Shared:
    """One control for many states. reached: for each state, whether its target is the argmax after the control. loss:
    mean over the states' targets, nats. tried: the number of controls scored, over all states."""

    control: tuple[int, ...]
    reached: tuple[bool, ...]
    loss: float
    tried: int


def gcg_shared(tasks: Sequence[Control], targets: Ids, k: int, steps: int = 34, candidates: int = 768, top: int = 128,
               examples: int = 8, seed: int = 0) -> Shared:
    """`gcg` of one control of k ids for several states, each with its own target. Each step draws replacements by the
    mean gradient of `examples` random states and scores them on all; steps without an improvement of the mean are not
    taken. tasks: of models with the same ids."""
    if not tasks or len(tasks) != len(targets) or any(not torch.equal(task.ids, tasks[0].ids) for task in tasks):
        raise SegueError(f"{len(tasks)} states and {len(targets)} targets: give a target for each of at least one "
                         "state, and allow the same ids in all")
    generator, tried_before = torch.Generator().manual_seed(seed), sum(task.tried for task in tasks)
    ids = tasks[0].ids

    def score(controls: Tensor) -> tuple[Tensor, Tensor]:
        """(B, states) whether each target is the argmax, and (B,) the mean log-probability of the targets."""
        scores = [task.scores(controls, target) for task, target in zip(tasks, targets)]
        return (torch.stack([tops == target for (tops, _), target in zip(scores, targets)], 1),
                torch.stack([log_probs for _, log_probs in scores]).mean(0))

    control = ids[torch.randint(len(ids), (k,), generator=generator)]
    (reached,), (log_prob,) = score(control[None])
    for _ in range(steps if k else 0):
        sample = torch.randperm(len(tasks), generator=generator)[:examples].tolist()
        gradients = [tasks[i].gradient(control, lambda log_probs, i=i: -log_probs[targets[i]]) for i in sample
                     if tasks[i].guided]
        gradient = torch.stack(gradients).mean(0) if gradients else None
        swapped = _swaps(ids, control, gradient, candidates, top, generator)
        hits, log_probs = score(swapped)
        best = int(log_probs.argmax())
        if log_probs[best] > log_prob:
            control, reached, log_prob = swapped[best], hits[best], log_probs[best]
    return Shared(tuple(control.tolist()), tuple(reached.tolist()), -float(log_prob),
                  sum(task.tried for task in tasks) - tried_before)


def backoff(task: Control, target: int, greedy: int = 3, swaps: Iterable[int] = (4, 6, 8, 10), seed: int = 0,
            **choices: int) -> Found:
    """The first control of increasing length that reaches the target: `greedy_backward` up to `greedy` ids, then `gcg`
    of the lengths `swaps`, each starting from the control before. choices: of `gcg`. If none reaches it, the last one.
    """
    tried_before, result = task.tried, greedy_backward(task, target, greedy)
    for k in swaps:
        result = result if result.reached else gcg(task, target, k, start=result.control, seed=seed, **choices)
    return Found(result.control, result.reached, result.loss, task.tried - tried_before, result.how)


def cover(task: Control, k: int, steps: int = 34, candidates: int = 768, top: int = 128, seed: int = 0,
          ) -> dict[int, tuple[int, ...]]:
    """The elements that a search for new ones reaches with k ids, each with a control (forward GCG): mutates known
    controls along the gradient that makes elements not yet reached more probable, and their distribution sharper."""
    generator = torch.Generator().manual_seed(seed)
    control = task.ids[torch.randint(len(task.ids), (k,), generator=generator)]
    reached = {int(task.scores(control[None])[0]): tuple(control.tolist())}
    for _ in range(steps if k else 0):
        mask = torch.zeros(task.model.vocabulary, dtype=torch.bool)
        mask[list(reached)] = True
        if bool(mask.all()):
            break

        def loss(log_probs: Tensor, mask: Tensor = mask) -> Tensor:
            """Mean log-probability of the reached elements, plus the entropy over the others."""
            others = log_probs[~mask.to(log_probs.device)].log_softmax(-1)
            return log_probs[mask.to(log_probs.device)].mean() - (others.exp() * others).sum()

        known = list(reached.values())
        control = torch.tensor(known[int(torch.randint(len(known), (), generator=generator))])
        gradient = task.gradient(control, loss) if task.guided else None
        swapped = _swaps(task.ids, control, gradient, candidates, top, generator)
        for new_control, first in zip(swapped.tolist(), task.scores(swapped)[0].tolist()):
            reached.setdefault(first, tuple(new_control))
    return reached


def k_epsilon(lengths: Sequence[int | None], most: int) -> list[float]:
    """For k = 0 ... `most`, the share of (state, target) pairs whose target is *not* known to be reached by a control
    of at most k ids: an upper bound of epsilon. lengths: of the control found for each pair, None for none."""
    if not lengths:
        raise SegueError("controllability of no pairs: give the length of the control of each, or None")
    return [1 - sum(size is not None and size <= k for size in lengths) / len(lengths) for k in range(most + 1)]


@dataclass(frozen=True)
class Bounds:
    """The outputs of an attention head for n imposed elements that k control elements can bring about: row i is
    lambda y_i + (1 - lambda) c, with lambda in [least, most] and the norm of c at most `radius`.

    uncontrolled: (n, E), y, the outputs without control. least, most: (n,). radius: sigma_v times the controls' norm.
    """

    uncontrolled: Tensor
    least: Tensor
    most: Tensor
    radius: float

    def excludes(self, target: Tensor) -> Tensor:
        """(n,) bool: whether this output (E,), or these (n, E), is unreachable at position i.

        (A) its projection on y_i is not positive, and it is farther than `radius` from least y_i, the share of y_i that
        must remain; (B) its component orthogonal to y_i is longer than (1 - least) radius. Targets within rounding of a
        bound are not excluded.
        """
        y = self.uncontrolled
        along = (target * y).sum(-1)
        square = y.square().sum(-1).clamp(min=torch.finfo(y.dtype).tiny)
        across = (target - (along / square)[:, None] * y).norm(dim=-1)
        distance = (target - self.least[:, None] * y).norm(dim=-1)
        rounding = 64 * torch.finfo(y.dtype).eps * (y.norm(dim=-1) + target.norm(dim=-1))
        too_far, too_wide = distance - self.radius, across - (1 - self.least) * self.radius
        return ((along <= 0) & (too_far > rounding)) | (too_wide > rounding)


def attention_bounds(queries: Tensor, keys: Tensor, values: Tensor, x: Tensor, k: int, control: float,
                     causal: bool = False) -> Bounds:
    """Bounds of one attention head from its weights alone, for k control elements in front of imposed ones.

    queries, keys, values: (E, D) weights. x: (n, D) imposed elements. control: the greatest norm of a control element.
    causal: imposed elements attend only to those up to them (and to all of the control). The paper prints its theorem
    with the inequality reversed and with the queries' norm for the values'; these bounds follow from its proof.
    """
    q, scale = x @ queries.T, math.sqrt(queries.shape[0])
    mask = torch.ones(len(x), len(x), dtype=torch.bool, device=x.device)
    y, lse = attend(q[None, None], (x @ keys.T)[None, None], (x @ values.T)[None, None],
                    mask.tril()[None, None] if causal else None)
    sigma_q, sigma_k, sigma_v = (float(torch.linalg.matrix_norm(weight, 2)) for weight in (queries, keys, values))
    alpha = sigma_q * sigma_k * float(x.norm(dim=-1).max()) * control / scale
    mass = lse[0, 0].exp()
    return Bounds(y[0, 0], mass / (mass + k * math.exp(alpha)), mass / (mass + k * math.exp(-alpha)),
                  sigma_v * control)
