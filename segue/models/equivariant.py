"""Models equivariant to the reverse complement, as for DNA read from either strand (as in Caduceus, Schiff et al. 2024,
arXiv 2403.03234, and DNA-xLSTM, Schmidinger et al. 2024, arXiv 2411.04165)."""

from __future__ import annotations

from torch import Tensor, nn

from segue.errors import SegueError
from segue.mixers.layout import Layout
from segue.models.base import Output


def mirror(tokens: Tensor, partner: Tensor) -> Tensor:
    """Reverse rows (B, T) and replace each id by its partner (V,) long: the reverse complement of DNA, where A is the
    partner of T, and C of G."""
    return partner[tokens.flip(1)]


class Equivariant(nn.Module):
    """Runs one model on the rows and on their mirror images and averages both outputs, so that f(mirror(x)) =
    mirror(f(x)) whatever the weights.

    model: maps tokens to `Output`. partner: (V,) long, an involution of the element ids. classes: the outputs are
    logits of a whole row's class (invariant, read at the last element) instead of logits of elements. All rows must
    have one length.
    """

    partner: Tensor

    def __init__(self, model: nn.Module, partner: Tensor, classes: bool = False) -> None:
        super().__init__()
        if not bool((partner[partner] == partner.new_tensor(range(len(partner)))).all()):
            raise SegueError(f"partner {partner.tolist()} is no involution: each id must be its partner's partner")
        self.model, self.classes = model, classes
        self.register_buffer("partner", partner)

    def forward(self, tokens: Tensor, layout: Layout | None = None) -> Output:
        if layout is not None and layout.starts is not None:
            raise SegueError("a mirrored model reads one document a row: do not pack several into one")
        logits_forward, logits_mirrored = self.model(tokens).logits, self.model(mirror(tokens, self.partner)).logits
        if self.classes:
            logits = (logits_forward[:, -1:] + logits_mirrored[:, -1:]) / 2
            return Output(logits.expand(-1, tokens.shape[1], -1), logits)
        logits = (logits_forward + logits_mirrored.flip(1)[..., self.partner]) / 2
        return Output(logits, logits)
