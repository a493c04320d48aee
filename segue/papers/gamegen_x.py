"""GameGen-X: Interactive Open-world Game Video Generation (Che et al. 2024, arXiv 2411.00769).

A flow-matching transformer (the foundation) learns to generate films of a small sprite world from captions, and to
continue them from their first frame. It is then frozen, and a control branch beside it learns to make it follow the
player's keys and instructions.

Compared, by control measured in the pixels and by the Fréchet distance of films from captions alone: the foundation,
the branch, the branch with another film's keys, and training everything jointly. The claim holds if the branch makes
the hero follow the keys and the weather the instructions, leaves the model's films unchanged bit by bit where neither
is given, and joint training worsens the Fréchet distance.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.analysis.distributions import frechet_distance
from segue.decoding.flow import euler
from segue.mixers.layout import Layout
from segue.models import ControlBranch, FilmAutoencoder, FilmAutoencoderConfig, SpaceTimeConfig, SpatioTemporalDiT
from segue.models.control import INSTRUCTION
from segue.models.flow import Conditions, EvenField, Field, Flow
from segue.models.spacetime import TEXT
from segue.objectives import Batch, FlowMatching, Reconstruction, generator_of
from segue.papers.base import Claim, Row, Run, Verdict
from segue.tasks.sprites import BIOMES, CAPTION, EVENTS, KEYS, LOOKS, SPOKEN, Films, SpriteWorld
from segue.training.learn import learn, minibatches

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REAL, CODED, BASE, FROZEN, SHUFFLED, JOINT = ("real films", "through the autoencoder", "foundation", "branch, keys",
                                              "branch, keys of others", "all trained together, keys")
KEY, WHOLE, FLOW = "key", 0.3, Flow(3.0)


@dataclass(frozen=True)
class Setting:
    """films, tests: numbers of training and test films. coder, base, branch: training steps of the autoencoder, the
    foundation and the branch, of `rows` films each at `rate`. width, pairs: of the transformer. depth: blocks that the
    branch controls. steps, guidance: of sampling."""

    films: int = 4000
    tests: int = 200
    coder: int = 400
    base: int = 400
    branch: int = 700
    rows: int = 64
    width: int = 64
    pairs: int = 2
    depth: int = 4
    rate: float = 0.01
    steps: int = 10
    guidance: float = 2.0


SMALL = Setting(films=40, tests=10, coder=3, base=2, branch=2, rows=4, width=16, pairs=1, depth=1, steps=2)


@dataclass(frozen=True)
class Studio:
    """What all arms share: the films, their latents (`elements`), the trained autoencoder and foundation."""

    world: SpriteWorld
    films: Films
    tests: Films
    coder: FilmAutoencoder
    elements: Tensor
    grid: tuple[int, ...]
    base: EvenField

    def first_frame(self, rows: int) -> Tensor:
        """(rows, T) bool: the latents of the first frame."""
        return (torch.arange(self.elements.shape[1]) < self.grid[1] * self.grid[2]).expand(rows, -1)

    def conditions(self, films: Films) -> dict[str, Tensor]:
        """The conditions of films by name: captions, the key held at each latent after the first frame, instructions.
        """
        keys = F.pad(films.keys, (1, 0), value=-1).repeat_interleave(self.grid[1] * self.grid[2], 1)
        return {TEXT: films.captions, KEY: keys, INSTRUCTION: films.instructions}

    def batches(self, setting: Setting, seed: int, whole: float, names: tuple[str, ...]) -> Any:
        """Step -> a batch of films with the named conditions: with probability `whole` the entire film is the target,
        else what follows the first frame."""

        def batch(step: int) -> Batch:
            generator = generator_of(seed, step)
            index = torch.randint(len(self.elements), (setting.rows,), generator=generator)
            observed = self.first_frame(setting.rows) & (torch.rand(setting.rows, 1, generator=generator) >= whole)
            conditions = self.conditions(self.films.rows(index))
            return Batch(self.elements[index], torch.where(observed, -1, 0),
                         channels={name: conditions[name] for name in names}, grid=self.grid)

        return batch

    def generate(self, field: Field, conditions: Conditions, setting: Setting, seed: int, whole: bool = False
                 ) -> Tensor:
        """The test films generated under the conditions, entirely (whole) or from their first frame; pixels."""
        elements, grid = self.coder.encode(self.tests.pixels)
        target_mask = ~self.first_frame(len(elements)) | whole
        layout = Layout.chain((elements.shape[0], elements.shape[1]), grid=self.grid)
        latents = euler(field, elements, target_mask, layout, conditions, FLOW, setting.steps, setting.guidance, seed)
        return self.coder.decode(latents, grid)


@cache
def studio(setting: Setting, seed: int) -> Studio:
    """Train the autoencoder and the foundation."""
    world = SpriteWorld(24, 1 + 4, 4, apart=8)
    films = world.draw(setting.films, torch.Generator().manual_seed(seed))
    tests = world.draw(setting.tests, torch.Generator().manual_seed(-1 - seed))
    torch.manual_seed(seed)
    coder = FilmAutoencoder(FilmAutoencoderConfig(stride=world.hold, gather=2))
    pixels = Batch(films.pixels, torch.zeros(setting.films, world.frames, dtype=torch.long))
    learn(coder, minibatches(pixels, setting.rows, seed), setting.coder,
          rate=4e-3, seed=seed, objective=Reconstruction(), cooldown=0.5)
    coder.requires_grad_(False).calibrate(films.pixels[:500])
    latents, grids = zip(*(coder.encode(part) for part in films.pixels.split(500)))
    options = {"qk_norm": True}
    config = SpaceTimeConfig(coder.size, setting.width, setting.pairs, space_options=options, time_options=options,
                             text=len(CAPTION))
    shared = Studio(world, films, tests, coder, torch.cat(latents), grids[0], EvenField(SpatioTemporalDiT(config)))
    learn(shared.base, shared.batches(setting, seed, WHOLE, (TEXT,)), setting.base, rate=setting.rate, seed=seed,
          objective=FlowMatching(FLOW, {TEXT: 0.25}), muon=True, cooldown=1.0)
    return shared


@cache
def train_critic(setting: Setting, seed: int) -> tuple[nn.Module, Tensor]:
    """Train a network to classify look, biome and event of real frames. Returns it without its heads, and its features
    of real films, for the Fréchet distance. A plain loop, as `segue.training.learn` takes batches of sequences, and
    this network single frames with three labels."""
    films = studio(setting, seed).films
    torch.manual_seed(seed)
    sizes = [3, 16, 32, 64]
    layers = [layer for inputs, outputs in zip(sizes, sizes[1:])
              for layer in (nn.Conv2d(inputs, outputs, 3, 2, 1), nn.ReLU())]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    heads = [nn.Linear(64, classes) for classes in (len(LOOKS), len(BIOMES), len(EVENTS))]
    optimiser = torch.optim.AdamW([*net.parameters(), *(p for head in heads for p in head.parameters())], 3e-3)
    for step in range(setting.branch):
        index = torch.randint(len(films.look), (64,), generator=generator_of(seed, step))
        features = net(films.pixels[index, -1].movedim(-1, 1))
        labels = (films.look, films.biome, films.event)
        loss = sum(F.cross_entropy(head(features), label[index]) for head, label in zip(heads, labels))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        optimiser.step()
    net.requires_grad_(False)
    return net, frame_features(net, films.pixels[: 2 * setting.tests])


def frame_features(net: nn.Module, pixels: Tensor) -> Tensor:
    """The features of every fourth frame."""
    return net(pixels[:, ::4].flatten(0, 1).movedim(-1, 1))


def measure_control(shared: Studio, pixels: Tensor) -> dict[str, float]:
    """The share of keys that the hero follows ("character") and of films with the right weather ("environment")."""
    tests, world = shared.tests, shared.world
    return {"character": float((world.detect_keys(pixels) == tests.keys).float().mean()),
            "environment": float((world.detect_event(pixels) == tests.event).float().mean())}


def frechet_of(shared: Studio, field: Field, setting: Setting, seed: int) -> float:
    """The Fréchet distance between real films and films generated from captions alone."""
    net, real = train_critic(setting, seed)
    pixels = shared.generate(field, {TEXT: shared.tests.captions}, setting, seed + 1, whole=True)
    return frechet_distance(frame_features(net, pixels.clamp(0, 1)).numpy(), real.numpy())


def train_branch(shared: Studio, setting: Setting, seed: int, frozen: bool = True) -> ControlBranch:
    """Train a control branch on a copy of the foundation, which is frozen or (frozen=False) trained with it."""
    torch.manual_seed(seed)
    branch = ControlBranch(copy.deepcopy(shared.base), {KEY: len(KEYS)}, len(SPOKEN), setting.depth, frozen=frozen)
    learn(branch, shared.batches(setting, seed + 1, 0.0, (TEXT, KEY, INSTRUCTION)), setting.branch, rate=setting.rate,
          seed=seed + 1, objective=FlowMatching(FLOW, {TEXT: 0.25, KEY: 0.3, INSTRUCTION: 0.3}, blur=0.05), muon=True,
          cooldown=1.0)
    return branch


def run_arm(frozen: bool, setting: Setting, seed: int) -> dict[str, Any]:
    """Measures of the films generated by a branch, frozen or trained jointly; with the frozen one also those of real
    films, the autoencoder, the foundation, and other films' keys."""
    shared = studio(setting, seed)
    conditions = shared.conditions(shared.tests)
    caption = {TEXT: conditions[TEXT]}
    before = shared.generate(shared.base, caption, setting, seed)
    results: dict[str, Any] = {}
    if frozen:
        coded = shared.coder.decode(*shared.coder.encode(shared.tests.pixels))
        results |= {REAL: measure_control(shared, shared.tests.pixels), CODED: measure_control(shared, coded),
                    BASE: measure_control(shared, before)}
        results[BASE]["frechet"] = frechet_of(shared, shared.base, setting, seed)
    branch = train_branch(shared, setting, seed, frozen)
    pixels = shared.generate(branch, conditions, setting, seed)
    after = shared.generate(branch, caption, setting, seed)
    name = FROZEN if frozen else JOINT
    results[name] = measure_control(shared, pixels) | {"frechet": frechet_of(shared, branch, setting, seed),
                                                       "same": torch.equal(before, after)}
    if frozen:
        other_keys = conditions | {KEY: conditions[KEY].roll(1, 0)}
        results[SHUFFLED] = measure_control(shared, shared.generate(branch, other_keys, setting, seed))
    return results


def measure(run: Run) -> list[Row]:
    setting = run.pick(SMALL, Setting())
    cells = run.cells({name: partial(run_arm, name == FROZEN, setting, run.seed) for name in (FROZEN, JOINT)})
    results = cells[FROZEN] | cells[JOINT]
    run.note(f"SpriteWorld: {setting.films:,} films to learn from and {setting.tests} others to go on with from their "
             "first frame, 5 frames of 24 x 24 pixels: a hero of 4 looks whom a key moves 2 pixels a frame, from one "
             "of 3 x 3 cells to the next, a stranger who walks at random, 3 grounds, and night, rain, fog or nothing "
             "from the third frame on; the world has no edges. Captions tell looks and ground, instructions what "
             "happens")
    run.note(f"autoencoder: {setting.coder} steps, 5 frames in 2 moments of 3 x 3 elements of 32 numbers; foundation: "
             f"width {setting.width}, {setting.pairs} pairs of blocks, {setting.base} steps of {setting.rows} films, "
             f"{WHOLE:.0%} of them made as a whole; branch: beside the first {setting.depth} blocks, as copies of them "
             f"to begin with, {setting.branch} steps, in which no film is made as a whole; all together: the same "
             "branch, steps and films, nothing held still, so that its Fréchet distance is of what these steps no "
             "longer teach")
    run.note(f"{setting.steps} steps of Euler, guidance {setting.guidance:g}, times shifted by {FLOW.shift:g}; the "
             "judges see colours in the pixels: where the hero went while a key was held, and what became of the "
             "light; Fréchet distance: of films made of captions alone, by features of an own network of frames")
    run.note("choices were made on another seed. Networks that said the element itself, divided by the time for its "
             "velocity, had most of their loss at small times, where the hero already shows in what they read: after "
             "300 steps, in worlds where he begins anywhere, their error at time 0.9 was 0.345 with the keys pressed "
             "and with those of other films. These networks are left what no straight guess knows, alike at all times, "
             "and a key moves the hero by just one element")
    return [{"arm": arm, "character": results[arm]["character"], "environment": results[arm]["environment"],
             "frechet": results[arm].get("frechet"), "same": results[arm].get("same")}
            for arm in (REAL, CODED, BASE, FROZEN, SHUFFLED, JOINT)]


def judge(table: list[Row]) -> tuple[Verdict, str]:
    by_arm = {row["arm"]: row for row in table}
    base, branch, shuffled, joint, real = (by_arm[arm] for arm in (BASE, FROZEN, SHUFFLED, JOINT, REAL))
    reason = (f"the hero obeys {branch['character']:.0%} of the keys under the branch, {base['character']:.0%} without,"
              f" {shuffled['character']:.0%} if they are another's, {joint['character']:.0%} if all is trained "
              f"together; the weather {branch['environment']:.0%}, {base['environment']:.0%} without; Fréchet distance "
              f"of films of captions {branch['frechet']:.3g}, all together {joint['frechet']:.3g}; told nothing, the "
              f"branch makes {'the same films, bit by bit' if branch['same'] else 'other films'}; the judges are right "
              f"about {min(real['character'], real['environment']):.1%} of real films")
    if min(real["character"], real["environment"]) < 0.98:
        return "inconclusive", reason
    if branch["character"] < base["character"] + 0.2 or not branch["same"]:
        return "refuted", reason
    holds = (branch["character"] >= 0.6 and base["character"] <= 0.35 and shuffled["character"] <= 0.3
             and branch["environment"] >= base["environment"] + 0.25 and joint["frechet"] > branch["frechet"])
    return ("confirmed" if holds else "inconclusive"), reason


def draw(figure: Figure, table: list[Row]) -> None:
    obeyed, distance = figure.subplots(1, 2, width_ratios=(3, 1))
    for index, (column, colour) in enumerate((("character", "tab:blue"), ("environment", "tab:green"))):
        heights = [i + 0.4 * (index - 0.5) for i in range(len(table))]
        obeyed.barh(heights, [row[column] for row in table], 0.38, color=colour, label=column)
    obeyed.axvline(1 / len(KEYS), color="black", linestyle=":", linewidth=1, label="a key by chance")
    obeyed.set_yticks(range(len(table)), [row["arm"] for row in table], fontsize=8)
    obeyed.invert_yaxis()
    obeyed.set(xlabel="obeyed", xlim=(0, 1), title="What was asked for, and happened")
    obeyed.legend(fontsize="x-small", loc="upper center", bbox_to_anchor=(0.5, -0.13), ncol=3)
    rows = [row for row in table if row["frechet"] is not None]
    distance.bar(range(len(rows)), [row["frechet"] for row in rows], color=["tab:grey", "tab:blue", "tab:orange"])
    distance.set_xticks(range(len(rows)), [row["arm"].replace(", ", ",\n") for row in rows], fontsize=6, rotation=20)
    distance.set(title="Captions alone", ylabel="Fréchet distance")


CLAIM = Claim(
    slug="gamegen-x",
    statement="A film model that stands still is brought under a player's control by a branch beside it, which learns "
              "keys and instructions without changing what the model makes when told nothing.",
    rule="on SpriteWorld, films gone on with from their first frame, obedience judged in the pixels: inconclusive if "
         "the judges are right about less than 98% of real films; refuted if keys raise what the hero obeys by less "
         "than 20 points over the foundation, or if the branch, told nothing, makes other films, bit by bit; confirmed "
         "if with keys the hero obeys at least 60%, the foundation at most 35%, keys of other films at most 30%, if "
         "instructions raise the weather that was asked for by at least 25 points over the foundation, and if training "
         "everything together as long makes films of captions alone of a larger Fréchet distance; else inconclusive",
    measure=measure, judge=judge, draw=draw,
    paper={"character / environment obeyed": "63.0% / 56.8%; OpenSora 21.6% / 14.2%, CogVideoX 23.0% / 30.3%",
           "ablation": "full 45.6% / 45.0%; trained together 32.7% / 23.3%; without InstructNet 12.3% / 17.5%",
           "generation, FID / FVD": "252.1 / 759.8; OpenSora-1.2 318.1 / 1016.3"},
)
