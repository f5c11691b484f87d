"""Screens: what stands in a room's middle and is looked past, through or over. As in furniture.py, each
function draws one item."""
import numpy as np

from support.rooms import classes as nyu
from support.rooms.materials import finish, material
from support.rooms.parts import BALL, BOX, Item


def column(rng):
    """A round or square column from the floor up; where it ends, the ceiling may hide."""
    o, r, m = Item(nyu.WALL), rng.uniform(.1, .17), material(rng, contrast=.15, light=.6)
    round_ = rng.random() < .5
    for width, z in ((r, (0, 2.38)), (r + .04, (0, .12)), (r + .04, (2.3, 2.39))):
        o.post(0, 0, width, z, m, *(() if round_ else (BOX,)))
    return o


def open_shelf(rng):
    """A shelf without a back, which one sees through: boards on posts, some things on them."""
    o, x, d, n = Item(nyu.BOOKSHELF), rng.uniform(.4, .6), rng.uniform(.28, .34), int(rng.integers(4, 6))
    h, m = rng.uniform(1.6, 2.0), finish(rng)
    for y in (.02, d - .02):
        o.post(x - .02, y, .02, (0, h), m, BOX).post(.02 - x, y, .02, (0, h), m, BOX)
    for z in np.linspace(.1, h, n):
        o.add((-x, x), (0, d), (z - .03, z), m)
        if z < h and rng.random() < .75:
            a = rng.uniform(-x + .05, x - .35)
            books = material(rng, "books", (.05, 0, 0), contrast=1)
            o.add((a, a + rng.uniform(.2, .3)), (.05, d - .05), (z, z + rng.uniform(.16, .26)), books)
    return o


def partition(rng):
    """A piece of wall, as high as a person."""
    o, x, h, m = Item(nyu.WALL), rng.uniform(.25, .4), rng.uniform(1.6, 2.1), material(rng, contrast=.15)
    return o.add((-x, x), (0, .1), (0, h), m).add((-x - .015, x + .015), (-.01, .11), (0, .09), finish(rng))


def doorway(rng):
    """A frame that one looks through, with a narrow piece of wall beside it."""
    o, x, m, trim = Item(nyu.WALL), rng.uniform(.42, .5), material(rng, contrast=.15), finish(rng)
    wide, side = rng.uniform(.25, .45), rng.choice([-1, 1])
    o.add((x - .06, x), (0, .14), (0, 2.1), trim, both=True).add((-x, x), (0, .14), (2.1, 2.2), trim)
    return o.add(sorted((side * x, side * (x + wide))), (.02, .12), (0, 2.2), m)


def slats(rng):
    """A room divider of upright slats."""
    o, x, h, m = Item(nyu.OTHER), rng.uniform(.35, .55), rng.uniform(1.6, 2.0), finish(rng)
    for a in np.arange(-x, x, .11):
        o.add((a, a + .045), (0, .04), (.05, h), m)
    return o.add((-x, x), (-.02, .06), (0, .05), m).add((-x, x), (-.01, .05), (h, h + .04), m)


def plant(rng):
    """A tall plant in a pot: a stem and leaves, with gaps between them."""
    o, m, leaf = Item(nyu.OTHER), material(rng), material(rng, "cloth", (.06, 0, 0), contrast=.6)
    h = rng.uniform(1.3, 1.8)
    o.post(0, 0, .17, (0, .36), m).post(0, 0, .02, (.3, h - .1), leaf)
    for z in np.linspace(.6, h, int(rng.integers(8, 13))):
        way, reach, r = rng.uniform(0, 2 * np.pi), rng.uniform(.08, .24), rng.uniform(.06, .11)
        o.post(reach * np.cos(way), reach * np.sin(way), r, (z - r * 1.6, z + r * 1.6), leaf, BALL,
               tilt=rng.uniform(-.7, .7))
    return o


SCREENS = (column, open_shelf, partition, doorway, slats, plant)
