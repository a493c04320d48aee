"""Schedules of ring attention: which block each rank computes at each step and which messages it sends, as pure
functions of rank and step.

A sequence is split into one share for each of N ranks. Either keys and values go round the ring (`rotate="kv"`:
Sequence Parallelism, Li et al. 2021, arXiv 2105.13120, and ring attention), or queries do, and their partial outputs
are sent directly to their owners (`rotate="q"`: TokenRing, 2024, arXiv 2412.20501).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

from segue.errors import SegueError
from segue.parallel.communicate import Duplex, Links

Rotate = Literal["kv", "q"]
Order = Literal["contiguous", "zigzag"]


@dataclass(frozen=True)
class Block:
    """The queries of rank `queries` against the keys of rank `keys`. late: only the later half of the queries. early:
    only the earlier half of the keys. causal: both are of the same rank, and masked causally; else unmasked."""

    queries: int
    keys: int
    late: bool = False
    early: bool = False
    causal: bool = False

    @property
    def work(self) -> float:
        """The fraction of a full block that is computed."""
        return 0.5 if self.late or self.early or self.causal else 1.0


@dataclass(frozen=True)
class Message:
    """A message. moving: a share that goes round the ring, else results for their owner. owner: the rank whose queries
    or keys and values these are. half: only half of the share."""

    moving: bool
    owner: int
    source: int
    target: int
    half: bool = False


@dataclass(frozen=True)
class Step:
    """One step of a rank: start its messages, compute its block, wait for the messages."""

    block: Block | None
    sends: tuple[Message, ...]
    receives: tuple[Message, ...]


@dataclass(frozen=True)
class RingSchedule:
    """A schedule of ring attention. ranks: N. rotate: what moves, "kv" or "q". causal: attention is causal. order: see
    `ContextShard`.

    At step s = 0 ... N - 1 a rank holds the moving share of the rank s places away. Results are sent to their owners
    one step after they were computed, so there is a step N for the last ones. Where keys and values move there are
    none in the forward pass, but in the backward pass their gradients are (`returns`). After a share has passed the
    end of the ring, a causal zigzag needs only half of it, and a causal contiguous split none: only what is needed is
    sent.
    """

    ranks: int
    rotate: Rotate = "kv"
    causal: bool = True
    order: Order = "zigzag"

    def __post_init__(self) -> None:
        if self.ranks < 1 or self.rotate not in ("kv", "q") or self.order not in ("contiguous", "zigzag"):
            raise SegueError(f"a ring of {self.ranks} ranks that rotates '{self.rotate}', {self.order}: there is at "
                             "least one rank, 'kv' or 'q' rotates, and the order is contiguous or zigzag")

    @property
    def direction(self) -> int:
        """+1 or -1: the direction of rotation, so that the ranks that need whole shares come first."""
        return 1 if not self.causal or (self.rotate == "kv" and self.order == "contiguous") else -1

    def block(self, queries: int, keys: int) -> Block | None:
        """The block of one rank's queries and another's keys; None if they see none of them."""
        if not self.causal:
            return Block(queries, keys)
        if queries == keys:
            return Block(queries, keys, causal=True)
        if self.order == "contiguous":
            return Block(queries, keys) if keys < queries else None
        return Block(queries, keys, early=True) if keys < queries else Block(queries, keys, late=True)

    def owner_held(self, rank: int, step: int) -> int:
        """The owner of the moving share that a rank holds at a step."""
        return (rank - self.direction * step) % self.ranks

    def block_at(self, rank: int, step: int) -> Block | None:
        """The block that a rank computes at a step, None if there is none."""
        if step >= self.ranks:
            return None
        owner = self.owner_held(rank, step)
        return self.block(owner, rank) if self.rotate == "q" else self.block(rank, owner)

    def _halved(self, block: Block) -> bool:
        """Whether a block needs only half of the moving share."""
        return block.late if self.rotate == "q" else block.early

    def messages(self, step: int, returns: bool) -> tuple[Message, ...]:
        """The messages of all ranks at a step: the moving shares, then the results of the step before."""
        moving, results = [], []
        for rank in range(self.ranks):
            ahead = [self.block_at((rank + self.direction * (later - step)) % self.ranks, later)
                     for later in range(step + 1, self.ranks)]
            wanted = [block for block in ahead if block is not None]
            if wanted:
                target = (rank + self.direction) % self.ranks
                moving.append(Message(True, self.owner_held(rank, step), rank, target, all(map(self._halved, wanted))))
            before = self.block_at(rank, step - 1) if returns and step > 1 else None
            if before is not None:
                owner = self.owner_held(rank, step - 1)
                results.append(Message(False, owner, rank, owner, self._halved(before)))
        return (*moving, *results)

    def plan(self, rank: int, returns: bool | None = None) -> tuple[Step, ...]:
        """The steps of a rank. returns: whether results are sent to their owners (default: where queries move)."""
        returns = self.rotate == "q" if returns is None else returns
        steps = []
        for step in range(self.ranks + (returns and self.ranks > 1)):
            messages = self.messages(step, returns)
            steps.append(Step(self.block_at(rank, step), tuple(m for m in messages if m.source == rank),
                              tuple(m for m in messages if m.target == rank)))
        return tuple(steps)

    def seconds(self, block: float, moving: float, result: float, links: Links, returns: bool | None = None) -> float:
        """The modelled time until the last rank ends. block: seconds of a full block. moving, result: bytes of a moving
        share and of its results. Messages on one link follow each other."""
        plans = [self.plan(rank, returns) for rank in range(self.ranks)]
        ready = [0.0] * self.ranks
        free: defaultdict[tuple[int, int], float] = defaultdict(float)
        for index in range(len(plans[0])):
            steps = [plan[index] for plan in plans]
            ends = [at + (0.0 if step.block is None else block * step.block.work) for at, step in zip(ready, steps)]
            for message in sorted((m for step in steps for m in step.sends), key=lambda m: (ready[m.source], m.source)):
                size = (moving if message.moving else result) / (2 if message.half else 1)
                holds, later = links.seconds(size, message.source, message.target)
                link = links.key(message.source, message.target)
                free[link] = max(free[link], ready[message.source]) + holds
                ends[message.source] = max(ends[message.source], free[link] + later)
                ends[message.target] = max(ends[message.target], free[link] + later)
            ready = ends
        return max(ready)

    def __str__(self) -> str:
        """A table with a line for each step and a column for each rank: what it computes and what it sends."""
        def describe(step: Step) -> str:
            block = step.block
            computes = "-" if block is None else (f"Q{block.queries}{'b' if block.late else ''}"
                                              f"K{block.keys}{'a' if block.early else ''}{'/' if block.causal else ''}")
            sends = [f"{self.rotate if m.moving else 'result'}{m.owner}{'½' if m.half else ''}>{m.target}"
                     for m in step.sends]
            return " ".join([computes, *sends])

        plans = [self.plan(rank) for rank in range(self.ranks)]
        rows = [[describe(plan[index]) for plan in plans] for index in range(len(plans[0]))]
        widths = [max(map(len, column)) for column in zip(*rows)]
        lines = [f"{index:>2}  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
                 for index, row in enumerate(rows)]
        title = f"{self.ranks} ranks, rotate {self.rotate}, {'causal ' + self.order if self.causal else 'full'}"
        return "\n".join([f"{title} (a, b: earlier, later half; /: masked; ½: half of a share)", *lines])


def pick_rotation(heads: int, kv_heads: int, queries: int, keys: int, duplex: Duplex = "full", head_width: int = 64,
                  ranks: int = 4) -> Rotate:
    """What to rotate: whichever sends less in its busier direction, for shares of so many queries and keys.

    Keys and values are 2 * keys * kv_heads * head_width numbers in one direction. Queries are queries * heads *
    head_width numbers in one direction and a little more (the log-sum-exp) in the other; the two overlap only with full
    duplex links and more than two ranks.
    """
    there, back = queries * heads * head_width, queries * heads * (head_width + 1)
    together = duplex == "full" and ranks > 2
    return "q" if (max(there, back) if together else there + back) < 2 * keys * kv_heads * head_width else "kv"
