"""Sequences cut over ranks: schedules, rings, states handed on, whole stacks, real processes. Ranks are threads of this
process where nothing else is said."""

from __future__ import annotations

import copy
import itertools
import math
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scripts import losses_of_two, script
from test_training import make_of_two
from torch import Tensor, nn

from segue.analysis.memory import saved_memory
from segue.errors import SegueError
from segue.mixers import MIXERS, Attention, LongVQ
from segue.mixers.attention import attend, merge, merge_into
from segue.models import Stack, StackConfig
from segue.objectives import Batch
from segue.papers.sequence_parallelism import Lossy
from segue.parallel import (
    BACKENDS,
    Communicator,
    ContextShard,
    Counted,
    Links,
    Processes,
    RingSchedule,
    Throttled,
    all_gather,
    all_reduce,
    context_parallel,
    launch,
    pick_rotation,
    ring_attention,
    simulate,
    stored_scores_attention,
    sum_gradients,
    tensor_parallel,
)

schedules = st.builds(RingSchedule, st.integers(1, 7), st.sampled_from(["kv", "q"]), st.booleans(),
                      st.sampled_from(["contiguous", "zigzag"]))


# -- schedules, without computing anything


@given(schedules, st.booleans())
def test_a_schedule_computes_each_pair_once_and_sends_what_is_received(schedule: RingSchedule, returns: bool) -> None:
    n, chunks = schedule.ranks, 2 if schedule.order == "zigzag" else 1
    shard = ContextShard(n, schedule.order)
    plans = [schedule.plan(rank, returns) for rank in range(n)]
    pairs: Counter[tuple[int, int]] = Counter()  # chunks of queries, of keys
    for plan in plans:
        for step in plan:
            if step.block is not None:
                queries, keys = shard.stretch_indices(step.block.queries), shard.stretch_indices(step.block.keys)
                queries = queries[1:] if step.block.late else queries
                keys = keys[:1] if step.block.early else keys
                pairs.update((q, k) for q in queries for k in keys if not step.block.causal or k <= q)
    assert pairs == {(q, k): 1 for q in range(chunks * n) for k in range(chunks * n) if k <= q or not schedule.causal}
    for steps in zip(*plans):
        sent, received = (Counter(m for step in steps for m in getattr(step, side)) for side in ("sends", "receives"))
        assert sent == received and all(m.source != m.target for m in sent)
        # Between two ranks the order of messages is the same on both sides: some backends know no tags.
        for a, b in itertools.permutations(range(n), 2):
            assert [m for m in steps[a].sends if m.target == b] == [m for m in steps[b].receives if m.source == a]


@given(st.integers(2, 8), st.sampled_from(["kv", "q"]))
def test_a_zigzag_balances_the_work_of_ranks(ranks: int, rotate: Any) -> None:
    for step in zip(*(RingSchedule(ranks, rotate).plan(rank) for rank in range(ranks))):
        assert {action.block.work if action.block else 0 for action in step} <= {0.5} | {0}
    work = [sum(s.block.work for s in RingSchedule(ranks, rotate, True, "contiguous").plan(rank) if s.block)
            for rank in range(ranks)]
    assert max(work) == (2 * ranks - 1) * min(work)


def test_the_causal_schedule_of_tokenring_as_published() -> None:
    """Queries move backward; rank r at step s holds those of (r + s) mod N: all of them against the first half of the
    keys, or past the ring's end their later half against all keys; each result returns at once, one step later."""
    n = 4
    schedule = RingSchedule(n, "q")
    for rank, step in itertools.product(range(n), range(n)):
        block = schedule.plan(rank)[step].block
        assert block is not None and (block.queries, block.keys) == ((rank + step) % n, rank)
        assert (block.causal, block.early, block.late) == (step == 0, 0 < step < n - rank, rank + step >= n)
        for message in schedule.plan(rank)[step].sends:
            if message.moving:
                assert message.target == (rank - 1) % n
            else:
                assert message.target == (rank + step - 1) % n == message.owner
    assert str(RingSchedule(2, "q")).splitlines()[1:] == [
        " 0  Q0K0/ q0½>1  Q1K1/ q1>0", " 1  Q1K0a        Q0bK1", " 2  - result1>1  - result0½>0"]


def traffic(schedule: RingSchedule, moving: float, result: float = 0.0,
            returns: bool | None = None) -> dict[tuple[int, int], float]:
    """What each rank sends to each other, (source, target), in units of a whole share: the moving tensors, and their
    results."""
    results = Counter[tuple[int, int]]()
    for rank in range(schedule.ranks):
        for m in (m for step in schedule.plan(rank, returns) for m in step.sends):
            results[m.source, m.target] += (moving if m.moving else result) / (2 if m.half else 1)  # type: ignore
    return dict(results)


@given(st.integers(2, 8))
def test_ring_traffic_equals_its_formula(n: int) -> None:
    """A whole ring: N - 1 shares forward; queries: as many, and each result once."""
    assert traffic(RingSchedule(n, "kv", False), 2.0) == {(r, (r + 1) % n): 2.0 * (n - 1) for r in range(n)}
    forward, returned = (traffic(RingSchedule(n, "q", False), *sizes) for sizes in ((1.0, 0.0), (0.0, 1.0)))
    assert {pair: size for pair, size in forward.items() if size} == {(r, (r + 1) % n): n - 1.0 for r in range(n)}
    assert {pair: size for pair, size in returned.items()
            if size} == {p: 1.0 for p in itertools.permutations(range(n), 2)}
    assert sum(traffic(RingSchedule(n, "kv"), 1.0).values()) < n * (n - 1)  # halves, behind the ring's end
    assert traffic(RingSchedule(1, "q"), 1.0, 1.0) == {}


def test_link_times_equal_their_formula() -> None:
    """A block of 1 s; keys and values of a share 2 s on a link: the ring waits for them, three times."""
    links, half = Links(4, 1.0), Links(4, 1.0, "half")
    assert RingSchedule(4, "kv", False).seconds(1.0, 2.0, 0.0, links) == 7
    assert RingSchedule(4, "q", False).seconds(1.0, 1.0, 1.0, links) == 5
    assert RingSchedule(4, "kv", False).seconds(1.0, 2.0, 0.0, half) == 7
    assert RingSchedule(4, "q", False).seconds(1.0, 1.0, 1.0, half) == pytest.approx(7)
    distant = Links(4, 1.0, latency=0.1, ring=True)
    assert distant.seconds(1.0, 0, 3) == (1.0, 0.1) and distant.seconds(1.0, 1, 3) == (1.0, 0.2)
    assert RingSchedule(1).seconds(1.0, 1.0, 1.0, links) == 0.5


def test_the_schedule_of_least_traffic_is_chosen() -> None:
    assert pick_rotation(8, 8, 100, 100) == "q"
    assert pick_rotation(8, 4, 100, 100) == pick_rotation(8, 1, 100, 100) == "kv"  # two queries a key: a tie, less lse
    assert pick_rotation(8, 8, 100, 100, "half") == pick_rotation(8, 8, 100, 100, ranks=2) == "kv"
    assert pick_rotation(8, 1, 1, 100) == pick_rotation(8, 1, 1, 100, "half") == "q"  # a step of decoding
    with pytest.raises(SegueError, match="'kv' or 'q'"):
        RingSchedule(2, "v")  # type: ignore[arg-type]


@given(st.integers(1, 5), st.sampled_from(["contiguous", "zigzag"]), st.integers(1, 30))
def test_joined_shares_equal_the_sequence(ranks: int, order: Any, length: int) -> None:
    shard = ContextShard(ranks, order)
    x = torch.arange(2 * length * 3).view(2, length, 3)
    padded = shard.padded(x, -1)
    assert padded.shape[1] % (ranks * shard.chunks) == 0 and torch.equal(padded[:, :length], x)
    assert (padded[:, length:] == -1).all() and padded.shape[1] < length + 2 * ranks
    shares = [shard.take(padded, rank) for rank in range(ranks)]
    assert torch.equal(shard.join(shares), padded)
    assert all((shard.positions(rank, padded.shape[1]).diff() > 0).all() for rank in range(ranks))
    if length % (ranks * shard.chunks):
        with pytest.raises(SegueError, match=f"pad to {padded.shape[1]}"):
            shard.take(x, 0)


# -- blocks


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3), st.sampled_from([(4, 4), (4, 2), (3, 1)]), st.booleans(), st.booleans(), st.integers(0, 99))
def test_merged_blocks_equal_attention(cuts: int, heads: tuple[int, int], causal: bool, masked: bool,
                                       seed: int) -> None:
    """Forward by the merge; backward each block by the log-sum-exp of all. Naive and fused alike."""
    torch.manual_seed(seed)
    n, size = 5, 4
    q = torch.randn(2, heads[0], n, size, dtype=torch.double, requires_grad=True)
    k, v = (torch.randn(2, heads[1], n * cuts, size, dtype=torch.double, requires_grad=True) for _ in range(2))
    mask = torch.ones(2, 1, n, n * cuts, dtype=torch.bool)
    if masked:
        mask = torch.rand(mask.shape) < 0.5
        mask[0, :, 1] = False  # a query that sees nothing
    bias = torch.zeros(mask.shape, dtype=torch.double).masked_fill(~mask, -math.inf)
    if causal:  # in its own block, the first
        mask = mask & F.pad(torch.ones(n, n, dtype=torch.bool).tril(), (0, n * (cuts - 1)), value=True)
    expected, want_lse = attend(q, k, v, mask)
    grad = torch.randn(expected.shape, dtype=torch.double)
    expected_grads = torch.autograd.grad(expected, (q, k, v), grad)
    for core in BACKENDS.values():
        with torch.no_grad():
            cut = [slice(i, i + n) for i in range(0, n * cuts, n)]
            blocks = [(k[:, :, at], v[:, :, at], causal and not at.start, bias[..., at] if masked else None)
                      for at in cut]
            results = [core.forward(q, *block) for block in blocks]
            out, lse = torch.zeros_like(expected), torch.full_like(want_lse, -math.inf)
            for partial in results:
                merge_into(out, lse, *partial)
            torch.testing.assert_close((out, lse), merge(results))
            torch.testing.assert_close((out, lse), (expected, want_lse))
            delta = (grad * out).sum(-1)
            parts = [core.backward(grad, q, k, v, lse, delta, *extra) for k, v, *extra in blocks]
            dq = sum(part[0] for part in parts)
            grads = (dq, *(torch.cat([part[i] for part in parts], 2) for i in (1, 2)))
        torch.testing.assert_close(grads, expected_grads)
    tiny = [x * 1e-30 for x in (grad.float(), delta.float())]  # their squares are 0 in float32
    with torch.no_grad():
        small = BACKENDS["flash"].backward(tiny[0], q.float(), k[:, :, :n].float(), v[:, :, :n].float(), lse.float(),
                                           tiny[1], *blocks[0][2:3], None if not masked else blocks[0][3].float())
        assert all(bool(x.isfinite().all()) for x in small)
        torch.testing.assert_close([x.double() * 1e30 for x in small], list(parts[0]), atol=1e-4, rtol=1e-3)


# -- rings


def random_inputs(heads: int, kv_heads: int, length: int, width: int = 4) -> list[Tensor]:
    """q, k, v and the gradient of the output, of two whole rows."""
    draw = torch.Generator().manual_seed(length)
    return [torch.randn(2, h, length, width, dtype=torch.double, generator=draw)
            for h in (heads, kv_heads, kv_heads, heads)]


def in_ring(comm: Communicator, schedule: RingSchedule, full: list[Tensor], backend: str) -> tuple[list[Tensor], Any]:
    """This rank's output, its log-sum-exp and gradients; bytes sent forward and in all."""
    counted, shard = Counted(comm), ContextShard(comm.size, schedule.order)
    *inputs, grad = (shard.take(x, comm.rank, 2) for x in full)
    inputs = [x.requires_grad_() for x in inputs]
    out, lse = ring_attention(*inputs, counted, schedule, backend)
    forward = dict(counted.sent)
    return [out.detach(), lse, *torch.autograd.grad(out, inputs, grad)], (forward, dict(counted.sent))


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("rotate", ["kv", "q"])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
def test_ring_attention_equals_attention(ranks: int, rotate: Any, heads: tuple[int, int]) -> None:
    for causal, order, backend in itertools.product((True, False), ("contiguous", "zigzag"), BACKENDS):
        full = random_inputs(*heads, 2 * ranks * 3)
        inputs = [x.clone().requires_grad_() for x in full[:3]]
        expected = F.scaled_dot_product_attention(*inputs, is_causal=causal, enable_gqa=True)
        mask = torch.ones(full[0].shape[2], full[0].shape[2], dtype=torch.bool).tril() if causal else None
        expected_parts = [expected.detach(), attend(*full[:3], mask)[1],
                          *torch.autograd.grad(expected, inputs, full[3])]
        schedule = RingSchedule(ranks, rotate, causal, order)  # type: ignore[arg-type]
        results = simulate(ranks, partial(in_ring, schedule=schedule, full=full, backend=backend))
        shard = ContextShard(ranks, order)  # type: ignore[arg-type]
        for parts, expected_part in zip(zip(*(result[0] for result in results)), expected_parts):
            torch.testing.assert_close(shard.join(parts, 2), expected_part, atol=1e-11, rtol=1e-10)
        share = 2 * 2 * 3 * 8  # rows, elements of a share, bytes
        q, kv, lse_size = heads[0] * 4 * share, 2 * heads[1] * 4 * share, heads[0] * share
        forward_traffic = traffic(schedule, kv) if rotate == "kv" else traffic(schedule, q, q + lse_size)
        return_traffic = traffic(schedule, kv, kv,
                                 True) if rotate == "kv" else traffic(schedule, 2 * q + 2 * lse_size, q)
        for rank, (_, (forward, both)) in enumerate(results):
            for peer in range(ranks):
                assert forward.get(peer, 0) == forward_traffic.get((rank, peer), 0)
                assert both.get(peer, 0) - forward.get(peer, 0) == return_traffic.get((rank, peer), 0)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_stored_scores_equal_the_ring_at_the_published_cost(ranks: int, causal: bool) -> None:
    full = random_inputs(3, 3, 8 * ranks)
    schedule = RingSchedule(ranks, "kv", causal, "contiguous")

    def body(comm: Communicator) -> tuple[list[Tensor], int]:
        counted, shard = Counted(comm), ContextShard(ranks, "contiguous")
        *inputs, grad = (shard.take(x, comm.rank, 2) for x in full)
        inputs = [x.requires_grad_() for x in inputs]
        out = stored_scores_attention(*inputs, counted, causal)
        return [out.detach(), *torch.autograd.grad(out, inputs, grad)], counted.sent.total()

    stored, online = simulate(ranks, body), simulate(ranks, lambda comm: in_ring(comm, schedule, full, "naive"))
    share = 2 * 3 * 8 * 4 * 8  # rows, heads, elements, features, bytes
    for (actual, sent), ((out, _, *grads), _) in zip(stored, online):
        torch.testing.assert_close(actual, [out, *grads], atol=1e-12, rtol=1e-10)
        assert sent == 8 * (ranks - 1) * share


def test_half_precision_is_summed_in_float32() -> None:
    half_inputs = [x.bfloat16() for x in random_inputs(4, 2, 96, 8)]
    expected = F.scaled_dot_product_attention(*(x.float() for x in half_inputs[:3]), is_causal=True, enable_gqa=True)
    for rotate, backend in itertools.product(("kv", "q"), BACKENDS):
        results = simulate(4, partial(in_ring, schedule=RingSchedule(4, rotate), full=half_inputs,  # type: ignore[arg-type]
                                      backend=backend))
        out = ContextShard(4).join([result[0][0] for result in results], 2)
        assert out.dtype == torch.bfloat16 and all(g.dtype == torch.bfloat16 for result in results
                                                   for g in result[0][2:])
        assert float((out.float() - expected).abs().max()) < 4e-2


def test_rings_refuse_bad_sizes() -> None:
    q, k = torch.randn(1, 4, 4, 4), torch.randn(1, 3, 4, 4)
    with pytest.raises(SegueError, match="cannot share 3"):
        simulate(2, lambda comm: ring_attention(q, k, k, comm))
    with pytest.raises(SegueError, match="even number"):
        simulate(2, lambda comm: ring_attention(q[:, :, :3], q[:, :, :3], q[:, :, :3], comm))
    with pytest.raises(SegueError, match="make it for as many"):
        simulate(2, lambda comm: ring_attention(q, q, q, comm, RingSchedule(3)))
    with pytest.raises(SegueError, match="choose from auto, naive, flash"):
        simulate(2, lambda comm: ring_attention(q, q, q, comm, backend="fused"))
    with pytest.raises(SegueError, match="sends to itself"):
        simulate(1, lambda comm: comm.exchange([(q, 0)], []))
    with pytest.raises(SegueError, match="torchrun"):
        Processes()


# -- sums, gathers, slow links


@given(st.integers(1, 5), st.integers(0, 11))
@settings(deadline=None, max_examples=20)
def test_all_reduce_and_all_gather(ranks: int, size: int) -> None:
    x = [torch.randn(size, generator=torch.Generator().manual_seed(rank)) for rank in range(ranks)]
    results = simulate(ranks, lambda comm: (all_reduce(comm, x[comm.rank]), all_gather(comm, x[comm.rank])))
    for total, every in results:
        torch.testing.assert_close(total, sum(x, torch.zeros(size)))
        assert torch.equal(total, results[0][0]) and all(map(torch.equal, every, x))


@pytest.mark.parametrize("duplex", ["full", "half"])
def test_throttled_links_change_only_the_time(duplex: Any) -> None:
    full, links = random_inputs(4, 4, 24), Links(3, 1e9, duplex, latency=1e-4, ring=True)
    for rotate in ("kv", "q"):
        schedule = RingSchedule(3, rotate)  # type: ignore[arg-type]
        fast = simulate(3, lambda comm, s=schedule: in_ring(comm, s, full, "flash"))  # type: ignore[misc]
        slow = simulate(3, lambda comm, s=schedule: in_ring(Throttled(comm, links), s, full, "flash"))  # type: ignore[misc]
        for unthrottled, throttled in zip(fast, slow):
            torch.testing.assert_close(unthrottled[0], throttled[0])
            assert unthrottled[1] == throttled[1]


def test_a_rank_that_fails_stops_the_others() -> None:
    def body(comm: Communicator) -> None:
        if comm.rank:
            raise SegueError("no")
        all_gather(comm, torch.zeros(1))

    with pytest.raises(SegueError, match="no"):
        simulate(3, body)


# -- stacks


def learned(model: Any, batch: Batch) -> Tensor:
    """The sum of -log p, in nats, without the float32 of the head's own kernel."""
    logits = model(batch.tokens, batch.layout).logits
    return F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=-1, reduction="sum")


def batch_of(length: int, packed: bool, seed: int = 0) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    tokens, targets = (torch.randint(11, (2, length), generator=draw) for _ in range(2))
    targets[0, -length // 3 :] = -1  # padding: on some ranks a row has nothing to predict
    return Batch(tokens, targets, (torch.rand(2, length, generator=draw) < 0.15) if packed else None)


def check_context(config: StackConfig, ranks: int, packed: bool, length: int = 24, checkpointing: bool = False,
                  **options: Any) -> None:
    """Loss, logits and gradients are those of one process."""
    torch.manual_seed(1)
    stack, batch = Stack(config).double(), batch_of(length, packed)
    for block in stack.blocks:
        if isinstance(block.mixer, LongVQ):
            block.mixer.eval()  # else codes follow the keys of each thread, and keys end where a state is handed on
    expected = learned(stack, batch)
    expected.backward()
    with torch.no_grad():
        logits = stack(batch.tokens, batch.layout).logits
    fresh = copy.deepcopy(stack)
    fresh.zero_grad(set_to_none=True)
    fresh.checkpointing = checkpointing

    def body(comm: Communicator) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        local = copy.deepcopy(fresh)
        model = context_parallel(local, comm, **options)
        share = batch.map(model.share)
        loss = learned(model, share)
        loss.backward()
        sum_gradients(comm, list(local.parameters()))
        with torch.no_grad():
            results = model.join(model(share.tokens, share.layout).logits)
        return loss.detach(), results, [p.grad for p in local.parameters()]

    results = simulate(ranks, body)
    torch.testing.assert_close(torch.stack([result[0] for result in results]).sum(), expected.detach(),
                               atol=1e-9, rtol=1e-9)
    for _, join, grads in results:
        torch.testing.assert_close(join, logits, atol=1e-9, rtol=1e-9)
        for grad, parameter in zip(grads, stack.parameters(), strict=True):
            expected_grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            actual_grad = torch.zeros_like(parameter) if grad is None else grad
            torch.testing.assert_close(actual_grad, expected_grad, atol=1e-8, rtol=1e-6)


WHOLE = {"hyena", "s4nd", "linformer", "reformer", "jrt", "palm", "hydra", "matrix", "bidirectional"}


@pytest.mark.parametrize("name", sorted(MIXERS))
def test_every_mixer_runs_over_ranks_or_is_refused(name: str) -> None:
    config = StackConfig(11, 16, [name, name])
    if name in WHOLE:
        with pytest.raises(SegueError, match=f"mixer '{name}' has no form over several processes"):
            check_context(config, 2, False)
        return
    check_context(config, 3, packed=MIXERS[name].resettable)


@pytest.mark.parametrize("name", ["attention", "gla", "mamba", "mamba2", "linear-attention", "lightnet"])
def test_chunks_in_a_zigzag(name: str) -> None:
    for ranks in (2, 4):
        check_context(StackConfig(11, 16, [name, "attention"]), ranks, packed=ranks == 4, length=32, order="zigzag")


@pytest.mark.parametrize("options", [
    {"kv_heads": 2}, {"kv_heads": 1, "positions": "alibi"}, {"positions": "learned", "length": 40}, {"causal": False},
    {"positions": "sinusoidal", "qk_norm": True}, {"window": 5}, {"block": 4, "look_back": 1}, {"prefix": 6},
    {"positions": "alibi", "causal": False, "window": 7}, {"block": 4, "global_tokens": 2}], ids=str)
def test_every_attention_over_ranks(options: dict[str, Any]) -> None:
    config = StackConfig(11, 16, ["attention"], {"attention": options})
    for rotate, backend in (("kv", "flash"), ("q", "naive")):
        check_context(config, 3, packed=True, rotate=rotate, backend=backend)
        check_context(config, 2, packed=False, rotate=rotate, backend=backend)


def test_stacks_of_every_shape_over_ranks() -> None:
    check_context(StackConfig(11, 16, ["mamba", "attention", "gru"], channel="mlp", bias=True, parallel=True), 2, True)
    check_context(StackConfig(11, 16, ["attention"] * 2, channel="none", post_norm=True, norm="layer", transform=True,
                              learned_positions=24, embed_norm=True, tied=False), 3, False)
    check_context(StackConfig(11, 16, ["gla", "attention"], shared=True), 2, False, checkpointing=True)
    check_context(StackConfig(11, 16, ["gru"]), 8, False, length=8)  # one element a rank
    check_context(StackConfig(11, 16, ["mamba"]), 4, True, length=8)  # stretches shorter than the convolution


def test_context_parallel_refuses_mixers_of_whole_rows() -> None:
    single_comm = simulate(1, lambda comm: comm)[0]
    for config, words in ((StackConfig(11, 16, ["gru"], pool="mean"), "pools"),
                          (StackConfig(11, 16, ["attention"], {"attention": {"relative": 4}}), "fixed masks"),
                          (StackConfig(11, 16, ["attention"], {"attention": {"span": 4}}), "fixed masks"),
                          (StackConfig(11, 16, ["attention"], {"attention": {"taps": 2}}), "fixed masks"),
                          (StackConfig(11, 16, ["attention"], {"attention": {"prompt": True}}), "fixed masks")):
        with pytest.raises(SegueError, match=words):
            context_parallel(Stack(config), single_comm)
    model = context_parallel(Stack(StackConfig(11, 16, ["gru"])), single_comm)
    with pytest.raises(SegueError, match="no trees"):
        batch = batch_of(8, False)
        model(batch.tokens, Batch(batch.tokens, batch.targets, grid=(2, 4)).layout)
    with pytest.raises(SegueError, match="with the stack itself"):
        model.extend(batch.tokens, model.stack.init_state(2))
    with pytest.raises(SegueError, match="order='contiguous'"):
        check_context(StackConfig(11, 16, ["gru"]), 2, False, order="zigzag")
    with pytest.raises(SegueError, match="pad to 8"):
        check_context(StackConfig(11, 16, ["attention"]), 2, False, length=6)


def test_a_lost_hop_changes_the_result() -> None:
    torch.manual_seed(0)
    stack, batch = Stack(StackConfig(11, 16, ["attention"] * 2)).double(), batch_of(24, False)

    def body(comm: Communicator, lose: bool) -> Tensor:
        model = context_parallel(copy.deepcopy(stack), Lossy(comm) if lose else comm)
        return learned(model, batch.map(model.share)).detach()

    expected = float(learned(stack, batch).detach())
    assert float(sum(simulate(3, lambda comm: body(comm, False)))) == pytest.approx(expected, rel=1e-12)
    assert float(sum(simulate(3, lambda comm: body(comm, True)))) != pytest.approx(expected, rel=1e-6)


def test_memory_falls_with_the_number_of_ranks() -> None:
    batch = batch_of(256, False)

    def bytes_of(name: str, ranks: int) -> int:
        stack = Stack(StackConfig(11, 16, [name]))

        def body(comm: Communicator) -> int:
            model = context_parallel(copy.deepcopy(stack), comm)
            share = batch.map(model.share)
            return saved_memory(lambda: model.hidden(share.tokens, share.layout), model.parameters())

        return simulate(ranks, body)[0]

    assert bytes_of("attention", 1) > 1.9 * bytes_of("attention", 2) > 1.9 * 1.9 * bytes_of("attention", 4)
    assert bytes_of("gla", 2) > 1.8 * bytes_of("gla", 4)
    x = torch.randn(8, 8, requires_grad=True)
    assert saved_memory(lambda: x.exp().exp()) == 2 * x.numel() * 4
    assert saved_memory(lambda: x * x, [x]) == 0


# -- tensor parallelism


@pytest.mark.parametrize("config", [
    StackConfig(11, 16, ["attention"] * 2),
    StackConfig(11, 16, ["attention"], {"attention": {"qkv_bias": True, "out_bias": True, "causal": False,
                                                      "qk_norm": True}}, channel="mlp",
                bias=True, post_norm=True, norm="layer"),
    StackConfig(11, 16, ["attention"], {"attention": {"kv_heads": 2}}, channel="none"),
    StackConfig(11, 16, ["attention"], {"attention": {"taps": 2, "positions": "learned", "length": 12}})],
    ids=["rms", "bert", "grouped", "placed"])
def test_tensor_parallelism_equals_the_stack(config: StackConfig) -> None:
    torch.manual_seed(2)
    stack, batch = Stack(config).double(), batch_of(12, True)
    expected = learned(stack, batch)
    expected.backward()

    def step(model: torch.nn.Module) -> Tensor:
        torch.optim.SGD(model.parameters(), 0.01).step()
        return learned(model, batch).detach()

    def body(comm: Communicator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        model = tensor_parallel(stack, comm)
        loss = learned(model, batch)
        loss.backward()
        qkv = model.stack.blocks[0].mixer.qkv.weight.grad  # type: ignore[union-attr]
        return loss.detach(), model.stack.embedding.weight.grad, qkv, step(model)  # type: ignore[return-value]

    results, after = simulate(2, body), step(stack)
    for loss, embedding, _, stepped in results:
        torch.testing.assert_close(loss, expected.detach())
        torch.testing.assert_close(embedding, stack.embedding.weight.grad)
        torch.testing.assert_close(stepped, after)
    mixer = stack.blocks[0].mixer
    assert isinstance(mixer, Attention) and mixer.qkv.weight.grad is not None
    heads = [mixer.heads, mixer.kv_heads, mixer.kv_heads]
    halves = zip(*(result[2].split([h // 2 * mixer.head_width for h in heads]) for result in results))
    torch.testing.assert_close(torch.cat([x for pair in halves for x in pair]), mixer.qkv.weight.grad)


def test_tensor_parallelism_is_limited_by_heads() -> None:
    stack = Stack(StackConfig(11, 16, ["attention"]))
    with pytest.raises(SegueError, match="no more ranks than heads"):
        simulate(8, lambda comm: tensor_parallel(stack, comm))
    with pytest.raises(SegueError, match="cannot be cut by heads"):
        simulate(2, lambda comm: tensor_parallel(Stack(StackConfig(11, 16, ["gla"])), comm))
    for options in ({"relative": 4}, {"span": 4}, {"positions": "alibi"},
                    {"global_tokens": 1, "window": 2, "causal": False, "global_projections": True}):
        config = StackConfig(11, 16, ["attention"], {"attention": options})
        with pytest.raises(SegueError, match="cannot be cut by heads"):
            simulate(2, lambda comm, config=config: tensor_parallel(Stack(config), comm))  # type: ignore[misc]


def test_a_split_stack_keeps_its_mode_and_gradients_their_types() -> None:
    stack = Stack(StackConfig(11, 16, ["attention"], dropout=0.5)).eval()
    assert not any(part.training for model in simulate(2, lambda comm: tensor_parallel(stack, comm))
                   for part in model.modules())

    def mixed(comm: Communicator) -> list[Tensor]:
        parameters = [nn.Parameter(torch.ones(2, dtype=dtype)) for dtype in (torch.float32, torch.bfloat16)]
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, comm.rank + 1)
        sum_gradients(comm, parameters)
        return [parameter.grad for parameter in parameters if parameter.grad is not None]

    for modes, grad in simulate(2, mixed):
        assert modes.tolist() == grad.tolist() == [3, 3] and grad.dtype == torch.bfloat16


def test_gradients_that_no_rank_has_stay_away() -> None:
    """As in one process, where an optimiser leaves such parameters alone."""
    def partly(comm: Communicator) -> list[Tensor | None]:
        parameters = [nn.Parameter(torch.zeros(2)) for _ in range(2)]
        if comm.rank:
            parameters[0].grad = torch.ones(2)
        sum_gradients(comm, parameters)
        return [parameter.grad for parameter in parameters]

    for some, none in simulate(2, partly):
        assert some is not None and some.tolist() == [1, 1] and none is None


# -- processes


def over_processes(comm: Communicator, state: dict[str, Tensor]) -> dict[str, Any]:
    """What one of several processes finds: a ring each way, and a stack of both sorts of mixers."""
    full, rings = random_inputs(4, 4, 6 * comm.size), []
    for rotate, causal in itertools.product(("kv", "q"), (True, False)):
        results, sent = in_ring(comm, RingSchedule(comm.size, rotate, causal), full, "auto")  # type: ignore[arg-type]
        rings.append((results, sent))
    stack = Stack(StackConfig(11, 16, ["attention", "gla", "gru"])).double()
    stack.load_state_dict(state)
    model, batch = context_parallel(stack), batch_of(12 * comm.size, True)
    share = batch.map(model.share)
    loss = learned(model, share)
    loss.backward()
    sum_gradients(comm, list(stack.parameters()))
    if comm.size == 3:  # a group of some of the processes counts its own ranks
        group = torch.distributed.new_group([1, 2])
        if comm.rank:
            inner = Processes(group)
            every = all_gather(inner, torch.tensor([comm.rank]))
            assert inner.rank == comm.rank - 1 and [int(x) for x in every] == [1, 2]
    return {"rings": rings, "loss": loss.detach(), "grads": [p.grad for p in stack.parameters()],
            "sum": all_reduce(comm, torch.tensor([float(comm.rank)]))}


@pytest.fixture
def single(tmp_path: Path) -> Iterator[Processes]:
    """A group of one process, this one: gloo cannot send to itself."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield Processes()
    torch.distributed.destroy_process_group()


def test_a_process_group_of_one(single: Processes) -> None:
    state = Stack(StackConfig(11, 16, ["attention", "gla", "gru"])).double().state_dict()
    (expected,) = simulate(1, lambda comm: in_ring(comm, RingSchedule(1, "q"), random_inputs(4, 4, 6), "auto"))
    results = over_processes(single, state)
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1, 1), mesh_dim_names=("dp", "cp"))
    model = context_parallel(Stack(StackConfig(11, 16, ["attention"])), mesh["cp"])
    assert (model.comm.rank, model.comm.size) == (0, 1)
    torch.testing.assert_close(results["rings"][2][0], expected[0])
    assert script("examples/long_sequence.py").main(length=64, steps=2)


def test_processes_agree_with_one() -> None:
    ranks = 3
    torch.manual_seed(3)
    stack = Stack(StackConfig(11, 16, ["attention", "gla", "gru"])).double()
    batch = batch_of(12 * ranks, True)
    expected = learned(stack, batch)
    expected.backward()
    results = launch(ranks, over_processes, stack.state_dict())
    assert all(float(result["sum"]) == sum(range(ranks)) for result in results)
    torch.testing.assert_close(sum(result["loss"] for result in results), expected.detach())
    for result in results:
        torch.testing.assert_close(result["grads"], [p.grad for p in stack.parameters()], atol=1e-9, rtol=1e-7)
    threads = simulate(ranks, lambda comm: [
        in_ring(comm, RingSchedule(ranks, rotate, causal), random_inputs(4, 4, 6 * ranks), "auto")  # type: ignore[arg-type]
        for rotate, causal in itertools.product(("kv", "q"), (True, False))])
    for result, other in zip(results, threads):
        for (actual, sent), (reference, counted) in zip(result["rings"], other, strict=True):
            torch.testing.assert_close(actual, reference)
            assert sent == counted


def make_run(sequence_parallel: bool = True) -> Any:
    """A short training of a hybrid stack on packed rows."""
    from segue.training import Plan, Run

    torch.manual_seed(0)
    plan = Plan(11, width=16, context=24, rows=2, steps=4, accumulate=2, sequence_parallel=sequence_parallel, measure=1)
    return Run(Stack(StackConfig(11, 16, ["attention", "mamba"])), lambda step: batch_of(24, True, step), plan)


def test_two_processes_have_the_loss_curve_of_one(tmp_path: Path) -> None:
    """Of rows dealt out whole, and of rows cut."""
    single_run, cut = make_of_two(), make_run(False)
    curves = [[run.advance() for _ in range(run.plan.steps)] for run in (single_run, cut)]
    single_run.batches.close()
    results = losses_of_two(tmp_path, "test_training.make_of_two", "test_parallel.make_run")
    for actual, expected in zip(results, curves, strict=True):
        assert actual == pytest.approx(expected, rel=1e-4)


def test_received_blocks_are_freed() -> None:
    def body(comm: Any) -> int:
        for _ in range(5):
            all_reduce(comm, torch.ones(4))
        all_gather(comm, torch.ones(1))
        all_gather(comm, torch.ones(1))  # whoever is here has all that was sent before
        return len(comm.mailboxes.boxes)

    assert max(simulate(3, body)) <= 6
