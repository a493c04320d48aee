"""Control of a fixed model by a prompt: which elements can a few elements in front of the input make its likeliest next
one (Bhargava et al. 2023, arXiv 2310.04444)?

The system is any model that scores a next element. Its state x is a sequence of ids, and the control u is a few more in
front of them; y is reached if the model scores it highest after u + x. A search can prove that an element is reachable,
not that it is unreachable. Two functions can: `brute_force`, which tries everything, and `attention_bounds`, which
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
SCORED = 1 << 16  # elements that are read at a time


@dataclass
class Control:
    """Searches the controls of one state of one model.

    model: anything decodable; a `Stack` gives gradients too, others are searched by scores alone. state: x, the ids
    behind the control (at least one, or `begin`). begin: ids in front of it (what begins a text), never part of the
    control. allowed: ids that a control may hold (default: all). tried: how many controls were scored so far.
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
        """Whether the model gives gradients of its ids."""
        return isinstance(self.model, Stack) and not self.model.config.inputs

    def rows(self, controls: Tensor) -> Tensor:
        """(B, k) controls -> (B, n) all that the model reads."""
        parts = [torch.tensor(list(part), dtype=torch.long).expand(len(controls), -1) for part in
                 (self.begin, self.state)]
        return torch.cat([parts[0], controls, parts[1]], 1)

    @torch.no_grad()
    def scores(self, controls: Tensor, target: int = 0) -> tuple[Tensor, Tensor]:
        """(B, k) -> (B,) the likeliest next id behind each control, and (B,) the log-probability of the target."""
        first, chance = [], []
        self.tried += len(controls)
        rows = self.rows(controls)
        for some in rows.split(max(1, SCORED // rows.shape[1])):
            state = self.model.init_state(len(some))
            set_prompt_lengths(self.model, state, torch.full((len(some),), some.shape[1]))
            last = torch.full((len(some), 1), some.shape[1] - 1, device=state.positions.device)
            logits = self.model.extend(some.to(state.positions.device), state, at=last).logits[:, -1]
            first.append(logits.argmax(-1).cpu())
            chance.append(logits.float().log_softmax(-1)[:, target].cpu())
        return torch.cat(first), torch.cat(chance)

    def gradient(self, control: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
        """(k, V): how `loss` of the log-probabilities (V,) moves with the one-hot rows of a control (k,)."""
        model = self.model
        if not isinstance(model, Stack):
            raise SegueError(f"a {type(model).__name__} gives no gradient of its ids: search by scores")
        weight = model.head.weight
        rows = F.one_hot(self.rows(control[None]).to(weight.device), model.vocabulary).to(weight.dtype)
        first = len(self.begin)
        soft = rows[:, first : first + len(control)].clone().requires_grad_()
        whole = needs_whole_prompt(model)
        prompt = torch.ones(1, rows.shape[1], dtype=torch.bool, device=rows.device) if whole else None
        layout = Layout.chain((1, rows.shape[1]), device=rows.device, prompt=prompt)
        with torch.enable_grad():
            read = torch.cat([rows[:, :first], soft, rows[:, first + len(control) :]], 1)
            logits = model(read, layout).logits[0, -1]
            return torch.autograd.grad(loss(logits.log_softmax(-1)), soft)[0][0].cpu()


@dataclass(frozen=True)
class Found:
    """What a search came to. control: u. reached: whether the target is the model's first choice behind it. loss: of
    the target there, nats. tried: how many controls were scored. how: which search gave it."""

    control: tuple[int, ...]
    reached: bool
    loss: float
    tried: int
    how: str


def brute_force(task: Control, k: int) -> dict[int, tuple[int, ...]]:
    """Every element that some control of at most k ids reaches, exactly, with one of the shortest that do."""
    reached: dict[int, tuple[int, ...]] = {}
    for size in range(k + 1):
        every = itertools.product(task.ids.tolist(), repeat=size)
        while some := list(itertools.islice(every, SCORED)):
            controls = torch.tensor(some, dtype=torch.long).view(len(some), size)
            for control, first in zip(some, task.scores(controls)[0].tolist()):
                reached.setdefault(first, control)
    return reached


def greedy_backward(task: Control, target: int, k: int) -> Found:
    """A control built from its end: k times the id in front that makes the target likeliest, or one that reaches it,
    which ends the search. Exact for k = 1."""
    control, before = torch.zeros(0, dtype=torch.long), task.tried
    first, chance = (x[0] for x in task.scores(control[None], target))
    while len(control) < k and int(first) != target:
        longer = torch.cat([task.ids[:, None], control.expand(len(task.ids), -1)], 1)
        firsts, chances = task.scores(longer, target)
        best = _best(firsts, chances, target)
        control, first, chance = longer[best], firsts[best], chances[best]
    return Found(tuple(control.tolist()), int(first) == target, -float(chance), task.tried - before, f"greedy, k = {k}")


def _best(firsts: Tensor, chances: Tensor, target: int) -> int:
    """Which of the scored controls reaches the target, or comes nearest. (Where it is likeliest another element may be
    likelier still.)"""
    reached = (firsts == target).nonzero()
    return int(reached[0]) if len(reached) else int(chances.argmax())


def gcg(task: Control, target: int, k: int, steps: int = 34, candidates: int = 768, top: int = 128,
        start: Ids = (), patience: int = 8, seed: int = 0) -> Found:
    """Greedy coordinate gradient (Zou et al. 2023, arXiv 2307.15043): k ids, of which each step swaps the one that
    helps most among `candidates` swaps drawn from the `top` ids at each place that the gradient favours.

    Swaps that were drawn twice are scored once, and a step that helps nothing is not taken; after `patience` of those
    in a row the search begins anew at random ids, and the best control of all is given. start: a shorter control to
    begin with, at the right end (default: random ids). Ends as soon as the target is reached. A model without gradients
    has its swaps drawn from all ids; `Found.how` says so.
    """
    generator, before = torch.Generator().manual_seed(seed), task.tried
    if len(start) > k:
        raise SegueError(f"a control of {len(start)} ids does not begin one of {k}: choose a larger k")

    def anew(*end: int) -> tuple[Tensor, Tensor, Tensor]:
        """A control with this end, what comes first behind it, and the target's chance."""
        free = task.ids[torch.randint(len(task.ids), (k - len(end),), generator=generator)]
        control = torch.cat([free, torch.tensor(end, dtype=torch.long)])
        firsts, chances = task.scores(control[None], target)
        return control, firsts[0], chances[0]

    control, first, chance = best = anew(*start)
    stuck = 0
    for _ in range(steps if k else 0):
        if int(best[1]) == target:
            break
        if stuck == patience:
            (control, first, chance), stuck = anew(), 0
        else:
            slopes = task.gradient(control, lambda chances: -chances[target]) if task.guided else None
            swapped = _swaps(task.ids, control, slopes, candidates, top, generator)
            firsts, chances = task.scores(swapped, target)
            at = _best(firsts, chances, target)
            if chances[at] > chance or int(firsts[at]) == target:
                control, first, chance, stuck = swapped[at], firsts[at], chances[at], 0
            else:
                stuck += 1
        if chance > best[2] or int(first) == target:
            best = control, first, chance
    return Found(tuple(best[0].tolist()), int(best[1]) == target, -float(best[2]), task.tried - before,
                 f"{'gcg' if task.guided else 'random swaps'}, k = {k}")


def _swaps(ids: Tensor, control: Tensor, slopes: Tensor | None, count: int, top: int,
           generator: torch.Generator) -> Tensor:
    """Up to `count` controls (B, k) that differ from one (k,) by one id, of the `top` ones at its place by which a loss
    with these slopes (k, V) falls most, to first order; of all ids where there are none."""
    favoured = ids.expand(len(control), -1)
    if slopes is not None:
        favoured = ids[slopes[:, ids].topk(min(top, len(ids)), largest=False).indices]
    place, chosen = (torch.randint(below, (count,), generator=generator) for below in favoured.shape)
    swapped = control.repeat(count, 1)
    swapped[torch.arange(count), place] = favoured[place, chosen]
    return swapped.unique(dim=0)


@dataclass(frozen=True)
class Shared:
    """One control for many states. reached: of which of them the target is the model's first choice behind it. loss:
    of the targets there, nats, the mean. tried: how many controls were scored, of all states together."""

    control: tuple[int, ...]
    reached: tuple[bool, ...]
    loss: float
    tried: int


def gcg_shared(tasks: Sequence[Control], targets: Ids, k: int, steps: int = 34, candidates: int = 768, top: int = 128,
               examples: int = 8, seed: int = 0) -> Shared:
    """`gcg` of k ids that are to bring every one of some states to a target of its own: swaps are drawn by the mean
    gradient of `examples` states, drawn for each step, and scored on all; a step that helps nothing on the whole is not
    taken. tasks: of models that read the same ids."""
    if not tasks or len(tasks) != len(targets) or any(not torch.equal(task.ids, tasks[0].ids) for task in tasks):
        raise SegueError(f"{len(tasks)} states and {len(targets)} targets: give a target for each of at least one "
                         "state, and allow the same ids in all")
    generator, before, ids = torch.Generator().manual_seed(seed), [task.tried for task in tasks], tasks[0].ids

    def scored(controls: Tensor) -> tuple[Tensor, Tensor]:
        """(B, states) whether the target comes first, and (B,) its mean log-probability."""
        found = [task.scores(controls, target) for task, target in zip(tasks, targets)]
        return (torch.stack([firsts == target for (firsts, _), target in zip(found, targets)], 1),
                torch.stack([chances for _, chances in found]).mean(0))

    control = ids[torch.randint(len(ids), (k,), generator=generator)]
    (reached,), (chance,) = scored(control[None])
    for _ in range(steps if k else 0):
        some = torch.randperm(len(tasks), generator=generator)[:examples].tolist()
        slopes = [tasks[i].gradient(control, lambda chances, i=i: -chances[targets[i]]) for i in some
                  if tasks[i].guided]
        swapped = _swaps(ids, control, torch.stack(slopes).mean(0) if slopes else None, candidates, top, generator)
        hits, chances = scored(swapped)
        best = int(chances.argmax())
        if chances[best] > chance:
            control, reached, chance = swapped[best], hits[best], chances[best]
    return Shared(tuple(control.tolist()), tuple(reached.tolist()), -float(chance),
                  sum(task.tried - old for task, old in zip(tasks, before)))


def backoff(task: Control, target: int, greedy: int = 3, swaps: Iterable[int] = (4, 6, 8, 10), seed: int = 0,
            **choices: int) -> Found:
    """The first control of a ladder that reaches the target: greedy ones of 0 to `greedy` ids, then `gcg` of these
    sizes, each beginning with the best one before. choices: of `gcg`. Where none reaches it, the last one is given.
    """
    before, found = task.tried, greedy_backward(task, target, greedy)
    for k in swaps:
        found = found if found.reached else gcg(task, target, k, start=found.control, seed=seed, **choices)
    return Found(found.control, found.reached, found.loss, task.tried - before, found.how)


def cover(task: Control, k: int, steps: int = 34, candidates: int = 768, top: int = 128, seed: int = 0,
          ) -> dict[int, tuple[int, ...]]:
    """As many elements as a search for new ones reaches with k ids, each with a control (forward GCG): a control that
    is known is mutated where the gradient says that the elements not yet reached become likelier and more certain."""
    generator = torch.Generator().manual_seed(seed)
    control = task.ids[torch.randint(len(task.ids), (k,), generator=generator)]
    reached = {int(task.scores(control[None])[0]): tuple(control.tolist())}
    for _ in range(steps if k else 0):
        old = torch.zeros(task.model.vocabulary, dtype=torch.bool)
        old[list(reached)] = True
        if bool(old.all()):
            break

        def loss(chances: Tensor, old: Tensor = old) -> Tensor:
            """Falls where chance leaves what is reached, and where it goes to one of the others."""
            rest = chances[~old.to(chances.device)].log_softmax(-1)
            return chances[old.to(chances.device)].mean() - (rest.exp() * rest).sum()

        known = list(reached.values())
        control = torch.tensor(known[int(torch.randint(len(known), (), generator=generator))])
        slopes = task.gradient(control, loss) if task.guided else None
        swapped = _swaps(task.ids, control, slopes, candidates, top, generator)
        for found, first in zip(swapped.tolist(), task.scores(swapped)[0].tolist()):
            reached.setdefault(first, tuple(found))
    return reached


def k_epsilon(lengths: Sequence[int | None], most: int) -> list[float]:
    """For k = 0 ... `most` the share of pairs of a state and a target whose target is *not* known to be reached by a
    control of at most k ids: an upper bound of epsilon. lengths: of the control found for each pair, None for none."""
    if not lengths:
        raise SegueError("controllability of no pairs: give the length of the control of each, or None")
    return [1 - sum(size is not None and size <= k for size in lengths) / len(lengths) for k in range(most + 1)]


@dataclass(frozen=True)
class Bounds:
    """What an attention head can write for n imposed elements, whatever the k control elements: row i is
    lambda y_i + (1 - lambda) c with lambda between `least` and `most` and c at most `radius` long.

    own: (n, E), y, the rows without control. least, most: (n,). radius: sigma_v times the controls' length.
    """

    own: Tensor
    least: Tensor
    most: Tensor
    radius: float

    def excludes(self, wanted: Tensor) -> Tensor:
        """(n,) bool: this row (E,), or these (n, E), cannot be reached at place i.

        (A) it points away from y_i and is farther than `radius` from the nearest share of y_i that must stay;
        (B) its part at right angles to y_i is longer than (1 - least) radius. What is within rounding of a bound is not
        excluded.
        """
        along = (wanted * self.own).sum(-1)
        size = self.own.square().sum(-1).clamp(min=torch.finfo(self.own.dtype).tiny)
        across = (wanted - (along / size)[:, None] * self.own).norm(dim=-1)
        apart = (wanted - self.least[:, None] * self.own).norm(dim=-1)
        rounding = 64 * torch.finfo(self.own.dtype).eps * (self.own.norm(dim=-1) + wanted.norm(dim=-1))
        far, wide = apart - self.radius, across - (1 - self.least) * self.radius
        return ((along <= 0) & (far > rounding)) | (wide > rounding)


def attention_bounds(queries: Tensor, keys: Tensor, values: Tensor, x: Tensor, k: int, control: float,
                     causal: bool = False) -> Bounds:
    """Bounds of one attention head from its weights alone, for k control elements in front of imposed ones.

    queries, keys, values: (E, D) weights. x: (n, D) imposed elements. control: the greatest length of a control
    element. causal: imposed elements see those before them only (and all of the control). The paper prints its theorem
    with the inequality turned round and with the queries' norm for the values'; these follow from its proof.
    """
    q, scale = x @ queries.T, math.sqrt(queries.shape[0])
    seen = torch.ones(len(x), len(x), dtype=torch.bool, device=x.device)
    own, lse = attend(q[None, None], (x @ keys.T)[None, None], (x @ values.T)[None, None],
                      seen.tril()[None, None] if causal else None)
    top = [float(torch.linalg.matrix_norm(weight, 2)) for weight in (queries, keys, values)]
    alpha = top[0] * top[1] * float(x.norm(dim=-1).max()) * control / scale
    mass = lse[0, 0].exp()
    return Bounds(own[0, 0], mass / (mass + k * math.exp(alpha)), mass / (mass + k * math.exp(-alpha)),
                  top[2] * control)
