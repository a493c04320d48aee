"""Films as few elements, and back: autoencoders that read frames in order, as those under video diffusion models do
(a picture encoder with causal layers over time: GameGen-X, Che et al. 2024, arXiv 2411.00769)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError


def to_patches(x: Tensor, size: int) -> Tensor:
    """(B, F, H, W, C) -> (B, F, H / size, W / size, size² C): each square of a frame as one vector."""
    b, f, h, w, c = x.shape
    if h % size or w % size:
        raise SegueError(f"frames of {h} x {w} do not part into squares of {size}: cut or pad them first")
    return x.reshape(b, f, h // size, size, w // size, size, c).transpose(3, 4).flatten(4)


def from_patches(x: Tensor, size: int) -> Tensor:
    """The frames that these are the `to_patches` of."""
    b, f, h, w, c = x.shape
    x = x.reshape(b, f, h, w, size, size, c // size**2)
    return x.transpose(3, 4).reshape(b, f, h * size, w * size, c // size**2)


def edges(frames: Tensor) -> Tensor:
    """(B, F, H, W, C) -> the same shape: how much each pixel differs from those on its right and below, in the channel
    where it does most, as a grey film. It guides a branch (`segue.models.control.GUIDE`) when encoded as any film."""
    right, below = F.pad(frames.diff(dim=3), (0, 0, 0, 1)), F.pad(frames.diff(dim=2), (0, 0, 0, 0, 0, 1))
    return torch.maximum(right.abs(), below.abs()).amax(-1, keepdim=True).expand_as(frames)


@dataclass(frozen=True)
class FilmAutoencoderConfig:
    """channels: of a frame. patch: side of the squares that a latent vector stands for. stride: frames that one stands
        for, behind the first frame, which is alone: 1 + stride k frames are 1 + k moments. latents: numbers of a latent
        vector. gather: side of the squares of latent vectors that are one element (patches of a diffusion transformer).
    width, depth: of the convolutions, blocks on either side.
    """

    channels: int = 3
    patch: int = 4
    stride: int = 4
    latents: int = 8
    gather: int = 1
    width: int = 64
    depth: int = 2


class ConvBlock(nn.Module):
    """x + a convolution over the frame and over this moment and the one before, of x normed at each place alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.frame = nn.Conv2d(width, width, 3, padding=1)
        self.before, self.out = nn.Linear(width, width, bias=False), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, moments, h, w, D)."""
        y = F.layer_norm(x, x.shape[-1:])
        y = self.frame(y.flatten(0, 1).movedim(-1, 1)).movedim(1, -1).view(x.shape)
        y = y + F.pad(self.before(y[:, :-1]), (0, 0) * 3 + (1, 0))
        return x + self.out(F.silu(y))


class FilmAutoencoder(nn.Module):
    """A variational autoencoder of films (B, F, H, W, channels). No moment depends on later frames, and no frame on
    later moments. Learns by `segue.objectives.Reconstruction`; `calibrate` then scales its elements (B, T, C) to a
    deviation of one. Satisfies `segue.decoding.flow.FrameCodec`."""

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
        """C, the numbers of an element."""
        return self.config.latents * self.config.gather**2

    def posterior(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance (B, moments, h, w, latents) of the latents."""
        stride = self.config.stride
        if (frames.shape[1] - 1) % stride:
            raise SegueError(f"{frames.shape[1]} frames: this autoencoder takes 1 and then {stride} for every moment")
        still = frames[:, :1].expand(-1, stride - 1, -1, -1, -1)  # the first moment shows the first frame all along
        x = to_patches(torch.cat([still, frames], 1), self.config.patch)
        x = x.unflatten(1, (-1, stride)).movedim(2, 4).flatten(4)
        mean, log_variance = self.encoder(x).chunk(2, -1)
        return mean, log_variance.clamp(-20, 10)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """The frames of latents (B, moments, h, w, latents)."""
        x = self.decoder(latents).unflatten(-1, (self.config.stride, -1)).movedim(4, 2).flatten(1, 2)
        return from_patches(x[:, self.config.stride - 1 :], self.config.patch)

    @torch.no_grad()
    def calibrate(self, frames: Tensor) -> None:
        """Scale elements by what the latents of these frames are like."""
        latents = self.posterior(frames)[0].flatten(0, 3)
        self.mean.copy_(latents.mean(0))
        self.deviation.copy_(latents.std(0).clamp(min=1e-6))

    def encode(self, frames: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """Elements (B, T, C), and their grid."""
        z = to_patches((self.posterior(frames)[0] - self.mean) / self.deviation, self.config.gather)
        return z.flatten(1, 3), tuple(z.shape[1:4])

    def decode(self, elements: Tensor, grid: tuple[int, ...]) -> Tensor:
        z = from_patches(elements.unflatten(1, grid), self.config.gather)
        return self.decode_latents(z * self.deviation + self.mean)
