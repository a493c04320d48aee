"""A small draft model for a large one (Leviathan et al. 2023, arXiv 2211.17192; Chen et al., arXiv 2302.01318)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch

from segue.decoding.draft.base import Tip, Tree, chain_tree
from segue.decoding.sampling import softmax
from segue.errors import SegueError
from segue.models.base import Decodable, Decoding, are_alike, begin_token, init_prompt_state, max_positions, pad_rows
from segue.models.depth import DepthSchedule, Scheduled
from segue.models.stack import Stack


class ModelDraft:
    """Drafts a chain of the small model's likeliest tokens, as long as each is likely enough.

    model: anything decodable with the large one's vocabulary. length: tokens drafted at most. min_probability: a token
    less likely than this ends the draft. name: for reports.
    """

    needs_hidden: ClassVar[bool] = False

    def __init__(self, model: Decodable, length: int = 8, min_probability: float = 0.3, name: str = "model") -> None:
        self.model, self.length, self.min_probability, self.name = model, length, min_probability, name
        self.max_positions = max_positions(model)
        self._states: dict[int, Decoding] = {}  # what the model has read of each request
        self._unread: dict[int, list[int]] = {}  # the observed tokens after that, at least one

    def observe(self, row: int, tokens: Sequence[int], prompt: bool = False) -> None:
        if row not in self._states:
            self._states[row] = init_prompt_state(self.model, [tokens if prompt else []])
        self._unread.setdefault(row, []).extend(tokens)

    def propose(self, tips: Sequence[Tip]) -> list[Tree]:
        drafting = [tip for tip in tips if self._unread.get(tip.row) and min(tip.nodes, tip.depth, self.length) > 0
                    and self._fits(tip.row)]
        # A model that was compiled meanwhile (`segue.models.compiled.Accelerated`) drafts no more for older rows.
        drafting = [tip for tip in drafting if are_alike(self._states[tip.row], self._states[drafting[-1].row])]
        chains: dict[int, list[int]] = {tip.row: [] for tip in drafting}
        if drafting:
            with torch.inference_mode():
                self._draft(drafting, chains)
        return [chain_tree(chains.get(tip.row, [])) for tip in tips]

    def _fits(self, row: int) -> bool:
        """Whether a draft ends within the model's positions."""
        return self.max_positions is None or \
            int(self._states[row].positions) + len(self._unread[row]) + self.length <= self.max_positions

    def _read(self, rows: Sequence[int]) -> Decoding:
        """Read all but the last token of each of these requests; returns their states joined."""
        for row in rows if begin_token(self.model) is not None else []:
            if not bool(self._states[row].positions.any()):  # an encoder-decoder reads each prompt by itself
                text = torch.tensor([self._unread[row][:-1]])
                self.model.extend(text.to(self._states[row].positions.device), self._states[row])
                self._states[row].commit()
                self._unread[row] = self._unread[row][-1:]
        states = [self._states[row] for row in rows]
        state = states[0].join(states[1:])
        device, counts = state.positions.device, torch.tensor([len(self._unread[row]) - 1 for row in rows])
        if int(counts.max()):
            new = pad_rows([self._unread[row][:-1] for row in rows]).to(device)
            self.model.extend(new, state, None, torch.empty(len(rows), 0, dtype=torch.long, device=device))
            state.commit(None, counts.to(device))
            for place, row in enumerate(rows):
                self._states[row] = state.select(torch.tensor([place], device=device))
                self._unread[row] = self._unread[row][-1:]
        return state

    def _draft(self, tips: list[Tip], chains: dict[int, list[int]]) -> None:
        """Extend each tip's chain by the likeliest token until that is too unlikely or the draft is long enough."""
        rows = [tip.row for tip in tips]
        state = self._read(rows)
        device = state.positions.device
        live, last = list(range(len(rows))), [self._unread[row][-1] for row in rows]
        for depth in range(max(min(tip.nodes, tip.depth, self.length) for tip in tips)):
            logits = self.model.extend(torch.tensor(last, device=device)[:, None], state).logits
            scores = logits[:, -1].double().cpu().numpy()
            state.commit()
            tokens = scores.argmax(-1)
            confident = [float(softmax(row)[token]) >= self.min_probability for row, token in zip(scores, tokens)]
            within_budget = [depth < min(tips[index].nodes, tips[index].depth, self.length) for index in live]
            continuing = np.flatnonzero(np.array(confident) & np.array(within_budget)).tolist()
            if not continuing:
                return
            live, last = [live[i] for i in continuing], [int(tokens[i]) for i in continuing]
            for index, token in zip(live, last):
                chains[rows[index]].append(token)
            if len(continuing) < len(confident):
                state = state.select(torch.tensor(continuing, device=device))

    def forget(self, row: int) -> None:
        self._states.pop(row, None)
        self._unread.pop(row, None)


def depth_draft(model: Decodable, schedule: DepthSchedule | None = None) -> ModelDraft:
    """A drafter that runs some of a native stack's own layers, of any mixers (as in LayerSkip, Elhoushi et al. 2024,
    arXiv 2404.16710).

    schedule: which layers (default: half of them at every position, the first one and those at the top). The prompt is
    read once more, by all layers. It drafts well if the model was trained to do without the others.
    """
    stack = getattr(getattr(model, "network", model), "layout_form", None)  # of a mixture, of what the engine runs
    if not isinstance(stack, Stack) or len(stack.blocks) < 2:
        raise SegueError("draft 'depth' leaves out some layers of a native model: for this one choose trie, lookup or "
                         "both")
    schedule = schedule or DepthSchedule((len(stack.blocks) // 2,))
    return ModelDraft(Scheduled(stack, schedule), name="depth")
