"""How ranks talk: one primitive, `exchange`, over real processes or over threads of this one; wrappers that count and
that slow it down; and what is made of it, sums and gathers."""

from __future__ import annotations

import multiprocessing
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from segue.errors import SegueError

Messages = Sequence[tuple[Tensor, int]]
"""Tensors with the rank that each goes to, or comes from."""
T = TypeVar("T")
PATIENCE = 120.0  # seconds that a rank of `simulate` waits for another


class Communicator(Protocol):
    """One of `size` ranks that exchange tensors."""

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...

    def exchange(self, sends: Messages, receives: Messages) -> Callable[[], None]:
        """Begin to send these tensors and to fill those; the function that is returned waits for all of them, and until
        then none may be written to. From one rank to another messages arrive in the order in which they are begun. No
        rank sends to itself."""
        ...


class Processes:
    """The processes of a group of `torch.distributed`, or of one dimension of a device mesh (default: all of them).

    gloo on CPUs, nccl on GPUs. gloo cannot send to itself, and nccl knows no tags: messages keep their order.
    """

    def __init__(self, group: dist.ProcessGroup | DeviceMesh | None = None) -> None:
        if not dist.is_initialized():
            raise SegueError("no processes have joined: start with torchrun and call torch.distributed."
                             "init_process_group first")
        self.group = group.get_group() if isinstance(group, DeviceMesh) else group or dist.group.WORLD
        self.rank, self.size = dist.get_rank(self.group), dist.get_world_size(self.group)
        self.tags = Counter[tuple[int, bool]]()

    def exchange(self, sends: Messages, receives: Messages) -> Callable[[], None]:
        operations = []
        for act, messages in ((dist.isend, sends), (dist.irecv, receives)):
            for tensor, peer in messages:
                side = (peer, act is dist.isend)
                operations.append(dist.P2POp(act, tensor.contiguous() if side[1] else tensor, group=self.group,
                                             tag=self.tags[side], group_peer=peer))
                self.tags[side] += 1
        works = dist.batch_isend_irecv(operations) if operations else []

        def wait() -> None:
            for work in works:
                work.wait()
            operations.clear()  # what is sent had to live until now

        return wait


class _Hub:
    """The letter boxes of the ranks of `simulate`."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.boxes: dict[tuple[int, int, int], Future[Tensor]] = {}
        self.failed: BaseException | None = None

    def box(self, source: int, target: int, number: int) -> Future[Tensor]:
        with self.lock:
            found = self.boxes.setdefault((source, target, number), Future())
            if self.failed is not None and not found.done():
                found.set_exception(self.failed)
            return found

    def drop(self, source: int, target: int, number: int) -> None:
        """What was in this box has arrived: a long run must not keep all that was ever sent."""
        with self.lock:
            self.boxes.pop((source, target, number), None)

    def fail(self, error: BaseException) -> None:
        with self.lock:
            self.failed = self.failed or error
            for box in self.boxes.values():
                if not box.done():
                    box.set_exception(self.failed)


class Simulated:
    """A rank that is a thread of this process, see `simulate`."""

    def __init__(self, rank: int, size: int, hub: _Hub) -> None:
        self.rank, self.size, self.hub = rank, size, hub
        self.counts = Counter[tuple[int, int]]()

    def _next(self, source: int, target: int) -> tuple[int, int, int]:
        if source == target:
            raise SegueError(f"rank {source} sends to itself: keep what stays")
        self.counts[source, target] += 1
        return source, target, self.counts[source, target]

    def exchange(self, sends: Messages, receives: Messages) -> Callable[[], None]:
        for tensor, peer in sends:
            box = self.hub.box(*self._next(self.rank, peer))
            if not box.done():
                box.set_result(tensor.detach().clone())
        coming = [(tensor, self._next(peer, self.rank)) for tensor, peer in receives]

        def wait() -> None:
            for tensor, place in coming:
                tensor.copy_(self.hub.box(*place).result(PATIENCE))
                self.hub.drop(*place)
            coming.clear()

        return wait


def simulate(size: int, function: Callable[[Communicator], T]) -> list[T]:
    """What `function` returns on each of `size` ranks, which are threads of this process.

    For tests and for counting: on a CPU backward passes run in the thread that calls them, so gradients are exchanged
    too; on a GPU torch runs them all in one thread, where ranks would wait for each other for ever.
    """
    hub = _Hub()
    results: list[Any] = [None] * size
    grad = torch.is_grad_enabled()

    def body(rank: int) -> None:
        try:
            with torch.set_grad_enabled(grad):
                results[rank] = function(Simulated(rank, size, hub))
        except BaseException as error:
            hub.fail(error)

    threads = [threading.Thread(target=body, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if hub.failed is not None:
        raise hub.failed
    return results


_WORK: list[Any] = []  # what a process of `launch` is to do


def _prepare(*work: Any) -> None:
    _WORK[:] = work
    torch.set_num_threads(1)


def _work(rank: int) -> Any:
    size, place, function, args = _WORK
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=size)
    try:
        return function(Processes(), *args)
    finally:
        dist.destroy_process_group()


def launch(size: int, function: Callable[..., T], *args: Any) -> list[T]:
    """What `function(communicator, *args)`, an importable function, returns on each of `size` new processes of one
    thread each, joined by gloo. For tests and measurements; a user's own run is started by torchrun."""
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":  # which imports torch once for all of them
        context.set_forkserver_preload([__name__, function.__module__])
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(
            size, context, _prepare, (size, f"{folder}/store", function, args)) as pool:
        return list(pool.map(_work, range(size)))


class Counted:
    """Counts the bytes that a communicator sends, `sent`, by the rank they go to."""

    def __init__(self, inner: Communicator) -> None:
        self.inner, self.rank, self.size = inner, inner.rank, inner.size
        self.sent = Counter[int]()

    def exchange(self, sends: Messages, receives: Messages) -> Callable[[], None]:
        for tensor, peer in sends:
            self.sent[peer] += tensor.numel() * tensor.element_size()
        return self.inner.exchange(sends, receives)


Duplex = Literal["full", "half"]


@dataclass
class Links:
    """What joins the ranks: a link between each two of them.

    bandwidth: bytes a second in each direction, or, where duplex is "half", in one direction at a time. latency:
    seconds that a message takes besides, for each hop. ring: messages between ranks that are no neighbours take as many
    hops as lie between them, instead of one. lock: makes the lock of a half-duplex link, a multiprocessing context's
    where ranks are processes.
    """

    size: int
    bandwidth: float
    duplex: Duplex = "full"
    latency: float = 0.0
    ring: bool = False
    lock: Callable[[], Any] = threading.Lock
    locks: dict[tuple[int, int], Any] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.duplex == "half":
            self.locks = {(a, b): self.lock() for b in range(self.size) for a in range(b)}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"lock": threading.Lock}  # the locks go with it, what made them need not

    def key(self, source: int, target: int) -> tuple[int, int]:
        """The link that a message holds: one each way, or one for both."""
        return (source, target) if self.duplex == "full" else (min(source, target), max(source, target))

    def seconds(self, size: float, source: int, target: int) -> tuple[float, float]:
        """How long a message of so many bytes holds its link, and how much later it arrives."""
        away = abs(source - target)
        return size / self.bandwidth, self.latency * (min(away, self.size - away) if self.ring else 1)


class Throttled:
    """A communicator over slow links: each message waits until its link is free, then holds it for its time. A thread
    for each rank that is sent to does the waiting, so that this one can compute."""

    def __init__(self, inner: Communicator, links: Links) -> None:
        self.inner, self.links, self.rank, self.size = inner, links, inner.rank, inner.size
        self.lanes = defaultdict[int, ThreadPoolExecutor](partial(ThreadPoolExecutor, 1))

    def _carry(self, tensor: Tensor, peer: int) -> None:
        holds, later = self.links.seconds(tensor.numel() * tensor.element_size(), self.rank, peer)
        with self.links.locks.get(self.links.key(self.rank, peer), nullcontext()):
            time.sleep(holds)
        time.sleep(later)
        self.inner.exchange([(tensor, peer)], [])()

    def exchange(self, sends: Messages, receives: Messages) -> Callable[[], None]:
        arrived = self.inner.exchange([], receives)
        sent = [self.lanes[peer].submit(self._carry, tensor.contiguous(), peer) for tensor, peer in sends]

        def wait() -> None:
            arrived()
            for one in sent:
                one.result()

        return wait


def all_gather(comm: Communicator, x: Tensor) -> list[Tensor]:
    """x of every rank, in their order."""
    found = [x if rank == comm.rank else torch.empty_like(x, memory_format=torch.contiguous_format)
             for rank in range(comm.size)]
    others = [rank for rank in range(comm.size) if rank != comm.rank]
    comm.exchange([(x, rank) for rank in others], [(found[rank], rank) for rank in others])()
    return found


def all_reduce(comm: Communicator, x: Tensor) -> Tensor:
    """The sum of x over the ranks, a new tensor, alike on all of them to the last bit.

    In a ring: each share of x is summed on its way round, and then goes round once more, so a rank sends 2 (N - 1) / N
    times x.
    """
    if comm.size == 1:
        return x.clone()
    total = x.contiguous().flatten().clone()
    shares = total.tensor_split(comm.size)
    after, before = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    for step in range(2 * (comm.size - 1)):
        out, into = shares[(comm.rank - step) % comm.size], shares[(comm.rank - step - 1) % comm.size]
        coming = torch.empty_like(into)
        comm.exchange([(out, after)], [(coming, before)])()
        if step < comm.size - 1:
            into.add_(coming)
        else:
            into.copy_(coming)
    return total.view_as(x)


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, comm: Communicator, x: Tensor) -> Tensor:
        ctx.comm = comm
        return torch.stack(all_gather(comm, x))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        comm, grad = ctx.comm, grads[0].contiguous()
        others = [rank for rank in range(comm.size) if rank != comm.rank]
        coming = [torch.empty_like(grad[0]) for _ in others]
        comm.exchange([(grad[rank], rank) for rank in others], list(zip(coming, others)))()
        return None, torch.stack([grad[comm.rank], *coming]).sum(0)


def gathered(comm: Communicator, x: Tensor) -> Tensor:
    """(N, ...): x of every rank; gradients flow back to where each came from."""
    return x[None] if comm.size == 1 else _AllGather.apply(comm, x)


class _Receive(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, comm: Communicator, peer: int, like: Tensor, anchor: Tensor) -> Tensor:
        ctx.comm, ctx.peer = comm, peer
        found = torch.empty_like(like, memory_format=torch.contiguous_format)
        comm.exchange([], [(found, peer)])()
        return found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, None, None]:
        ctx.comm.exchange([(grads[0].contiguous(), ctx.peer)], [])()
        return None, None, None, None


class _Send(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, comm: Communicator, peer: int, x: Tensor, through: Tensor, anchor: Tensor) -> Tensor:
        ctx.comm, ctx.peer, ctx.like = comm, peer, (x.shape, x.dtype, x.device)
        comm.exchange([(x.contiguous(), peer)], [])()
        return through.view_as(through)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, Tensor, Tensor, None]:
        shape, dtype, device = ctx.like
        found = torch.empty(shape, dtype=dtype, device=device)
        ctx.comm.exchange([], [(found, ctx.peer)])()
        return None, None, found, grads[0], None


def _anchor() -> Tensor:
    """Makes a gradient flow back on every rank, whatever on it needs one."""
    return torch.zeros((), requires_grad=True)


def receive(comm: Communicator, peer: int, like: Tensor) -> Tensor:
    """What `peer` sends with `send`, of the shape of `like`; its gradient goes back there."""
    return _Receive.apply(comm, peer, like, _anchor())


def send(comm: Communicator, peer: int, x: Tensor, through: Tensor) -> Tensor:
    """Send x to `peer`; gives `through` back, which must be used: with its gradient that of x comes back."""
    return _Send.apply(comm, peer, x, through, _anchor())
