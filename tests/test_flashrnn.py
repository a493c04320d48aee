"""Fused head-wise recurrences agree with the plain loop and with torch, in every form; their tiles keep to what they
must."""

from __future__ import annotations

import itertools
import runpy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from gradients import agree
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreted import interpret
from torch import Tensor, nn
from weights import shake

from segue.errors import SegueError
from segue.kernels import rnn
from segue.kernels.cpu.buffers import MOST as MOST_SPARE
from segue.kernels.cpu.buffers import _Loan, pooled_empty
from segue.kernels.cpu.rnn import LARGE
from segue.kernels.rnn import CELLS, empty_state, recurrence, recurrence_reference
from segue.kernels.tiles import GATES, MACHINES, MOST, SOLVED, WIDTHS, Machine, satisfies, score, tiles_for
from segue.mixers import GRU, LSTM, Elman, Mixer
from segue.models import Stack, StackConfig
from segue.models.compiled import compile_model

EXAMPLES = settings(max_examples=12, deadline=None, derandomize=True, database=None)
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}


def random_inputs(cell: str, shape: tuple[int, int, int, int], dtype: torch.dtype, seed: int) -> list[Tensor]:
    """Inputs, weights, bias and a state that some input has led to."""
    (rows, length, heads, width), gates = shape, CELLS[cell].gates
    g = torch.Generator().manual_seed(seed)
    normal = partial(torch.randn, generator=g, dtype=torch.float64)
    x, weight, bias = normal(rows, length, heads, gates, width), normal(heads, gates, width, width) / width**0.5, \
        normal(heads, gates, width)
    state = [normal(rows, heads, width) for _ in range(CELLS[cell].states)]
    if cell == "slstm":
        state[2] = 1 + state[2].abs()
    return [y.to(dtype) for y in (x, weight, bias, *state)]


def with_gradients(function: Any, cell: str, inputs: list[Tensor], *others: Any) -> list[Tensor]:
    """h, the last state, and gradients of a fixed random weighing of them."""
    inputs = [y.detach().requires_grad_() for y in inputs]
    y, final = function(cell, *inputs[:3], tuple(inputs[3:]), *others)
    g = torch.Generator().manual_seed(5)
    loss = sum((z * torch.randn(z.shape, generator=g, dtype=torch.float64).to(z)).sum() for z in (y, *final))
    return [y, *final, *torch.autograd.grad(loss, inputs)]  # type: ignore[arg-type]


def documents(rows: int, length: int, seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(rows, length, generator=g) < 0.1, torch.randint(0, length + 1, (rows,), generator=g)


@pytest.mark.parametrize("cell", CELLS)
@given(st.sampled_from([1, 3, 9, 17]), st.sampled_from([32, 33, 70]), st.sampled_from([1, 2, 3]),
       st.sampled_from([1, 5, 16, 33, 48]), st.booleans(), st.integers(0, 99),
       st.sampled_from([torch.float64, torch.float32]))
@EXAMPLES
def test_compiled_loops_equal_the_reference(cell: str, rows: int, length: int, heads: int, width: int,
                                            packed: bool, seed: int, dtype: torch.dtype) -> None:
    inputs = random_inputs(cell, (rows, length, heads, width), dtype, seed)
    others = documents(rows, length, seed) if packed else ()
    expected = with_gradients(recurrence_reference, cell, inputs, *others)
    agree(with_gradients(recurrence, cell, inputs, *others), expected, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_gradients_stored_past_the_cache_equal_the_reference(dtype: torch.dtype) -> None:
    """Two rows are stored as one, and the last of an odd number alone."""
    inputs = random_inputs("lstm", (33, 70, 8, 64), dtype, 7)
    assert inputs[0].nbytes > LARGE
    expected = with_gradients(recurrence_reference, "lstm", inputs)
    agree(with_gradients(recurrence, "lstm", inputs), expected, TOLERANCE[dtype])


@pytest.mark.parametrize("cell", CELLS)
def test_chunks_with_carried_state_equal_the_whole(cell: str) -> None:
    x, weight, bias, *_ = random_inputs(cell, (2, 100, 2, 8), torch.float64, 3)
    full, last = recurrence(cell, x, weight, bias, empty_state(cell, (2, 2, 8), x))
    state, parts = empty_state(cell, (2, 2, 8), x), []
    for piece in x.split([40, 1, 3, 56], 1):  # compiled, and in torch
        y, state = recurrence(cell, piece, weight, bias, state)
        parts.append(y)
    agree([torch.cat(parts, 1), *state], [full, *last], 1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_gradcheck(cell: str) -> None:
    inputs = [y.requires_grad_() for y in random_inputs(cell, (2, 34, 2, 3), torch.float64, 1)]
    starts, lengths = documents(2, 34, 1)

    def run(x: Tensor, weight: Tensor, bias: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        y, final = recurrence(cell, x, weight, bias, state, starts, lengths)
        return y, *final

    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


@pytest.mark.parametrize(("cell", "module"), [("lstm", nn.LSTM), ("gru", nn.GRU), ("elman", nn.RNN)])
def test_one_head_equals_torchs_module(cell: str, module: type[nn.RNNBase]) -> None:
    torch.manual_seed(0)
    peer = module(6, 7, batch_first=True).double()
    x, gates = torch.randn(3, 40, 6, dtype=torch.float64), CELLS[cell].gates
    expected = peer(x)[0]
    into = (x @ peer.weight_ih_l0.T + peer.bias_ih_l0).view(3, 40, 1, gates, 7)
    y, _ = recurrence(cell, into, peer.weight_hh_l0.view(1, gates, 7, 7), peer.bias_hh_l0.view(1, gates, 7),
                      empty_state(cell, (3, 1, 7), x))
    agree([y[:, :, 0]], [expected], 1e-10)


@pytest.mark.parametrize("cell", CELLS)
def test_heads_equal_blocks_of_one_matrix(cell: str) -> None:
    x, weight, bias, *_ = random_inputs(cell, (2, 40, 3, 4), torch.float64, 2)
    y, _ = recurrence(cell, x, weight, bias, empty_state(cell, (2, 3, 4), x))
    blocks = torch.stack([torch.block_diag(*gate) for gate in weight.transpose(0, 1)])[None]
    merged = x.transpose(2, 3).flatten(3)[:, :, None]
    merged_output, _ = recurrence(cell, merged, blocks, bias.transpose(0, 1).flatten(1)[None],
                                  empty_state(cell, (2, 1, 12), x))
    agree([y.flatten(2)], [merged_output[:, :, 0]], 1e-10)


def test_slstm_equals_the_unstabilised_recurrence() -> None:
    x, weight, bias, *_ = random_inputs("slstm", (2, 40, 1, 5), torch.float64, 4)
    y, _ = recurrence("slstm", x, weight, bias, empty_state("slstm", (2, 1, 5), x))
    h, c, n = (torch.zeros(2, 1, 5, dtype=torch.float64) for _ in range(3))
    for t in range(40):
        i, f, z, o = (x[:, t] + torch.einsum("bni,ngoi->bngo", h, weight) + bias).unbind(2)
        c, n = f.sigmoid() * c + i.exp() * z.tanh(), f.sigmoid() * n + i.exp()
        h = o.sigmoid() * c / n
        agree([y[:, t]], [h], 1e-10)


@pytest.mark.parametrize("cell", CELLS)
def test_extreme_gates_stay_finite(cell: str) -> None:
    inputs = random_inputs(cell, (2, 40, 2, 16), torch.float32, 5)
    inputs[0] = inputs[0] * torch.tensor([1.0, 20.0, 300.0])[torch.arange(40) % 3][None, :, None, None, None]
    agree(with_gradients(recurrence, cell, inputs)[:1], with_gradients(recurrence_reference, cell, inputs)[:1], 1e-4)
    assert all(y.isfinite().all() for y in with_gradients(recurrence, cell, inputs))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("which", [0, 1])
def test_gradients_of_outputs_alone_and_of_the_last_state_alone(cell: str, which: int) -> None:
    inputs = [y.requires_grad_() for y in random_inputs(cell, (2, 40, 2, 16), torch.float64, 9)]
    results = [torch.autograd.grad((run(cell, *inputs[:3], tuple(inputs[3:]))[which][0]).square().sum(), inputs,
                                   materialize_grads=True) for run in (recurrence, recurrence_reference)]
    agree(list(results[0]), list(results[1]), 1e-10)


def test_not_a_number_propagates() -> None:
    for cell in CELLS:
        inputs = random_inputs(cell, (1, 40, 1, 16), torch.float32, 10)
        inputs[0][0, 20] = torch.nan
        y, _ = recurrence(cell, *inputs[:3], tuple(inputs[3:]))
        assert y[:, :20].isfinite().all() and y[:, 20:].isnan().all(), cell


def test_pooled_buffers_are_reused_and_never_shared() -> None:
    _Loan.spare.clear()  # of other tests
    like = torch.zeros(1)
    first = pooled_empty(like, 1 << 18)
    second = pooled_empty(like, 1 << 18)
    places = {y.data_ptr() for y in (first, second)}
    assert len(places) == 2 and all(place % 64 == 0 for place in places)
    view = first[5:]
    del first, second
    three, four = pooled_empty(like, 1 << 18), pooled_empty(like, 1 << 18)
    assert three.data_ptr() in places
    assert len({y.data_ptr() for y in (three, four)} | {view.data_ptr() - 20}) == 3
    assert sum(map(len, _Loan.spare.values())) <= MOST_SPARE


def test_half_precision_is_computed_in_float32() -> None:
    inputs = [y.bfloat16() for y in random_inputs("lstm", (2, 200, 2, 16), torch.float64, 6)]
    y, final = recurrence("lstm", *inputs[:3], tuple(inputs[3:]))
    expected, _ = recurrence_reference("lstm", *(z.double() for z in inputs[:3]), tuple(z.double() for z in inputs[3:]))
    assert y.dtype == final[0].dtype == torch.bfloat16
    agree([y.double()], [expected], 5e-3)


def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    inputs, before, result = random_inputs("slstm", (17, 40, 3, 16), torch.float32, 7), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            result.append(with_gradients(recurrence, "slstm", inputs))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in result[1:] for a, b in zip(result[0], other))


def test_an_unknown_cell_is_refused() -> None:
    with pytest.raises(SegueError, match="'peephole' is unknown"):
        recurrence("peephole", *random_inputs("lstm", (1, 2, 1, 2), torch.float32, 0)[:3], ())


# --- in a model ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixer", [Elman, LSTM, GRU])
def test_one_head_keeps_parameter_names(mixer: type[Mixer]) -> None:
    x, two_heads, one_head = torch.randn(2, 50, 8), mixer(8, heads=2), mixer(8)
    assert one_head(x).shape == two_heads(x).shape
    assert {name for name, _ in one_head.named_parameters()} == {
        f"recurrence.module.{kind}_{side}_l0" for kind in ("weight", "bias") for side in ("ih", "hh")}
    with pytest.raises(SegueError, match="8 units cannot be 3 heads"):
        mixer(8, heads=3)


@pytest.mark.parametrize("mixers", [["lstm:heads", "mamba"], ["attention", "slstm", "gru:heads", "mlstm"],
                                    ["elman:heads", "gla"]])
def test_the_compiled_engine_decodes_stacks_of_heads(mixers: list[str]) -> None:
    """Patterns that no paper used, decoded by the compiled engine as by torch."""
    torch.manual_seed(0)
    options = {name: {"heads": 4} for name in mixers if name.endswith(":heads")}
    stack = Stack(StackConfig(31, 32, mixers, options)).eval().requires_grad_(False)
    shake(stack, 0.1)
    model, tokens = compile_model(stack, threads=1), torch.randint(31, (2, 12))
    a, b = stack.init_state(2), model.init_state(2)
    for piece in tokens.split([5, 1, 6], 1):
        expected, actual = stack.extend(piece, a).logits, model.extend(piece, b).logits
        assert (expected - actual).abs().max() < 1e-4
        a.commit()
        b.commit()
    tree = torch.tensor([[-1, 0, 0, 1, 2]] * 2)
    expected, actual = (form.extend(tokens[:, :5], state, tree).logits for form, state in ((stack, a), (model, b)))
    assert (expected - actual).abs().max() < 1e-4


# --- tiles --------------------------------------------------------------------------------------------------------


def choices(machine: Machine, gates: int, width: int) -> list[tuple[int, int, int]]:
    """All that satisfy the constraints, by trying all."""
    return [choice for choice in itertools.product(*(range(1, MOST[name] + 1) for name in ("rows", "panels", "span")))
            if satisfies(machine, gates, width, *choice)]


@pytest.mark.parametrize("machine", MACHINES)
def test_solved_tiles_satisfy_their_constraints_and_are_the_best(machine: Machine) -> None:
    for gates, width in itertools.product(GATES, WIDTHS):
        solved = SOLVED[(*machine[:2], gates, width)]
        assert satisfies(machine, gates, width, *solved)
        assert score(*solved) == max(score(*choice) for choice in choices(machine, gates, width))


def test_the_solver_finds_the_table() -> None:
    pytest.importorskip("ortools", reason="ortools is not installed")
    solve = runpy.run_path(str(Path(__file__).resolve().parents[1] / "tools" / "tiles.py"))["solve"]
    for machine, gates, width in ((MACHINES[0], 4, 64), (MACHINES[2], 3, 16), (MACHINES[3], 1, 768)):
        assert solve(machine, gates, width) == SOLVED[(*machine[:2], gates, width)]


def test_tiles_exist_for_any_width() -> None:
    for width in (1, 15, 16, 20, 96, 1024):
        plan = tiles_for(torch.float32, 4, width)
        assert 1 <= plan.rows <= MOST["rows"] and 1 <= plan.panels <= MOST["panels"]


# --- Triton -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", CELLS)
def test_triton_kernels_equal_the_reference(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU through Triton's interpreter, in float64."""
    interpret(monkeypatch)
    from segue.kernels.triton import rnn as kernels

    inputs, others = random_inputs(cell, (18, 7, 2, 16), torch.float64, 8), documents(18, 7, 8)
    monkeypatch.setattr(rnn, "runs_compiled", lambda x: True)
    monkeypatch.setattr(rnn, "_kernels", lambda x: (kernels.forward, kernels.backward))
    for rest in ((), others):
        expected = with_gradients(recurrence_reference, cell, inputs, *rest)
        agree(with_gradients(recurrence, cell, inputs, *rest), expected, 1e-10)
