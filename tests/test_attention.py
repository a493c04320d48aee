"""The attention family against a loop over pairs, and against the contract."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from segue.analysis.memory import peak_memory
from segue.errors import SegueError
from segue.kernels.attention import LONG
from segue.mixers import Attention, BlockRecurrent, Layout, Linformer, Mixer, Reformer
from segue.mixers.attention import attend
from segue.mixers.positions import relative_scores, sinusoids, skew
from segue.mixers.rules import Sparse
from segue.testing import check_mixer
from segue.training.truncated import truncated_bptt

NEAR: dict[str, dict[str, Any]] = {
    "relative": {"positions": "none", "relative": 6},
    "relative, clamped, on sinusoids": {"positions": "sinusoidal", "relative": 6, "clamp": True},
    "relative in a window": {"positions": "alibi", "relative": 4, "window": 5},
    "relative, both ways": {"positions": "none", "relative": 4, "causal": False},
    "block": {"block": 4},
    "block that looks back": {"block": 4, "look_back": 1, "kv_heads": 1},
    "block, both ways": {"block": 4, "look_back": 1, "causal": False, "positions": "alibi"},
    "window, both ways": {"window": 3, "causal": False},
    "longformer": {"window": 3, "global_tokens": 2},
    "longformer, both ways": {"window": 3, "global_tokens": 2, "causal": False, "relative": 3},
    "bigbird": {"block": 2, "look_back": 1, "global_tokens": 1, "random_blocks": 2},
    "bigbird, both ways": {"block": 2, "look_back": 1, "global_tokens": 3, "random_blocks": 2, "causal": False},
    "span": {"span": 2, "ramp": 2},
    "span, both ways": {"span": 2, "ramp": 2, "causal": False, "positions": "none"},
}
PLACED: dict[str, dict[str, Any]] = {  # these know where they stand, not only how far apart
    "sinusoidal": {"positions": "sinusoidal"},
    "learned": {"positions": "learned", "length": 2_000},
}
ABSOLUTE = {"relative, clamped, on sinusoids", "block", "block that looks back", "block, both ways", "longformer",
            "longformer, both ways", "bigbird", "bigbird, both ways"}


def make(options: dict[str, Any], heads: int = 2) -> Callable[[int], Mixer]:
    return lambda width: Attention(width, heads=heads, **options)


QUICK = ["relative", "block that looks back", "bigbird", "longformer, both ways", "span", "learned"]


@pytest.mark.parametrize("name", [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in [*NEAR, *PLACED]])
def test_contract(name: str) -> None:
    assert check_mixer(make((NEAR | PLACED)[name]), examples=3, relative=name not in ABSOLUTE | set(PLACED))


def random_blocks(block: int, options: dict[str, Any]) -> set[int]:
    """The random blocks of a block, as the rule gives them one by one."""
    rule = Sparse(block=options["block"], random=options["random_blocks"], causal=options.get("causal", True))
    return {int(rule.random_block(torch.tensor(block), pick)) for pick in range(rule.random)}


def is_visible(i: int, j: int, options: dict[str, Any]) -> bool:
    """Does position i see position j?"""
    causal, window, block = options.get("causal", True), options.get("window"), options.get("block")
    if causal and j > i:
        return False
    is_near = window is None and block is None
    if window is not None:
        is_near = abs(i - j) < window
    if block is not None:
        is_near = abs(i // block - j // block) <= options.get("look_back", 0)
        is_near = is_near or (options.get("random_blocks", 0) > 0 and j // block in random_blocks(i // block, options))
    first = options.get("global_tokens", 0)
    return is_near or j < first or (not causal and i < first)


def naive(mixer: Attention, x: Tensor, options: dict[str, Any], first: int = 0) -> Tensor:
    """One document (T, D), pair by pair."""
    n, heads, width = x.shape[0], mixer.heads, mixer.head_width
    q, k, v = (y[0] for y in mixer.project(x[None], first + torch.arange(n)[None]))
    mixed = torch.zeros(heads, n, width, dtype=x.dtype)
    for head in range(heads):
        shared = head // (heads // mixer.kv_heads)
        for i in range(n):
            weights = torch.zeros(n, dtype=x.dtype)
            for j in range(n):
                if not is_visible(first + i, first + j, options):
                    continue
                score = q[head, i] @ k[shared, j]
                reach = options.get("relative", 0)
                away = i - j
                if reach and (options.get("clamp") or abs(away) < reach):
                    row = max(-reach + 1, min(reach - 1, away)) + (0 if mixer.causal else reach - 1)
                    score = score + q[head, i] @ mixer.distances[head, row]
                score = score / math.sqrt(width)
                if options.get("positions") == "alibi":
                    score = score - mixer.slopes[head] * abs(away)
                weights[j] = score.exp()
            if mixer.learned_span is not None:  # after the softmax, as the paper has it
                weights = weights / weights.sum()
                for j in range(n):
                    ends = mixer.ramp + mixer.span * mixer.learned_span[head]
                    weights[j] *= ((ends - abs(i - j)) / mixer.ramp).clamp(0, 1)
            mixed[head, i] = (weights / weights.sum()) @ v[shared]
    return mixer.out(mixed.transpose(0, 1).flatten(1))


@pytest.mark.parametrize("name", [*NEAR, *PLACED])
def test_every_structure_equals_a_loop_over_pairs(name: str) -> None:
    options = (NEAR | PLACED)[name]
    torch.manual_seed(0)
    mixer = Attention(8, heads=2, **options).double()
    if mixer.learned_span is not None:
        mixer.learned_span.data = torch.tensor([0.1, 0.6]).double()
    x = torch.randn(2, 30, 8, dtype=torch.float64)
    with torch.no_grad():
        expected = torch.stack([naive(mixer, row, options) for row in x])
        assert torch.allclose(mixer(x), expected, atol=1e-12)
        matrix, values = mixer.matrix(x), mixer.values(x)
        assert torch.allclose(mixer.output(matrix @ values, x), expected, atol=1e-12)
        later = mixer(x, Layout.chain((2, 30), torch.tensor([5, 5])))
        assert torch.allclose(later[0], naive(mixer, x[0], options, 5), atol=1e-12)
    with torch.enable_grad():
        assert torch.allclose(mixer(x.requires_grad_()), expected, atol=1e-12)


@pytest.mark.parametrize("options", [
    {"window": 20}, {"block": 16}, {"block": 16, "look_back": 2, "positions": "alibi"}, {"span": 20, "ramp": 4},
    {"window": 20, "global_tokens": 3, "causal": False, "relative": 9},
    {"block": 16, "look_back": 1, "global_tokens": 20, "random_blocks": 2},
    {"block": 16, "look_back": 1, "global_tokens": 1, "random_blocks": 3, "causal": False, "kv_heads": 1},
])
def test_tiles_equal_the_masked_form_with_gradients(options: dict[str, Any]) -> None:
    """Tiles do what one masked matrix of scores does, in documents too, and never make that matrix."""
    torch.manual_seed(0)
    mixer = Attention(8, heads=2, **options).double()
    may_reset = not (mixer.rule.first or mixer.rule.random) if isinstance(mixer.rule, Sparse) else True
    starts = torch.rand(2, 150) < 0.03 if may_reset else None
    layout = Layout.chain((2, 150), starts=starts)
    x = torch.randn(2, 150, 8, dtype=torch.float64, requires_grad=True)
    dense = Layout.chain((2, 150), starts=starts)
    dense.has_unit_steps = False  # type: ignore[misc]  # a chain that goes up unevenly is not tiled
    grads = []
    for form in (layout, dense):
        y = mixer(x, form)
        parameters = [p for p in mixer.parameters() if p.requires_grad]
        grads.append([y, *torch.autograd.grad(y.square().sum(), [x, *parameters])])
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(*grads))


@pytest.mark.parametrize("window", [1, 7, 64, 200])
@pytest.mark.parametrize("packed", [False, True])
def test_cpu_training_skips_keys_outside_the_window(window: int, packed: bool) -> None:
    torch.manual_seed(0)
    fast, slow = Attention(32, window=window), Attention(32, window=window).double()
    slow.load_state_dict(fast.state_dict())
    x = torch.randn(3, 150, 32, requires_grad=True)
    layout = Layout.chain((3, 150), starts=torch.rand(3, 150) < 0.05) if packed else None
    y = fast(x, layout)
    expected = slow(x.double(), layout)
    assert (y - expected).abs().max() < 1e-5
    for a, b in zip(torch.autograd.grad(y.square().sum(), fast.parameters()),
                    torch.autograd.grad(expected.square().sum(), slow.parameters())):
        assert (a - b).abs().max() < 1e-3 * b.abs().max()


@pytest.mark.parametrize("n", [1, 5, 8, 13])  # below, at and beyond the number of distances
@pytest.mark.parametrize("clamp", [False, True])
def test_skew_equals_looking_up_every_pair(n: int, clamp: bool) -> None:
    torch.manual_seed(0)
    q, table = torch.randn(2, 3, n, 4, dtype=torch.float64), torch.randn(3, 8, 4, dtype=torch.float64)
    distance = (torch.arange(n)[:, None] - torch.arange(n))[None]
    skewed = relative_scores(q, table, distance, True, True, clamp).tril()
    gathered = relative_scores(q, table, distance, True, False, clamp).tril()
    for i in range(n):
        for j in range(i + 1):
            row = min(i - j, 7)
            expected = torch.einsum("bhe,he->bh", q[:, :, i], table[:, row]) * (clamp or i - j < 8)
            assert torch.allclose(skewed[:, :, i, j], expected) and torch.allclose(gathered[:, :, i, j], expected)


def test_skew_moves_columns() -> None:
    scores = torch.tensor([[[0, 0, 10], [0, 21, 20], [32, 31, 30]]])  # entry ir speaks of distance 2 - r
    assert skew(scores).tril().tolist() == [[[10, 0, 0], [21, 20, 0], [32, 31, 30]]]


def test_zero_relative_vectors_equal_plain_attention() -> None:
    reference, relative = Attention(8, positions="none"), Attention(8, positions="none", relative=4)
    relative.load_state_dict(reference.state_dict() | {"distances": torch.zeros(4, 4, 2)})
    x = torch.randn(2, 9, 8)
    assert torch.allclose(reference(x), relative(x), atol=1e-6)


def test_wide_enough_structures_are_full_attention() -> None:
    x = torch.randn(2, 40, 8).double()
    for causal in (True, False):
        torch.manual_seed(0)
        full = Attention(8, causal=causal).double()
        for options in ({"window": 40}, {"block": 40}, {"block": 8, "look_back": 4}, {"window": 1, "global_tokens": 40},
                        {"span": 200}):
            other = Attention(8, causal=causal, **options).double()
            other.load_state_dict(full.state_dict(), strict=False)
            assert torch.allclose(other(x), full(x), atol=1e-10), options


def test_blocks_hide_everything_before_them() -> None:
    """With blocks in all layers nothing passes their edges; one full layer changes that (MASFormer)."""
    from segue.models import Stack, StackConfig, expand_pattern

    options = {"attention:local": {"block": 8}}
    for pattern, reaches in (("attention:local*2", False), ("attention+attention:local", True)):
        stack = Stack(StackConfig(5, 8, expand_pattern(pattern), options=options)).double()
        embedded: list[Tensor] = []

        def keep(module: Any, inputs: Any, output: Tensor, kept: list[Tensor] = embedded) -> None:
            output.retain_grad()
            kept.append(output)

        stack.embedding.register_forward_hook(keep)
        stack(torch.randint(5, (1, 20))).logits[0, 17].sum().backward()
        assert bool(embedded[0].grad[0, :16].any()) == reaches


def test_segments_read_one_by_one_equal_blocks_that_look_back() -> None:
    """Transformer-XL: keys and values of the segment before are kept, without their gradient."""
    torch.manual_seed(0)
    mixer = Attention(8, positions="none", relative=16, block=8, look_back=1).double()
    x = torch.randn(2, 40, 8, dtype=torch.float64)
    outputs, grads = [], torch.zeros_like(mixer.qkv.weight)
    for _, y in truncated_bptt(lambda inputs, state: mixer.extend(inputs, state), mixer.init_state(2), x, 8):
        outputs.append(y.detach())
        grads += torch.autograd.grad(y.square().sum(), mixer.qkv.weight)[0]
    full = mixer(x)
    assert torch.allclose(torch.cat(outputs, 1), full, atol=1e-12)
    assert not torch.allclose(grads, torch.autograd.grad(full.square().sum(), mixer.qkv.weight)[0])


def test_full_attention_read_twice_is_attention_over_both() -> None:
    torch.manual_seed(0)
    mixer, x = Attention(8, positions="none", relative=5).double(), torch.randn(2, 12, 8, dtype=torch.float64)
    state = mixer.init_state(2)
    mixer.extend(x[:, :6], state)
    state.commit()
    assert torch.allclose(mixer.extend(x[:, 6:], state), mixer(x)[:, 6:], atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"taps": 3}, {"window": 4, "kv_heads": 1}, {"span": 4, "ramp": 2},
                                     {"relative": 3, "prefix": 4}, {"relative": 9, "clamp": True, "prefix": 5}])
def test_weights_say_what_is_read(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    mixer, x = Attention(8, 2, **options).double(), torch.randn(2, 9, 8, dtype=torch.float64)
    layout = Layout.chain((2, 9), starts=torch.rand(2, 9) < 0.3)
    read = x if mixer.convolution is None else mixer.convolution((x,), layout)
    values = mixer.project(read, layout.positions)[2].repeat_interleave(2 // mixer.kv_heads, 1)
    torch.testing.assert_close(mixer.output(mixer.weights(x, layout) @ values, x) if mixer.linear_in_values else
                               mixer._project_out(mixer.weights(x, layout) @ values), mixer(x, layout))


@torch.no_grad()
@pytest.mark.parametrize("options", [{"relative": 3}, {"relative": 20}, {"relative": 3, "clamp": True}])
def test_distances_within_a_prompt_do_not_depend_on_what_follows(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    mixer, x = Attention(8, 2, prompt=True, **options).double(), torch.randn(2, 12, 8, dtype=torch.float64)
    whole = mixer(x, Layout.chain((2, 12), prompt=(torch.arange(12) < 6).expand(2, 12)))
    state = mixer.init_state(2)
    state.prompt = torch.tensor([6, 6])
    pieces = []
    for piece in x.split([6, 1, 5], 1):
        pieces.append(mixer.extend(piece, state))
        state.commit()
    torch.testing.assert_close(torch.cat(pieces, 1), whole)


def test_a_learned_span_bounds_the_cache_and_adds_a_penalty() -> None:
    torch.manual_seed(0)
    mixer = Attention(8, span=10, ramp=2, span_penalty=0.5)
    assert mixer.constant_state and mixer.penalty().item() == 0.25
    x = torch.randn(1, 60, 8)
    (mixer.penalty() + mixer(x).square().sum()).backward()
    assert bool(mixer.learned_span.grad.any())
    mixer.learned_span.data[:] = 3.0  # beyond what there is: brought back
    mixer.train()(x)
    assert mixer.learned_span.tolist() == [1.0] * 4
    mixer.learned_span.data[:] = 0.0
    perturbed = x.clone()
    perturbed[:, :-2] += 1  # a ramp of two reaches one position back
    assert torch.allclose(mixer(perturbed)[:, -1], mixer(x)[:, -1], atol=1e-5)


def test_random_blocks_depend_on_the_position_alone() -> None:
    for causal in (True, False):
        rule = Sparse(block=4, back=1, random=3, causal=causal)
        blocks = torch.arange(1000)
        chosen = torch.stack([rule.random_block(blocks, pick) for pick in range(3)])
        assert torch.equal(chosen[:, :50], torch.stack([rule.random_block(blocks[:50], pick) for pick in range(3)]))
        limit = blocks if causal else 2 * blocks + 2
        assert bool(((chosen < limit) | (chosen == -1)).all()) and int(chosen[0, 0]) == (-1 if causal else chosen[0, 0])
        spread = (chosen[:, 100:] / limit[100:]).histc(10, 0, 1)  # even over what there is to choose from
        assert float(spread.min()) > 0.7 * float(spread.mean())


def test_sinusoids_shift_by_rotation() -> None:
    """A fixed linear map takes the vectors of any position to those k positions later."""
    unshifted, shifted = (sinusoids(torch.arange(50)[None] + k, 8, torch.float64)[0] for k in (0, 3))
    result = torch.linalg.lstsq(unshifted, shifted)
    assert torch.allclose(unshifted @ result.solution, shifted, atol=1e-9)


@pytest.mark.parametrize("options, message", [
    ({"positions": "polar"}, "unknown"), ({"window": 3, "block": 4}, "choose one"),
    ({"span": 3, "prefix": 4}, "choose"), ({"look_back": 1}, "give block"), ({"global_tokens": 1}, "give one of them"),
    ({"window": 0}, "at least one"),
    ({"prefix": 2, "causal": False}, "prefix"),
])
def test_contradictory_structures_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SegueError, match=message):
        Attention(8, **options)


def test_positions_beyond_the_learned_ones_are_refused() -> None:
    mixer = Attention(8, positions="learned", length=4)
    with pytest.raises(SegueError, match="beyond the 4 learned positions"):
        mixer(torch.randn(1, 5, 8))


def test_attend_takes_any_number_of_leading_axes() -> None:
    q, k, v = (torch.randn(2, 3, 4, 5, 6).double() for _ in range(3))
    assert torch.allclose(attend(q, k, v)[0], torch.nn.functional.scaled_dot_product_attention(q, k, v))


@pytest.mark.parametrize("n", [1, 6, 8, 33])
@pytest.mark.parametrize("rounds", [1, 3])
def test_reformer_equals_attention_within_hash_buckets(n: int, rounds: int) -> None:
    """The union of what each round finds, sorted and cut by hand, under one softmax."""
    torch.manual_seed(0)
    mixer = Reformer(8, heads=2, chunk=4, rounds=rounds, positions="none").double()
    x = torch.randn(2, n, 8, dtype=torch.float64)
    q, v = mixer._heads(x)
    keys = torch.nn.functional.normalize(q, dim=-1)
    buckets = mixer.hash_buckets(x)
    mixed = torch.zeros_like(v)
    for row in range(2):
        for head in range(2):
            visible: list[set[int]] = [set() for _ in range(n)]
            for bucket in buckets[:, row, head].tolist():
                order = sorted(range(n), key=lambda i: (bucket[i], i))
                chunk = {node: place // 4 for place, node in enumerate(order)}
                for i in range(n):
                    visible[i] |= {j for j in range(n) if bucket[i] == bucket[j]
                                   and chunk[i] - chunk[j] in (0, 1)} - {i}
            for i in range(n):
                results = sorted(visible[i] or {i})
                weights = (keys[row, head, results] @ q[row, head, i] / 2).softmax(0)
                mixed[row, head, i] = weights @ v[row, head, results]
    assert torch.allclose(mixer(x), mixer.output(mixed, x), atol=1e-10)


def test_reformer_of_one_bucket_is_full_attention_with_shared_keys() -> None:
    torch.manual_seed(0)
    mixer, x = Reformer(8, chunk=16, positions="none").double(), torch.randn(2, 12, 8).double()
    q, v = mixer._heads(x)
    other = ~torch.eye(12, dtype=torch.bool)
    expected = attend(q, torch.nn.functional.normalize(q, dim=-1), v, other)[0]
    assert torch.allclose(mixer(x), mixer.output(expected, x), atol=1e-12)


@pytest.mark.parametrize("chunk", [32, 2])  # buckets of one hash, and of a pair
def test_reformer_hashes_similar_vectors_together(chunk: int) -> None:
    """Vectors that are nearly alike fall together far more often than others; more rounds find more of them."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(1, 512, 16, generator=generator)
    shares = {}
    for rounds in (1, 4):
        hashed = Reformer(16, heads=1, chunk=chunk, rounds=rounds).hash_buckets
        similar, unrelated = hashed(vectors
                                    + 0.1 * torch.randn(vectors.shape, generator=generator)), hashed(vectors.roll(1, 1))
        shares[rounds] = [float((hashed(vectors) == other).any(0).float().mean()) for other in (similar, unrelated)]
    assert shares[1][0] > 0.7 and shares[1][1] < 0.2 and shares[4][0] > shares[1][0]
    assert 0.8 < (hashed(vectors).max() + 1) / (512 / chunk) <= 1.2


def test_linformer_of_full_rank_is_full_attention() -> None:
    torch.manual_seed(0)
    mixer, x = Linformer(8, rank=12, length=12).double(), torch.randn(2, 12, 8).double()
    for mix in (mixer.mix_keys, mixer.mix_values):
        mix.data = torch.eye(12).double()
    full = Attention(8, positions="none", causal=False).double()
    full.load_state_dict({"qkv.weight": mixer.qkv.weight, "out.weight": mixer.out.weight})
    assert torch.allclose(mixer(x), full(x), atol=1e-12)


def test_linformer_equals_its_formula() -> None:
    torch.manual_seed(0)
    mixer, x = Linformer(8, heads=2, rank=3, length=20).double(), torch.randn(2, 9, 8).double()
    q, k, v = mixer._heads(x)
    mixed = torch.zeros_like(v)
    for row in range(2):
        for head in range(2):
            mixed_down = [[sum(mix[r, j] * y[row, head, j] for j in range(9)) for r in range(3)]
                          for mix, y in ((mixer.mix_keys, k), (mixer.mix_values, v))]
            for i in range(9):
                weights = torch.stack([q[row, head, i] @ key / 2 for key in mixed_down[0]]).softmax(0)
                mixed[row, head, i] = sum(w * value for w, value in zip(weights, mixed_down[1]))
    assert torch.allclose(mixer(x), mixer.output(mixed, x), atol=1e-12)


@pytest.mark.parametrize("mixer", [Linformer(8), Reformer(8)])
def test_whole_sequence_mixers_refuse_continuing_and_resets(mixer: Mixer) -> None:
    with pytest.raises(SegueError, match="looks ahead"):
        mixer.init_state(1)
    with pytest.raises(SegueError, match="cannot reset"):
        mixer(torch.randn(1, 4, 8), Layout.chain((1, 4), starts=torch.ones(1, 4, dtype=torch.bool)))


def test_linformer_refuses_more_than_its_length() -> None:
    with pytest.raises(SegueError, match="beyond the 8"):
        Linformer(8, length=8)(torch.randn(1, 9, 8))


def test_block_recurrence_equals_its_equations() -> None:
    """Block after block with plain softmaxes: tokens look at their block so far, at the one before and at the memory,
    then it moves."""
    torch.manual_seed(0)
    mixer, x = BlockRecurrent(8, heads=2, block=4, memory=3).double(), torch.randn(1, 10, 8).double()
    cell = mixer.recurrence

    def heads(y: Tensor, count: int) -> list[Tensor]:
        return list(y.unflatten(-1, (count, 8)).unbind(-2))

    def soft(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        pieces = [(q[:, s] @ k[:, s].T / 2).softmax(-1) @ v[:, s] for s in (slice(0, 4), slice(4, 8))]
        return torch.cat(pieces, -1)

    q, r, k, v = heads(mixer.qrkv(x[0]), 4)
    memory, outputs = torch.zeros(3, 8).double(), []
    for begin in range(0, 10, 4):
        queries, reference, keys, values = heads(cell.project(cell.norm(memory + cell.names)), 4)
        for t in range(begin, min(begin + 4, 10)):
            window = slice(max(0, begin - 4), t + 1)
            local = soft(q[t : t + 1], k[window], v[window])
            outputs.append(torch.cat([local, soft(r[t : t + 1], keys, values)], -1))
        block = slice(begin, begin + 4)
        z = cell.update(torch.cat([soft(queries, keys, values), soft(reference, k[block], v[block])], -1))
        memory = cell.gate.sigmoid() * memory + (1 - cell.gate.sigmoid()) * z
    assert torch.allclose(mixer(x)[0], mixer.out(torch.cat(outputs)), atol=1e-12)


@pytest.mark.parametrize("pattern, options", [
    ("mamba+attention:music", {"attention:music": {"positions": "none", "relative": 6, "window": 5}}),
    ("block-recurrent+attention:bird", {"block-recurrent": {"block": 4, "memory": 2},
                                        "attention:bird": {"block": 2, "look_back": 1, "random_blocks": 1}}),
    ("attention:far+lstm", {"attention:far": {"span": 8, "ramp": 2}}),
])
def test_mixed_stacks_keep_the_contract(pattern: str, options: dict[str, dict[str, Any]]) -> None:
    """Recurrent and attending layers of different reach in one model: drafts, commits, forks and rewinds are exact."""
    from segue.models import Stack, StackConfig, expand_pattern
    from segue.testing import check_model

    torch.manual_seed(0)
    assert check_model(Stack(StackConfig(11, 16, expand_pattern(pattern), options)), examples=2)


def test_relative_attention_learns_dna_end_to_end() -> None:
    """The music paper's attention between gated recurrences, on bases, from fit to a drafted continuation."""
    import segue

    data = [("ACGT" * 12 + "TTAGGC" * 6)[i : i + 60] for i in range(20)]
    model = segue.fit(data, kind="dna", steps=8, width=32, mixer="gla+attention:music", quiet=True, mix=False,
                      options={"attention:music": {"relative": 16, "positions": "none"}})
    undrafted = model.continue_("ACGTACGTAC", n=12, decoder="greedy")
    assert undrafted.tokens == model.continue_("ACGTACGTAC", n=12, decoder="trie").tokens


def test_peak_memory_counts_live_tensors() -> None:
    x = torch.randn(1000)
    assert peak_memory(lambda: x * 2) == 4000 and peak_memory(lambda: x.view(10, 100)) == 0
    assert peak_memory(lambda: (x * 2 + 1).exp()) == 8000  # of three, two at a time
    assert peak_memory(lambda: [x + i for i in range(5)]) == 20_000


LIGHT: dict[str, Callable[[int], Mixer]] = {
    "window": lambda n: Attention(16, window=32),
    "block": lambda n: Attention(16, block=32, look_back=1),
    "longformer, both ways": lambda n: Attention(16, window=16, global_tokens=2, causal=False),
    "bigbird": lambda n: Attention(16, block=16, look_back=1, global_tokens=16, random_blocks=2),
    "relative in a window": lambda n: Attention(16, window=32, relative=32, positions="none"),
    "span": lambda n: Attention(16, span=32, ramp=8),
    "reformer": lambda n: Reformer(16, chunk=16),
    "linformer": lambda n: Linformer(16, rank=16, length=n),
    "block-recurrent": lambda n: BlockRecurrent(16, block=32),
}


@pytest.mark.parametrize("name", LIGHT)
def test_memory_grows_linearly_with_the_length(name: str) -> None:
    def training(make: Callable[[int], Mixer], n: int) -> int:
        mixer, x = make(n), torch.randn(1, n, 16)
        return peak_memory(lambda: mixer(x).sum().backward())

    assert training(LIGHT[name], 2048) < 4.5 * training(LIGHT[name], 512)
    assert training(lambda n: Attention(16), LONG[torch.float32]) > 6 * training(lambda n: Attention(16), 256)
