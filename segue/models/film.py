"""Causal video autoencoders, which compress frames to a few elements, as used below video diffusion models (an image
encoder with causal layers over time: GameGen-X, Che et al. 2024, arXiv 2411.00769)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError


def to_patches(x: Tensor, size: int) -> Tensor:
    """Turn each square of a frame into one vector: (B, F, H, W, C) -> (B, F, H / size, W / size, size² C)."""
    b, f, h, w, c = x.shape
    if h % size or w % size:
        raise SegueError(f"frames of {h} x {w} do not part into squares of {size}: cut or pad them first")
    return x.reshape(b, f, h // size, size, w // size, size, c).transpose(3, 4).flatten(4)


def from_patches(x: Tensor, size: int) -> Tensor:
    """Invert `to_patches`."""
    b, f, h, w, c = x.shape
    x = x.reshape(b, f, h, w, size, size, c // size**2)
    return x.transpose(3, 4).reshape(b, f, h * size, w * size, c // size**2)


def edges(frames: Tensor) -> Tensor:
    """Return a grey edge map of frames (B, F, H, W, C), in the same shape: each pixel's largest difference, over
    channels, from its right and lower neighbours. Encoded, it serves as a guide (`segue.models.control.GUIDE`)."""
    right, below = F.pad(frames.diff(dim=3), (0, 0, 0, 1)), F.pad(frames.diff(dim=2), (0, 0, 0, 0, 0, 1))
    return torch.maximum(right.abs(), below.abs()).amax(-1, keepdim=True).expand_as(frames)


@dataclass(frozen=True)
class FilmAutoencoderConfig:
    """Config of a `FilmAutoencoder`.

    channels: of a frame. patch: side, in pixels, of the square that a latent vector covers. stride: number of frames
        that it covers, except for the first frame, which stands alone: 1 + stride k frames are 1 + k moments. latents:
        size of a latent vector. gather: side of the squares of latent vectors that form one element (the patches of a
        diffusion transformer). width, depth: of the convolutions, and blocks of the encoder and of the decoder.
    """

    channels: int = 3
    patch: int = 4
    stride: int = 4
    latents: int = 8
    gather: int = 1
    width: int = 64
    depth: int = 2


class ConvBlock(nn.Module):
    """x plus a convolution of its layer norm, over the frame and over this moment and the one before."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.frame = nn.Conv2d(width, width, 3, padding=1)
        self.before, self.out = nn.Linear(width, width, bias=False), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Update vectors x (B, moments, h, w, D)."""
        y = F.layer_norm(x, x.shape[-1:])
        y = self.frame(y.flatten(0, 1).movedim(-1, 1)).movedim(1, -1).view(x.shape)
        y = y + F.pad(self.before(y[:, :-1]), (0, 0) * 3 + (1, 0))
        return x + self.out(F.silu(y))


class FilmAutoencoder(nn.Module):
    """A causal variational autoencoder of video (B, F, H, W, channels): no moment depends on later frames, and no frame
    on later moments. Train it with `segue.objectives.Reconstruction`; then `calibrate` scales its elements (B, T, C) to
    unit variance. Satisfies `segue.decoding.flow.FrameCodec`."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, config: FilmAutoencoderConfig) -> None:
        super().__init__()
        self.config, width = config, config.width
        pixels = config.stride * config.patch**2 * config.channels
        self.encoder = nn.Sequential(nn.Linear(pixels, width), *(ConvBlock(width) for _ in range(config.depth)),
                                     nn.Linear(width, 2 * config.latents))
        self.decoder = nn.Sequential(nn.Linear(config.latents, width), *(ConvBlock(width) for _ in range(config.depth)),
                                     nn.Linear(width, pixels))
        self.register_buffer("mean", torch.zeros(config.latents))
        self.register_buffer("deviation", torch.ones(config.latents))

    @property
    def stride(self) -> int:
        return self.config.stride

    @property
    def size(self) -> int:
        """C, numbers per element."""
        return self.config.latents * self.config.gather**2

    def posterior(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of the latents, each (B, moments, h, w, latents)."""
        stride = self.config.stride
        if (frames.shape[1] - 1) % stride:
            raise SegueError(f"{frames.shape[1]} frames: this autoencoder takes 1 and then {stride} for every moment")
        still = frames[:, :1].expand(-1, stride - 1, -1, -1, -1)  # the first moment repeats the first frame
        x = to_patches(torch.cat([still, frames], 1), self.config.patch)
        x = x.unflatten(1, (-1, stride)).movedim(2, 4).flatten(4)
        mean, log_variance = self.encoder(x).chunk(2, -1)
        return mean, log_variance.clamp(-20, 10)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Decode latents (B, moments, h, w, latents) to frames."""
        x = self.decoder(latents).unflatten(-1, (self.config.stride, -1)).movedim(4, 2).flatten(1, 2)
        return from_patches(x[:, self.config.stride - 1 :], self.config.patch)

    @torch.no_grad()
    def calibrate(self, frames: Tensor) -> None:
        """Set the mean and deviation by which elements are standardised to those of these frames' latents."""
        latents = self.posterior(frames)[0].flatten(0, 3)
        self.mean.copy_(latents.mean(0))
        self.deviation.copy_(latents.std(0).clamp(min=1e-6))

    def encode(self, frames: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """Encode frames as elements (B, T, C), and return these and their grid."""
        z = to_patches((self.posterior(frames)[0] - self.mean) / self.deviation, self.config.gather)
        return z.flatten(1, 3), tuple(z.shape[1:4])

    def decode(self, elements: Tensor, grid: tuple[int, ...]) -> Tensor:
        """Decode elements (B, T, C) on a grid to frames."""
        z = from_patches(elements.unflatten(1, grid), self.config.gather)
        return self.decode_latents(z * self.deviation + self.mean)
