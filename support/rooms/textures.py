"""Textures: patterns on a surface that depend on the place alone, so that they look the same from every view.

A texture is a function of a Patch: where on their faces N points are. It returns how far to go there from the
material's albedo a to its albedo b (`mix`, 0 to 1), and how bright the result is (`gain`). Those of prints.py
return a `mix` for each of red, green and blue.
"""
import numpy as np

from support.rooms.patch import Patch, lines, noise
from support.rooms.prints import PRINTS


def plain(patch):
    """A slow drift of tone."""
    return .5 + .5 * np.sin(patch.s * 1.3 + patch.phase) * np.sin(patch.t * 1.1 + 2 * patch.phase), 1


def wood(patch):
    """Planks p0 metres wide with grain, and gaps between them where p1 is 1."""
    s, t, p, seed, w = patch.s, patch.t, patch.p, patch.seed, patch.p[:, 0]
    plank = np.floor(t / w)
    tone = noise(plank, np.floor(s / (w * 8) + noise(plank, plank * 0, seed)), seed)
    grain = patch.wave(.09, t + .03 * np.sin(s * 2.5 + patch.phase + 6 * tone)) * .5 + .5
    return .5 * grain + .5 * tone, 1 - p[:, 1] * .55 * lines(t, w, .008, patch.foot)


def tile(patch):
    """Square tiles of p0 metres with grout between them."""
    s, t, w = patch.s, patch.t, patch.p[:, 0]
    tone = noise(np.floor(s / w), np.floor(t / w), patch.seed)
    grout = np.maximum(lines(s, w, .012, patch.foot), lines(t, w, .012, patch.foot))
    return .6 * tone, 1 - .35 * grout


def cloth(patch):
    """Two crossed waves of about 2 p0 metres, bent."""
    s, t, w = patch.s, patch.t, patch.p[:, 0] * 2
    warp, weft = .3 * w * np.sin(t / w * 3 + patch.phase), .3 * w * np.sin(s / w * 2 + patch.phase)
    return .5 + .25 * patch.wave(w, s + warp) + .25 * patch.wave(w * 1.3, t + weft), 1


def stripes(patch):
    """Upright stripes every p0 metres."""
    return lines(patch.s, patch.p[:, 0], patch.p[:, 0] * .45, np.maximum(patch.foot, .01)), 1


def books(patch):
    """Spines about p0 metres wide, of different height and tone, on the front side."""
    s, b, seed, w = patch.s, patch.b, patch.seed, patch.p[:, 0]
    x = s + .012 * np.sin(s * 41 + patch.phase)  # uneven spines
    book = np.floor(x / w)
    pick, tall = noise(book, book * 0, seed), noise(book, book * 0 + 7, seed)
    gap = lines(x, w, .008, patch.foot)
    band = np.clip((.04 - np.abs(b - .1 - .5 * (tall - .5))) * 12, 0, 1)
    above = np.clip((b - .45 - .55 * tall) * 20, 0, 1)  # dark, where no book is
    spine = (1 - .6 * gap) * (.55 + .6 * tall) * (1 - .8 * above)
    return np.where(patch.front, np.clip(pick + .5 * band, 0, 1), .3), np.where(patch.front, spine, .8)


def folds(patch):
    """Hanging cloth with folds every p0 metres; p1: 1 prints dots, 2 prints bands."""
    s, t, p = patch.s, patch.t, patch.p
    fold = patch.wave(p[:, 0], s + .02 * np.sin(t * 2 + patch.phase))
    dots = np.clip(patch.wave(.3, s) * patch.wave(.3, t) * 8 - 2.5, 0, 1)
    bands = lines(t, .36, .12, np.maximum(patch.foot, .01))
    return .9 * np.where(p[:, 1] == 1, dots, np.where(p[:, 1] == 2, bands, 0)), .78 + .22 * fold


def panel(patch):
    """A front of p0 by p1 doors or drawers, gaps between them, each with a panel set in by p2 metres."""
    ha, hb, foot = patch.ha, patch.hb, patch.foot
    columns, rows, inset = patch.p.T
    x, y = (patch.a + 1) / 2 * columns, (patch.b + 1) / 2 * rows
    dx = np.abs(x - np.rint(x)) * 2 * ha / columns  # metres to the nearest gap
    dy = np.abs(y - np.rint(y)) * 2 * hb / rows
    edge = np.minimum(dx, dy)
    gap = np.clip((.006 + foot / 2 - edge) / foot, 0, 1)
    groove = np.clip((.012 + foot / 2 - np.abs(edge - inset)) / foot, 0, 1) * (inset > 0)
    return (np.where(patch.front, (edge > inset) * .6, 0),
            np.where(patch.front, (1 - .55 * gap) * (1 - .3 * groove), 1))


def art(patch):
    """Something painted; p0 and p1: how busy it is."""
    a, b, p, phase = patch.a, patch.b, patch.p, patch.phase
    mix = .5 + .5 * np.sin(p[:, 0] * 3 * a + 1.7 * np.sin(p[:, 1] * 2.5 * b + phase))
    return mix, .55 + .45 * np.sin(p[:, 1] * 2.3 * b + 1.3 * np.sin(p[:, 0] * 2 * a + 2 * phase)) ** 2


def outside(patch):
    """Trees before a sky, seen through a window."""
    a, b, phase = patch.a, patch.b, patch.phase
    trees = -.2 + .15 * np.sin(2.2 * a + phase) + .06 * np.abs(np.sin(9 * a + 2 * phase))
    leaves = .55 + .2 * np.sin(7 * a + phase) * np.sin(9 * b)
    return np.clip((trees - b) * 5, 0, 1), np.where(b < trees, leaves, .85 + .15 * b)


TEXTURES = {f.__name__: f for f in (plain, wood, tile, cloth, stripes, books, folds, panel, art, outside)}


def patterns(materials, material, surface, foot):
    """mix (3, N) and gain (N,), float32, of N surface points of different materials.

    materials: Room.materials; material (N,): index into them; surface: see surface.py; foot (N,): see Patch.
    """
    mix, gain = np.zeros((3, len(foot)), np.float32), np.ones(len(foot), np.float32)
    for name in np.unique(materials["texture"]):
        i = np.flatnonzero((materials["texture"] == name)[material])  # these points have this texture
        where = (field[i] for field in (surface.a, surface.b, surface.ha, surface.hb, surface.front))
        p, seed = materials["p"].astype(np.float32)[material[i]], materials["seed"][material[i]]
        draw = TEXTURES.get(name) or PRINTS[name]
        mix[:, i], gain[i] = draw(Patch(*where, p, seed, foot[i]))
    return mix, gain
