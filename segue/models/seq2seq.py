"""Encoder-decoders (Sutskever et al. 2014; Vaswani et al. 2017) with the interface of every other model.

A row is `source + [begin] + target`, where `begin` is an extra id after the model's vocabulary that is never generated.
The source is encoded once, in both directions, into fixed keys and values; `begin` and the target are read by the
decoder, as by any stack. To decoders, drafts, searches and servers this is a model that continues prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError
from segue.files import atomic_folder, read_json, write_json
from segue.mixers.cross import Source
from segue.mixers.layout import Layout, check_rows, gather_nodes, length_mask
from segue.mixers.state import State
from segue.models.base import Decoding, Output, check_prompt
from segue.models.stack import Stack, StackConfig


@dataclass(frozen=True)
class EncoderDecoderConfig:
    """encoder: a stack of any mixers, bidirectional ones included. decoder: a stack of causal mixers; its `cross` holds
    the options of `CrossAttention` (default: none). Both must have the same vocabulary and width. shared: one embedding
    for both. restart: target positions count from 0, else they continue those of the source.
    """

    encoder: StackConfig
    decoder: StackConfig
    shared: bool = True
    restart: bool = True

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EncoderDecoderConfig:
        try:
            encoder, decoder = (StackConfig.from_dict(values[name]) for name in ("encoder", "decoder"))
            return cls(**{**values, "encoder": encoder, "decoder": decoder})
        except (KeyError, TypeError) as error:
            raise SegueError(f"this is no config of an encoder-decoder ({type(error).__name__}: {error})") from error


class SourceState(State):
    """The state of a decoder with an encoded source; positions count the tokens of the source too."""

    @property
    def source(self) -> Source:
        part = next(parts["source"] for parts in self.layers if "source" in parts)
        assert isinstance(part, Source)
        return part

    def layout(self, n: int, parents: Tensor | None = None, positions: Tensor | None = None,
               starts: Tensor | None = None) -> Layout:
        if parents is not None and self.source.is_empty:
            raise SegueError("a prompt is a chain: read it before a draft tree")
        return super().layout(n, parents, positions, starts)

    def commit(self, path: Tensor | None = None, counts: Tensor | None = None) -> None:
        """See `State.commit`; the prompt is counted from the beginning of the source, and must hold `begin`."""
        source = self.source.pending
        if source is not None and self.pending is not None:
            read = self.pending.positions.shape[1]
            if path is not None:
                raise SegueError("a prompt is a chain: commit it by counts")
            counts = (read + source.lengths.min() if counts is None else counts) - source.lengths
            if bool((counts < 1).any()):
                raise SegueError("the prompt of an encoder-decoder cannot be read in pieces: commit source and begin "
                                 "together")
            counts = None if bool((counts == read).all()) else counts
        super().commit(path, counts)

    def join(self, others: Sequence[State]) -> State:
        if any(other.source.is_empty != self.source.is_empty for other in others if isinstance(other, SourceState)):
            raise SegueError("rows that have read no source cannot go on beside rows that have: give them a prompt "
                             "first")
        return super().join(others)

    def rewind(self, n: int | Tensor) -> None:
        back = torch.as_tensor(n, device=self.positions.device).expand(self.batch)
        target = (self.positions - self.source.lengths - 1).clamp(min=0)
        if bool((back > target).any()):
            raise SegueError(f"cannot rewind {back.tolist()} tokens where the target has {target.tolist()}: source and "
                             "begin stay")
        super().rewind(n)


class SplitPrompts:
    """Rows (B, N) of an encoder-decoder split into source and target. ends: (B,), the number of tokens of each row that
    are no padding (None: all).

    source: (B, S) long, 0 after its `lengths` (B,); source_mask: (B, S) bool. target: (B, M) long, `begin` and what
    follows. node: (B, M) long, target positions from 0. target_positions: (B, N) long, those of the row's tokens, below
    0 in the source. layout: of the target's nodes, with positions in the row.
    """

    def __init__(self, model: Any, tokens: Tensor, ends: Tensor | None = None) -> None:
        begins, n, device = tokens == model.begin, tokens.shape[1], tokens.device
        valid = begins.sum(1) == 1
        if n:
            valid &= ~begins[:, 0]
        if not bool(valid.all()):
            check_prompt(model, tokens[int(valid.long().argmin())].tolist())
        self.lengths = begins.long().argmax(1)
        longest = int(self.lengths.max())
        count = max(1, int(((n if ends is None else ends) - self.lengths).max()))
        self.source_mask = length_mask(self.lengths, longest)
        self.source = tokens[:, :longest].masked_fill(~self.source_mask, 0)
        self.node = torch.arange(count, device=device).expand(len(tokens), -1)
        self.layout = Layout(self.node + self.lengths[:, None])
        self.target = tokens.gather(1, self.layout.positions.clamp(max=n - 1))
        self.target_positions = torch.arange(n, device=device) - self.lengths[:, None]

    def scatter_to_rows(self, y: Tensor) -> Tensor:
        """Vectors (B, M, F) of the target's nodes -> (B, N, F) at their places in the rows, zero elsewhere."""
        is_target = (self.target_positions >= 0) & (self.target_positions < y.shape[1])
        return gather_nodes(y, self.target_positions.clamp(max=y.shape[1] - 1)).masked_fill(~is_target[..., None], 0.0)


def prompt_ends(at: Tensor | None) -> Tensor | None:
    """(B,), the end of each row, after the last node in `at` (B, M), beyond which all is padding; None if unknown."""
    return None if at is None or not at.shape[1] else at.max(1).values + 1


class SavedModel(nn.Module):
    """Base class of models saved as a folder of config and weights. A subclass names its format and config class."""

    format: ClassVar[str]
    config_class: ClassVar[Any]
    config: Any

    def save(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors, replacing the folder atomically."""
        from safetensors.torch import save_model

        with atomic_folder(folder) as temporary:
            write_json(temporary / "config.json", {"format": self.format, "model": self.config.to_dict()})
            save_model(self, str(temporary / "model.safetensors"))

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Load the model that `save` wrote, in evaluation mode."""
        from safetensors import SafetensorError
        from safetensors.torch import load_model

        values, path = read_json(Path(folder) / "config.json"), Path(folder) / "model.safetensors"
        if not isinstance(values, dict) or values.get("format") != cls.format \
                or not isinstance(values.get("model"), dict):
            raise SegueError(f"{Path(folder) / 'config.json'} is not the config of such a model (format "
                             f"'{cls.format}')")
        model = cls(cls.config_class.from_dict(values["model"]))
        try:
            load_model(model, path)
        except (OSError, SafetensorError, RuntimeError) as error:
            raise SegueError(f"{path} does not fit its config.json ({error}): was the folder copied whole?") from error
        return model.eval()


def encode_source(encoder: Stack, source: Tensor, lengths: Tensor) -> Tensor:
    """Hidden vectors (B, S, D) of a source, (B, S) long or (B, S, C) real vectors, of which the first `lengths` (B,) of
    each row are no padding."""
    batch, n = source.shape[:2]
    if bool((lengths == n).all()):
        return encoder.hidden(source, Layout.chain((batch, n), device=source.device))
    if encoder.resettable:  # padding becomes a separate document, which no mixer mixes with the first
        starts = torch.arange(n, device=source.device) == lengths[:, None]
        return encoder.hidden(source, Layout.chain((batch, n), starts=starts))
    weight = next(encoder.parameters())
    encoded = weight.new_zeros(batch, n, encoder.config.width)
    for length in lengths.unique().tolist():
        rows = torch.nonzero(lengths == length)[:, 0]
        alone = encode_source(encoder, source[rows, :length], lengths[rows])
        encoded = encoded.index_copy(0, rows, F.pad(alone.to(encoded.dtype), (0, 0, 0, n - length)))
    return encoded


class ConditionedDecoder(nn.Module):
    """A decoder stack conditioned on a source that is read first. Satisfies `segue.models.base.Decodable`.

    A subclass implements `memory`, the vectors that the decoder attends to. begin: the id between source and target;
    `vocabulary` is one more. restart: target positions count from 0, else they continue those of the source. Logits at
    the nodes of the source are meaningless.
    """

    needs_whole_prompt = True
    resettable = False
    decoder: Stack
    restart = True

    @property
    def begin(self) -> int:
        return self.decoder.vocabulary

    @property
    def vocabulary(self) -> int:
        return self.begin + 1

    @property
    def path(self) -> str:
        return self.decoder.path

    def prompt(self, source: Sequence[int], prefix: Sequence[int] = ()) -> list[int]:
        """The prompt to generate a target for `source` that begins with `prefix`."""
        return [*source, self.begin, *prefix]

    def memory(self, source: Tensor, lengths: Tensor) -> Tensor:
        """The vectors (B, M, D) that the decoder attends to, for a source (B, S) long. The first `lengths` (B,) of each
        row of both are no padding."""
        raise NotImplementedError

    def _read(self, prompts: SplitPrompts, state: SourceState | None = None) -> Tensor:
        """Hidden vectors (B, N, D) of whole rows, zero at the source and at padding."""
        encoded = self.memory(prompts.source, prompts.lengths)
        positions = prompts.node if self.restart else prompts.layout.positions
        layout = Layout(positions, source=(encoded, prompts.lengths))
        return prompts.scatter_to_rows(self.decoder.hidden(prompts.target, layout, state))

    def hidden(self, tokens: Tensor, layout: Layout | None = None) -> Tensor:
        """Hidden vectors (B, T, D) of rows (B, T) of source, begin, target and padding; zero at the source."""
        return self._hidden_and_positions(tokens, layout)[0]

    def _hidden_and_positions(self, tokens: Tensor, layout: Layout | None) -> tuple[Tensor, Tensor]:
        """The hidden vectors of whole rows (B, N, D), and the target position (B, N) of each token."""
        if layout is not None and layout.starts is not None:
            raise SegueError("an encoder-decoder cannot reset inside a sequence: give it one pair of source and target "
                             "per row")
        prompts = SplitPrompts(self, tokens)
        return self._read(prompts), prompts.target_positions

    def _logits(self, hidden: Tensor, target_positions: Tensor) -> Tensor:
        """Logits (B, N, V + 1) of hidden vectors (B, N, D) at these target positions (B, N)."""
        return F.pad(self.decoder.head(hidden), (0, 1), value=-torch.inf)

    def forward(self, tokens: Tensor, layout: Layout | None = None) -> Output:
        """The training form, see `hidden`."""
        hidden, target_positions = self._hidden_and_positions(tokens, layout)
        return Output(self._logits(hidden, target_positions), hidden)

    def init_state(self, batch: int, history: int = 0) -> SourceState:
        state = self.decoder.init_state(batch, history)
        return SourceState(state.layers, state.positions)

    def extend(self, tokens: Tensor, state: Decoding, parents: Tensor | None = None,
               at: Tensor | None = None) -> Output:
        """See `Decodable.extend`. The first call takes the whole prompts; with `at`, nodes after the last of those are
        padding and cannot be committed."""
        assert isinstance(state, SourceState)
        check_rows(tokens.shape[0], state)
        layout = state.layout(tokens.shape[1], parents)
        if state.source.is_empty:
            prompts = SplitPrompts(self, tokens, prompt_ends(at))
            hidden, layout, target_positions = self._read(prompts, state), prompts.layout, prompts.target_positions
        else:
            target_positions = layout.positions - state.source.lengths[:, None]
            positions = target_positions if self.restart else layout.positions
            hidden = self.decoder.hidden(tokens, replace(layout, positions=positions), state)
        state.pending = layout
        if at is None:
            return Output(self._logits(hidden, target_positions), hidden)
        return Output(self._logits(gather_nodes(hidden, at), target_positions.gather(1, at)), hidden)


class EncoderDecoder(ConditionedDecoder, SavedModel):
    """An encoder stack for the source and a decoder stack for the target."""

    format = "segue encoder-decoder 1"
    config_class = EncoderDecoderConfig

    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__()
        encoder, decoder = replace(config.encoder, tied=True), replace(config.decoder, cross=config.decoder.cross or {})
        if (encoder.vocabulary, encoder.width) != (decoder.vocabulary, decoder.width):
            raise SegueError(f"an encoder of {encoder.vocabulary} ids at width {encoder.width} and a decoder of "
                             f"{decoder.vocabulary} at {decoder.width} do not fit: both must be equal")
        if any(each.inputs or each.pool or each.tables for each in (encoder, decoder)) or encoder.cross is not None:
            raise SegueError("an encoder-decoder reads ids and pools nothing, and its encoder has no cross-attention: "
                             "leave inputs, tables, pool and the encoder's cross out")
        self.config, self.restart = replace(config, encoder=encoder, decoder=decoder), config.restart
        self.encoder, self.decoder = Stack(encoder), Stack(decoder)
        if config.shared:
            self.encoder.embedding = self.decoder.embedding
            self.encoder.head.weight = self.decoder.embedding.weight
        self.decoder.check_causal(": the decoder must be causal")

    @property
    def head(self) -> nn.Linear:
        """From hidden states to the logits of all ids but `begin`."""
        return self.decoder.head

    def encode(self, source: Tensor, lengths: Tensor) -> Tensor:
        """(B, S) long, of which the first `lengths` (B,) of each row are real -> (B, S, D)."""
        return encode_source(self.encoder, source, lengths)

    def memory(self, source: Tensor, lengths: Tensor) -> Tensor:
        return self.encode(source, lengths)
