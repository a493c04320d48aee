"""A fitted model, as `fit` and `load` return it: its methods are the verbs, and it can be saved to a folder."""

from __future__ import annotations

import json
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
    RankCollector,
    Scored,
    count_model_ranks,
    predicted_units,
    score,
    sequence_nats,
    summarise,
    uniform_bits,
    unigram_nats,
    xz_bits,
)
from segue.training.recipe import bfloat16_pays
from segue.verbs.devices import place
from segue.verbs.inputs import as_data, describe_option, describe_unknown, nothing_known_error, unknown_share

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
    from segue.verbs.update import Update, UpdateJob

FORMAT = "segue model 1"
RARE_REPEATS = 0.005  # share of items that occurred before in their sequence, below which repeats are avoided
FILE_OPTIONS = {"classes", "columns", "encoding"}  # options of `read` that depend on the file, or are in the codec
SAVING = "saving"  # subfolder in which a new version of the model is written
OPTIONAL_FILES = ("memory", "drafts", "states", "mixture.safetensors", "ngram.safetensors", "rivals.safetensors")
CLASSES_FILE = "classes.safetensors"  # written by `segue.verbs.classify`


class Report(Shown):
    """The report of a fit: plain values (`to_dict`), printed as a few lines."""

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
        lines: list[Any] = []  # the choice was printed when the fit began
        if "steps" in v:
            planned = v["plan"]["steps"]
            stopped_early = f" of {planned:,} (more did no better on held-out data)" if v["steps"] < planned else ""
            first = v.get("planned_steps", planned)
            speed = "longer" if planned < first else "less"
            pace = f" ({first:,} were planned: a step took {speed} than at first)" if planned != first else ""
            lines.append(Text(f"{v['steps']:,} steps{stopped_early}{pace}, {v['tokens']:,} tokens in "
                              f"{v['seconds']:.0f} s ({v['tokens_per_s']:,.0f} tokens/s, {v['precision']}, "
                              f"{v['machine']})"))
        if v.get("held_out"):
            lines.append(self.held_out.__rich__())
        return Group(*lines)

    @property
    def held_out(self) -> Any:
        """The evaluation on held-out data."""
        return Evaluation(**self.values["held_out"])


class Fitted:
    """A network with the codec and the kind of its sequences.

    model: the network (a `Stack`, or a `ClozeModel` over one). codec, kind: of the sequences.
    report: how it was made and how good it is. context: elements per training row.
    counts: (V,) token counts of the training data (the unigram baseline).
    memory: stored pieces of its training data, for updates. folder: where it is saved, if it is.
    mixture: the network mixed with counts of its training data, if it was fitted so.
    ngram: without a mixture, a count model of the training data to compare to.
    heads: draft heads that `speed_up` trained; best_draft: the name of the drafter that it found fastest.
    ends: ids that end an answer. states: by name, initial states learned by updates with the strategy "state".
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
        """The form of the model that decoders run: mixed with counts if it was fitted so, and as fast as possible.

        On the CPU this is the compiled engine if the network has a compiled form, on a GPU a recorded graph. Attention
        is limited to the context of training (`segue.models.bounded`). weights: "float32", or "int8" for matrices
        rounded to bytes: smaller and faster, and slightly less accurate.
        """
        network: Decodable = self.model
        device_type = self.device.type
        if isinstance(self.model, Stack) and (device_type == "cpu" or (device_type == "cuda" and weights == "float32")):
            # The engine copies the weights and a recording holds their addresses: rebuilt when a weight has changed.
            key = (weights, sum(p._version for p in self.model.parameters()))
            if self._engine is None or self._engine[0] != key:
                self._engine = key, self._accelerated(self._bounded(self.model), weights, device_type)
            network = self._engine[1]
        elif weights != "float32":
            raise SegueError(f"weights '{weights}' need a native model on the CPU: leave them out")
        return network if self.mixture is None else self.mixture.with_network(network)

    def _bounded(self, stack: Stack) -> Stack:
        """The stack with attention limited to the context of training."""
        return bound_attention(stack, self.context)

    @staticmethod
    def _accelerated(stack: Stack, weights: str, device_type: str) -> Decodable:
        """The fastest form of the stack on a device of type `device_type`."""
        from segue.models.compiled import accelerate
        from segue.models.recorded import Recorded

        if device_type == "cuda":
            return Recorded(stack)
        try:
            return accelerate(stack, weights)
        except SegueError:
            if weights != "float32":
                raise
            return stack

    @property
    def device(self) -> torch.device:
        """The device the model is on."""
        return torch.device(getattr(self.model, "device", None) or next(self.model.parameters()).device)

    def to(self, device: str | torch.device) -> Self:
        """Move the model, with its learned states and draft heads; see `segue.verbs.devices`."""
        target = place(device)
        if target.type != self.device.type or target.index not in (None, self.device.index):
            self._engine = None
            self.model.to(target)
            for state in self.states.values():
                state.to(target)
            if self.heads is not None:
                self.heads = self.heads.to(target)
        return self

    @contextmanager
    def on_device(self, device: str | None, weights: str = "float32") -> Iterator[None]:
        """Context in which the model is on `device` (default: a GPU if there is one, since the callers process much
        data at once; see `segue.verbs.devices`). Afterwards it is moved back to its previous device."""
        before, target = self.device, place(device if weights == "float32" else device or "cpu")
        self.to(target)
        try:
            yield
        finally:
            self.to(before)

    @contextmanager
    def from_state(self, state: str | None) -> Iterator[None]:
        """Context in which the model starts from a learned initial state (see `states`); None: from its default one."""
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
    def rarely_repeats(self) -> bool:
        """Whether items hardly ever occur twice in one training sequence (then decoding forbids repeats by default)."""
        return float(self.report.get("repeats", 1.0)) < RARE_REPEATS

    @property
    def combination(self) -> Combination | None:
        """The simple forecast that improved the model's own on held-out data when averaged with it, if there is one."""
        if (saved := self.report.get("combination")) is None:
            return None
        try:
            combination = Combination(saved["name"], saved["weight"], tuple(map(int, saved["lags"])))
        except (TypeError, KeyError, ValueError) as error:
            raise SegueError(f"report.json says nothing that forecasts can be combined with ({saved!r:.60}): copy the "
                             "folder again, or take 'combination' out of it") from error
        if len(combination.lags) != len(self.codec.turns()):
            raise SegueError(f"report.json has lags of {len(combination.lags)} columns, the model has "
                             f"{len(self.codec.turns())}: copy the folder again")
        return combination

    @property
    def reading(self) -> dict[str, Any]:
        """Options of the kind's `read` that treat new files like the training files, and as the codec needs them."""
        saved = self.report.get("reading")
        options = saved.items() if isinstance(saved, dict) else ()
        return {name: value for name, value in options if name not in FILE_OPTIONS} | self.kind.reading(self.codec)

    def reading_differences(self, data: Data) -> list[str]:
        """Notes on options of `read` in which `data` differ from the training data."""
        if data.reading is None:
            return []
        ignored = {*self.kind.reading(self.codec), *FILE_OPTIONS}
        fitted_options, data_options = ({name: value for name, value in options.items() if name not in ignored}
                                        for options in (self.report.get("reading") or {}, data.reading))
        return [f"the data were read {describe_option(name, data_options)}, those that the model was fitted on "
                f"{describe_option(name, fitted_options)}"
                for name in sorted({*fitted_options, *data_options})
                if fitted_options.get(name) != data_options.get(name)]

    @property
    def processors(self) -> tuple[Rules, ...]:
        """Rules that forbid or force tokens in every answer of the server; none by default."""
        return ()

    def scheduled(self, schedule: DepthSchedule) -> Decodable:
        """The form that decoders run when later elements use fewer layers, in plain torch (see `models.depth`)."""
        if not isinstance(self.model, Stack):
            raise SegueError("depth is for native models, of which some layers can be left out: leave it out here")
        network = Scheduled(self._bounded(self.model), schedule)
        return network if self.mixture is None else self.mixture.with_network(network)

    def continue_(self, prime: Any = "", n: int | None = None, decoder: str | None = None, **options: Any) -> Any:
        """Continue `prime` (an object of the kind, or a path to one). An option `state` names a learned initial state
        (see `from_state`); the other options are those of `segue.decoding.continuation.continue_`."""
        explicit: dict[str, Any] = {k: v for k, v in {"n": n, "decoder": decoder}.items() if v is not None}
        if isinstance(draft := options.get("draft"), str | Path) and Path(draft).is_dir():
            options["draft"] = self._load_drafter(Path(draft))
        from segue.decoding.continuation import continue_

        with self.from_state(options.pop("state", None)):
            return continue_(self, prime, **explicit, **options)

    def _load_drafter(self, folder: Path) -> ModelDraft:
        """A drafter that runs the model saved in `folder`, which must have the same codec."""
        from segue.decoding.draft import ModelDraft

        small = load(folder)
        if small.codec != self.codec:
            raise SegueError(f"{folder} reads with another codec than this model: fit it with codec=model.codec")
        return ModelDraft(small.decodable())

    def update_job(self) -> UpdateJob:
        """What updates need to know of this sort of model."""
        from segue.verbs.update import UpdateJob

        return UpdateJob(self)

    def update(self, data: Any, strategy: str | None = None, device: str | None = None,
               out: str | Path | None = None, **options: Any) -> Update:
        """Train on more data, with a strategy against forgetting; see `segue.verbs.update`. device: here and below, see
        `segue.verbs.devices`. out: a new folder for what is learned (default: the model's own)."""
        from segue.verbs.update import update

        self.learn_in(out)
        with self.on_device(device):
            return update(self, self.read(data), strategy or "replay", **options)

    def learn_in(self, out: str | Path | None) -> None:
        """Save the model to the new folder `out` before it learns, which is then its own; None: leave it where it is.
        What was begun there (the model was saved, an update is unfinished) goes on."""
        if out is None:
            return
        folder = Path(out)
        report = read_json(folder / "report.json") if (folder / "report.json").exists() else None
        if report is not None and report == json.loads(json.dumps(self.report.to_dict())):
            self.folder = folder
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise SegueError(f"{folder} is no empty folder: choose another place for what is learned")
        else:
            self.save(folder)

    def prefer(self, pairs: Any, steps: int | None = None, device: str | None = None,
               out: str | Path | None = None, **options: Any) -> PreferReport:
        """Learn from pairs of a better and a worse continuation; see `segue.verbs.prefer`. out: as of `update`."""
        from segue.verbs.prefer import prefer

        self.learn_in(out)
        with self.on_device(device):
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

        with self.on_device(device):
            return embed(self, self.read(data), pool, **options)

    def classify(self, data: Any = None, new: Any = None, *, test: Any = None, label: str | None = None,
                 **options: Any) -> Classified | Valued:
        """Predict the class of sequences, or a number measured on them; see `segue.verbs.classify`."""
        from segue.verbs.classify import classify, reading_options

        options_of_read = reading_options(self.kind, label)
        train, test_data = (None if each is None else self.read(each, **options_of_read) for each in (data, test))
        return classify(self, train, None if new is None else self.read(new), test=test_data, label=label, **options)

    def evaluate(self, data: Any, weights: str = "float32", state: str | None = None,
                 device: str | None = None) -> Evaluation:
        """Measure bits per unit on `data` (a `Data`, paths or objects) with baselines on the same documents; for
        measured numbers also forecast errors (see `segue.verbs.forecast`).

        weights: "int8" measures the rounded network, see `decodable`. state: see `from_state`.
        """
        data = self.read(data)
        self.check_kind(data)
        if (share := unknown_share(self.codec, data)) == 1:
            raise nothing_known_error(data)
        with self.on_device(device, weights), self.from_state(state):
            evaluation = self.score_data(data, weights, share)
            evaluation.notes += self.reading_differences(data)
            if self.codec.turns() and self.objective not in ANY_ORDER:
                from segue.verbs.forecast import forecast_errors

                evaluation.forecasts, line = forecast_errors(self, data, weights)
                evaluation.notes.append(line)
            return evaluation

    def variants(self, data: Any, variants: str | Path, **options: Any) -> list[dict[str, Any]]:
        """Score the variants of a VCF file: one row each, whose `score` is the log-likelihood of the alternative less
        that of the reference, in nats.

        data: the reference sequences, with the names that the file uses. options: of
        `segue.analysis.variants.variant_scores`.
        """
        from segue.analysis.variants import read_variants, variant_scores

        data = self.read(data)
        self.check_kind(data)
        if not has_constant_state(self.model):  # read no more before a variant than the context of training
            options.setdefault("before", min(1500, max(1, self.context // 2) * int(self.codec.weights().max())))
        record_index = {data.name(i).rpartition(":")[2]: i for i in range(len(data))}
        rows: list[dict[str, Any]] = []
        requested = read_variants(variants)
        for name in dict.fromkeys(name for name, _ in requested):
            if name not in record_index:
                raise SegueError(f"{variants}: no sequence is called '{name}' (but "
                                 f"{', '.join(list(record_index)[:5])} ...): give the reference that "
                                 "the variants were called against")
            on_sequence = [variant for sequence, variant in requested if sequence == name]
            try:
                scores = variant_scores(self.decodable(), self.codec, data[record_index[name]].object, on_sequence,  # type: ignore[arg-type]
                                        **{"strands": self.kind.name == "dna", **options})
            except SegueError as error:
                raise SegueError(f"{variants}, sequence {name}: {error}") from error
            rows += [{"sequence": name, "position": position + 1, "reference": reference, "alternative": alternative,
                      "score": float(score)} for (position, reference, alternative), score in zip(on_sequence, scores)]
        return rows

    def score_data(self, data: Data, weights: str = "float32", unknown: float = 0.0) -> Evaluation:
        """Like `evaluate`, for checked data. unknown: the share of its items that have no token."""
        store = data.encode(self.codec)
        notes = [describe_unknown(unknown, data)] if unknown else []
        ranks = RankCollector(store, len(self.codec.items)) \
            if isinstance(self.codec, ItemCodec) and self.kind.unit == "event" and \
            self.objective not in ANY_ORDER else None
        scored, path = self.score_store(store, weights, ranks)
        units = predicted_units(store, self.codec)
        total = max(1, int(units.sum()))
        baselines = {"uniform": math.log2(self.codec.size) * int(scored.counts.sum()) / total}
        if self.kind.storage == "letters" and self.counts is not None:
            baselines["uniform"] = uniform_bits(self.counts, store, self.codec.weights()) / total
        if self.counts is not None:
            baselines["unigram"] = unigram_nats(self.counts, store) / total / math.log(2)
        ngram = self.mixture.counts.classical() if self.mixture is not None else self.ngram
        ranks = ranks if ranks is not None and any(map(len, ranks.found)) else None
        ranked = {} if ranks is None else {OURS: ranks.result()}
        if ngram is not None:
            nats = -sum(ngram.log_probabilities(sequence)[1:].sum() for sequence in store)
            baselines[f"Kneser-Ney of order {ngram.order}"] = float(nats) / total / math.log(2)
        if ngram is not None and ranks is not None:
            first_order = ngram.classical(1, "witten-bell")
            nats = -sum(first_order.log_probabilities(sequence)[1:].sum() for sequence in store)
            baselines["counts of order 1"] = float(nats) / total / math.log(2)
            for name, model in (("unigram", ngram.classical(0, "none")), ("counts of order 1", first_order),
                                (f"Kneser-Ney of order {ngram.order}", ngram)):
                ranked[name] = count_model_ranks(model, store, ranks.empty_copy())
            notes.append("ranks among all items" + (", but for those that a sequence had already" if ranks.fresh else
                                                    ", those that a sequence had already too"))
        if (advisor := getattr(None if self.mixture is None else self.mixture.counts, "advisor", None)) is not None:
            nats = sequence_nats(advisor, store, None if ranks is None else (advisor_ranks := ranks.empty_copy()))
            baselines[advisor.name] = nats / total / math.log(2)
            if ranks is not None:
                ranked[advisor.name] = advisor_ranks.result()
        if self.kind.storage in ("bytes", "letters"):
            contents = b"".join(data.values(i).tobytes() for i in range(len(data)))
            baselines["xz -9e"] = xz_bits(contents) / int(store.units.sum())
        return summarise(scored, units, self.kind.unit, path, baselines, notes, ranked)

    def score_store(self, store: TokenStore, weights: str, ranks: RankCollector | None = None) -> tuple[Scored, str]:
        """Scores of encoded data, and the name of the code that ran. ranks: collects the ranks of the next items."""
        running: Any = (self.mixture or self.model) if weights == "float32" else self.decodable(weights)
        # A state carried through a long document would accumulate bfloat16 rounding errors; a window does not.
        windows = isinstance(self.model, Stack) and weights == "float32" and not has_constant_state(self.model)
        precision = "bfloat16" if windows and bfloat16_pays(self.device) else "float32"
        if self.mixture is not None:
            from segue.verbs import mixed  # imports Numba, which is slow to load

            scored = mixed.score_mixture(running, store, self.context, precision, ranks)
        else:
            context = None if has_constant_state(self.model) else self.context
            scored = score(running, store, context, precision=precision, ranks=ranks)
        return scored, running.path + (", bfloat16 products" if precision == "bfloat16" else "")

    def read(self, data: Any, **options: Any) -> Data:
        """Convert a `Data`, paths or objects to data of this model's kind, read as the training data was. options: more
        options of the kind's `read`."""
        return as_data(data, self.kind.name, **self.reading | options)

    def check_kind(self, data: Data) -> None:
        """Raise a SegueError if the data has another type of element than this model."""
        if data.kind.storage != self.kind.storage:
            raise SegueError(f"this model is of {self.kind.name}, the data are {data.kind.name}: "
                             "give data of the same kind")

    # The folder.

    def save(self, folder: str | Path) -> Path:
        """Save to a folder: config.json, model.safetensors, codec/, report.json, README.md and, if there are any,
        memory, counts, drafts and states.

        The files are moved into the folder once all are written, so a full disk leaves it as it was. Parts of a model
        saved there before that this one does not have are removed, but not an unfinished update.
        """
        folder = Path(folder)
        if folder.exists() and not folder.is_dir():
            raise SegueError(f"{folder} is a file: choose another place for the model")
        with staged_in(folder) as new:
            self.write(new)
            was_model = (folder / "config.json").exists() and \
                FORMAT in (folder / "config.json").read_text("utf-8", "replace")
            obsolete = [folder / part for part in OPTIONAL_FILES if was_model and not (new / part).exists()]
        for part in obsolete:
            shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)
        self.folder = folder
        return folder

    def write(self, folder: Path) -> None:
        """Write the files of `save` into a new folder."""
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
        """Copy the classes saved in the model's own folder (`segue.verbs.classify` checks on use that they belong to
        these weights)."""
        path = None if self.folder is None or folder.resolve() == self.folder.resolve() else self.folder / CLASSES_FILE
        if path is not None and path.exists():
            with atomic_write(folder / CLASSES_FILE) as temporary:
                shutil.copyfile(path, temporary)

    def load_drafts(self, folder: Path) -> None:
        """Load what `save_drafts` wrote, if anything."""
        path = folder / "drafts" / "best.json"
        if not path.exists():
            return
        from segue.decoding.draft import DRAFTERS
        from segue.decoding.draft.heads import HeadsDraft

        values = read_json(path)
        drafter = values.get("draft") if isinstance(values, dict) else None
        if drafter not in (*DRAFTERS, "counts", "heads", "none"):
            raise SegueError(f"{path} names no drafter of this version: run segue speed-up again, or remove it")
        self.heads = HeadsDraft.load(path.parent / "heads.safetensors", self.model) if values.get("heads") else None
        self.best_draft = drafter

    def load_states(self, folder: Path) -> None:
        """Load the learned initial states, if there are any."""
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
            bound = "at most " if self.objective in ANY_ORDER else ""
            lines.append(f"- Held out: {bound}{held['bits_per_unit']:.3f} bits per {held['unit']} (95%: {low:.3f} to "
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
    """Load a model that `fit` or `save` wrote, or a local Hugging Face folder. The files are checked, and nothing in
    them is executed. device: where to put the model (default: the CPU), see `segue.verbs.devices`."""
    target = place(device or "cpu")  # raises before anything is read
    return load_folder(Path(folder)).to(target)


def load_folder(folder: Path) -> Fitted:
    """Load the model in a folder, on the CPU."""
    if not folder.is_dir():
        raise SegueError(f"{folder} is not a folder: give the folder that fit wrote")
    if not (folder / "config.json").exists() and (folder / "training" / "plan.json").exists():
        raise SegueError(f"{folder} holds a fit that has not ended: run the same fit command again to go on")
    for work in (folder / "updating", folder / SAVING):
        if (work / "complete.json").exists():
            with suppress(FileNotFoundError), held(work):  # missing if another process has just finished it
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
    kind, context, model = model_from_config(folder / "config.json", values)
    tensors, _ = load_tensors(folder / "model.safetensors")
    counts = tensors.pop("unigram", None)
    load_into(model, tensors, folder / "model.safetensors")
    codec = Codec.load(folder / "codec")
    model_class = fitted_class(values.get("objective", "next"))
    if codec.size != model.vocabulary - (model_class.objective in ANY_ORDER):
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
    fitted = model_class(model, codec, kind, Report(report), context, None if counts is None else counts.numpy(),
                         folder, memory, mixture, ngram)
    fitted.load_drafts(folder)
    fitted.load_states(folder)
    return fitted


def model_from_config(path: Path, values: dict[str, Any]) -> tuple[Kind, int, Stack | ClozeModel]:
    """Kind, context and network (its weights still random) from the values of a config.json."""
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


def fitted_class(objective: str) -> type[Fitted]:
    """The class of models fitted by an objective: `Fitted`, or `Diffused` for those that write in any order."""
    if objective not in ANY_ORDER:
        return Fitted
    from segue.verbs.diffused import Diffused

    return Diffused


def check_config(config: StackConfig) -> None:
    """Check types and sizes of a config that was read from a file, before memory is allocated."""
    for name, minimum, maximum in (("vocabulary", 1, 1 << 24), ("width", 1, 1 << 16)):
        value = getattr(config, name)
        if not isinstance(value, int) or not minimum <= value <= maximum:
            raise SegueError(f"{name} is {value!r}, not a whole number from {minimum} to {maximum}")
    if not isinstance(config.mixers, list) or not all(isinstance(m, str) for m in config.mixers):
        raise SegueError("mixers is not a list of names")
    for mixer in config.mixers:
        if mixer.partition(":")[0] not in MIXERS:
            raise SegueError(f"mixer '{mixer}' is unknown: choose from {', '.join(sorted(MIXERS))}")


@contextmanager
def staged_in(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to write a model to; in the end its files replace those of the same names in `folder`.

    On failure `folder` stays as it was. A move that is interrupted is completed by the next process that opens it.
    """
    is_new, work = not folder.exists(), folder / SAVING
    try:
        with workspace(work):
            if (work / "complete.json").exists():
                roll_forward(work)
            shutil.rmtree(work / "new", ignore_errors=True)  # left by a killed process
            yield work / "new"
            write_json(work / "complete.json", {})
            roll_forward(work)
    except BaseException:
        if not (work / "complete.json").exists():
            shutil.rmtree(work, ignore_errors=True)
        if is_new:
            with suppress(OSError):
                folder.rmdir()
        raise


def roll_forward(work: Path) -> None:
    """Move the complete new model in `work / "new"` over the old one in the parent of `work`, and delete `work`. Can be
    repeated after an interruption."""
    folder = work.parent
    for new in sorted((work / "new").glob("*")):  # none if only the deletion was interrupted
        old = folder / new.name
        if old.is_dir():
            shutil.rmtree(old)
        os.replace(new, old)
    for leftover in work.iterdir():  # complete.json goes last, so that after a kill this is repeated
        if leftover.is_dir():
            shutil.rmtree(leftover)
        elif leftover.name != "complete.json":
            leftover.unlink()
    shutil.rmtree(work)
