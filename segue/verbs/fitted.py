"""A fitted model: what `fit` and `load` give, with the verbs on it, and the folder it lives in."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from segue.analysis.forecast import Combination
from segue.continual import Memory
from segue.data import Data
from segue.errors import SegueError
from segue.files import atomic_write, held, read_json, workspace, write_json, write_text
from segue.kinds import KINDS, Codec, Kind
from segue.kinds.codecs import ItemCodec
from segue.mixers import MIXERS
from segue.models import Decodable, Stack, StackConfig
from segue.models.adapters import Adapter, load_adapter
from segue.models.bounded import bound_attention
from segue.models.cloze import ClozeModel
from segue.models.depth import DepthSchedule, Scheduled
from segue.models.stack import has_constant_state
from segue.objectives import ANY_ORDER
from segue.progress import Shown
from segue.training.checkpoint import load_into, load_tensors, save_tensors, weights_of
from segue.training.evaluate import (
    OURS,
    Evaluation,
    Ranks,
    Scored,
    nats_by,
    predicted_units,
    ranked_by,
    score,
    summarise,
    uniform_bits,
    unigram_nats,
    xz_bits,
)
from segue.training.recipe import bfloat16_pays
from segue.verbs.devices import place
from segue.verbs.given import as_data, none_known, said_as, said_unknown, unknown

if TYPE_CHECKING:
    from rich.console import RenderableType

    from segue.data import TokenStore
    from segue.decoding.draft import ModelDraft
    from segue.decoding.draft.heads import HeadsDraft
    from segue.decoding.rules import Rules
    from segue.models.counts import CountModel
    from segue.models.mixture import Mixture
    from segue.verbs.classify import Classified, Valued
    from segue.verbs.design import Designs
    from segue.verbs.embed import Embeddings
    from segue.verbs.prefer import PreferReport
    from segue.verbs.speed_up import SpeedUp
    from segue.verbs.update import Update

FORMAT = "segue model 1"
SELDOM = 0.005  # of items that their sequence had already
ASIDE = {"classes", "columns", "encoding"}  # options of reading that are of files, or that a codec knows itself
SAVING = "saving"  # in a model's folder, where the next one is written
PARTS = ("memory", "drafts", "states", "mixture.safetensors", "ngram.safetensors", "rivals.safetensors")  # of some
KEPT = "classes.safetensors"  # what `segue.verbs.classify` keeps in a model's folder


class Report(Shown):
    """What a fit did: plain values (`to_dict`), shown as a few lines."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self.values.get(name, default)

    def to_dict(self) -> dict[str, Any]:
        return self.values

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        v = self.values
        lines: list[Any] = []  # the choice was said when the fit began
        if "steps" in v:
            planned = v["plan"]["steps"]
            early = f" of {planned:,} (more did no better on held-out data)" if v["steps"] < planned else ""
            lines.append(Text(f"{v['steps']:,} steps{early}, {v['tokens']:,} tokens in {v['seconds']:.0f} s "
                              f"({v['tokens_per_s']:,.0f} tokens/s, {v['precision']}, {v['machine']})"))
        if v.get("held_out"):
            lines.append(self.held_out.__rich__())
        return Group(*lines)

    @property
    def held_out(self) -> Any:
        """The evaluation on held-out data."""
        return Evaluation(**self.values["held_out"])


class Fitted:
    """A model with the codec and the kind of its sequences.

    model: the network (a `Stack`, or a `ClozeModel` over one).
    codec, kind: of the sequences. report: how it was made and how good it is. context: elements a row it was trained
    on. counts: (V,) how often each token was in the training data (the unigram baseline). memory: what it keeps of the
    past, to learn on. mixture: the network with counts of its training data, if it was fitted so. ngram: a classical
    model of its training data to measure against, where there is no mixture. folder: where it is saved. heads: what
    `speed_up` trained to draft for it, and best_draft the name of the drafter that it found fastest. ends: the ids that
    end an answer. states: initial states that updates by the strategy "state" learned, by the names of those.
    """

    objective = "next"

    def __init__(self, model: Stack | ClozeModel, codec: Codec, kind: Kind, report: Report, context: int,
                 counts: np.ndarray | None = None, folder: Path | None = None, memory: Memory | None = None,
                 mixture: Mixture | None = None, ngram: CountModel | None = None) -> None:
        self.model, self.codec, self.kind, self.report = model, codec, kind, report
        self.context, self.counts, self.folder, self.memory = context, counts, folder, memory
        self.mixture, self.ngram = mixture, ngram
        self.heads: HeadsDraft | None = None
        self.best_draft: str | None = None
        self.ends = [] if codec.eos is None else [codec.eos]
        self.states: dict[str, Adapter] = {}
        self._engine: tuple[tuple[str, int], Decodable] | None = None
        if isinstance(model, Stack | ClozeModel):
            model.eval()

    def decodable(self, weights: str = "float32") -> Decodable:
        """What decoders run: the network in the compiled CPU engine where it has a compiled form, or with its steps
        recorded on a GPU, mixed with counts if it was fitted so. Attention looks back as far as in training
        (`segue.models.bounded`). weights: "float32", or "int8": matrices rounded to bytes, smaller and faster, a little
        worse.
        """
        network: Decodable = self.model
        where = self.device.type
        if isinstance(self.model, Stack) and (where == "cpu" or (where == "cuda" and weights == "float32")):
            # The engine holds weights of its own, a recording their addresses: made again when the network has moved.
            key = (weights, sum(p._version for p in self.model.parameters()))
            if self._engine is None or self._engine[0] != key:
                self._engine = key, self._fast(self._reach(self.model), weights, where)
            network = self._engine[1]
        elif weights != "float32":
            raise SegueError(f"weights '{weights}' need a native model on the CPU: leave them out")
        return network if self.mixture is None else self.mixture.with_network(network)

    def _reach(self, stack: Stack) -> Stack:
        """The stack, seeing as much of the past as it has learned to."""
        return bound_attention(stack, self.context)

    @staticmethod
    def _fast(stack: Stack, weights: str, where: str) -> Decodable:
        """The fastest form of a stack there."""
        from segue.models.compiled import accelerate
        from segue.models.recorded import Recorded

        if where == "cuda":
            return Recorded(stack)
        try:
            return accelerate(stack, weights)
        except SegueError:
            if weights != "float32":
                raise
            return stack

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return torch.device(getattr(self.model, "device", None) or next(self.model.parameters()).device)

    def to(self, device: str | torch.device) -> Self:
        """Move the model with what it has learned beside, and stay there; see `segue.verbs.devices`."""
        where = place(device)
        if where.type != self.device.type or where.index not in (None, self.device.index):
            self._engine = None
            self.model.to(where)
            for state in self.states.values():
                state.to(where)
            if self.heads is not None:
                self.heads = self.heads.to(where)
        return self

    @contextmanager
    def placed(self, device: str | None, weights: str = "float32") -> Iterator[None]:
        """Within, the model is where what reads much at once belongs, if nothing else is said; see
        `segue.verbs.devices`."""
        before, where = self.device, place(device if weights == "float32" else device or "cpu")
        self.to(where)
        try:
            yield
        finally:
            self.to(before)

    @contextmanager
    def begun(self, state: str | None) -> Iterator[None]:
        """Within, the model begins where the update of that name learned to (see `states`); None: as ever."""
        if state is None:
            yield
            return
        if state not in self.states:
            raise SegueError(f"there is no state '{state}': " + (f"choose from {', '.join(self.states)}" if self.states
                                                                 else "learn one with update and the strategy state"))
        before, self._engine = self._engine, None
        self.states[state].attach(self.model)
        try:
            yield
        finally:
            self.states[state].detach()
            self._engine = before

    @property
    def once(self) -> bool:
        """Whether hardly an item came again within the sequences that it was fitted on."""
        return float(self.report.get("repeats", 1.0)) < SELDOM

    @property
    def combination(self) -> Combination | None:
        """The simple forecast that, combined with its own, made forecasts better in what was held out."""
        if (said := self.report.get("combination")) is None:
            return None
        try:
            found = Combination(said["name"], said["weight"], tuple(map(int, said["lags"])))
        except (TypeError, KeyError, ValueError) as error:
            raise SegueError(f"report.json says nothing that forecasts can be combined with ({said!r:.60}): copy the "
                             "folder again, or take 'combination' out of it") from error
        if len(found.lags) != len(self.codec.turns()):
            raise SegueError(f"report.json has lags of {len(found.lags)} columns, the model has "
                             f"{len(self.codec.turns())}: copy the folder again")
        return found

    @property
    def reading(self) -> dict[str, Any]:
        """The options by which files are read as those that it was fitted on, and as its codec needs them."""
        said = self.report.get("reading")
        kept = {name: value for name, value in said.items() if name not in ASIDE} if isinstance(said, dict) else {}
        return kept | self.kind.reading(self.codec)

    def otherwise(self, data: Data) -> list[str]:
        """What is to be told where data were read in another way than those that it was fitted on."""
        if data.reading is None:
            return []
        needed = {*self.kind.reading(self.codec), *ASIDE}
        ours, theirs = ({name: value for name, value in said.items() if name not in needed}
                        for said in (self.report.get("reading") or {}, data.reading))
        return [f"the data were read {said_as(name, theirs)}, those that the model was fitted on {said_as(name, ours)}"
                for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]

    @property
    def processors(self) -> tuple[Rules, ...]:
        """What rules tokens out, or forces them, in every answer that is served."""
        return ()

    def scheduled(self, schedule: DepthSchedule) -> Decodable:
        """What decoders run where each next element is read by fewer layers, in plain torch (see `models.depth`)."""
        if not isinstance(self.model, Stack):
            raise SegueError("depth is for native models, of which some layers can be left out: leave it out here")
        network = Scheduled(self._reach(self.model), schedule)
        return network if self.mixture is None else self.mixture.with_network(network)

    def continue_(self, prime: Any = "", n: int | None = None, decoder: str | None = None, **options: Any) -> Any:
        """What comes after `prime` (an object of the kind, or a path to one), begun in a learned state where the option
        `state` names one (see `begun`); see `segue.decoding.continuation.continue_`, which takes the other options."""
        given: dict[str, Any] = {k: v for k, v in {"n": n, "decoder": decoder}.items() if v is not None}
        if isinstance(draft := options.get("draft"), str | Path) and Path(draft).is_dir():
            options["draft"] = self._drafter(Path(draft))
        from segue.decoding.continuation import continue_

        with self.begun(options.pop("state", None)):
            return continue_(self, prime, **given, **options)

    def _drafter(self, folder: Path) -> ModelDraft:
        """The model in `folder` drafts for this one."""
        from segue.decoding.draft import ModelDraft

        small = load(folder)
        if small.codec != self.codec:
            raise SegueError(f"{folder} reads with another codec than this model: fit it with codec=model.codec")
        return ModelDraft(small.decodable())

    def update(self, data: Any, strategy: str | None = None, device: str | None = None, **options: Any) -> Update:
        """Learn more data on top, with a strategy against forgetting; see `segue.verbs.update`. device: see
        `segue.verbs.devices`, as everywhere here."""
        from segue.verbs.update import update

        with self.placed(device):
            return update(self, self.read(data), strategy or "replay", **options)

    def prefer(self, pairs: Any, steps: int | None = None, device: str | None = None, **options: Any) -> PreferReport:
        """Learn from pairs which of two continuations is better; see `segue.verbs.prefer`."""
        from segue.verbs.prefer import prefer

        with self.placed(device):
            return prefer(self, pairs, steps, **options)

    def speed_up(self, data: Any, minutes: float | None = None, **options: Any) -> SpeedUp:
        """Find the drafter that makes `continue_` fastest on `data`, and keep it; see `segue.verbs.speed_up`."""
        from segue.verbs.speed_up import speed_up

        return speed_up(self, self.read(data), minutes, **options)

    def design(self, scores: Any, n: int = 100, **options: Any) -> Designs:
        """Propose n new sequences from a table of measured ones; see `segue.verbs.design`."""
        from segue.verbs.design import design

        return design(self, scores, n, **options)

    def embed(self, data: Any, pool: str = "", device: str | None = None, **options: Any) -> Embeddings:
        """One vector for each sequence of `data` (a `Data`, paths or objects); see `segue.verbs.embed`."""
        from segue.verbs.embed import embed

        with self.placed(device):
            return embed(self, self.read(data), pool, **options)

    def classify(self, data: Any = None, new: Any = None, *, test: Any = None, label: str | None = None,
                 **options: Any) -> Classified | Valued:
        """Of which class sequences are, or what number was measured of them; see `segue.verbs.classify`."""
        from segue.verbs.classify import classify, reading

        saying = reading(self.kind, label)
        learned, held = (None if each is None else self.read(each, **saying) for each in (data, test))
        return classify(self, learned, None if new is None else self.read(new), test=held, label=label, **options)

    def evaluate(self, data: Any, weights: str = "float32", state: str | None = None,
                 device: str | None = None) -> Evaluation:
        """Bits per unit on `data` (a `Data`, paths or objects), beside baselines on the same documents; of measured
        numbers also errors of forecasts (see `segue.verbs.forecast`).

        weights: "int8" measures what rounding the network costs, see `decodable`. state: see `begun`.
        """
        data = self.read(data)
        self.check_kind(data)
        if (share := unknown(self.codec, data)) == 1:
            raise none_known(data)
        with self.placed(device, weights), self.begun(state):
            found = self.scored(data, weights, share)
            found.notes += self.otherwise(data)
            if self.codec.turns() and self.objective not in ANY_ORDER:
                from segue.verbs.forecast import forecast_errors

                found.forecasts, line = forecast_errors(self, data, weights)
                found.notes.append(line)
            return found

    def variants(self, data: Any, variants: str | Path, **options: Any) -> list[dict[str, Any]]:
        """What the model thinks of the variants in a VCF file: one row for each, with `score`, by how much the
        alternative is likelier than the reference (nats; see `segue.analysis.variants.variant_scores`, which takes
        the options). data: the sequences in which they stand, by the names that the file gives."""
        from segue.analysis.variants import read_variants, variant_scores

        data = self.read(data)
        self.check_kind(data)
        if not has_constant_state(self.model):  # no more than it has learned to read
            options.setdefault("before", min(1500, max(1, self.context // 2) * int(self.codec.weights().max())))
        where = {data.name(i).rpartition(":")[2]: i for i in range(len(data))}
        rows: list[dict[str, Any]] = []
        wanted = read_variants(variants)
        for name in dict.fromkeys(name for name, _ in wanted):
            if name not in where:
                raise SegueError(f"{variants}: no sequence is called '{name}' (but {', '.join(list(where)[:5])} ...): "
                                 "give the reference that the variants were called against")
            those = [variant for each, variant in wanted if each == name]
            try:
                scores = variant_scores(self.decodable(), self.codec, data[where[name]].object, those,  # type: ignore[arg-type]
                                        **{"strands": self.kind.name == "dna", **options})
            except SegueError as error:
                raise SegueError(f"{variants}, sequence {name}: {error}") from error
            rows += [{"sequence": name, "position": at + 1, "reference": reference, "alternative": alternative,
                      "score": float(score)} for (at, reference, alternative), score in zip(those, scores)]
        return rows

    def scored(self, data: Data, weights: str = "float32", strange: float = 0.0) -> Evaluation:
        """As `evaluate`, of data that may be strange to the model: that share of their items has no token."""
        store = data.encode(self.codec)
        notes = [said_unknown(strange, data)] if strange else []
        ranks = Ranks(store, len(self.codec.items)) \
            if isinstance(self.codec, ItemCodec) and self.kind.unit == "event" and \
            self.objective not in ANY_ORDER else None
        scored, path = self.scores(store, weights, ranks)
        units = predicted_units(store, self.codec)
        total = max(1, int(units.sum()))
        baselines = {"uniform": math.log2(self.codec.size) * int(scored.counts.sum()) / total}
        if self.kind.storage == "letters" and self.counts is not None:
            baselines["uniform"] = uniform_bits(self.counts, store, self.codec.weights()) / total
        if self.counts is not None:
            baselines["unigram"] = unigram_nats(self.counts, store) / total / math.log(2)
        ngram = self.mixture.counts.classical() if self.mixture is not None else self.ngram
        ranks = ranks if ranks is not None and any(map(len, ranks.found)) else None
        ranked = {} if ranks is None else {OURS: ranks.done()}
        if ngram is not None:
            nats = -sum(ngram.log_probabilities(sequence)[1:].sum() for sequence in store)
            baselines[f"Kneser-Ney of order {ngram.order}"] = float(nats) / total / math.log(2)
        if ngram is not None and ranks is not None:
            first = ngram.classical(1, "witten-bell")
            nats = -sum(first.log_probabilities(sequence)[1:].sum() for sequence in store)
            baselines["counts of order 1"] = float(nats) / total / math.log(2)
            for name, model in (("unigram", ngram.classical(0, "none")), ("counts of order 1", first),
                                (f"Kneser-Ney of order {ngram.order}", ngram)):
                ranked[name] = ranked_by(model, store, ranks.another())
            notes.append("ranks among all items" + (", but for those that a sequence had already" if ranks.fresh else
                                                    ", those that a sequence had already too"))
        if (advisor := getattr(None if self.mixture is None else self.mixture.counts, "advisor", None)) is not None:
            nats = nats_by(advisor, store, None if ranks is None else (alone := ranks.another()))
            baselines[advisor.name] = nats / total / math.log(2)
            if ranks is not None:
                ranked[advisor.name] = alone.done()
        if self.kind.storage in ("bytes", "letters"):
            whole = b"".join(data.values(i).tobytes() for i in range(len(data)))
            baselines["xz -9e"] = xz_bits(whole) / int(store.units.sum())
        return summarise(scored, units, self.kind.unit, path, baselines, notes, ranked)

    def scores(self, store: TokenStore, weights: str, ranks: Ranks | None = None) -> tuple[Scored, str]:
        """The scores of encoded data, and which code ran. ranks: gathers how high the next items are ranked."""
        running: Any = (self.mixture or self.model) if weights == "float32" else self.decodable(weights)
        # A state carried through a long document would gather the rounding of bfloat16; a window does not.
        windows = isinstance(self.model, Stack) and weights == "float32" and not has_constant_state(self.model)
        precision = "bfloat16" if windows and bfloat16_pays(self.device) else "float32"
        if self.mixture is not None:
            from segue.verbs import mixed  # brings Numba, which loading a model need not wait for

            scored = mixed.score(running, store, self.context, precision, ranks)
        else:
            context = None if has_constant_state(self.model) else self.context
            scored = score(running, store, context, precision=precision, ranks=ranks)
        return scored, running.path + (", bfloat16 products" if precision == "bfloat16" else "")

    def read(self, data: Any, **options: Any) -> Data:
        """A `Data`, paths or objects, of this model's kind and read as its codec needs them. options: of the kind's
        `read`, besides."""
        return as_data(data, self.kind.name, **self.reading | options)

    def check_kind(self, data: Data) -> None:
        """Refuse data whose elements are not those of this model."""
        if data.kind.storage != self.kind.storage:
            raise SegueError(f"this model is of {self.kind.name}, the data are {data.kind.name}: "
                             "give data of the same kind")

    # The folder.

    def save(self, folder: str | Path) -> Path:
        """Write config.json, model.safetensors, codec/, report.json and README.md into a folder. They are moved there
        when all of them are written: a full disk leaves the folder as it was. Of a model that was there nothing stays
        that this one has not, such as counts; an update that is unfinished does."""
        folder = Path(folder)
        if folder.exists() and not folder.is_dir():
            raise SegueError(f"{folder} is a file: choose another place for the model")
        with moved_in(folder) as new:
            self.write(new)
            was = (folder / "config.json").exists() and FORMAT in (folder / "config.json").read_text("utf-8", "replace")
            gone = [folder / part for part in PARTS if was and not (new / part).exists()]
        for part in gone:
            shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)
        self.folder = folder
        return folder

    def write(self, folder: Path) -> None:
        """The files of `save`, one by one, into a new folder."""
        if not isinstance(self.model, Stack | ClozeModel):
            raise SegueError(f"a {type(self.model).__name__} has no folder that load knows: keep its weights with "
                             "segue.training.checkpoint.save_tensors(path, model.state_dict())")
        tensors = weights_of(self.model)
        if self.counts is not None:
            tensors["unigram"] = torch.from_numpy(np.asarray(self.counts, dtype=np.int64))
        self.codec.save(folder / "codec")
        if self.memory is not None:
            self.memory.save(folder / "memory")
        if self.mixture is not None:
            self.mixture.save(folder)
        if self.ngram is not None:
            self.ngram.save(folder, "ngram")
        self.save_drafts(folder)
        self.save_classes(folder)
        for index, state in enumerate(self.states.values()):
            state.save(folder / "states" / f"{index}.safetensors")
        if self.states:
            write_json(folder / "states" / "names.json", list(self.states))
        save_tensors(folder / "model.safetensors", tensors)
        cloze = {"cloze": self.model.length} if isinstance(self.model, ClozeModel) else {}
        write_json(folder / "config.json", {"format": FORMAT, "kind": self.kind.name, "context": self.context, **cloze,
                                            **({} if self.objective == "next" else {"objective": self.objective}),
                                            "model": self.model.config.to_dict()})
        write_text(folder / "README.md", self.card())
        write_json(folder / "report.json", self.report.to_dict())

    def save_drafts(self, folder: Path) -> None:
        """Write what `speed_up` found into the model's folder."""
        if self.best_draft is not None:
            if self.heads is not None:
                self.heads.save(folder / "drafts" / "heads.safetensors")
            write_json(folder / "drafts" / "best.json", {"draft": self.best_draft, "heads": self.heads is not None})

    def save_classes(self, folder: Path) -> None:
        """Take along the classes that were kept where the model comes from; those of other weights are refused when
        they are asked for."""
        path = None if self.folder is None or folder.resolve() == self.folder.resolve() else self.folder / KEPT
        if path is not None and path.exists():
            with atomic_write(folder / KEPT) as temporary:
                shutil.copyfile(path, temporary)

    def load_drafts(self, folder: Path) -> None:
        """Read what `save_drafts` wrote, if anything."""
        path = folder / "drafts" / "best.json"
        if not path.exists():
            return
        from segue.decoding.draft import DRAFTERS
        from segue.decoding.draft.heads import HeadsDraft

        values = read_json(path)
        best = values.get("draft") if isinstance(values, dict) else None
        if best not in (*DRAFTERS, "counts", "heads", "none"):
            raise SegueError(f"{path} names no drafter of this version: run segue speed-up again, or remove it")
        self.heads = HeadsDraft.load(path.parent / "heads.safetensors", self.model) if values.get("heads") else None
        self.best_draft = best

    def load_states(self, folder: Path) -> None:
        """Read the initial states in the model's folder, if there are any."""
        if not (path := folder / "states" / "names.json").exists():
            return
        names = read_json(path)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise SegueError(f"{path} does not name the states beside it: copy the folder again")
        self.states = {name: load_adapter(path.parent / f"{index}.safetensors") for index, name in enumerate(names)}

    def card(self) -> str:
        """The README of a model's folder."""
        report, config = self.report.to_dict(), self.model.config
        size = sum(p.numel() for p in self.model.parameters())
        lines = [f"# A model of {self.kind.name} sequences", "",
                 f"- {size:,} parameters: {len(config.mixers)} blocks ({', '.join(dict.fromkeys(config.mixers))}) of "
                 f"width {config.width} over {config.vocabulary:,} tokens, rows of {self.context} elements."]
        if self.mixture is not None:
            lines.append(f"- Mixed with {self.mixture.counts.path} of its training data.")
        if "steps" in report:
            lines.append(f"- Trained on {report['train_units']:,} {self.kind.unit}s ({report['train_documents']:,} "
                         f"sequences): {report['steps']:,} steps, {report['tokens']:,} tokens, "
                         f"{report['seconds']:.0f} s, seed {report['plan']['seed']}, on {report['machine']}.")
        if held := report.get("held_out"):
            low, high = held["interval"]
            most = "at most " if self.objective in ANY_ORDER else ""
            lines.append(f"- Held out: {most}{held['bits_per_unit']:.3f} bits per {held['unit']} (95%: {low:.3f} to "
                         f"{high:.3f}) on {held['units']:,} {held['unit']}s; " +
                         ", ".join(f"{name} {bits:.3f}" for name, bits in held["baselines"].items()) + ".")
            if ranked := held.get("ranking", {}).get(OURS):
                lines.append("- Ranks of what comes next, among all: " +
                             ", ".join(f"{name} {value:.3f}" for name, value in ranked.items()) + ".")
        lines += ["", "```", "segue continue . 'a beginning'", "segue evaluate . FILES", "segue update . NEW-FILES",
                  "```", "", "Files: config.json (shape), model.safetensors (weights), codec/ (tokens), report.json "
                  "(how it was made). Nothing in it is executed when it is loaded.", ""]
        return "\n".join(lines)


def load(folder: str | Path, device: str | None = None) -> Fitted:
    """Load a model that `fit` or `save` wrote, or a local Hugging Face folder. Everything is checked; nothing in the
    folder is executed. device: where the model goes (default: the CPU), see `segue.verbs.devices`."""
    where = place(device or "cpu")  # refused before anything is read
    return opened(Path(folder)).to(where)


def opened(folder: Path) -> Fitted:
    """The model in a folder, on the CPU."""
    if not folder.is_dir():
        raise SegueError(f"{folder} is not a folder: give the folder that fit wrote")
    if not (folder / "config.json").exists() and (folder / "training" / "plan.json").exists():
        raise SegueError(f"{folder} holds a fit that has not ended: run the same fit command again to go on")
    for work in (folder / "updating", folder / SAVING):
        if (work / "complete.json").exists():
            with suppress(FileNotFoundError), held(work):  # not there: whoever was at it has just finished
                roll_forward(work)
    values = read_json(folder / "config.json")
    if isinstance(values, dict) and "format" not in values and "model_type" in values:
        from segue.verbs.huggingface import load_huggingface

        foreign = load_huggingface(folder)
        foreign.load_drafts(folder)
        return foreign
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise SegueError(f"{folder / 'config.json'} is not the config of a segue model (format '{FORMAT}'): give "
                         "the folder that fit wrote")
    if "process" in values:
        from segue.verbs.timed import load_process

        return load_process(folder, values)
    kind, context, model = described(folder / "config.json", values)
    tensors, _ = load_tensors(folder / "model.safetensors")
    counts = tensors.pop("unigram", None)
    load_into(model, tensors, folder / "model.safetensors")
    codec = Codec.load(folder / "codec")
    made = fitted_by(values.get("objective", "next"))
    if codec.size != model.vocabulary - (made.objective in ANY_ORDER):
        raise SegueError(f"{folder}: the codec has {codec.size} tokens, the model {model.vocabulary}; "
                         "were the two copied from different models?")
    report = read_json(folder / "report.json")
    if not isinstance(report, dict):
        raise SegueError(f"{folder / 'report.json'} is not a report: copy the folder again")
    memory = Memory.load(folder / "memory") if (folder / "memory").exists() else None
    mixture = None
    if (folder / "mixture.safetensors").exists():
        from segue.models.mixture import Mixture

        mixture = Mixture.load(model, folder)
    ngram = None
    if (folder / "ngram.safetensors").exists():
        from segue.models.counts import CountModel

        ngram = CountModel.load(folder, "ngram")
    fitted = made(model, codec, kind, Report(report), context, None if counts is None else counts.numpy(), folder,
                  memory, mixture, ngram)
    fitted.load_drafts(folder)
    fitted.load_states(folder)
    return fitted


def described(path: Path, values: dict[str, Any]) -> tuple[Kind, int, Stack | ClozeModel]:
    """The kind, the elements a row and the network, its weights still to be read, of a model's config.json."""
    try:
        kind, context, shape = KINDS[values["kind"]], int(values["context"]), dict(values["model"])
        config = StackConfig.from_dict(shape)
        check_config(config)
        stack = Stack(config)
        return kind, context, ClozeModel(stack, int(values["cloze"])) if "cloze" in values else stack
    except SegueError as error:
        raise SegueError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, AssertionError) as error:
        raise SegueError(f"{path} does not describe a model ({type(error).__name__}: {error})") from error


def fitted_by(objective: str) -> type[Fitted]:
    """What a model is that was fitted by an objective: one that goes on, or one that writes in any order."""
    if objective not in ANY_ORDER:
        return Fitted
    from segue.verbs.diffused import Diffused

    return Diffused


def check_config(config: StackConfig) -> None:
    """Values of a sane size and type, before memory is asked for."""
    for name, least, most in (("vocabulary", 1, 1 << 24), ("width", 1, 1 << 16)):
        value = getattr(config, name)
        if not isinstance(value, int) or not least <= value <= most:
            raise SegueError(f"{name} is {value!r}, not a whole number from {least} to {most}")
    if not isinstance(config.mixers, list) or not all(isinstance(m, str) for m in config.mixers):
        raise SegueError("mixers is not a list of names")
    for mixer in config.mixers:
        if mixer.partition(":")[0] not in MIXERS:
            raise SegueError(f"mixer '{mixer}' is unknown: choose from {', '.join(sorted(MIXERS))}")


@contextmanager
def moved_in(folder: Path) -> Iterator[Path]:
    """Yield a place for a new model, which is moved into `folder` at the end, over what is of the same name there; on
    any failure before that, `folder` stays as it was. A move that was cut short is finished by whoever opens it."""
    fresh, work = not folder.exists(), folder / SAVING
    try:
        with workspace(work):
            if (work / "complete.json").exists():
                roll_forward(work)
            shutil.rmtree(work / "new", ignore_errors=True)  # what a kill has left
            yield work / "new"
            write_json(work / "complete.json", {})
            roll_forward(work)
    except BaseException:
        if not (work / "complete.json").exists():
            shutil.rmtree(work, ignore_errors=True)
        if fresh:
            with suppress(OSError):
                folder.rmdir()
        raise


def roll_forward(work: Path) -> None:
    """Move the new model in a folder within another, which is complete, over the old one in that; again, where a move
    was cut short."""
    folder = work.parent
    for new in sorted((work / "new").glob("*")):  # none where the clearing up was cut short
        old = folder / new.name
        if old.is_dir():
            shutil.rmtree(old)
        os.replace(new, old)
    for rest in work.iterdir():  # what says that it is complete goes last: whoever comes after a kill begins here again
        if rest.is_dir():
            shutil.rmtree(rest)
        elif rest.name != "complete.json":
            rest.unlink()
    shutil.rmtree(work)
