"""What a camera does to pictures and poses of rooms of WIDE, and of no others: exposure and white balance
that change from view to view, a tone curve, blur, dark corners, noise, jpeg; poses that are a little off.
Depth and labels stay those of the true pose."""
from dataclasses import dataclass

import numpy as np

from support.rooms import VERSION, WIDE


@dataclass
class Camera:
    """Strengths, 0 or 1 for none."""
    seed: int
    light: float = 0      # exposure changes by up to this share between views, each colour by half of it
    gamma: float = 1
    blur: float = 0       # share of its light that a pixel loses to each neighbour
    corners: float = 0    # share of light that the corners lose
    noise: float = 0      # standard deviation, 1 is white
    quality: int = 95     # of jpeg
    metres: float = 0     # standard deviation of the written position, along each axis
    degrees: float = 0    # and of the written rotation, about each axis

    def develop(self, rgb, view):
        """The picture (H, W, 3) uint8 of this view as the camera stores it."""
        if self == Camera(self.seed):
            return rgb
        rng = np.random.default_rng([self.seed, view, VERSION])
        gain = (1 + self.light * rng.uniform(-1, 1)) * (1 + self.light / 2 * rng.uniform(-1, 1, 3))
        tone = np.arange(256, dtype=np.float32)[:, None] / 255 * np.sqrt(gain).astype(np.float32)  # of roots
        tone = np.minimum(tone, 1) ** np.float32(self.gamma)                      # (256, 3)
        x = np.stack([tone[:, c][rgb[..., c]] for c in range(3)], -1)             # (H, W, 3)
        if self.blur:
            x = blurred(blurred(x, self.blur).swapaxes(0, 1), self.blur).swapaxes(0, 1)
        if self.corners:
            v, u = (np.linspace(-1, 1, n, dtype=np.float32) for n in x.shape[:2])
            x = x * np.sqrt(1 - np.float32(self.corners) * (u ** 2 + v[:, None] ** 2) / 2)[..., None]
        if self.noise:
            x = x + np.float32(self.noise) * rng.standard_normal(x.shape, np.float32)
        return np.clip(x * 255 + .5, 0, 255).astype(np.uint8)

    def measured(self, c2w, view):
        """The pose (4, 4) that is written for the true pose c2w."""
        if not self.metres and not self.degrees:
            return c2w
        rng = np.random.default_rng([self.seed, view, VERSION, 1])
        c2w, (x, y, z) = c2w.copy(), np.radians(self.degrees) * rng.normal(size=3)
        cross, angle = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]), np.sqrt(x * x + y * y + z * z) + 1e-12
        turned = np.eye(3) + np.sin(angle) / angle * cross + (1 - np.cos(angle)) / angle ** 2 * cross @ cross
        c2w[:3, :3] = turned @ c2w[:3, :3]  # Rodrigues' formula
        c2w[:3, 3] += self.metres * rng.normal(size=3)
        return c2w


def on_film(light):
    """Linear light -> 0 to 255; bright light saturates, as on film."""
    light = light * (1 + light * .12) / (1 + .6 * light) * 1.25
    return np.clip(np.sqrt(light) * 255 + .5, 0, 255)


def blurred(x, k):
    """x (H, W, ...) with the share k of each row moved to each of its neighbours."""
    above, below = np.concatenate([x[:1], x[:-1]]), np.concatenate([x[1:], x[-1:]])
    return x + np.float32(k) * (above + below - 2 * x)


def pixels(text):
    """A picture's width or height as a flag's value; ValueError, which argparse tells, unless 8 to 4096."""
    if int(text) not in range(8, 4097):
        raise ValueError
    return int(text)


def camera_of(seed):
    """The camera of room `seed`: a perfect one, but in rooms of WIDE, where one in six is."""
    rng = np.random.default_rng([seed, VERSION, 2])
    if seed not in WIDE or rng.random() < 1 / 6:
        return Camera(seed)
    light, gamma, blur, corners, noise, metres, degrees = rng.random(7) * (rng.random(7) < .75)
    return Camera(seed, .2 * light, 1 + gamma * rng.uniform(-.25, .3), .2 * blur, .5 * corners,
                  .03 * noise ** 2, int(rng.integers(60, 96)), .004 * metres, .2 * degrees)
