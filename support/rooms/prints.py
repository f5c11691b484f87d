"""Prints: textures as rich as photographs, for rooms of WIDE. Like those of textures.py, but with a mix for
each of red, green and blue, (3, N), so that one material has many colours.

Most are looked up in a sheet (sheets.py), which repeats without a seam: at the size at which its points are
about as large as the pixel. p0 is metres to a repetition, p1 the sheet's number.
"""
import numpy as np

from support.rooms.patch import lines, noise
from support.rooms.sheets import SIZE, pyramid

ORDERS = np.array([[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 2, 1], [1, 0, 2], [2, 1, 0]])


def look_up(patch, u, v, period, name):
    """The sheets' colours (3, N) at u, v (N,) in repetitions of `period` metres, between four points. The
    material's seed says which of them is red, which green, which blue, and whether they are inverted."""
    wide = SIZE >> np.arange(SIZE.bit_length())  # points across
    first = np.concatenate([[0], np.cumsum(wide ** 2)[:-1]])
    level = np.rint(np.log2(np.maximum(patch.foot * SIZE / period, 1))).astype(int).clip(0, len(wide) - 1)
    n, start = wide[level], first[level]
    x, y = u * n - .5, v * n - .5
    i, j = np.floor(x).astype(int), np.floor(y).astype(int)
    fx, fy = (x - i)[:, None].astype(np.float32), (y - j)[:, None].astype(np.float32)
    left, right = i & (n - 1), (i + 1) & (n - 1)
    low, high = start + (j & (n - 1)) * n, start + (j + 1 & (n - 1)) * n
    rgb = np.empty((len(x), 3), np.float32)
    for number in np.unique(patch.p[:, 1]):
        k, points = np.flatnonzero(patch.p[:, 1] == number), pyramid(name, int(number))
        a, b, c, d = (points[at[k]] for at in (low + left, low + right, high + left, high + right))
        rgb[k] = (a + fx[k] * (b - a)) * (1 - fy[k]) + (c + fx[k] * (d - c)) * fy[k]
    rgb = np.take_along_axis(rgb, ORDERS[patch.seed % 6], 1)
    return np.where(patch.seed // 6 % 2, 1 - rgb.T, rgb.T)


# ------------------------------------------------------------------------------------------------- textures

def _tiled(patch, name):
    """A sheet all over the surface, turned by p2 radians, begun anywhere."""
    c, s, period = np.cos(patch.p[:, 2]), np.sin(patch.p[:, 2]), patch.p[:, 0]
    u, v = c * patch.s + s * patch.t, c * patch.t - s * patch.s
    return look_up(patch, u / period + patch.phase / 97, v / period + patch.seed % 89 / 89, period, name), 1


def leaves(patch):
    """Dead leaves."""
    return _tiled(patch, "leaves")


def clouds(patch):
    """Noise of all sizes."""
    return _tiled(patch, "clouds")


def stains(patch):
    """Spots and runs."""
    return _tiled(patch, "stains")


def poster(patch):
    """A picture with detail, once over the face."""
    large = 2 * np.maximum(patch.ha, patch.hb)
    return look_up(patch, (patch.a + 1) / 2, (1 - patch.b) / 2, large, "poster"), 1


def wallpaper(patch):
    """A motif of dead leaves, mirrored to and fro every p0 metres."""
    u, v = (1 - np.abs(x / patch.p[:, 0] % 2 - 1) for x in (patch.s, patch.t))
    return .3 + .5 * look_up(patch, .02 + .45 * u, .02 + .45 * v, 2.2 * patch.p[:, 0], "leaves"), 1


def _laid(patch, i, j, size):
    """Tones (3, N) of stones or boards i, j of about `size` metres; even where a pixel is larger."""
    fade = np.clip(1.5 - 2 * patch.foot / size, 0, 1)
    tone = noise(i, j, patch.seed)
    return np.stack([.5 + fade * (.7 * tone + .3 * noise(i, j, patch.seed + c) - .5) for c in (1, 2, 3)])


def bricks(patch):
    """Rows of bricks p0 metres long and p2 as high as long, every other row moved by half, in mortar."""
    w, h = patch.p[:, 0], patch.p[:, 0] * patch.p[:, 2]
    row = np.floor(patch.t / h)
    s = patch.s + row % 2 * w / 2
    mortar = np.maximum(lines(s, w, .01, patch.foot), lines(patch.t, h, .01, patch.foot))
    return _laid(patch, np.floor(s / w), row, h), 1 - .4 * mortar


def parquet(patch):
    """Squares of p0 metres, of four boards each that lie along and across in turns."""
    w = patch.p[:, 0]
    i, j = np.floor(patch.s / w), np.floor(patch.t / w)
    along = (i + j) % 2 == 0
    across, up = np.where(along, patch.s, patch.t), np.where(along, patch.t, patch.s)
    board = np.floor(across * 4 / w)
    gap = np.maximum(lines(across, w / 4, .004, patch.foot), lines(up, w, .004, patch.foot))
    return .85 * _laid(patch, 7 * i + board, j, w / 4) + .075 + .075 * patch.wave(.05, across), 1 - .45 * gap


PRINTS = {f.__name__: f for f in (leaves, clouds, stains, poster, wallpaper, bricks, parquet)}
