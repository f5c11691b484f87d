"""Sheets: pictures of SIZE x SIZE points that repeat without a seam, each drawn once from a number, and their
halvings. prints.py looks them up."""
from functools import lru_cache, reduce

import numpy as np

SIZE = 256


def draw_clouds(rng, slope=None):
    """(SIZE, SIZE, 3) in 0…1: noise whose amplitude falls as 1 / frequency^slope, as in photographs."""
    slope = slope or rng.uniform(.9, 1.6)
    f = np.hypot(np.fft.fftfreq(SIZE)[:, None], np.fft.rfftfreq(SIZE)) * SIZE  # (SIZE, SIZE / 2 + 1)
    waves = rng.normal(size=(4, *f.shape)) * np.exp(2j * np.pi * rng.random((4, *f.shape)))
    grey, *colour = np.fft.irfft2(waves / np.maximum(f, 1) ** slope * (f > 0), (SIZE, SIZE))
    cloud = np.stack([grey + rng.uniform(.1, .6) * x for x in colour], -1)
    return np.clip(.5 + .22 * cloud / cloud.std(), 0, 1)


def draw_leaves(rng, count=240, small=3.5):
    """Dead leaves: discs and boxes of many sizes, each over those before it; few are large, many small."""
    sheet = draw_clouds(rng)
    colours = np.clip(rng.random((count, 1)) + rng.normal(0, .18, (count, 3)), 0, 1)
    radii = np.minimum(small / np.sqrt(rng.uniform(.001, 1, count)), 75)
    for colour, r in zip(colours, radii):
        (x, y), (c, s), n = rng.uniform(0, SIZE, 2), rng.normal(size=2), int(r) + 2
        along, up = int(x) + np.arange(-n, n + 1), int(y) + np.arange(-n, n + 1)[:, None]
        du, dv, n = along - x, up - y, np.hypot(c, s)
        u, v = (c * du + s * dv) / n, (c * dv - s * du) / n  # turned
        far = np.hypot(u, v * 1.5) if rng.random() < .6 else np.maximum(abs(u) * 1.2, abs(v) * 1.8)
        cover = np.clip(r - far + .5, 0, 1)[..., None]
        shade = (rng.uniform(.5, 1) + .3 * (u / r))[..., None] * colour
        place = np.ix_(up.ravel() % SIZE, along % SIZE)  # over the edges
        sheet[place] += cover * (.8 * shade + .2 * sheet[place] - sheet[place])
    return np.clip(sheet, 0, 1)


def draw_stains(rng):
    """Spots and runs on an even ground."""
    sheet, edge = draw_clouds(rng, 1.3), rng.uniform(.5, .75)
    return np.clip((sheet - edge) * 6, 0, 1) * .8 + .2 * draw_clouds(rng, .8)


def draw_poster(rng):
    """A picture with detail: shapes before a sky, some lines of writing, a border."""
    sheet = .5 * draw_leaves(rng, 60, 9) + .5 * draw_clouds(rng, 1.6)
    sheet = np.clip(.5 + 1.5 * (sheet - .5), 0, 1)
    x, y, ink = *rng.integers(20, 130, 2), rng.random(3)
    for line in range(int(rng.integers(0, 7))):
        for word in range(int(rng.integers(2, 5))):
            left = x + 25 * word
            sheet[y + 12 * line:y + 12 * line + 6, left:left + int(rng.integers(8, 22))] = ink
    b = int(rng.integers(1, 16))
    sheet[:b] = sheet[-b:] = sheet[:, :b] = sheet[:, -b:] = rng.random(3)
    return sheet


SHEETS = {"clouds": draw_clouds, "leaves": draw_leaves, "stains": draw_stains, "poster": draw_poster}


@lru_cache(48)
def pyramid(name, number):
    """The points of sheet `number` of this name and of all its halvings, one after the other: (T, 3)."""
    sheet = SHEETS[name](np.random.default_rng(number)).astype(np.float32)
    steps = range(SIZE.bit_length() - 1)
    halves = reduce(lambda made, _: [*made, made[-1].reshape(len(made[-1]) // 2, 2, -1, 2, 3).mean((1, 3))],
                    steps, [sheet])
    return np.concatenate([half.reshape(-1, 3) for half in halves])
