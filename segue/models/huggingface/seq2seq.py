"""Encoder-decoders of transformers (T5, BART, Marian, ...) with the interface of native ones, see
`segue.models.seq2seq`: the separator `begin` is fed as the model's decoder start token.

As for other models, how one can be run is tested when it is loaded. If the decoder encodes positions by one table or
one relative bias, trees and ragged rows run in one pass over our own cache; otherwise each path is reread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from inspect import signature
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers.cache_utils import Cache as TheirCache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from segue.errors import SegueError
from segue.mixers.cross import Source
from segue.mixers.layout import Layout, gather_nodes, length_mask
from segue.mixers.state import State
from segue.models.base import Decoding, Output
from segue.models.huggingface.adapter import EDITED, REREAD, HuggingFaceModel, Layer
from segue.models.seq2seq import SourceState, SplitPrompts, prompt_ends


class HuggingFaceEncoderDecoder(HuggingFaceModel):
    """An encoder-decoder from a local Hugging Face folder. Satisfies `segue.models.base.Decodable`.

    begin: the separator id between source and target. start: the decoder start token that the model is fed instead.
    """

    needs_whole_prompt: ClassVar[bool] = True
    restart: ClassVar[bool] = True
    auto: ClassVar[Any] = transformers.AutoModelForSeq2SeqLM
    what: ClassVar[str] = "an encoder-decoder"
    ways: ClassVar[list[tuple[str, bool]]] = [(EDITED, True), (REREAD, True)]
    tokens: ClassVar[str] = "decoder_input_ids"

    def _prepare(self) -> None:
        outputs = self.head.weight.shape[0]
        self.common, self.begin = min(self.size, outputs), max(self.size, outputs)  # ids that it reads and writes
        self.size = self.begin + 1
        starts = [start for name in ("decoder_start_token_id", "bos_token_id")
                  for settings in (self.model.generation_config, self.model.config)
                  if (start := getattr(settings, name, None)) is not None]
        if not starts or not isinstance(starts[0], int):
            raise SegueError(f"the config of this {self.name} has no decoder_start_token_id: add the id, one for all, "
                             "that its targets begin with")
        self.start: int = starts[0]
        self.sources: list[tuple[int, int, int]] = []  # heads, key and value features of each layer's source

    layout_form: Any = None  # it reads its prompt in order

    @property
    def vocabulary(self) -> int:
        return self.begin + 1

    def prompt(self, source: Sequence[int], prefix: Sequence[int] = ()) -> list[int]:
        """Return the prompt for a target of `source` that starts with `prefix`."""
        return [*source, self.begin, *prefix]

    def encode(self, source: Tensor, lengths: Tensor) -> Tensor:
        """Encode sources (B, S) long, of which the first `lengths` (B,) elements are real: (B, S, D)."""
        mask = length_mask(lengths, source.shape[1])
        output = self.model.get_encoder()(input_ids=source, attention_mask=mask.long(), return_dict=True)
        return output.last_hidden_state

    def init_state(self, batch: int, history: int = 0) -> State:
        state = super().init_state(batch, history)
        if self.way != EDITED:
            return state
        weight, no_tokens = self._weight, torch.zeros(batch, dtype=torch.long, device=self._weight.device)
        for layer, (heads, keys, values) in zip(state.layers, self.sources):
            k, v = (weight.new_zeros(batch, heads, 0, width) for width in (keys, values))
            layer["source"] = Source(k, v, no_tokens)
        return SourceState(state.layers, state.positions)

    def extend(self, tokens: Tensor, state: Decoding, parents: Tensor | None = None,
               at: Tensor | None = None, layout: Layout | None = None) -> Output:
        """See `Decodable.extend` and `EncoderDecoder.extend`; it reads its prompt in order, so it takes no layout."""
        if layout is not None:
            raise SegueError("an encoder-decoder of transformers reads its prompt in order: give no layout")
        output = super().extend(tokens, state, parents, at)
        return Output(F.pad(output.logits, (0, self.vocabulary - self.output_size), value=-torch.inf), output.hidden)

    def _replace_begin(self, target: Tensor) -> Tensor:
        """Replace the separator by the decoder start token."""
        return target.masked_fill(target == self.begin, self.start)

    def _run(self, tokens: Tensor, at: Tensor | None = None, **kwargs: Any) -> tuple[Tensor, Tensor, Any]:
        """See the base class; without `encoder_outputs`, tokens are whole rows of source, separator and target."""
        if "encoder_outputs" in kwargs:
            return super()._run(tokens, at, **kwargs)
        prompts = SplitPrompts(self, tokens)
        logits, hidden, output = super()._run(self._replace_begin(prompts.target), input_ids=prompts.source,
                                              attention_mask=prompts.source_mask.long(), **kwargs)
        logits = prompts.scatter_to_rows(logits)
        return logits if at is None else gather_nodes(logits, at), prompts.scatter_to_rows(hidden), output

    def _extend_edited(self, tokens: Tensor, state: State, layout: Layout, at: Tensor | None) -> tuple[Output, Layout]:
        assert isinstance(state, SourceState)
        prompts = SplitPrompts(self, tokens, prompt_ends(at)) if state.source.is_empty else None
        if prompts is not None:
            lengths, source_mask, target = prompts.lengths, prompts.source_mask, prompts.target
            nodes = Layout(prompts.node)
            encoded = self.encode(prompts.source, lengths)
            target_at = None if at is None else (at - lengths[:, None]).clamp(min=0)
        else:
            lengths, target, target_at = state.source.lengths, tokens, at
            nodes = replace(layout, positions=layout.positions - lengths[:, None])
            if not tokens.numel():
                return self._extend_empty(tokens, state, nodes, at), layout
            source_mask = length_mask(lengths, state.source.k.shape[2])
            encoded = self._weight.new_zeros(1, 1, 1).expand(*source_mask.shape, self.width)  # only its shape is used
        layers: list[Any] = state.layers
        cache = EncoderDecoderCache(TheirCache(layers=[Layer(layer["cache"], nodes) for layer in layers]),
                                    TheirCache(layers=[SourceLayer(layer["source"], lengths) for layer in layers]))
        mask = self._mask(state, nodes, len(tokens))
        with self._override_positions(state, nodes):
            logits, hidden, _ = self._run(
                self._replace_begin(target), target_at, encoder_outputs=BaseModelOutput(encoded),
                attention_mask=source_mask.long(), decoder_attention_mask=mask, use_cache=True,
                **{str(self.slot): cache})
        if prompts is None:
            return Output(logits, hidden), layout
        logits = prompts.scatter_to_rows(logits) if at is None else logits
        return Output(logits, prompts.scatter_to_rows(hidden)), prompts.layout

    # Positions: the model counts them along its cache; here they are overridden.

    def _tables(self) -> list[nn.Module]:
        """Return the decoder's position embedding, if it has one that takes position ids."""
        table = getattr(self.model.get_decoder(), "embed_positions", None)
        return [] if table is None or "position_ids" not in signature(table.forward).parameters else [table]

    def _biases(self) -> list[nn.Module]:
        """Return the decoder's modules with a relative position bias (T5)."""
        return [module for module in self.model.get_decoder().modules()
                if getattr(module, "has_relative_attention_bias", False) and hasattr(module, "compute_bias")]

    @contextmanager
    def _override_positions(self, state: SourceState, nodes: Layout) -> Iterator[None]:
        """Make the decoder use the layout's positions within this context."""
        cache: Any = state.layers[0]["cache"]
        positions = nodes.positions.expand(state.batch, -1)
        pairs = cache.pairs(nodes)
        distance = (pairs.query - pairs.key).clamp(min=0)

        def override_embedding(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
            def embed(shape: Any, *_: Any, **__: Any) -> Tensor:
                return forward(shape, 0, position_ids=positions.flatten()).view(*positions.shape, -1)

            return embed

        def override_bias(compute_bias: Callable[..., Tensor]) -> Callable[..., Tensor]:
            def bias(*_: Any, device: Any = None, **__: Any) -> Tensor:
                num_distances = int(distance.max()) + 1
                # (H, num_distances), the farthest first
                biases = compute_bias(1, num_distances, device=device, past_seen_tokens=num_distances - 1)[0, :, 0]
                return biases.flip(-1)[:, distance].transpose(0, 1)

            return bias

        with ExitStack() as stack:
            for modules, name, override in ((self._tables(), "forward", override_embedding),
                                            (self._biases(), "compute_bias", override_bias)):
                for module in modules:
                    setattr(module, name, override(getattr(module, name)))
                    stack.callback(delattr, module, name)
            yield

    # Testing in which way the model can be run.

    def _draw(self, *shape: int, generator: torch.Generator) -> Tensor:
        return torch.randint(self.common, shape, generator=generator)

    def _as_prompts(self, x: Tensor) -> Tensor:
        separator = 2 - torch.arange(len(x))[:, None] % 2
        return x.scatter(1, separator, self.begin)

    def _editable(self, prompt: Tensor) -> bool:
        cache = getattr(self._run(prompt, use_cache=True)[2], str(self.slot), None)
        if not isinstance(cache, EncoderDecoderCache) or not (self._tables() or self._biases()):
            return False
        for part, sizes in ((cache.self_attention_cache, self.layers), (cache.cross_attention_cache, self.sources)):
            for layer in part.layers:
                if type(layer) is not DynamicLayer or layer.keys is None or layer.keys.dim() != 4:
                    return False
                sizes.append((layer.keys.shape[1], layer.keys.shape[3], layer.values.shape[3]))
        return len(self.layers) == len(self.sources) > 0


class SourceLayer(CacheLayerMixin):
    """One layer of our cache of the source behind transformers' interface, for one call."""

    is_sliding = False

    def __init__(self, source: Source, lengths: Tensor) -> None:
        super().__init__()
        self.source, self.lengths, self.is_initialized = source, lengths, True
        self.keys, self.values = source.k, source.v

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        pass

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.source.pending = Source(key_states, value_states, self.lengths)
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.source.k.shape[2], 0

    def get_seq_length(self) -> int:
        return self.source.k.shape[2]

    def get_max_length(self) -> int:
        return -1
