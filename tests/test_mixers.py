"""Every mixer keeps the contract, and the checker of the contract notices when one does not."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from segue.errors import SegueError
from segue.mixers import (
    DSS,
    GRU,
    GSS,
    LRU,
    LSSL,
    LSTM,
    MIXERS,
    MLSTM,
    S4,
    S4D,
    S4ND,
    S5,
    SLSTM,
    Attention,
    Bidirectional,
    BlockRecurrent,
    DeltaNet,
    Elman,
    GatedLinearAttention,
    Hydra,
    Hyena,
    Jordan,
    Layout,
    LightNet,
    LinearAttention,
    Linformer,
    LiquidS4,
    LongVQ,
    Mamba,
    Mamba2,
    MatrixMixer,
    Mixer,
    PartialAttention,
    PrefixLinearAttention,
    Reformer,
    State,
)
from segue.mixers.attention import Cache, alibi_slopes, attend, merge
from segue.mixers.convolution import ShortConvolution
from segue.mixers.layout import gather_nodes
from segue.mixers.recurrent import TorchRecurrence
from segue.mixers.state import Carry, Part, Parts, Tensors
from segue.testing import ContractBroken, check_mixer, check_state
from segue.testing.contract import LIFE
from segue.testing.mixers import memory

Make = Callable[[int], Mixer]

SUBJECTS: dict[str, Make] = {
    "attention": lambda width: Attention(width, heads=2),
    "elman": Elman,
    "jordan": Jordan,
    "lstm": LSTM,
    "gru": GRU,
    "slstm": lambda width: SLSTM(width, heads=2),
    "mlstm": lambda width: MLSTM(width, heads=2),
    "mamba": lambda width: Mamba(width, states=4),
    "mamba2": lambda width: Mamba2(width, states=4, head_width=4),
    "s5": S5,
    "lru": LRU,
    "gss": lambda width: GSS(width, states=4, narrow=3, wide=6),
    "hyena": lambda width: Hyena(width, hidden=8, horizon=40),
    "gla": lambda width: GatedLinearAttention(width, heads=2, gate_rank=4),
    "linear-attention": lambda width: LinearAttention(width, heads=2),
    "deltanet": lambda width: DeltaNet(width, heads=2),
    "lssl": lambda width: LSSL(width, states=4),
    "s4": lambda width: S4(width, states=4),
    "s4d": lambda width: S4D(width, states=4),
    "dss": lambda width: DSS(width, states=4, length=16),
    "liquid-s4": lambda width: LiquidS4(width, states=4, dt_min=0.1, dt_max=1.0),
    "s4nd": lambda width: S4ND(width, states=4),
    "jrt": lambda width: PrefixLinearAttention(width, heads=2, key_width=2, prefix=3),
    "palm": lambda width: PartialAttention(width, heads=2, prefix=3),
    "lightnet": lambda width: LightNet(width, heads=2, gate_rank=4, toeplitz=2),
    "longvq": lambda width: LongVQ(width, keys=4, expand=1, codes=3, window=4, states=2),
    "hydra": lambda width: Hydra(width, heads=2, states=3),
    "matrix": lambda width: MatrixMixer(width, heads=2, features=2),
    "bidirectional": lambda width: Bidirectional(width, "gru"),
    "block-recurrent": lambda width: BlockRecurrent(width, heads=2, block=2, memory=3),
    "linformer": lambda width: Linformer(width, heads=2, rank=4, length=64),
    "reformer": lambda width: Reformer(width, heads=2, chunk=4),
}
VARIANTS: dict[str, Make] = {
    "attention, grouped": lambda width: Attention(width, heads=4, kv_heads=2, qkv_bias=True, out_bias=True),
    "attention, alibi": lambda width: Attention(width, heads=3, head_width=4, positions="alibi"),
    "attention, no positions": lambda width: Attention(width, heads=2, positions="none", qk_norm=True),
    "attention, half rotary": lambda width: Attention(width, heads=1, rotary_fraction=0.5),
    "attention, window": lambda width: Attention(width, heads=2, window=5),
    "attention, window of two": lambda width: Attention(width, heads=3, head_width=4, window=2, positions="alibi"),
    "attention, taps": lambda width: Attention(width, heads=2, taps=2),
    "attention, taps, window": lambda width: Attention(width, heads=2, taps=3, window=4, positions="alibi"),
    "attention, prefix": lambda width: Attention(width, heads=2, prefix=3),
    "attention, both ways": lambda width: Attention(width, heads=2, kv_heads=1, causal=False),
    "attention, both ways, alibi": lambda width: Attention(width, heads=2, positions="alibi", causal=False),
    "palm, none of its parts": lambda width: PartialAttention(width, 2, False, False, False, False),
    "palm, one way": lambda width: PartialAttention(width, 2, bidirectional=False, restart=False, prefix=3, window=4),
    "palm, alibi": lambda width: PartialAttention(width, heads=4, kv_heads=2, positions="alibi", prefix=3),
    "lstm, wider": lambda width: LSTM(width, inner=12),
    "elman, heads": lambda width: Elman(width, heads=2),
    "lstm, heads": lambda width: LSTM(width, inner=12, heads=3),
    "gru, heads": lambda width: GRU(width, heads=4),
    "slstm, one tap": lambda width: SLSTM(width, heads=1, taps=1, depth=1.0),
    "mlstm, narrow": lambda width: MLSTM(width, heads=1, expand=1, taps=2, block=2),
    "jordan, wider": lambda width: Jordan(width, inner=12),
    "mamba, two taps": lambda width: Mamba(width, states=2, taps=2, expand=1),
    "mamba, one tap": lambda width: Mamba(width, states=2, taps=1),
    "mamba, signed": lambda width: Mamba(width, states=4, eigenvalues=(-1, 1)),
    "linear attention, taylor": lambda width: LinearAttention(width, heads=2, features="taylor", key_width=3),
    "linear attention, favor": lambda width: LinearAttention(width, heads=2, features="favor"),
    "linear attention, relu": lambda width: LinearAttention(width, heads=1, features="relu"),
    "deltanet, products of reflections": lambda width: DeltaNet(width, heads=2, expand_k=0.5, eigenvalues=(-1, 1),
                                                                householders=2, gate=True),
    "gla, wide keys": lambda width: GatedLinearAttention(width, heads=1, expand_k=1.0, expand_v=2.0, temperature=1.0),
    "gla, short convolutions": lambda width: GatedLinearAttention(width, heads=2, gate_rank=4, taps=3),
    "lstm, peepholes": lambda width: LSTM(width, peepholes=True),
    "lssl, frozen": lambda width: LSSL(width, states=4, channels=2, init="legt", learn_a=False, learn_dt=False),
    "s4d, bilinear": lambda width: S4D(width, states=4, init="random", rule="bilinear"),
    "liquid-s4, kb": lambda width: LiquidS4(width, states=4, degree=3, liquid="kb", dt_min=0.1, dt_max=1.0),
    "s4nd, three axes": lambda width: S4ND(width, axes=3, states=4),
    "bidirectional, s4": lambda width: Bidirectional(width, "s4", states=4),
    "bidirectional, attention": lambda width: Bidirectional(width, "attention", heads=2),
    "bidirectional, mamba": lambda width: Bidirectional(width, "mamba", states=2),
}


ABSOLUTE = {"linformer"}  # these know where a sequence begins


def test_every_mixer_has_a_contract_test() -> None:
    assert set(SUBJECTS) == set(MIXERS)


@pytest.mark.parametrize("name", SUBJECTS)
def test_contract(name: str) -> None:
    assert check_mixer(SUBJECTS[name], examples=3, prompt=4, relative=name not in ABSOLUTE)


@pytest.mark.parametrize("name", VARIANTS)
def test_contract_of_variants(name: str) -> None:
    assert check_mixer(VARIANTS[name], examples=3, prompt=4)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SUBJECTS, *VARIANTS])
def test_contract_at_long_lengths(name: str) -> None:
    check_mixer((SUBJECTS | VARIANTS)[name], widths=(8, 24), examples=50, prompt=4, seed=1,
                relative=name not in ABSOLUTE)


@pytest.mark.slow
@pytest.mark.parametrize("name", SUBJECTS)
def test_contract_compiled(name: str) -> None:
    check_mixer(SUBJECTS[name], compiled=True, only="compiled")


# The checker must be able to fail: each of these breaks one thing.


class SeesTheFuture(LSTM):
    def run(self, x: Tensor, layout: Layout, parts: Parts) -> Tensor:
        return super().run(x, layout, parts) + 1e-6 * x.mean(1, keepdim=True)


class ForgetsToReset(LSTM):
    def run(self, x: Tensor, layout: Layout, parts: Parts) -> Tensor:
        return super().run(x, Layout(layout.positions, layout.parents), parts)


class AliasedCarry(Carry):
    """Writes into its tensors, which snapshots and forks share."""

    def commit(self, path: Tensor | None, counts: Tensor | None) -> None:
        before = self.state
        super().commit(path, counts)
        for old, new in zip(before, self.state):
            old.data.copy_(new)
        self.state = before

    def select(self, rows: Tensor) -> Carry:
        chosen = super().select(rows)
        return self._mine(chosen)

    def copy(self) -> Carry:
        return self._mine(super().copy())

    def _mine(self, other: Carry) -> Carry:
        copied = AliasedCarry(self.recurrence, other.state, self.history)
        copied.replay_state, copied.replay_inputs = other.replay_state, other.replay_inputs
        copied.replay_lengths = other.replay_lengths
        return copied


class Aliases(GRU):
    def parts(self, batch: int, like: Tensor, history: int) -> dict[str, Part]:
        return {"recurrence": AliasedCarry(self.recurrence, self.recurrence.initial(batch, like), history)}


class CommitsInExtend(GRU):
    def run(self, x: Tensor, layout: Layout, parts: Parts) -> Tensor:
        y = super().run(x, layout, parts)
        if parts and layout.parents is None:
            carry = parts["recurrence"]
            assert isinstance(carry, Carry) and carry.pending is not None
            carry.state = carry.pending[2] or carry.state
        return y


class WrongNodeCarry(Carry):
    def commit(self, path: Tensor | None, counts: Tensor | None) -> None:
        super().commit(None if path is None else (path - 1).clamp(min=0).where(path >= 0, -1), counts)


class CommitsTheWrongNode(LSTM):
    def parts(self, batch: int, like: Tensor, history: int) -> dict[str, Part]:
        return {"recurrence": WrongNodeCarry(self.recurrence, self.recurrence.initial(batch, like), history)}


class NeighbourConvolution(ShortConvolution):
    """Reads the nodes that stand before it in the call, whether they are its ancestors or not."""

    def forward(self, inputs: Tensors, layout: Layout, carry: Carry | None = None) -> Tensor:
        pending = super().forward(inputs, layout, carry)
        if carry is None or layout.parents is None:
            return pending
        return self.scan(inputs, carry.state)[0]


class ConvolvesOverBranches(Mamba):
    def __init__(self, width: int) -> None:
        super().__init__(width, states=4)
        self.convolution = NeighbourConvolution(2 * width)


class ForgetsPadding(TorchRecurrence):
    def scan(self, inputs: Tensors, state: Tensors, starts: Tensor | None = None,
             lengths: Tensor | None = None) -> tuple[Tensor, Tensors]:
        y, final = super().scan(inputs, state, starts)
        one_too_many = None if lengths is None else (lengths + 1).clamp(max=y.shape[1])
        return (y, final) if lengths is None else super().scan(inputs, state, starts, one_too_many)


class CountsPadding(LSTM):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.recurrence = ForgetsPadding(torch.nn.LSTM(width, width, batch_first=True))


class PositionIsIndex(Attention):
    def run(self, x: Tensor, layout: Layout, parts: Parts) -> Tensor:
        begin = 0
        if parts:
            cache = parts["cache"]
            assert isinstance(cache, Cache)
            begin = cache.longest
        index = begin + torch.arange(x.shape[1]).expand(x.shape[:2])
        return super().run(x, Layout(index, layout.parents, layout.starts), parts)


class Float32Angles(Attention):
    """Positions beyond 2^24 / frequency lose their fraction in float32."""

    def project(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return super().project(x, (positions.to(torch.bfloat16) if positions.sum() > 10**6 else positions).long())


class GrowingState(Attention):
    constant_state = True

    def __init__(self, width: int) -> None:
        super().__init__(width, heads=2)
        self.constant_state = True  # type: ignore[misc]


class CutsTheGraph(GRU):
    def run(self, x: Tensor, layout: Layout, parts: Parts) -> Tensor:
        if parts:
            carry = parts["recurrence"]
            assert isinstance(carry, Carry)
            carry.state = tuple(s.detach() for s in carry.state)
        return super().run(x, layout, parts)


class WrongGradient(GRU):
    def run(self, x: Tensor, layout: Layout, parts: Parts) -> Tensor:
        y = super().run(x, layout, parts)
        return y + (x.detach() - x)[..., :1] * 1e-2


class WrongMatrix(GatedLinearAttention):
    def matrix(self, x: Tensor) -> Tensor:
        return super().matrix(x).tril(-1)


class LosesABuffer(LSTM):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.scale = torch.rand(()).item()

    def run(self, x: Tensor, layout: Layout, parts: Parts) -> Tensor:
        return self.scale * super().run(x, layout, parts)


class CarelessCarry(Carry):
    def max_rewind(self) -> Tensor:
        return self.replay_lengths + 1

    def copy(self) -> Carry:
        copied = super().copy()
        copied.__class__ = CarelessCarry
        return copied


class RewindsTooFar(LSTM):
    def parts(self, batch: int, like: Tensor, history: int) -> dict[str, Part]:
        return {"recurrence": CarelessCarry(self.recurrence, self.recurrence.initial(batch, like), history)}


class KeepsWhatItForgot(GatedLinearAttention):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.recurrence.state_factors = lambda inputs: (inputs[3].new_ones(()),)  # type: ignore[method-assign]


class ForgetsFarBack(GRU):
    """Wrong where rows are longer than those drawn, as a kernel in chunks may be."""

    def run(self, x: Tensor, layout: Layout, parts: Parts) -> Tensor:
        y = super().run(x, layout, parts)
        return torch.cat([y[:, :64], 1.01 * y[:, 64:]], 1)


class ForgetsToResetInFloat32(GRU):
    def run(self, x: Tensor, layout: Layout, parts: Parts) -> Tensor:
        chain = Layout(layout.positions, layout.parents)
        return super().run(x, layout if x.dtype == torch.float64 else chain, parts)


class CountsInFloat64(Carry):
    def commit(self, path: Tensor | None, counts: Tensor | None) -> None:
        half = counts is not None and self.state[0].dtype != torch.float64
        super().commit(path, counts.amax().expand(len(counts)) if half and counts is not None else counts)


class CountsPaddingInFloat32(GRU):
    def parts(self, batch: int, like: Tensor, history: int) -> dict[str, Part]:
        return {"recurrence": CountsInFloat64(self.recurrence, self.recurrence.initial(batch, like), history)}


class ChangesItsInput(GRU):
    def run(self, x: Tensor, layout: Layout, parts: Parts) -> Tensor:
        y = super().run(x, layout, parts)
        if x.shape[1] > 40 and not torch.is_grad_enabled():
            x.mul_(2)
        return y


class WrongGradientInFloat32(GRU):
    def run(self, x: Tensor, layout: Layout, parts: Parts) -> Tensor:
        y = super().run(x, layout, parts)
        return y if y.dtype == torch.float64 else y + (y.detach() - y) * 1e-2


class LearnsAnotherFunction(GRU):
    def run(self, x: Tensor, layout: Layout, parts: Parts) -> Tensor:
        y = super().run(x, layout, parts)
        return y * 1.01 if y.dtype == torch.float32 and torch.is_grad_enabled() else y


BROKEN: list[tuple[Make, str, str]] = [  # what, the message, and the properties to which the search may be narrowed
    (SeesTheFuture, "forward before|row|extend", ""),
    (ForgetsToReset, "documents", "packed"),
    (Aliases, "select|snapshot|rewind", ""),
    (CommitsInExtend, "only commit may", ""),
    (CommitsTheWrongNode, "commit", ""),
    (ConvolvesOverBranches, "extend as a tree", ""),
    (CountsPadding, "commit\\(counts\\)|row", ""),
    (lambda width: PositionIsIndex(width, heads=2), "row", ""),
    (lambda width: Float32Angles(width, heads=2), "1,000,000", "shifted"),
    (GrowingState, "declared constant", "size"),
    (lambda width: CutsTheGraph(2), "gradient", "gradients of"),  # narrow: what torch says of a failure takes long
    (lambda width: WrongGradient(2), "gradcheck", "gradients"),
    (WrongMatrix, "matrix @ values", "matrix"),
    (LosesABuffer, "save and load", "save"),
    (RewindsTooFar, "rewind", "rewind"),
    (KeepsWhatItForgot, "over three ranks", "over ranks"),
    (ForgetsFarBack, "forward of 150 tokens", "long"),
    (ForgetsToResetInFloat32, "forward of documents.*float32", "long"),
    (CountsPaddingInFloat32, "padded rows.*float32", "long"),
    (ChangesItsInput, "changed the inputs", "long"),
    (WrongGradientInFloat32, "gradient of .* in float32", "dtypes"),
    (LearnsAnotherFunction, "with gradients", "dtypes"),
]


@pytest.mark.parametrize("make, message, only", BROKEN, ids=[str(i) for i in range(len(BROKEN))])
def test_the_checker_catches_broken_mixers(make: Make, message: str, only: str) -> None:
    with pytest.raises(ContractBroken, match=message):
        check_mixer(make, examples=8, shrink=False, only=only)


def test_the_state_checker_catches_broken_states() -> None:
    assert check_state(LSTM, examples=3).keys() == LIFE.keys()
    for broken in (Aliases, CommitsInExtend, RewindsTooFar):
        with pytest.raises(ContractBroken):
            check_state(broken, examples=25, shrink=False)


def test_a_failure_shrinks_to_a_small_case() -> None:
    with pytest.raises(ContractBroken) as caught:
        check_mixer(CommitsTheWrongNode, only="path of a chain")
    message = str(caught.value)
    assert message.startswith("CommitsTheWrongNode: path of a chain: extend after commit(path")
    assert "float64: max error" in message and "tolerance 1e-09" in message and "lengths=[0]" in message


# Naive references.


def rotated(x: Tensor, position: int, theta: float, width: int) -> Tensor:
    """One head vector turned by its position: pairs (i, i + turned / 2) as complex numbers."""
    y = x.clone()
    half = width // 2
    for i in range(half):
        angle = position * theta ** (-2 * i / width)
        y[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
        y[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
    return y


def attention_by_loops(mixer: Attention, x: Tensor, positions: Tensor, sees: Callable[[int, int], bool]) -> Tensor:
    """One row x (T, D); `sees(i, j)`: whether node i attends to node j."""
    heads, groups, e = mixer.heads, mixer.kv_heads, mixer.head_width
    outputs = []
    for i in range(len(x)):
        mixed = []
        for h in range(heads):
            g = h // (heads // groups)
            scores, values = [], []
            for j in range(len(x)):
                if not sees(i, j):
                    continue
                q = mixer.qkv(x[i])[h * e : (h + 1) * e]
                k = mixer.qkv(x[j])[(heads + g) * e : (heads + g + 1) * e]
                if mixer.positions == "rotary":
                    width = 2 * len(mixer.frequencies)
                    q, k = (rotated(y, int(positions[at]), 10_000.0, width) for y, at in ((q, i), (k, j)))
                score = q @ k / math.sqrt(e)
                if mixer.positions == "alibi":
                    score = score - alibi_slopes(heads)[h] * abs(int(positions[i] - positions[j]))
                scores.append(score)
                values.append(mixer.qkv(x[j])[(heads + groups + g) * e : (heads + groups + g + 1) * e])
            weights = torch.stack(scores).softmax(0)
            mixed.append(weights @ torch.stack(values))
        outputs.append(mixer.out(torch.cat(mixed)))
    return torch.stack(outputs)


@torch.no_grad()
@pytest.mark.parametrize("options, sees", [
    ({}, lambda i, j: j <= i),
    ({"kv_heads": 2, "rotary_fraction": 0.5, "head_width": 4}, lambda i, j: j <= i),
    ({"kv_heads": 1, "positions": "alibi", "qkv_bias": True}, lambda i, j: j <= i),
    ({"positions": "none", "window": 3}, lambda i, j: i - 3 < j <= i),
    ({"prefix": 4}, lambda i, j: j <= i or j < 4),
    ({"causal": False, "positions": "alibi"}, lambda i, j: True),
])
def test_attention_by_explicit_loops(options: dict, sees: Callable[[int, int], bool]) -> None:
    torch.manual_seed(0)
    mixer = Attention(8, heads=4, **options).double()
    x = torch.randn(1, 7, 8, dtype=torch.float64)
    expected = attention_by_loops(mixer, x[0], torch.arange(7), sees)
    assert (mixer(x)[0] - expected).abs().max() < 1e-10


@torch.no_grad()
@pytest.mark.parametrize("positions", ["rotary", "alibi"])
def test_tree_attention_by_explicit_loops(positions: str) -> None:
    torch.manual_seed(0)
    mixer = Attention(8, heads=2, kv_heads=1, positions=positions).double()
    x = torch.randn(1, 9, 8, dtype=torch.float64)
    parents = [-1, 0, 0, 1, -1]
    paths = [[0], [0, 1], [0, 2], [0, 1, 3], [4]]
    ancestors = {4 + i: {*range(4), *(4 + j for j in path)} for i, path in enumerate(paths)}
    position_ids = torch.tensor([0, 1, 2, 3, 4, 5, 5, 6, 4])
    expected = attention_by_loops(mixer, x[0], position_ids, lambda i, j: j <= i if i < 4 else j in ancestors[i])
    state = mixer.init_state(1)
    mixer.extend(x[:, :4], state)
    state.commit()
    assert (mixer.extend(x[:, 4:], state, torch.tensor([parents]))[0] - expected[4:]).abs().max() < 1e-10


@pytest.mark.parametrize("heads", [1, 2, 3, 6, 8, 12])
def test_alibi_slopes_are_distinct_powers(heads: int) -> None:
    slopes = alibi_slopes(heads)
    assert slopes.shape == (heads,) and len(set(slopes.tolist())) == heads
    if heads == 8:
        assert slopes.tolist() == [2.0**-i for i in range(1, 9)]


def test_attend_and_merge() -> None:
    """Partial results over disjoint keys merge to attention over all of them, rows without any visible key included."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, h, n, 4, dtype=torch.float64) for h, n in ((4, 5), (2, 9), (2, 9)))
    mask = torch.rand(2, 1, 5, 9) < 0.5
    mask[:, :, 0] = False
    y, lse = attend(q, k, v, mask)
    assert (y[:, :, 0] == 0).all() and (lse[:, :, 0] == -math.inf).all()
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    assert (y - expected)[:, :, 1:].abs().max() < 1e-12
    parts = [attend(q, k[:, :, a:b], v[:, :, a:b], mask[..., a:b]) for a, b in ((0, 2), (2, 3), (3, 9))]
    merged, total = merge(parts)
    assert (merged - y).abs().max() < 1e-12 and torch.equal(total[:, :, 0], lse[:, :, 0])
    assert (total - lse)[:, :, 1:].abs().max() < 1e-12

    half = [x.bfloat16() for x in (q, k, torch.ones_like(v))]  # weights that sum to 1 read 1 of ones, within rounding
    parts = [attend(half[0], half[1][:, :, a:b], half[2][:, :, a:b], mask[..., a:b]) for a, b in ((0, 3), (3, 9))]
    for ones in (attend(*half, mask)[0], merge(parts)[0]):
        assert ones.dtype == torch.bfloat16 and (ones - 1)[:, :, 1:].abs().max() <= 2.0**-8


@torch.no_grad()
@pytest.mark.parametrize("make, cell", [(LSTM, torch.nn.LSTMCell), (GRU, torch.nn.GRUCell), (Elman, torch.nn.RNNCell)])
def test_recurrent_mixers_against_torch_cells(make: Callable[..., Mixer], cell: type) -> None:
    torch.manual_seed(0)
    mixer = make(6, inner=5).double()
    step = cell(6, 5).double()
    step.load_state_dict({name.removesuffix("_l0"): tensor for name, tensor in
                          mixer.recurrence.module.state_dict().items()})  # type: ignore[union-attr, operator]
    x = torch.randn(3, 11, 6, dtype=torch.float64)
    memory: Tensor | tuple[Tensor, Tensor] | None = None
    outputs = []
    for t in range(11):
        memory = step(x[:, t], memory)
        outputs.append(mixer.out(memory[0] if isinstance(memory, tuple) else memory))  # type: ignore[operator]
    assert (mixer(x) - torch.stack(outputs, 1)).abs().max() < 1e-10


@torch.no_grad()
def test_peepholes_follow_their_equations() -> None:
    torch.manual_seed(0)
    mixer, reference = LSTM(6, inner=5, peepholes=True).double(), LSTM(6, inner=5).double()
    cell, x = mixer.recurrence, torch.randn(2, 9, 6, dtype=torch.float64)
    weights = {name: cell.get_parameter(name).clone() for name in ("weight_ih", "weight_hh", "bias", "peepholes")}
    h = c = torch.zeros(2, 5, dtype=torch.float64)
    for t in range(9):
        parts = (x[:, t] @ weights["weight_ih"].T + h @ weights["weight_hh"].T + weights["bias"]).split(5, -1)
        i, f = (torch.sigmoid(part + peep * c) for part, peep in zip(parts[:2], weights["peepholes"]))
        c = f * c + i * torch.tanh(parts[2])
        h = torch.sigmoid(parts[3] + weights["peepholes"][2] * c) * torch.tanh(c)
        assert torch.allclose(mixer(x)[:, t], mixer.out(h), atol=1e-12)
    cell.get_parameter("peepholes").zero_()
    for name, torch_name in (("weight_ih", "weight_ih_l0"), ("weight_hh", "weight_hh_l0"), ("bias", "bias_ih_l0")):
        reference.recurrence.get_parameter(f"module.{torch_name}").copy_(weights[name])
    reference.out.load_state_dict(mixer.out.state_dict())
    assert torch.allclose(mixer(x), reference(x), atol=1e-12)
    with pytest.raises(SegueError, match="leave one of them out"):
        LSTM(6, heads=2, peepholes=True)


def mamba_by_loops(mixer: Mamba, x: Tensor) -> Tensor:
    """The equations of the paper, one row (T, D), one channel and one state at a time where it matters."""
    u, gate = mixer.into(x).chunk(2, -1)
    taps = mixer.convolution.weight.shape[1]
    line = torch.cat([u.new_zeros(taps - 1, u.shape[1]), u])
    u = torch.stack([(line[t : t + taps] * mixer.convolution.weight.T).sum(0) for t in range(len(x))])
    u = F.silu(u + mixer.convolution.bias)
    A = -mixer.scan.A_log.exp()
    h = torch.zeros_like(A)
    outputs = []
    for t in range(len(x)):
        chosen = mixer.select(u[t])
        dt = F.softplus(mixer.step(chosen[: mixer.rank]))
        B, C = chosen[mixer.rank : mixer.rank + mixer.states], chosen[mixer.rank + mixer.states :]
        h = (dt[:, None] * A).exp() * h + dt[:, None] * B[None] * u[t][:, None]
        outputs.append((h @ C + mixer.scan.D * u[t]) * F.silu(gate[t]))
    return mixer.out(torch.stack(outputs))


@torch.no_grad()
def test_mamba_against_a_plain_loop() -> None:
    torch.manual_seed(0)
    mixer = Mamba(10, states=3).double()
    x = torch.randn(2, 37, 10, dtype=torch.float64)
    assert (mixer(x) - torch.stack([mamba_by_loops(mixer, row) for row in x])).abs().max() < 1e-10


@torch.no_grad()
def test_mamba_against_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.models.mamba.modeling_mamba import MambaMixer

    torch.manual_seed(0)
    config = transformers.MambaConfig(hidden_size=32, state_size=5, conv_kernel=4, expand=2, time_step_rank=3)
    peer, mixer = MambaMixer(config, layer_idx=0), Mamba(32, states=5, rank=3)
    peer.A_log.data += 0.1 * torch.randn_like(peer.A_log)
    peer.conv1d.bias.data.normal_()
    mixer.load_state_dict({"into.weight": peer.in_proj.weight, "out.weight": peer.out_proj.weight,
                           "convolution.weight": peer.conv1d.weight[:, 0], "convolution.bias": peer.conv1d.bias,
                           "select.weight": peer.x_proj.weight, "step.weight": peer.dt_proj.weight,
                           "step.bias": peer.dt_proj.bias, "scan.A_log": peer.A_log, "scan.D": peer.D})
    x = torch.randn(2, 50, 32)
    y = peer(x)
    assert (mixer(x) - y).abs().max() < 1e-5


@torch.no_grad()
def test_gla_against_a_plain_loop() -> None:
    torch.manual_seed(0)
    mixer = GatedLinearAttention(8, heads=2, expand_k=1.0, gate_rank=3).double()
    x = torch.randn(1, 41, 8, dtype=torch.float64)
    weights = mixer.qkvr.weight.split(mixer.widths)
    state, outputs = torch.zeros(2, 4, 4, dtype=torch.float64), []
    for t in range(41):
        q, k, v, r = (x[0, t] @ w.T for w in weights)
        alpha = torch.sigmoid(mixer.gate(x[0, t])) ** (1 / mixer.temperature)
        mixed = []
        for h in range(2):
            part = slice(4 * h, 4 * h + 4)
            state[h] = alpha[part, None] * state[h] + k[part, None] * v[part]
            o = state[h].T @ q[part] / 2
            mixed.append(o / (o.square().mean() + 1e-6).sqrt() * mixer.norm.weight)
        outputs.append(mixer.out(torch.cat(mixed) * F.silu(r)))
    assert (mixer(x)[0] - torch.stack(outputs)).abs().max() < 1e-10


# The life of a state, where a checker cannot look.


@torch.no_grad()
@torch.no_grad()
def test_gla_gates_start_with_a_geometric_range_of_memory() -> None:
    mixer, layout = GatedLinearAttention(16, heads=2, remember=1000), Layout.chain((1, 1))
    nodes = -1 / mixer._project(torch.zeros(1, 1, 16), layout, {})[3][0, 0]
    torch.testing.assert_close(nodes[:, [0, -1]], torch.tensor([[16 / math.log(2), 1000.0]] * 2), rtol=1e-3, atol=0)
    ratios = nodes[:, 1:] / nodes[:, :-1]
    torch.testing.assert_close(ratios, ratios[:, :1].expand_as(ratios), rtol=1e-3, atol=0)
    with pytest.raises(SegueError, match="remember 20 nodes: give 24 at least"):
        GatedLinearAttention(16, remember=20)


@pytest.mark.parametrize("name", ["lstm", "gru", "elman", "jordan", "mamba", "gla"])
@pytest.mark.parametrize("tokens", [800, pytest.param(100_000, marks=pytest.mark.slow)])
def test_decoding_memory_is_constant(name: str, tokens: int) -> None:
    torch.manual_seed(0)
    mixer = SUBJECTS[name](8)
    state = mixer.init_state(1, history=2)
    x, sizes = torch.randn(1, 1, 8), []
    for token in range(tokens):
        x = mixer.extend(x / x.norm(), state)
        state.commit()
        if token % (tokens // 20) == tokens // 20 - 1:
            sizes.append(memory(state))
    assert max(sizes[4:]) <= max(sizes[:4]) < 20_000 and x.isfinite().all()
    assert int(state.positions) == tokens


@torch.no_grad()
def test_rewinding_beyond_a_window_is_refused() -> None:
    mixer = Attention(8, heads=2, window=4)
    state = mixer.init_state(2, history=3)
    x = torch.randn(2, 300, 8)
    for piece in x.split(1, 1):
        mixer.extend(piece, state)
        state.commit()
    with pytest.raises(SegueError, match="history"):
        state.rewind(200)
    state.rewind(3)
    y = mixer.extend(x[:, 297:], state)
    assert (y - mixer(x)[:, 297:]).abs().max() < 1e-5


def test_a_refused_rewind_changes_no_part_of_the_state() -> None:
    """Two parts of one state: the cache could go back, the recurrence cannot."""
    attention, recurrence = Attention(8, heads=2), GRU(8)
    layers = [attention.init_state(1).layers[0], recurrence.init_state(1).layers[0]]
    state = State(layers, torch.zeros(1, dtype=torch.long))
    layout = state.layout(3)
    x = torch.randn(1, 3, 8)
    attention.run(x, layout, state.layers[0])
    recurrence.run(x, layout, state.layers[1])
    state.pending = layout
    state.commit()
    with pytest.raises(SegueError, match="history"):
        state.rewind(2)
    cache = state.layers[0]["cache"]
    assert isinstance(cache, Cache) and cache.lengths.tolist() == [3] and state.positions.tolist() == [3]


@pytest.mark.parametrize("options, message", [
    ({"heads": 3}, "not divisible by 3 heads"), ({"heads": 4, "kv_heads": 3}, "cannot share 3"),
    ({"positions": "sine"}, "'sine' are unknown"), ({"window": 3, "prefix": 2}, "choose one"),
    ({"window": 0}, "at least one position")])
def test_attention_refuses_bad_options(options: dict, message: str) -> None:
    with pytest.raises(SegueError, match=message):
        Attention(8, **options)


def test_gather_nodes_accepts_padding() -> None:
    x = torch.arange(6).view(1, 3, 2)
    assert gather_nodes(x, torch.tensor([[2, -1]])).tolist() == [[[4, 5], [0, 1]]]
