"""Points on faces as textures see them, and what textures are drawn with: waves, lines and random numbers."""
from typing import NamedTuple

import numpy as np


class Patch(NamedTuple):
    """N points on faces of one texture."""
    a: np.ndarray      # (N,) place across the face in -1…1 (radians around a round side)
    b: np.ndarray      # (N,) place up the face in -1…1
    ha: np.ndarray     # (N,) half the face's size across, metres
    hb: np.ndarray     # (N,) and up
    front: np.ndarray  # (N,) is this the side with doors and spines?
    p: np.ndarray      # (N, 3) the material's parameters
    seed: np.ndarray   # (N,) the material's seed
    foot: np.ndarray   # (N,) metres of surface under the pixel: a pattern fades before it aliases

    @property
    def s(self):
        """Metres across the face."""
        return self.a * self.ha

    @property
    def t(self):
        """Metres up the face."""
        return self.b * self.hb

    @property
    def phase(self):
        return (self.seed % 97).astype(np.float32)

    def wave(self, period, x):
        """A sine over x metres that fades out before it aliases."""
        return np.sin(2 * np.pi * x / period) * np.clip(1.5 - 3 * self.foot / period, 0, 1)


def noise(i, j, seed):
    """Pseudo-random numbers (N,) in 0…1 of integer cells (i, j): the same from every view."""
    i, j, seed = (x.astype(np.int64) for x in (i, j, seed))
    h = (i * 0x9E3779B1 + j * 0x85EBCA6B + seed * 0xC2B2AE35) & 0xFFFFFFFF
    h = ((h ^ (h >> 15)) * 0x2C1B3C6D) & 0xFFFFFFFF
    h = ((h ^ (h >> 12)) * 0x297A2D39) & 0xFFFFFFFF
    return ((h ^ (h >> 15)) >> 8).astype(np.float32) / (1 << 24)


def lines(x, period, width, foot):
    """Lines of `width` every `period` metres: the share of the pixel that they cover, (N,) in 0…1."""
    d = np.abs(x / period - np.rint(x / period)) * period
    return np.clip((width / 2 + foot / 2 - d) / foot, 0, 1) * np.minimum(1, width / foot)
