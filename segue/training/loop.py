"""The training loop. `fit` runs it once; continual learning runs it once per experience, with a strategy's hooks.

Each step is a function of the weights, the optimiser state, the plan, the seed and the step number; it never depends on
the clock. So a run that is killed and resumed from any checkpoint ends with the same weights. Only how many steps there
are may depend on it, if a run has a time budget: what is decided then is in a checkpoint before it takes effect.
"""

from __future__ import annotations

import ctypes
import json
import math
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segue.errors import SegueError
from segue.files import write_text
from segue.mixers import Mixer
from segue.models.stack import Stack
from segue.objectives import Batch, NextElement, Objective, generator_of
from segue.parallel import ContextParallel, context_parallel
from segue.progress import progress
from segue.training import distributed
from segue.training.checkpoint import join_groups, load_tensors, remove_leftovers, save_tensors, take_group, weights_of
from segue.training.optimiser import Optimiser
from segue.training.recipe import Plan
from segue.training.strategy import Strategy

CHECKPOINT = "checkpoint.safetensors"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
PACE_SHARE = 0.05  # of a time budget, after which the pace is looked at again
PACE_TOLERANCE = 0.1  # part of the steps left by which they may miss the budget's end before they are planned anew
PACE_LATE, PACE_EARLY = 0.02, 0.2  # and the part of the whole budget by which a run may end too late, and too early


class Run:
    """One training run, on one experience.

    model: trained in place. batches: maps a step to its batch, as a pure function (`Batches`, or a task that samples).
    folder: for the checkpoint and the log (None: no files). key: identifies the run; resuming from a checkpoint with
    another key is an error. save_seconds: time between checkpoints. held_out: the held-out score of a model (lower is
    better), measured `plan.measure` times.
    past: for strategies that look back, batches of the data that the model keeps from earlier training; None if the
    strategy has seen all training itself.
    seconds: time budget of the training, all resumed parts together; the number of steps (`plan.steps`, `most_steps` at
    most) is then planned anew where the pace so far would miss the end, so that the learning rates still fall to zero.
    """

    def __init__(self, model: nn.Module, batches: Callable[[int], Batch], plan: Plan, *,
                 objective: Objective | None = None, strategy: Strategy | None = None,
                 folder: Path | None = None, key: str = "", held_out: Callable[[nn.Module], float] | None = None,
                 save_seconds: float = 15.0, past: Sequence[Batch] | None = None, seconds: float | None = None,
                 most_steps: int | None = None) -> None:
        self.model, self.batches, self.plan, self.past = model, batches, plan, past
        self.objective: Objective = objective or NextElement()
        self.strategy = strategy or Strategy()
        self.folder, self.key, self.held_out, self.save_seconds = folder, key, held_out, save_seconds
        self.seconds, self.most_steps = seconds, most_steps
        if plan.checkpointing and not isinstance(model, Stack):
            raise SegueError(f"a {type(model).__name__} cannot recompute its blocks: leave checkpointing out")
        if getattr(self.objective, "compares_rows", False) and (plan.accumulate > 1 or distributed.world_size() > 1):
            raise SegueError(f"{type(self.objective).__name__} compares the rows of a batch with each other, which "
                             "would be apart: leave accumulate out, and train by one process")
        if isinstance(model, Stack):
            model.checkpointing = plan.checkpointing
        self.device = next(model.parameters()).device
        self.reader = parallel_form(model, plan, self.objective, self.strategy)
        self.strategy.prepare(self)
        self.optimiser = self.make_optimiser()
        self.step = 0
        self.loss = math.nan  # per element, at the last step
        self.elapsed = 0.0  # seconds of training, including the time before a resume
        self.curve: list[dict[str, float]] = []  # step, mean loss since the previous entry, held_out
        self.average: dict[str, Tensor] = {}
        self.best, self.since_best, self.stopped = math.inf, 0, False
        self.best_weights: dict[str, Tensor] = {}
        self._losses: list[float] = []  # since the last measurement
        self._recent = deque[float](maxlen=20)

    def make_optimiser(self) -> Optimiser:
        plan = self.plan
        rates = {"matrix": plan.rate, "weight": plan.rate, "table": plan.table_rate, "vector": plan.vector_rate,
                 "state": plan.state_rate}
        dtype = torch.bfloat16 if plan.precision == "bfloat16" else torch.float32
        return Optimiser(self.model, rates, plan.decay, plan.muon, dtype=dtype, sgd=plan.sgd)

    def generator(self) -> torch.Generator:
        """A random generator that depends only on the seed and the step."""
        return generator_of(self.plan.seed, self.step)

    # One step, in the order of the strategy's hooks.

    def compute_gradients(self) -> float:
        """Run forward and backward on this step's batch; returns the loss per element."""
        plan, batch = self.plan, self.strategy.before_step(self, self.batches(self.step))
        count = batch.count
        rank, world = distributed.rank(), distributed.world_size()
        portion = 1.0  # of penalties, which do not depend on the rows: every process adds its share
        if isinstance(self.reader, ContextParallel):
            batch, rank, world, portion = batch.map(self.reader.share), 0, 1, 1 / world
        total = torch.zeros((), device=self.device)
        rows = torch.arange(rank, batch.tokens.shape[0], world)
        parts = [part for part in rows.tensor_split(plan.accumulate) if len(part)]
        for part in parts:
            piece = (batch if len(part) == batch.tokens.shape[0] else batch.rows(part)).to(self.device)
            with autocast(self.device, plan.precision):
                loss = self.objective(self.reader, piece)
                share = loss.total / count
                penalties = [m.penalty() for m in self.model.modules() if isinstance(m, Mixer)]
                for extra in (self.strategy.loss_term(self, piece), *penalties):
                    if extra is not None:
                        share = share + extra * (portion * len(part) / batch.tokens.shape[0])
            share.backward()
            total += loss.terms["nats"] / count
        distributed.sum_gradients(self.optimiser.parameters)
        self.strategy.after_backward(self)
        if plan.clip:
            nn.utils.clip_grad_norm_(self.optimiser.parameters, plan.clip, foreach=True)
        return float(distributed.total(total))

    def advance(self) -> float:
        """Take one optimiser step; returns the loss per element."""
        # Processes that hold different parts of a row need different dropout masks.
        rank_offset = distributed.rank() if self.reader is not self.model else 0
        seed_step(self.generator().initial_seed() + rank_offset, self.device)
        self.loss = loss = self.compute_gradients()
        if not math.isfinite(loss):
            raise self._divergence()
        self.optimiser.step(self.plan.scale(self.step))
        self.optimiser.zero_grad()
        if self.plan.ema:
            self._update_average()
        self.strategy.after_step(self)
        self.step += 1
        return loss

    def _divergence(self) -> SegueError:
        place = ", in another folder" if self.folder is not None else ""
        return SegueError(f"training diverged at step {self.step}: fit again with a lower rate "
                          f"(rate={self.plan.rate / 3:.2g}) or another seed{place}")

    @torch.no_grad()
    def _put(self, weights: dict[str, Tensor]) -> None:
        """Copy these weights into the model."""
        for name, parameter in self.model.named_parameters():
            if name in weights:
                parameter.copy_(weights[name])

    def _weights(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.model.named_parameters()}

    def _update_average(self) -> None:
        if not self.average:
            self.average = self._weights()
        decay = min(self.plan.ema, (self.step + 1) / (self.step + 10))
        for name, parameter in self.model.named_parameters():
            self.average[name].lerp_(parameter.detach(), 1 - decay)

    # The run.

    def train(self, title: str = "fit", quiet: bool = False) -> None:
        """Take all remaining steps, resuming from the checkpoint in `folder` if there is one."""
        plan = self.plan
        keep_freed_memory()
        with isolated_torch(plan.threads), catch_interrupt() as interrupted:
            resumed = self.resume()
            self.strategy.before_experience(self)
            if not resumed:
                if plan.patience and self.held_out is not None:  # of a trained model the first weights may be the best
                    self.keep_if_best(self.score_held_out(self.held_out))
                self.save()
            quiet = quiet or distributed.rank() > 0
            begin, saved = time.monotonic(), time.monotonic()
            before, first = self.elapsed, self.step
            looked = before, first  # elapsed and step when the pace was last looked at
            self.model.train()
            with progress(title, total=1.0, quiet=quiet) as meter:
                while self.step < self.plan.steps and not self.stopped:
                    self._recent.append(self.advance())
                    self._losses.append(self._recent[-1])
                    if self.step in self._measured_steps:
                        self.measure()
                    now = time.monotonic()
                    self.elapsed = before + now - begin
                    speed = (self.step - first) * plan.tokens_per_step / (now - begin)
                    self.log(speed)
                    held = f", held out {self.curve[-1]['held_out']:.3f}" if self.curve and \
                        "held_out" in self.curve[-1] else ""
                    loss = sum(self._recent) / len(self._recent)
                    meter(self.step / self.plan.steps, f"loss {loss:.3f}{held}, {speed:,.0f} tokens/s")
                    last = self.step == self.plan.steps or self.stopped
                    changed = False
                    if self.seconds is not None and not last and \
                            self.elapsed - looked[0] >= PACE_SHARE * self.seconds:
                        changed = self.plan_anew((self.elapsed - looked[0]) / (self.step - looked[1]))
                        looked = self.elapsed, self.step
                    if last or changed or interrupted() or now - saved >= self.save_seconds:
                        self.save()
                        saved = time.monotonic()
                    if interrupted() and not last:
                        saved_it = "; it is saved, run the same command to go on" if self.folder is not None else ""
                        raise KeyboardInterrupt(f"stopped at step {self.step} of {self.plan.steps}{saved_it}")
            self.finish()

    def plan_anew(self, pace: float) -> bool:
        """Replace the number of steps in the plan by that which the time budget allows at `pace` seconds a step, if the
        present one misses the budget's end by much; returns whether it was replaced."""
        assert self.seconds is not None
        planned = self.plan.steps - self.step
        left = max(1, int((self.seconds - self.elapsed) / pace))
        if self.most_steps is not None:
            left = min(left, max(1, self.most_steps - self.step))
        missed = abs(left - planned)
        allowed = self.seconds * (PACE_LATE if left < planned else PACE_EARLY)
        if missed <= PACE_TOLERANCE * planned or missed * pace <= allowed:
            return False
        self.plan = replace(self.plan, steps=self.step + left)
        return True

    def finish(self) -> None:
        """Put the final weights into the model: the best ones with early stopping, else averaged ones if there are any.
        """
        self._put(self.best_weights or self.average)
        self.model.eval()
        self.strategy.after_experience(self)

    @property
    def _measured_steps(self) -> set[int]:
        """The step numbers after which the held-out score is measured."""
        n = min(self.plan.measure, self.plan.steps)
        return {round(self.plan.steps * (i + 1) / n) for i in range(n)}

    def measure(self) -> None:
        entry: dict[str, float] = {"step": self.step, "loss": sum(self._losses) / max(1, len(self._losses))}
        self._losses = []
        if self.held_out is not None:
            entry["held_out"] = score = self.score_held_out(self.held_out)
            if math.isnan(score):
                raise self._divergence()
            self.keep_if_best(score)
        self.curve.append(entry)

    def score_held_out(self, measure: Callable[[nn.Module], float]) -> float:
        """The held-out score of the weights that would be kept: the averaged ones, if there are any."""
        trained = self._weights() if self.average else {}
        self._put(self.average)
        self.model.eval()
        with torch.no_grad():
            score = measure(self.model)
        self.model.train()
        self._put(trained)
        return score

    def keep_if_best(self, score: float) -> None:
        """Keep the weights, with early stopping, if their held-out score is the best so far; else stop in time."""
        if score < self.best:
            self.best, self.since_best = score, 0
            if self.plan.patience:
                self.best_weights = {name: t.clone() for name, t in self.average.items()} or self._weights()
        else:
            self.since_best += 1
            self.stopped = 0 < self.plan.patience <= self.since_best

    # Checkpoints.

    def save(self) -> None:
        if self.folder is None or distributed.rank() > 0:
            return
        strategy_tensors, values = self.strategy.state()
        tensors = join_groups({"model": weights_of(self.model), "optimiser": self.optimiser.state(),
                               "average": self.average, "best": self.best_weights, "strategy": strategy_tensors})
        save_tensors(self.folder / CHECKPOINT, tensors, {
            "key": self.key, "plan": self.plan.to_dict(), "step": self.step, "elapsed": self.elapsed,
            "curve": self.curve, "losses": self._losses, "best": None if self.best == math.inf else self.best,
            "since_best": self.since_best, "stopped": self.stopped, "strategy": values})

    def resume(self) -> bool:
        """Load the checkpoint in `folder`; returns False if there is none."""
        if self.folder is None or not (self.folder / CHECKPOINT).exists():
            return False
        if distributed.rank() == 0:
            remove_leftovers(self.folder)
        path = self.folder / CHECKPOINT
        tensors, values = load_tensors(path)
        plan = json.loads(json.dumps(self.plan.to_dict()))  # older checkpoints lack newer entries: compare by defaults
        saved_plan = Plan(vocabulary=0).to_dict() | (values.get("plan") or {})
        if self.seconds is not None:  # the run may have planned its steps anew
            plan["steps"] = saved_plan["steps"]
        if values.get("key") != self.key or saved_plan != plan:
            raise SegueError(f"{path} belongs to another run (other data or settings): choose another folder "
                             "or remove it")

        state = self.model.state_dict()
        with torch.no_grad():
            for name, tensor in take_group(tensors, "model").items():
                state[name].copy_(tensor)
        self.optimiser.load_state(take_group(tensors, "optimiser"))
        self.average = {name: t.to(self.device) for name, t in take_group(tensors, "average").items()}
        self.best_weights = {name: t.to(self.device) for name, t in take_group(tensors, "best").items()}
        self.strategy.load_state(take_group(tensors, "strategy"), values["strategy"])
        self.plan = replace(self.plan, steps=saved_plan["steps"])
        self.step, self.elapsed, self.curve = values["step"], values["elapsed"], values["curve"]
        self.best = math.inf if values["best"] is None else values["best"]
        self.since_best, self.stopped, self._losses = values["since_best"], values["stopped"], values["losses"]
        self._cut_log()
        return True

    def log(self, speed: float) -> None:
        if self.folder is None or distributed.rank() > 0:
            return
        entry: dict[str, Any] = {"step": self.step, "loss": round(self._recent[-1], 5),
                                 "scale": round(self.plan.scale(self.step - 1), 5), "tokens_per_s": round(speed),
                                 "seconds": round(self.elapsed, 2)}
        if self.curve and self.curve[-1]["step"] == self.step:
            entry |= {"loss": self.curve[-1]["loss"], **({"held_out": self.curve[-1]["held_out"]}
                                                         if "held_out" in self.curve[-1] else {})}
        with suppress(OSError), open(self.folder / "log.jsonl", "a", encoding="utf-8") as handle:
            handle.write(json.dumps(entry) + "\n")

    def _cut_log(self) -> None:
        """Remove log entries after the checkpoint, since those steps are repeated."""
        path = None if self.folder is None else self.folder / "log.jsonl"
        if path is None or not path.exists() or distributed.rank() > 0:
            return
        lines = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                if json.loads(line)["step"] <= self.step:
                    lines.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                continue  # a line truncated by a kill
        write_text(path, "".join(lines))


def parallel_form(model: nn.Module, plan: Plan, objective: Objective, strategy: Strategy | None = None) -> nn.Module:
    """The model; or with sequence_parallel, its form in which each process reads a part of every row.

    Raises SegueError if the model, objective or strategy has no such form.
    """
    if not plan.sequence_parallel or distributed.world_size() == 1:
        return model
    if not isinstance(model, Stack) or type(objective) is not NextElement or \
            (strategy is not None and type(strategy).loss_term is not Strategy.loss_term):
        raise SegueError("sequence_parallel cuts rows over processes for stacks that learn the next element, by no "
                         "strategy with a loss of its own: leave it out, and each process takes some of the rows")
    reader = context_parallel(model)
    reader.shard.positions(0, plan.context)
    return reader


def autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def seed_step(seed: int, device: torch.device) -> None:
    """Seed all generators that a step on `device` draws from. On a CPU that is one; `torch.manual_seed` also records a
    stack trace for GPUs that may be used later, which takes longer than some layers."""
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


@cache
def keep_freed_memory() -> None:
    """Let the C library keep up to a gigabyte of what is freed, where it is glibc: each step asks for the same memory
    again, and the system clears the pages of fresh memory at their first use. For the whole process, and for good."""
    with suppress(AttributeError, OSError, TypeError):  # another library, or another system
        adjust = ctypes.CDLL(None).mallopt
        adjust(M_MMAP_THRESHOLD, 32 << 20)  # larger blocks are still given back at once
        adjust(M_TRIM_THRESHOLD, 1 << 30)


@contextmanager
def isolated_torch(threads: int) -> Iterator[None]:
    """Context with a fixed number of torch threads; afterwards torch's threads and global random state are restored."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def catch_interrupt() -> Iterator[Callable[[], bool]]:
    """Context in which Ctrl-C only sets a flag, so that the current step is finished; a second Ctrl-C interrupts at
    once. Yields a function that returns the flag."""
    received = threading.Event()

    def note(number: int, frame: Any) -> None:
        if received.is_set():
            raise KeyboardInterrupt
        received.set()

    if threading.current_thread() is not threading.main_thread():
        yield received.is_set
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield received.is_set
    finally:
        signal.signal(signal.SIGINT, before)
