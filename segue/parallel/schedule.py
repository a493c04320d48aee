"""Who computes what when, and who sends what to whom, as pure functions of rank and step: nothing here computes.

A sequence is cut in one share for each of N ranks. Either keys and values go round the ring (`rotate="kv"`: Sequence
Parallelism, Li et al. 2021, arXiv 2105.13120, and ring attention), or queries do, and what they read goes straight home
(`rotate="q"`: TokenRing, 2024, arXiv 2412.20501).
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
    """Queries of one rank's share against keys of another's. late: only the later half of the queries. early: only the
    earlier half of the keys. causal: both are of one place, and no query sees a later key; else all see all."""

    queries: int
    keys: int
    late: bool = False
    early: bool = False
    causal: bool = False

    @property
    def work(self) -> float:
        """How much of a whole block is computed."""
        return 0.5 if self.late or self.early or self.causal else 1.0


@dataclass(frozen=True)
class Message:
    """moving: what goes round the ring, else results going home. owner: of the queries, or of the keys and values.
    half: only half of the share."""

    moving: bool
    owner: int
    source: int
    target: int
    half: bool = False


@dataclass(frozen=True)
class Step:
    """What a rank does at a step: begin its messages, compute its block, wait for the messages."""

    block: Block | None
    sends: tuple[Message, ...]
    receives: tuple[Message, ...]


@dataclass(frozen=True)
class RingSchedule:
    """ranks: N. rotate: what moves. causal: no query sees a later key. order: see `ContextShard`.

    At step s = 0 ... N - 1 a rank holds what moves of the rank s places away. Results go home one step after they were
    computed, directly, so a step N only brings the last of them; where keys and values move there are none, but on the
    way back their gradients are (`returns`). In a causal zigzag only half of what has passed the end of the ring is
    wanted any more, and in a causal contiguous split nothing: so no more is sent.
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
    def shift(self) -> int:
        """Where to: of what is needed less behind the ring's end, the way there comes first."""
        return 1 if not self.causal or (self.rotate == "kv" and self.order == "contiguous") else -1

    def block(self, queries: int, keys: int) -> Block | None:
        """What the queries of one rank see of the keys of another."""
        if not self.causal:
            return Block(queries, keys)
        if queries == keys:
            return Block(queries, keys, causal=True)
        if self.order == "contiguous":
            return Block(queries, keys) if keys < queries else None
        return Block(queries, keys, early=True) if keys < queries else Block(queries, keys, late=True)

    def held(self, rank: int, step: int) -> int:
        """Whose share of what moves is at a rank."""
        return (rank - self.shift * step) % self.ranks

    def computed(self, rank: int, step: int) -> Block | None:
        """What a rank computes at a step, None where nothing is left or seen."""
        if step >= self.ranks:
            return None
        owner = self.held(rank, step)
        return self.block(owner, rank) if self.rotate == "q" else self.block(rank, owner)

    def _halved(self, block: Block) -> bool:
        """Of what moves, a block takes only half."""
        return block.late if self.rotate == "q" else block.early

    def messages(self, step: int, returns: bool) -> tuple[Message, ...]:
        """All that is sent at a step, by all ranks: first what moves on, then the results of the step before."""
        moving, home = [], []
        for rank in range(self.ranks):
            ahead = [self.computed((rank + self.shift * (later - step)) % self.ranks, later)
                     for later in range(step + 1, self.ranks)]
            wanted = [block for block in ahead if block is not None]
            if wanted:
                target = (rank + self.shift) % self.ranks
                moving.append(Message(True, self.held(rank, step), rank, target, all(map(self._halved, wanted))))
            before = self.computed(rank, step - 1) if returns and step > 1 else None
            if before is not None:
                owner = self.held(rank, step - 1)
                home.append(Message(False, owner, rank, owner, self._halved(before)))
        return (*moving, *home)

    def plan(self, rank: int, returns: bool | None = None) -> tuple[Step, ...]:
        """The steps of a rank. returns: whether results go home (default: where queries move)."""
        returns = self.rotate == "q" if returns is None else returns
        steps = []
        for step in range(self.ranks + (returns and self.ranks > 1)):
            messages = self.messages(step, returns)
            steps.append(Step(self.computed(rank, step), tuple(m for m in messages if m.source == rank),
                              tuple(m for m in messages if m.target == rank)))
        return tuple(steps)

    def seconds(self, block: float, moving: float, result: float, links: Links, returns: bool | None = None) -> float:
        """A model, not a measurement: when the last rank ends, where a whole block takes `block` seconds, and a share
        of what moves, and of its results, has so many bytes. Messages of a link follow each other."""
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
        """A line for each step, a column for each rank: what it computes, and what it sends."""
        def told(step: Step) -> str:
            block = step.block
            does = "-" if block is None else (f"Q{block.queries}{'b' if block.late else ''}"
                                              f"K{block.keys}{'a' if block.early else ''}{'/' if block.causal else ''}")
            sends = [f"{self.rotate if m.moving else 'result'}{m.owner}{'½' if m.half else ''}>{m.target}"
                     for m in step.sends]
            return " ".join([does, *sends])

        plans = [self.plan(rank) for rank in range(self.ranks)]
        rows = [[told(plan[index]) for plan in plans] for index in range(len(plans[0]))]
        widths = [max(map(len, column)) for column in zip(*rows)]
        lines = [f"{index:>2}  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
                 for index, row in enumerate(rows)]
        title = f"{self.ranks} ranks, rotate {self.rotate}, {'causal ' + self.order if self.causal else 'full'}"
        return "\n".join([f"{title} (a, b: earlier, later half; /: masked; ½: half of a share)", *lines])


def pick_rotation(heads: int, kv_heads: int, queries: int, keys: int, duplex: Duplex = "full", head_width: int = 64,
                  ranks: int = 4) -> Rotate:
    """What should go round: whichever sends less in its busier direction, for queries and keys of such shares.

    Keys and values are 2 * keys * kv_heads * head_width numbers one way. Queries are queries * heads * head_width one
    way and a little more (the log-sum-exp) the other, side by side only where links are full duplex, and where there
    are more than two ranks.
    """
    there, back = queries * heads * head_width, queries * heads * (head_width + 1)
    together = duplex == "full" and ranks > 2
    return "q" if (max(there, back) if together else there + back) < 2 * keys * kv_heads * head_width else "kv"
