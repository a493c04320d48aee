"""Small convolutional networks for images: a tokenizer (VQ-VAE), and a classifier of things and their places."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError
from segue.kernels.gumbel import straight_through
from segue.mixers.longvq import Codebook


class ResidualConvolution(nn.Conv2d):
    """x plus a 3 x 3 convolution of x, (B, width, H, W)."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def patch_network(width: int, factor: int, channels: int = 3) -> nn.Sequential:
    """Return a network (B, channels, H, W) -> (B, width, H / factor, W / factor): patch embedding, then a residual
    convolution over neighbouring patches."""
    return nn.Sequential(nn.Conv2d(channels, width, factor, factor), nn.GELU(), ResidualConvolution(width), nn.GELU(),
                         nn.Conv2d(width, width, 1))


@dataclass
class CodedPicture:
    """An image through the tokenizer. picture: (B, 3, H, W), decoded from the codes. codes: (B, h, w) long. apart:
    scalar, mean squared difference between encoder vectors and their codes."""

    picture: Tensor
    codes: Tensor
    apart: Tensor


class ImageTokenizer(nn.Module):
    """A VQ-VAE (van den Oord et al. 2017, arXiv 1711.00937), which maps images to codes of their patches and back.

    The codes track the encoder by moving averages (`segue.mixers.longvq.Codebook`). The encoder's vectors are
    batch-normalised, so that no code is spent on what all patches have in common.

    codes: size of the codebook. width: of the networks. code_width: of a code. factor: side of a patch, in pixels.
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
        """Encode and decode pictures (B, 3, H, W) in [0, 1], with straight-through gradients; in training mode, the
        codebook is updated."""
        self.check(pictures)
        vectors = self.encoder(pictures).movedim(1, -1)
        if self.training:
            self.codebook.learn(vectors.detach().flatten(0, -2))
        codes = self.codebook.nearest(vectors.detach())
        quantised = self.codebook.codes[codes]
        picture = self.decoder(straight_through(quantised, vectors).movedim(-1, 1))
        return CodedPicture(picture, codes, (vectors - quantised.detach()).square().mean())

    def check(self, pictures: Tensor) -> None:
        """Raise a SegueError unless pictures are (B, 3, H, W) with sides divisible by `factor`."""
        if pictures.ndim != 4 or pictures.shape[1] != 3 or any(n % self.factor for n in pictures.shape[2:]):
            raise SegueError(f"pictures of shape {tuple(pictures.shape)} are not (B, 3, H, W) with sides divisible by "
                             f"{self.factor}: resize them")

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """Encode pictures (B, 3, H, W) as codes (B, h w) long in raster order; use evaluation mode, in which pictures
        do not influence each other."""
        self.check(pictures)
        return self.codebook.nearest(self.encoder(pictures).movedim(1, -1)).flatten(1)

    @torch.no_grad()
    def decode(self, codes: Tensor, height: int | None = None) -> Tensor:
        """Decode codes (B, h w) long to pictures (B, 3, H, W) in [0, 1]. height: h (default: square pictures)."""
        height = height or round(codes.shape[1] ** 0.5)
        vectors = self.codebook.codes[codes.unflatten(1, (height, -1))]
        return self.decoder(vectors.movedim(-1, 1)).clamp(0, 1)


class FrameClassifier(nn.Module):
    """Classifies which of `things` are in a picture, and which of `places` it shows.

    side: of the pictures, in pixels. width, factor: of the patch network. size: of the feature vector.
    """

    def __init__(self, things: int, places: int, side: int, width: int = 32, factor: int = 4, size: int = 64) -> None:
        super().__init__()
        self.things = things
        self.encoder = patch_network(width, factor)
        self.narrow = nn.Linear(width * (side // factor) ** 2, size)
        self.head = nn.Linear(size, things + places)

    def features(self, pictures: Tensor) -> Tensor:
        """Return the feature vectors (B, size) of pictures (B, 3, side, side)."""
        return F.gelu(self.narrow(F.gelu(self.encoder(pictures)).flatten(1)))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, things) that each thing is present, and logits (B, places) of the place."""
        logits = self.head(self.features(pictures))
        return logits[:, : self.things], logits[:, self.things :]
