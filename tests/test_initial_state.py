"""Learned initial states: where recurrences begin, and no weight."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import segue
from segue.analysis.circuits import matrices, writes
from segue.continual import StateTuning
from segue.errors import SegueError
from segue.kernels.gla import FLOOR, gla, gla_reference
from segue.mixers import MIXERS
from segue.mixers.gla import GatedLinearAttention
from segue.mixers.layout import Layout
from segue.mixers.state import Carry
from segue.models import EncoderDecoder, EncoderDecoderConfig, Stack, StackConfig
from segue.models.adapters import InitialState, LoRA, load_adapter
from segue.models.compiled import compile_model
from segue.models.windows import WindowRecurrence
from segue.objectives import Batch
from segue.testing import check_strategy
from segue.training.checkpoint import weights_of
from segue.training.learn import learn
from segue.training.loop import Run
from segue.training.recipe import Plan
from segue.verbs.look import look
from segue.verbs.update import weights_hash

CONSTANT = ["gla", "mamba", "mamba2", "deltanet", "mlstm", "slstm", "gru", "lstm", "s4d", "lru", "lightnet",
            "block-recurrent"]


def stack(*mixers: str, vocabulary: int = 11) -> Stack:
    torch.manual_seed(0)
    return Stack(StackConfig(vocabulary, 16, list(mixers))).double().eval()


def ids(n: int = 9, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 11, (2, n), generator=torch.Generator().manual_seed(seed))


def moved(adapter: InitialState, by: float = 3.0) -> InitialState:
    draw = torch.Generator().manual_seed(1)
    for _, parameter in adapter.named_parameters():
        parameter.data.copy_(by * torch.randn(parameter.shape, generator=draw))
    return adapter


# -- the gla kernel

def random_inputs(n: int, heads: int = 2, k: int = 3, e: int = 4) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(n)
    q, key, v, g, s = (torch.randn(2, *shape, generator=draw, dtype=torch.float64) for shape in (
        (n, heads, k), (n, heads, k), (n, heads, e), (n, heads, k), (heads, k, e)))
    return [q, key, v, torch.nn.functional.logsigmoid(g).clamp(min=FLOOR), s]


@pytest.mark.parametrize("n", [1, 5, 33, 70])
def test_chunked_form_has_the_initial_states_gradient(n: int) -> None:
    q, k, v, g, state = random_inputs(n)
    state.requires_grad_()
    result = []
    for form in (gla, gla_reference):
        y, final = form(q, k, v, g, state)
        weights = torch.cos(torch.arange(y.numel(), dtype=torch.float64)).view_as(y)
        result.append(torch.autograd.grad((y * weights).sum() + final.square().sum(), state)[0])
    torch.testing.assert_close(*result)

    def loss(s: torch.Tensor) -> torch.Tensor:
        return (gla(q, k, v, g, s)[0] * weights).sum()

    slope = torch.autograd.grad(loss(state), state)[0]
    for at in [(0, 0, 0, 0), (1, 1, 2, 3)]:
        step = torch.zeros_like(state)
        step[at] = 1e-5
        difference = (loss(state + step) - loss(state - step)) / 2e-5
        assert float((difference - slope[at]).detach()) == pytest.approx(0, abs=1e-7)


def test_a_gate_of_minus_twenty_equals_a_start() -> None:
    q, k, v, g, state = random_inputs(6)
    shut = g.clone()
    shut[:, 3] = -20.0
    fresh = gla_reference(q[:, 3:], k[:, 3:], v[:, 3:], g[:, 3:], torch.zeros_like(state))[0]
    torch.testing.assert_close(gla_reference(q, k, v, shut, state)[0][:, 3:], fresh, atol=1e-8, rtol=0)
    starts = torch.zeros(2, 6, dtype=torch.bool)
    starts[:, 3] = True
    torch.testing.assert_close(gla(q, k, v, g, state, starts)[0][:, 3:], fresh)


def test_the_mixer_equals_the_published_recurrence() -> None:
    torch.manual_seed(0)
    mixer, x = GatedLinearAttention(8, heads=2, expand_k=1.0, expand_v=2.0).double(), torch.randn(1, 7, 8).double()
    q, k, v, r = mixer.qkvr(x).split(mixer.widths, -1)
    g = torch.nn.functional.logsigmoid(mixer.gate(x)) / 16
    s, outputs = torch.zeros(2, 4, 8, dtype=torch.float64), []
    for t in range(7):
        qt, kt, vt, gt = (y[0, t].unflatten(-1, (2, -1)) for y in (q, k, v, g))
        s = gt.exp()[..., None] * s + kt[..., None] * vt[:, None]
        outputs.append(4**-0.5 * (qt[..., None] * s).sum(1))
    y = mixer.norm(torch.stack(outputs)).flatten(1) * torch.nn.functional.silu(r[0])
    torch.testing.assert_close(mixer(x)[0], mixer.out(y))


# -- the adapter

@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("mixer", CONSTANT)
def test_initial_states_apply_to_training_and_decoding_and_detach(mixer: str, rank: int) -> None:
    model, x = stack(mixer, mixer), ids()
    unadapted, before = model(x).logits, weights_hash(model)
    adapter = InitialState(rank)
    adapter.attach(model)
    if rank == 0:  # all numbers begin at nothing
        torch.testing.assert_close(model(x).logits, unadapted)
    moved(adapter)
    full, state, stepped = model(x).logits, model.init_state(2, history=3), []
    for at in range(x.shape[1]):
        stepped.append(model.extend(x[:, at : at + 1], state).logits)
        state.commit()
    torch.testing.assert_close(torch.cat(stepped, 1), full)
    state.rewind(2)
    torch.testing.assert_close(model.extend(x[:, -2:], state).logits, full[:, -2:])
    parents = torch.tensor([[-1, 0, 0]]).expand(2, 3)
    tree = model.extend(x[:, :3], model.init_state(2), parents).logits
    torch.testing.assert_close(tree[:, :2], full[:, :2])
    single = model.init_state(1)
    torch.testing.assert_close(model.extend(x[1:], single).logits, full[1:])  # rows know nothing of each other
    assert float((full - unadapted).detach().abs().max()) > 1e-3
    with pytest.raises(SegueError, match="no form for the compiled"):
        compile_model(model)
    adapter.detach()
    assert torch.equal(model(x).logits, unadapted) and weights_hash(model) == before and not len(model.blocks[0].begins)


def test_analyses_use_the_initial_state() -> None:
    model, x = stack("gla", "gru"), ids()
    adapter = InitialState(0)
    adapter.attach(model)
    moved(adapter)
    hidden = model.hidden(x, Layout.of(x))
    torch.testing.assert_close(model.norm(torch.stack(list(writes(model, x).values())).sum(0)), hidden)
    torch.testing.assert_close(WindowRecurrence(model, x.shape[1]).double().hidden(x), hidden)
    assert matrices(model, x)[0] is not None
    adapter.detach()
    assert not torch.allclose(model.hidden(x, Layout.of(x)), hidden)


@pytest.mark.parametrize("mixer", ["gla", "gru", "lru"])
def test_the_state_of_a_prefix_equals_the_prefix(mixer: str) -> None:
    model, prefix, x = stack(mixer, mixer), ids(5), ids(6, seed=1)
    state = model.init_state(1)
    model.extend(prefix[:1], state)
    state.commit()
    extended = model.extend(x[:1], state).logits
    adapter = InitialState(rank=0)
    adapter.attach(model)
    for index, (_, learned) in enumerate(adapter.layers.items()):
        for name, table in learned.tables.items():
            part, number = name.split(":")
            table.data.copy_(state.layers[index][part].tensors()[number][0] / learned.scale)
    torch.testing.assert_close(model(x[:1]).logits, extended)


def test_gradients_equal_finite_differences() -> None:
    model, x = stack("gla", "mamba"), ids(40)
    adapter = InitialState(rank=1)
    adapter.attach(model)
    moved(adapter, 1.0)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        name.replace("blocks.0.", "blocks.0.begins.0.tables.").replace("blocks.1.", "blocks.1.begins.0.tables.")
        for name, _ in adapter.named_parameters()}

    def loss() -> torch.Tensor:
        return model(x).logits.log_softmax(-1)[..., 0].sum()

    loss().backward()
    for name, parameter in adapter.named_parameters():
        assert parameter.grad is not None
        place = int(parameter.grad.abs().argmax())
        with torch.no_grad():
            flat = parameter.view(-1)
            flat[place] += 1e-4
            high = float(loss())
            flat[place] -= 2e-4
            low = float(loss())
            flat[place] += 1e-4
        assert (high - low) / 2e-4 == pytest.approx(float(parameter.grad.view(-1)[place]), rel=1e-5), name


def test_initial_states_combine_with_adapters_and_save(tmp_path: Path) -> None:
    model, x = stack("gla", "attention", "gru"), ids()
    first, second = InitialState(rank=1), LoRA(rank=2)
    first.attach(model)
    moved(first)
    unadapted = model(x).logits
    third_state = InitialState(rank=0, seed=3)
    third_state.attach(model)
    torch.testing.assert_close(model(x).logits, unadapted)  # it adds, and begins at nothing
    third_state.detach()
    second.attach(model)
    torch.testing.assert_close(model(x).logits, unadapted)
    second.detach()
    first.save(tmp_path / "state.safetensors")
    loaded, fresh = load_adapter(tmp_path / "state.safetensors"), stack("gla", "attention", "gru")
    loaded.attach(fresh)
    assert torch.equal(fresh(x).logits, model(x).logits) and list(loaded.layers) == ["blocks.0", "blocks.2"]
    with pytest.raises(SegueError, match="another model"):
        load_adapter(tmp_path / "state.safetensors").attach(stack("gla"))
    with pytest.raises(SegueError, match="no layer of this model"):
        InitialState().attach(stack("attention"))
    with pytest.raises(SegueError, match="rank"):
        InitialState(rank=-1)
    starts = torch.zeros(2, 9, dtype=torch.bool)
    starts[:, 4] = True
    assert not fresh.resettable
    with pytest.raises(SegueError, match="one document per row"):
        fresh(x, Layout.chain((2, 9), starts=starts))


def test_initial_states_fit_encoder_decoders() -> None:
    side = StackConfig(11, 16, ["gla"])
    torch.manual_seed(0)
    model = EncoderDecoder(EncoderDecoderConfig(StackConfig(11, 16, ["bidirectional"], {"bidirectional": {
        "mixer": "gru"}}), side)).double().eval()
    row = torch.tensor([[1, 2, 3, model.begin, 4, 5]])
    adapter = InitialState(rank=0)
    adapter.attach(model)
    moved(adapter)
    state = model.init_state(1)
    torch.testing.assert_close(model.extend(row, state).logits[:, 3:], model(row).logits[:, 3:])
    assert list(adapter.layers) == ["decoder.blocks.0"]


def test_initial_states_reach_cross_attention_mixers() -> None:
    side = StackConfig(11, 16, ["attention"], cross={"mixer": "gla"})
    torch.manual_seed(0)
    model = EncoderDecoder(EncoderDecoderConfig(StackConfig(11, 16, ["bidirectional"], {"bidirectional": {
        "mixer": "gru"}}), side)).double().eval()
    row = torch.tensor([[1, 2, 3, model.begin, 4, 5]])
    unadapted = model(row).logits
    adapter = InitialState(rank=0)
    adapter.attach(model)
    torch.testing.assert_close(model(row).logits, unadapted)
    assert [name for name, _ in adapter.named_parameters()] == ["decoder.blocks.0.cross recurrence:0"]
    moved(adapter)
    full, state = model(row).logits[:, 3:], model.init_state(1)
    stepped = [model.extend(row[:, :4], state).logits[:, 3:]]
    for at in (4, 5):
        state.commit()
        stepped.append(model.extend(row[:, at : at + 1], state).logits)
    torch.testing.assert_close(torch.cat(stepped, 1), full)
    assert not torch.allclose(full, unadapted[:, 3:])


def test_slstm_normalisers_stay_positive() -> None:
    model = stack("slstm")
    adapter = InitialState(rank=0, scale=1.0)
    adapter.attach(model)
    moved(adapter)
    state = model.init_state(2)
    model.extend(ids(), state)
    state.commit()
    carry = state.layers[0]["recurrence"]
    assert isinstance(carry, Carry) and bool((carry.state[2] > 0).all())


# -- the strategy

def stream(seed: int) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    tokens = (torch.randint(0, 5, (4, 1), generator=draw) + torch.arange(9)) % 5 + (5 if seed % 2 else 0)
    return Batch(tokens[:, :-1], tokens[:, 1:])


@pytest.mark.parametrize("mixer", ["gla", "mlstm"])
def test_each_experience_keeps_its_own_state(mixer: str) -> None:
    model, strategy = stack(mixer, mixer).float(), StateTuning(rank=1)
    before = {name: tensor.clone() for name, tensor in weights_of(model).items()}
    for seed in (0, 1):
        run = learn(model, lambda step, seed=seed: stream(seed + 2 * step), 25, strategy=strategy)
        assert set(run.optimiser.groups) == {"vector"} and run.optimiser.rates["vector"] == 0.1
    assert all(torch.equal(before[name], tensor) for name, tensor in weights_of(model).items())

    def nats(seed: int) -> float:
        batch = stream(100 + seed)
        return float(torch.nn.functional.cross_entropy(model(batch.tokens).logits.transpose(1, 2).detach(),
                                                       batch.targets))

    assert len(strategy.states) == 2
    for state, seed in zip(strategy.states, (0, 1)):
        without_state = nats(seed)
        state.attach(model)
        with_state = nats(seed)
        state.detach()
        assert with_state < without_state and nats(seed) == without_state


def test_a_killed_run_learns_the_same_state() -> None:
    check_strategy(StateTuning, model=lambda: Stack(StackConfig(11, 16, ["gla"])))


def test_a_killed_run_resumes_its_state(tmp_path: Path) -> None:
    def learned(folder: Path | None, stop: int | None = None) -> dict[str, torch.Tensor]:
        class Dying(StateTuning):
            def after_step(self, run: Run) -> None:
                if run.step == stop:
                    raise InterruptedError

        strategy = Dying()
        Run(stack("gla").float(), stream, Plan(11, rows=4, context=8, steps=6), strategy=strategy, folder=folder,
            save_seconds=0.0).train(quiet=True)
        return dict(strategy.states[0].named_parameters())

    with pytest.raises(InterruptedError):
        learned(tmp_path, 3)
    resumed, uninterrupted = learned(tmp_path), learned(None)
    assert resumed and all(torch.equal(resumed[name], parameter) for name, parameter in uninterrupted.items())


def words(letters: str) -> list[str]:
    return [" ".join(letters[(i + j) % len(letters)] * (1 + j % 3) for j in range(12)) + "\n" for i in range(60)]


def test_an_update_leaves_the_model_and_keeps_a_state(tmp_path: Path) -> None:
    model = segue.fit(words("abc"), steps=20, quiet=True, out=tmp_path / "model", width=32, depth=2, mixer="gla",
                      heads=2, precision="float32")
    before, old = weights_hash(model.model), model.evaluate(words("cab")).to_dict()["bits_per_unit"]
    first = segue.load(tmp_path / "model").update(words("xyz"), "state", steps=40, quiet=True, name="end")
    assert first.matrix.forgetting("first data") == 0 and first.matrix.gain("end") > 0.1
    reloaded = segue.load(tmp_path / "model")
    second = reloaded.update(words("mno"), "state:rank=0", steps=40, quiet=True, name="middle")
    assert second.matrix.forgetting("first data") == second.matrix.forgetting("end") == 0
    reloaded = segue.load(tmp_path / "model")
    assert weights_hash(reloaded.model) == before and list(reloaded.states) == ["end", "middle"]
    assert reloaded.evaluate(words("cab")).to_dict()["bits_per_unit"] == pytest.approx(old, rel=1e-6)
    without_state, begun = (reloaded.evaluate(words("xyz"), state=state).to_dict()["bits_per_unit"]
                            for state in (None, "end"))
    assert begun < without_state - 0.1 and weights_hash(reloaded.model) == before
    assert "torch" in reloaded.continue_("x", n=8, state="end").note or reloaded.continue_("x", n=8, state="end").text
    with pytest.raises(SegueError, match="no state 'start': choose from end, middle"):
        reloaded.continue_("x", n=4, state="start")
    with_effects, without_effects = (look(reloaded, "x y z", state=state).effects["layer 2 gla"]
                                     for state in ("end", None))
    assert with_effects != without_effects and weights_hash(reloaded.model) == before
    (tmp_path / "model" / "states" / "0.safetensors").write_bytes(b"cut")
    with pytest.raises(SegueError, match="no adapter"):
        segue.load(tmp_path / "model")


def test_every_mixer_declares_whether_its_state_is_learnable() -> None:
    for name in MIXERS:
        model = stack(name)
        if name in CONSTANT:
            InitialState().attach(model)
        elif model.blocks[0].mixer.causal and not model.blocks[0].mixer.constant_state:
            with pytest.raises(SegueError, match="no layer"):
                InitialState().attach(model)
