"""Neural temporal point processes: the time and type of the next event, given all events before it.

Any stack of mixers reads the events (type and time). Between two events, one of three heads predicts from its output:

- "decay": the hidden state relaxes towards a limit, h(t) = o tanh(limit + (h - limit) exp(-rate (t - t_i))), and type k
  has the intensity softplus(w_k h(t) + b_k) (the neural Hawkes process, Mei & Eisner 2017, arXiv 1612.09328; there
  the recurrence itself decays, here it starts from the output of any mixer).
- "query": a node with a time but no type attends to the past as an event would, and to no other query; its output gives
  the same intensity (attentive NHP, Yang et al. 2022, arXiv 2201.00044). A query is a leaf in the tree of nodes, so
  every mixer that supports draft trees supports it.
- "mixture": no intensity; the time to the next event is a mixture of log-normals and its type a softmax given that
  time (Shchur et al. 2020, arXiv 1909.12127). The likelihood is exact, and sampling needs no rejection.

Times are divided by the config's `scale`, a constant of the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError, check_choice
from segue.mixers.layout import Layout
from segue.mixers.state import State
from segue.models.prompts import LayerPrompts
from segue.models.stack import Stack, StackConfig

HEADS = ("decay", "query", "mixture")
MIN_GAP = 1e-6  # smallest gap in a logarithm, in units of the scale: for simultaneous events
NODES_AT_ONCE = 1024  # nodes per pass where no gradient is needed
MAX_PROPOSALS = 32  # proposals of the thinning sampler per round


@dataclass(frozen=True)
class PointProcessConfig:
    """The config of a point process, as plain values.

    stack: config of the backbone, whose vocabulary is the number of types K (its head is not used: leave it tied).
    head: "decay", "query" or "mixture". scale: the model's unit of time, in the data's unit (say the mean gap).
    longest: upper limit of predicted gaps, in the data's unit (say the longest gap seen). features: sinusoids of the
    time embedding. components: of the mixture. prompts: keyword arguments of `LayerPrompts`, or None for none.
    """

    stack: StackConfig
    head: str = "decay"
    scale: float = 1.0
    longest: float = 100.0
    features: int = 16
    components: int = 16
    prompts: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PointProcessConfig:
        try:
            return cls(**{**values, "stack": StackConfig.from_dict(values["stack"])})
        except (TypeError, KeyError) as error:
            raise SegueError(f"the point process's config is incomplete: {error}") from error


class Clock(nn.Module):
    """A time embedding: times and gaps (B, N), in units of the scale -> (B, N, D).

    A linear map of `features` sines and cosines of the time since the sequence began, at frequencies from 2 pi / 1000
    to 10 radians per unit, and of the gap's logarithm and gap / (1 + gap). width: D.
    """

    frequencies: Tensor

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.logspace(math.log10(2e-3 * math.pi), 1, features // 2),
                             persistent=False)
        self.into = nn.Linear(features // 2 * 2 + 2, width)

    def forward(self, time: Tensor, gap: Tensor) -> Tensor:
        angles = time[..., None] * self.frequencies
        gaps = torch.stack([(gap.clamp(min=0) + 1e-3).log() / 3, gap / (1 + gap)], -1)
        return self.into(torch.cat([angles.sin(), angles.cos(), gaps], -1))


@dataclass(frozen=True)
class History:
    """A batch of event sequences. types: (B, T) long. gaps: (B, T), time since the event before, in the data's unit,
    ignored for the first of a sequence. starts: (B, T) bool, or None: where a new sequence begins within a row."""

    types: Tensor
    gaps: Tensor
    starts: Tensor | None = None

    @property
    def layout(self) -> Layout:
        shape = (self.types.shape[0], self.types.shape[1])
        return Layout.chain(shape, starts=self.starts, device=self.types.device)


@dataclass
class Past:
    """The decoding state of a point process, per row.

    hidden: (B, D), after the last event. time: (B,), of the last event since the first, in units of the scale.
    prefix_sum: (B, D), the sum of the embedded events so far of the prefix that chooses the prompts. count: number of
    events read.
    """

    state: State
    hidden: Tensor
    time: Tensor
    prefix_sum: Tensor
    count: int = 0

    def select(self, rows: Tensor) -> Past:
        return Past(self.state.select(rows), self.hidden[rows], self.time[rows], self.prefix_sum[rows], self.count)


class PointProcess(nn.Module):
    """A marked temporal point process over a stack of mixers; see `PointProcessConfig`."""

    def __init__(self, config: PointProcessConfig) -> None:
        super().__init__()
        check_choice("head", config.head, HEADS)
        if config.stack.pool or config.stack.inputs or not config.stack.tied:
            raise SegueError("the backbone of a point process is a tied stack of ids that pools nothing")
        if config.head == "query" and (config.stack.post_norm or config.stack.transform):
            raise SegueError("the intensity of a query is bounded by the norm at the end of the backbone: leave "
                             "post_norm and transform out, or choose head decay or mixture")
        if not (config.scale > 0 and config.longest > 0):
            raise SegueError(f"scale {config.scale} and longest {config.longest} are times, above 0")
        self.config, width, types = config, config.stack.width, config.stack.vocabulary
        self.stack = Stack(config.stack)
        self.clock = Clock(config.features, width)
        self.head = nn.Linear(width, types)
        self.query = nn.Parameter(torch.zeros(width)) if config.head == "query" else None
        self.cell = nn.Linear(width, 4 * width) if config.head == "decay" else None
        self.mixture = nn.Linear(width, 3 * config.components) if config.head == "mixture" else None
        self.ahead = Clock(config.features, width) if config.head == "mixture" else None
        self.prompts = None if config.prompts is None else \
            LayerPrompts(len(config.stack.mixers), width, **config.prompts)
        with torch.no_grad():  # initially a process with one event per unit of time, of any type
            nn.init.normal_(self.stack.embedding.weight, std=0.5)  # about the scale of the time embedding
            self.head.weight *= 0.1
            self.head.bias.fill_(0.0 if config.head == "mixture" else math.log(math.expm1(1 / types)))

    @property
    def resettable(self) -> bool:
        """Whether several sequences may be packed into one row."""
        return self.stack.resettable and self.config.head != "query" and self.prompts is None

    # Reading events.

    def _events(self, history: History) -> tuple[Tensor, Tensor]:
        """Return the embedded events (B, T, D) and their times (B, T), in units of the scale."""
        first = torch.zeros_like(history.types, dtype=torch.bool) if history.starts is None else history.starts.clone()
        first[:, 0] = True
        gaps = self._to_scale(history.gaps).masked_fill(first, 0.0)
        index = torch.arange(gaps.shape[1], device=gaps.device)
        time = gaps.cumsum(1)
        time = time - time.gather(1, torch.where(first, index, 0).cummax(1).values)
        return self.stack.embed(history.types, history.layout.positions) + self.clock(time, gaps), time

    def _to_scale(self, times: Tensor) -> Tensor:
        """Convert times from the data's unit to units of the scale."""
        return (times / self.config.scale).to(self.head.weight.dtype)

    def _embed_queries(self, time: Tensor, elapsed: Tensor) -> Tensor:
        """Return embedded queries (B, ..., D). time: (B, ...), of the event before. elapsed: (B, ...), since then."""
        assert self.query is not None
        return self.query + self.clock(time + elapsed, elapsed)

    def _layer_prompts(self, prefix: Tensor, time: Tensor) -> list[Tensor]:
        """Return a prompt per layer. prefix: (B, D), mean of the first events' embeddings. time: (B,), of the last one;
        the prompts carry the time at which the next is expected, after the mean gap between them."""
        assert self.prompts is not None
        gap = time / max(1, self.prompts.prefix - 1)
        expected = self.clock((time + gap)[:, None], gap[:, None])
        return [rows + expected for rows in self.prompts(prefix).values()]

    def _read(self, history: History, elapsed: Tensor | None = None) -> Tensor:
        """Return hidden vectors (B, T, D) after each event, or (B, T, S, D) of queries `elapsed` (B, T, S) after it."""
        if history.starts is not None and not self.resettable and bool(history.starts[:, 1:].any()):
            raise SegueError("prompts and queries take one sequence a row: pack none together")
        x, time = self._events(history)
        rows, length, width = x.shape
        prompts: list[Tensor] = []
        prefix_length = length
        if self.prompts is not None and length >= self.prompts.prefix:
            prefix_length = self.prompts.prefix
            prompts = self._layer_prompts(x[:, :prefix_length].mean(1), time[:, prefix_length - 1])
        prompt_length = prompts[0].shape[1] if prompts else 0
        index = torch.arange(length, device=x.device)
        event_nodes = index + prompt_length * (index >= prefix_length)  # indices of the events among the nodes
        nodes = torch.cat([x[:, :prefix_length], x.new_zeros(rows, prompt_length, width), x[:, prefix_length:]], 1)
        if elapsed is None:
            layout = history.layout if not prompts else Layout.of(nodes)
        else:
            num_queries = elapsed.shape[2]
            queries = self._embed_queries(time[..., None].expand_as(elapsed).flatten(1), elapsed.flatten(1))
            nodes = torch.cat([nodes, queries], 1)
            parents = (index + prompt_length * (index >= prefix_length - 1)).repeat_interleave(num_queries)
            layout = attach_leaves(rows, length + prompt_length, parents)
        for block, _ in enumerate(self.stack.blocks):
            if prompts:
                after = nodes[:, prefix_length + prompt_length :]
                nodes = torch.cat([nodes[:, :prefix_length], prompts[block], after], 1)
            nodes = self.stack.run_block(block, nodes, layout)
        nodes = self.stack.finish(nodes, layout)
        if elapsed is None:
            return nodes[:, event_nodes]
        return nodes[:, length + prompt_length :].unflatten(1, elapsed.shape[1:])

    @torch.no_grad()
    def hidden_after(self, history: History) -> Tensor:
        """Return the hidden vectors after each event, (B, T, D)."""
        return self._read(history)

    # Between events.

    def _decay(self, hidden: Tensor, elapsed: Tensor) -> tuple[Tensor, Tensor]:
        """Return the state `elapsed` (..., S) after an event with `hidden` (..., D), and its limit: (..., S, D)."""
        assert self.cell is not None
        current, limit, rate, out = self.cell(hidden)[..., None, :].chunk(4, -1)
        gate = torch.sigmoid(out)
        decayed = limit + (current - limit) * torch.exp(-F.softplus(rate) * elapsed[..., None])
        return gate * torch.tanh(decayed), gate * torch.tanh(limit)

    def _rates(self, state: Tensor) -> Tensor:
        return F.softplus(self.head(state))

    def intensities(self, history: History, elapsed: Tensor) -> Tensor:
        """Return the intensity of each type, (B, T, S, K) events per unit of the scale, `elapsed` (B, T, S) of those
        units after each event and before the next. A "mixture" head has none and raises SegueError."""
        if self.config.head == "mixture":
            raise SegueError("a mixture of log-normals has no intensity: choose head decay or query")
        if self.config.head == "decay":
            return self._rates(self._decay(self._read(history), elapsed)[0])
        parts = elapsed.split(elapsed.shape[2] if torch.is_grad_enabled() else
                              max(1, NODES_AT_ONCE // elapsed.shape[1] - 1), dim=2)
        return torch.cat([self._rates(self._read(history, part)) for part in parts], 2)

    def _components(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log weights, means and deviations of the log time to the next event, (..., C) each."""
        assert self.mixture is not None
        weights, means, deviations = self.mixture(hidden).chunk(3, -1)
        spread = torch.linspace(-4, 2, self.config.components, device=hidden.device, dtype=hidden.dtype)
        return weights.log_softmax(-1), means + spread, 0.05 + F.softplus(deviations)

    def _type_log_probabilities(self, hidden: Tensor, elapsed: Tensor) -> Tensor:
        """Return log-probabilities of the next event's type, (..., K), given that it comes `elapsed` (...) later."""
        assert self.ahead is not None
        return self.head(hidden + self.ahead(elapsed, elapsed)).log_softmax(-1)

    def terms(self, history: History, until: Tensor, types: Tensor, points: int = 5,
              rule: str = "uniform") -> tuple[Tensor, Tensor]:
        """Return the log-likelihood of the event after each one: (B, T) of its time, a density per unit of the data's
        time, and (B, T) of its type given the time; 0 where it is masked.

        until: (B, T), gap to the next event, in the data's unit. types: (B, T) long, its type; -1 masks it.
        points, rule: how the intensity is integrated over a gap: "uniform", a random point in each of `points` equal
        parts, which is unbiased; or "trapezoid", on `points` equidistant ones with both ends, which is biased.
        """
        if points < 1 or (rule == "trapezoid" and points < 2) or rule not in ("uniform", "trapezoid"):
            raise SegueError(f"{points} points by '{rule}' is no rule: uniform (1 or more) or trapezoid (2 or more)")
        valid_mask = types >= 0
        until, target = self._to_scale(until).masked_fill(~valid_mask, 1.0), types.clamp(min=0)[..., None]
        if self.config.head == "mixture":
            hidden, gap = self._read(history), until.clamp(min=MIN_GAP)
            weights, means, deviations = self._components(hidden)
            z = (gap.log()[..., None] - means) / deviations
            log_densities = weights - z.square() / 2 - deviations.log() - math.log(2 * math.pi) / 2
            time_log_prob = log_densities.logsumexp(-1) - gap.log()
            type_log_prob = self._type_log_probabilities(hidden, until).gather(-1, target)[..., 0]
        else:
            if rule == "uniform":
                points_in_gap = (torch.arange(points) + torch.rand(*until.shape, points)) / points
                weights = torch.full((points,), 1 / points)
            else:
                points_in_gap = torch.linspace(0, 1, points).expand(*until.shape, points)
                weights = F.pad(torch.ones(points - 2), (1, 1), value=0.5) / (points - 1)
            points_in_gap, weights = points_in_gap.to(until), weights.to(until)
            rates = self.intensities(history, torch.cat([points_in_gap * until[..., None], until[..., None]], -1))
            total = rates.sum(-1)
            time_log_prob = total[..., -1].log() - until * (total[..., :-1] * weights).sum(-1)
            type_log_prob = rates[..., -1, :].gather(-1, target)[..., 0].log() - total[..., -1].log()
        time_log_prob = time_log_prob - math.log(self.config.scale)  # per unit of the data's time
        return time_log_prob.where(valid_mask, 0.0), type_log_prob.where(valid_mask, 0.0)

    def compensators(self, history: History, elapsed: Tensor) -> Tensor:
        """Return the integrated intensity from each event to `elapsed` after it, (B, T, S): minus the log-probability
        that no event comes in between. By the trapezoid rule from 0, for the heads with an intensity.

        elapsed: (B, T, S), ascending, in units of the scale."""
        if self.config.head == "mixture":
            return self._mixture_compensator(self._read(history), elapsed)
        grid = F.pad(elapsed, (1, 0))
        return cumulative_trapezoid(self.intensities(history, grid).sum(-1), grid)

    def _mixture_compensator(self, hidden: Tensor, elapsed: Tensor) -> Tensor:
        """Return the compensators (..., S) of a mixture `elapsed` (..., S) after an event with `hidden` (..., D)."""
        weights, means, deviations = (part[..., None, :] for part in self._components(hidden))
        z = (elapsed.clamp(min=MIN_GAP).log()[..., None] - means) / deviations
        return -(weights + torch.special.log_ndtr(-z)).logsumexp(-1)

    @torch.no_grad()
    def residuals(self, history: History, until: Tensor, points: int = 32) -> Tensor:
        """Return the compensator over each gap `until` (B, T), in the data's unit: (B, T). Under the true model, they
        are independent and Exp(1)-distributed (time rescaling, Brown et al. 2002)."""
        until = self._to_scale(until)
        fractions = torch.linspace(0, 1, points + 1)[1:].to(until).square()  # denser near the event
        return self.compensators(history, fractions * until[..., None])[..., -1]

    @torch.no_grad()
    def predict(self, history: History, points: int = 48) -> tuple[Tensor, Tensor]:
        """Predict the event after each one: the expected time until it, at most `longest`, (B, T) in the data's unit,
        and the most likely type at that time (B, T). points: of the time grid."""
        grid = self._grid(points, history.types.shape)
        mean = mean_wait(grid, self.compensators(history, grid))
        if self.config.head == "mixture":
            type_scores = self._type_log_probabilities(self._read(history), mean)
        else:
            type_scores = self.intensities(history, mean[..., None])[..., 0, :]
        return mean * self.config.scale, type_scores.argmax(-1)

    def _grid(self, points: int, shape: Sequence[int]) -> Tensor:
        """Return log-spaced times after an event, up to `longest`, in units of the scale: (*shape, points)."""
        longest = self.config.longest / self.config.scale
        return (torch.logspace(-3, 0, points).to(self.head.weight) * longest).expand(*shape, points)

    # Event by event.

    def begin(self, batch: int) -> Past:
        """Return the state before the first event of `batch` sequences."""
        zeros = self.head.weight.new_zeros(batch, self.config.stack.width)
        return Past(self.stack.init_state(batch), zeros, zeros[:, 0], zeros)

    def observe(self, types: Tensor, gaps: Tensor, past: Past) -> Past:
        """Return the state after N more events: types (B, N), and gaps (B, N) in the data's unit (0 for the first event
        of a sequence). `past` must not be used afterwards."""
        if self.prompts is not None and past.count < (split := self.prompts.prefix) < past.count + types.shape[1]:
            split -= past.count
            past = self.observe(types[:, :split], gaps[:, :split], past)
            return self.observe(types[:, split:], gaps[:, split:], past)
        gaps = self._to_scale(gaps)
        time = past.time[:, None] + gaps.cumsum(1)
        layout = past.state.layout(types.shape[1])
        x = self.stack.embed(types, layout.positions) + self.clock(time, gaps)
        prefix_sum, count = past.prefix_sum, past.count + types.shape[1]
        hidden = self._extend([x], layout, past.state)[:, -1]
        past.state.commit()
        if self.prompts is not None and count <= self.prompts.prefix:
            prefix_sum = prefix_sum + x.sum(1)
            if count == self.prompts.prefix:
                rows = self._layer_prompts(prefix_sum / count, time[:, -1])
                self._extend(rows, past.state.layout(rows[0].shape[1]), past.state)
                past.state.commit()
        return Past(past.state, hidden, time[:, -1], prefix_sum, count)

    def _extend(self, rows: list[Tensor], layout: Layout, state: State) -> Tensor:
        """Run nodes after a state and leave them pending there: one tensor (B, N, D), or one per layer."""
        x = rows[0]
        for block, _ in enumerate(self.stack.blocks):
            x = self.stack.run_block(block, rows[block] if len(rows) > 1 else x, layout, state)
        state.pending = layout
        return self.stack.finish(x, layout)

    def intensities_after(self, past: Past, elapsed: Tensor) -> Tensor:
        """As `intensities`, `elapsed` (B, S) units of the scale after the last event: (B, S, K)."""
        if self.config.head == "decay":
            return self._rates(self._decay(past.hidden, elapsed)[0])
        queries = self._embed_queries(past.time[:, None].expand_as(elapsed), elapsed)
        layout = past.state.layout(elapsed.shape[1], torch.full_like(elapsed, -1, dtype=torch.long))
        return self._rates(self._extend([queries], layout, past.state))

    @torch.no_grad()
    def predict_next(self, past: Past, points: int = 48) -> tuple[Tensor, Tensor]:
        """As `predict`, for the event after the last one: (B,) and (B,)."""
        grid = self._grid(points, past.time.shape)
        if self.config.head == "mixture":
            mean = mean_wait(grid, self._mixture_compensator(past.hidden, grid))
            return mean * self.config.scale, self._type_log_probabilities(past.hidden, mean).argmax(-1)
        edges = F.pad(grid, (1, 0))
        mean = mean_wait(grid, cumulative_trapezoid(self.intensities_after(past, edges).sum(-1), edges))
        return mean * self.config.scale, self.intensities_after(past, mean[:, None])[:, 0].argmax(-1)

    def bound_intensity(self, past: Past, elapsed: Tensor) -> Tensor:
        """Return an upper bound (B,) of the total intensity from `elapsed` (B,) after the last event until the next. A
        decaying state stays, feature by feature, between its current value and its limit; a query's output ends in a
        norm, which bounds its length."""
        weight, bias = self.head.weight, self.head.bias
        if self.config.head == "decay":
            current, limit = self._decay(past.hidden, elapsed[:, None])
            highest = torch.maximum(current * weight, limit * weight).sum(-1)  # (B, K)
            return F.softplus(highest + bias).sum(-1)
        norm: Any = self.stack.norm
        length = math.sqrt(self.config.stack.width) * (weight * norm.weight).norm(dim=-1)
        shift = bias if getattr(norm, "bias", None) is None else bias + weight @ norm.bias
        return F.softplus(length + shift).sum().expand(len(elapsed))

    @torch.no_grad()
    def sample_next(self, past: Past, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Sample the next event of each row: the gap (B,) in the data's unit, and the type (B,). Intensities are
        sampled exactly by thinning (Lewis & Shedler 1979; Ogata 1981). A row with no event within 100 times `longest`
        has an infinite gap."""
        sample = self._sample_from_mixture if self.config.head == "mixture" else self._sample_by_thinning
        gap, kind = sample(past, generator)
        return gap * self.config.scale, kind

    def _sample_from_mixture(self, past: Past, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """As `sample_next`, the gap in units of the scale."""
        weights, means, deviations = self._components(past.hidden)
        component = sample_categorical(weights.exp(), generator)[:, None]
        noise = torch.randn(len(past.hidden), 1, generator=generator).to(past.hidden)
        gap = (means.gather(1, component) + deviations.gather(1, component) * noise).exp()[:, 0]
        return gap, sample_categorical(self._type_log_probabilities(past.hidden, gap).exp(), generator)

    def _sample_by_thinning(self, past: Past, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """As `sample_next`, the gap in units of the scale: proposals at the rate of an upper bound of the intensity,
        accepted in proportion to the intensity itself."""
        rows, longest = len(past.hidden), 100 * self.config.longest

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator).to(past.hidden)

        gap, kind = past.hidden.new_zeros(rows), torch.zeros(rows, dtype=torch.long, device=past.hidden.device)
        pending = torch.ones_like(kind, dtype=torch.bool)
        while bool(pending.any()):
            bound = self.bound_intensity(past, gap)
            proposals = gap[:, None] + (-torch.log1p(-uniform(rows, MAX_PROPOSALS)) / bound[:, None]).cumsum(1)
            rates = self.intensities_after(past, proposals)
            accepted = uniform(rows, MAX_PROPOSALS) * bound[:, None] < rates.sum(-1)
            any_accepted, first = accepted.any(1), accepted.long().argmax(1)[:, None]
            first_rates = rates.gather(1, first[..., None].expand(-1, -1, rates.shape[2]))[:, 0]
            done = pending & any_accepted
            gap = torch.where(done, proposals.gather(1, first)[:, 0], torch.where(pending, proposals[:, -1], gap))
            first_rates = first_rates.where(done[:, None], 1.0)  # others may be undefined, after an infinite gap
            kind = torch.where(done, sample_categorical(first_rates, generator), kind)
            gap = gap.masked_fill(gap * self.config.scale > longest, math.inf)
            pending = pending & ~any_accepted & gap.isfinite()
        past.state.pending = None
        return gap, kind

    @torch.no_grad()
    def sample(self, past: Past, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Sample the next `n` events of each row: gaps and types, (B, n) each; ignore what follows an infinite gap."""
        gaps, kinds = [], []
        for _ in range(n):
            gap, kind = self.sample_next(past, generator)
            gaps.append(gap)
            kinds.append(kind)
            past = self.observe(kind[:, None], gap.nan_to_num(posinf=self.config.longest)[:, None], past)
        return torch.stack(gaps, 1), torch.stack(kinds, 1)


def sample_categorical(weights: Tensor, generator: torch.Generator | None) -> Tensor:
    """Sample an index (B,) long from each row of unnormalised weights (B, K)."""
    return torch.multinomial(weights.cpu(), 1, generator=generator)[:, 0].to(weights.device)


def attach_leaves(rows: int, chain: int, parents: Tensor) -> Layout:
    """Return the layout of a chain of `chain` nodes followed by Q leaves: leaf i is a child of node `parents[i]`."""
    index = torch.arange(chain + len(parents), device=parents.device)
    all_parents = torch.cat([index[:chain] - 1, parents])
    layout = Layout((all_parents + 1).expand(rows, -1), all_parents.expand(rows, -1))
    last_visible = torch.where(index < chain, index, F.pad(parents, (chain, 0)))
    itself = torch.eye(len(index), dtype=torch.bool, device=index.device)
    visible = (index < chain) & (index <= last_visible[:, None]) | itself
    layout.follows = visible.expand(rows, -1, -1)  # set directly, which saves the transitive closure
    return layout


def cumulative_trapezoid(values: Tensor, points: Tensor) -> Tensor:
    """Integrate values (..., S + 1) over ascending points (..., S + 1), from the first to each other: (..., S)."""
    return ((values[..., 1:] + values[..., :-1]) / 2 * points.diff(dim=-1)).cumsum(-1)


def mean_wait(grid: Tensor, compensators: Tensor) -> Tensor:
    """Return the mean (...) of a time with survival probabilities exp(-compensators) (..., S) at the times `grid`
    (..., S), truncated at the last of these."""
    return cumulative_trapezoid(F.pad(torch.exp(-compensators), (1, 0), value=1.0), F.pad(grid, (1, 0)))[..., -1]
