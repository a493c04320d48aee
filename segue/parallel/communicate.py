"""Communication between ranks: one primitive, `exchange`, over processes or over threads of this process; wrappers that
count the traffic or slow it down; and the collectives made of it, sums and gathers."""

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
RECEIVE_TIMEOUT = 120.0  # seconds that a rank of `simulate` waits for a message


class Communicator(Protocol):
    """One of `size` ranks that exchange tensors."""

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...

    def exchange(self, sends: Messages, receives: Messages) -> Callable[[], None]:
        """Start sending and receiving tensors without blocking.

        The returned function waits for all of them; until then none of the tensors may be written to. Messages from one
        rank to another arrive in the order in which they were started. No rank sends to itself.
        """
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
            operations.clear()  # the tensors sent had to stay alive until now

        return wait


class _Mailboxes:
    """The messages between the ranks of `simulate`, by (source, target, number)."""

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
        """Forget a message that has arrived, so that a long run does not keep all messages."""
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

    def __init__(self, rank: int, size: int, hub: _Mailboxes) -> None:
        self.rank, self.size, self.mailboxes = rank, size, hub
        self.counts = Counter[tuple[int, int]]()

    def _next(self, source: int, target: int) -> tuple[int, int, int]:
        if source == target:
            raise SegueError(f"rank {source} sends to itself: keep what stays")
        self.counts[source, target] += 1
        return source, target, self.counts[source, target]

    def exchange(self, sends: Messages, receives: Messages) -> Callable[[], None]:
        for tensor, peer in sends:
            box = self.mailboxes.box(*self._next(self.rank, peer))
            if not box.done():
                box.set_result(tensor.detach().clone())
        coming = [(tensor, self._next(peer, self.rank)) for tensor, peer in receives]

        def wait() -> None:
            for tensor, place in coming:
                tensor.copy_(self.mailboxes.box(*place).result(RECEIVE_TIMEOUT))
                self.mailboxes.drop(*place)
            coming.clear()

        return wait


def simulate(size: int, function: Callable[[Communicator], T]) -> list[T]:
    """Run `function` on each of `size` ranks, which are threads of this process; returns their results.

    For tests and for counting traffic. On a CPU, backward passes run in the thread that calls them, so gradients are
    exchanged too; on a GPU torch runs them all in one thread, where ranks would deadlock.
    """
    hub = _Mailboxes()
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


_WORK: list[Any] = []  # in a process of `launch`: the arguments of `_work`


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
    """Run `function(communicator, *args)`, an importable function, on each of `size` new processes of one thread each,
    connected by gloo; returns their results. For tests and measurements; real runs are started by torchrun."""
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":  # imports torch once for all processes
        context.set_forkserver_preload([__name__, function.__module__])
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(
            size, context, _prepare, (size, f"{folder}/store", function, args)) as pool:
        return list(pool.map(_work, range(size)))


class Counted:
    """A communicator that counts the bytes it sends, in `sent`, by target rank."""

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
    """A model of the network: a link between each pair of ranks.

    bandwidth: bytes per second in each direction, or with duplex "half" in one direction at a time. latency: additional
    seconds of a message for each hop. ring: a message takes as many hops as ranks lie between, else one. lock: makes
    the lock of a half-duplex link; that of a multiprocessing context where ranks are processes.
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
        return self.__dict__ | {"lock": threading.Lock}  # the locks are pickled, their factory need not be

    def key(self, source: int, target: int) -> tuple[int, int]:
        """The link that a message occupies: one for each direction, or one for both."""
        return (source, target) if self.duplex == "full" else (min(source, target), max(source, target))

    def seconds(self, size: float, source: int, target: int) -> tuple[float, float]:
        """Seconds that a message of `size` bytes occupies its link, and the latency after that."""
        distance = abs(source - target)
        return size / self.bandwidth, self.latency * (min(distance, self.size - distance) if self.ring else 1)


class Throttled:
    """A communicator over slow links: each message waits until its link is free, then occupies it for its duration. One
    thread per target rank does the waiting, so that the caller can compute."""

    def __init__(self, inner: Communicator, links: Links) -> None:
        self.inner, self.links, self.rank, self.size = inner, links, inner.rank, inner.size
        self.lanes = defaultdict[int, ThreadPoolExecutor](partial(ThreadPoolExecutor, 1))

    def _send_slowly(self, tensor: Tensor, peer: int) -> None:
        holds, later = self.links.seconds(tensor.numel() * tensor.element_size(), self.rank, peer)
        with self.links.locks.get(self.links.key(self.rank, peer), nullcontext()):
            time.sleep(holds)
        time.sleep(later)
        self.inner.exchange([(tensor, peer)], [])()

    def exchange(self, sends: Messages, receives: Messages) -> Callable[[], None]:
        arrived = self.inner.exchange([], receives)
        sent = [self.lanes[peer].submit(self._send_slowly, tensor.contiguous(), peer) for tensor, peer in sends]

        def wait() -> None:
            arrived()
            for one in sent:
                one.result()

        return wait


def all_gather(comm: Communicator, x: Tensor) -> list[Tensor]:
    """The x of every rank, in rank order."""
    found = [x if rank == comm.rank else torch.empty_like(x, memory_format=torch.contiguous_format)
             for rank in range(comm.size)]
    others = [rank for rank in range(comm.size) if rank != comm.rank]
    comm.exchange([(x, rank) for rank in others], [(found[rank], rank) for rank in others])()
    return found


def all_reduce(comm: Communicator, x: Tensor) -> Tensor:
    """The sum of x over all ranks, a new tensor, bitwise equal on all of them.

    Ring all-reduce: a reduce-scatter, then an all-gather, so a rank sends 2 (N - 1) / N times the size of x.
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


def differentiable_gather(comm: Communicator, x: Tensor) -> Tensor:
    """(N, ...): the x of every rank; gradients flow back to the ranks that they came from."""
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
    """An input that requires a gradient, so that backward runs on every rank whatever else requires one."""
    return torch.zeros((), requires_grad=True)


def receive(comm: Communicator, peer: int, like: Tensor) -> Tensor:
    """Receive what `peer` sends with `send`, of the shape of `like`; its gradient is sent back."""
    return _Receive.apply(comm, peer, like, _anchor())


def send(comm: Communicator, peer: int, x: Tensor, through: Tensor) -> Tensor:
    """Send x to `peer`. Returns `through`, which must be used in the loss: its backward receives the gradient of x."""
    return _Send.apply(comm, peer, x, through, _anchor())
