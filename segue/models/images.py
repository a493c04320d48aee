"""Small convolutional networks of pictures: one that tells them in codes, one that says what is in them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError
from segue.kernels.gumbel import straight_through
from segue.mixers.longvq import Codebook


class ResidualConvolution(nn.Conv2d):
    """x + a convolution of x: at first each place is mostly what it was."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def patch_network(width: int, factor: int, channels: int = 3) -> nn.Sequential:
    """(B, channels, H, W) -> (B, width, H / factor, W / factor), each patch in the light of those around it."""
    return nn.Sequential(nn.Conv2d(channels, width, factor, factor), nn.GELU(), ResidualConvolution(width), nn.GELU(),
                         nn.Conv2d(width, width, 1))


@dataclass
class CodedPicture:
    """picture: (B, 3, H, W), what the codes say. codes: (B, h, w) long. apart: scalar, the mean squared distance of the
    vectors from their codes."""

    picture: Tensor
    codes: Tensor
    apart: Tensor


class ImageTokenizer(nn.Module):
    """A VQ-VAE (van den Oord et al. 2017, arXiv 1711.00937): pictures as codes of their patches, and back. The codes
    follow the encoder by moving averages (`segue.mixers.longvq.Codebook`); its vectors are normed over batches, so that
    what all patches have in common takes up no codes.

    codes: how many there are. width: of the networks; code_width: of a code. factor: side of a patch, in pixels.
    """

    def __init__(self, codes: int = 128, width: int = 64, code_width: int = 16, factor: int = 4) -> None:
        super().__init__()
        self.factor = factor
        self.encoder = nn.Sequential(*patch_network(width, factor), nn.GELU(), nn.Conv2d(width, code_width, 1),
                                     nn.BatchNorm2d(code_width, affine=False))
        self.codebook = Codebook(codes, code_width)
        self.decoder = nn.Sequential(nn.Conv2d(code_width, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, width, 1),
                                     nn.GELU(), nn.ConvTranspose2d(width, 3, factor, factor))

    def forward(self, pictures: Tensor) -> CodedPicture:
        """(B, 3, H, W) from 0 to 1; gradients pass the codes straight through."""
        self.check(pictures)
        vectors = self.encoder(pictures).movedim(1, -1)
        if self.training:
            self.codebook.learn(vectors.detach().flatten(0, -2))
        codes = self.codebook.nearest(vectors.detach())
        near = self.codebook.codes[codes]
        picture = self.decoder(straight_through(near, vectors).movedim(-1, 1))
        return CodedPicture(picture, codes, (vectors - near.detach()).square().mean())

    def check(self, pictures: Tensor) -> None:
        if pictures.ndim != 4 or pictures.shape[1] != 3 or any(n % self.factor for n in pictures.shape[2:]):
            raise SegueError(f"pictures of shape {tuple(pictures.shape)} are not (B, 3, H, W) with sides divisible by "
                             f"{self.factor}: resize them")

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, h w) long, in raster order; of a model in evaluation mode, each picture by itself."""
        self.check(pictures)
        return self.codebook.nearest(self.encoder(pictures).movedim(1, -1)).flatten(1)

    @torch.no_grad()
    def decode(self, codes: Tensor, height: int | None = None) -> Tensor:
        """(B, h w) long -> (B, 3, H, W) from 0 to 1. height: h (default: pictures are square)."""
        height = height or round(codes.shape[1] ** 0.5)
        vectors = self.codebook.codes[codes.unflatten(1, (height, -1))]
        return self.decoder(vectors.movedim(-1, 1)).clamp(0, 1)


class FrameClassifier(nn.Module):
    """Which of `things` are in a picture, and in which of `places` it is. side: of the pictures, in pixels."""

    def __init__(self, things: int, places: int, side: int, width: int = 32, factor: int = 4, size: int = 64) -> None:
        super().__init__()
        self.things = things
        self.encoder = patch_network(width, factor)
        self.narrow = nn.Linear(width * (side // factor) ** 2, size)
        self.head = nn.Linear(size, things + places)

    def features(self, pictures: Tensor) -> Tensor:
        """(B, size), what the answers are read off."""
        return F.gelu(self.narrow(F.gelu(self.encoder(pictures)).flatten(1)))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (B, things) of each thing's being there, and (B, places)."""
        scores = self.head(self.features(pictures))
        return scores[:, : self.things], scores[:, self.things :]
