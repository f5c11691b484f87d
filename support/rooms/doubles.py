"""Doubles: things of different classes that look the same but for one side.

Each function builds one of several classes from the same draws: from the front, and past the end that is
closed, it is the same picture whichever class it is. The other end tells. `side` says where that end is: -1
left or 1 right, as the item's own x goes. So one view may be unable to tell what another view shows.

`o` is the item being built, x half its width, d its depth, h its height (metres), m a material.
"""
import numpy as np

from support.rooms import classes as nyu
from support.rooms.materials import cloth, finish, material
from support.rooms.parts import BALL, BOX, Item

FRONTS, COUCHES, TOPS = (nyu.CABINET, nyu.FRIDGE, nyu.DOOR), (nyu.SOFA, nyu.BED), (nyu.TABLE, nyu.COUNTER)


def _span(side, x, inner, outer):
    """The range of x from `inner` to `outer` metres within the end at `side` of ±x."""
    return sorted((side * (x - inner), side * (x - outer)))


def front(rng, label, side):
    """A cabinet, a refrigerator or a door in a closet's wall: the same front, panels and a bar for a handle.

    The end that tells: boards with things on them; a grille over the whole side; the closet's wall with its
    skirting board.
    """
    body = nyu.WALL if label == nyu.DOOR else label
    o, x, h = Item(body), rng.uniform(.42, .5), rng.uniform(1.95, 2.1)
    d, m, paint, metal = rng.uniform(.55, .62), finish(rng), finish(rng), material(rng)
    panels = (int(rng.integers(1, 3)), int(rng.integers(1, 4)), .1)
    leaf, k = material(rng, "panel", panels, a=paint["a"], contrast=.3), rng.choice([-1, 1]) * (x - .09)
    o.add((-x, x), (d - .03, d), (0, h), leaf, label=label)
    o.post(k, d + .04, .015, (.9, 1.25), metal, BOX, label, ry=.012)
    for z in (.92, 1.21):
        o.post(k, d + .015, .012, (z, z + .02), metal, BOX, label, ry=.02)
    o.add((-x, x), (0, d - .03), (h - .03, h), m)                             # the top
    o.add(_span(-side, x, .3, 0), (0, d - .03), (0, h - .03), m)              # the end that is closed
    o.add((-x + .02, x - .02), (d - .06, d - .03), (0, h - .03), m)           # behind the front
    inner = np.random.default_rng(rng.integers(1 << 30))  # of its own: whatever the class draws, rng goes on
    core, end = _span(side, x, 2 * x - .3, .28), _span(side, x, .28, 0)
    if label == nyu.CABINET:
        o.add(core, (0, d - .06), (0, h - .03), m)
        for z in np.linspace(.06, h - .35, 5):
            o.add(end, (.01, d - .06), (z - .03, z), m)
            books = material(inner, "books", (.05, 0, 0), contrast=1)
            o.add(_span(side, x, .25, .08), (.03, d - .1), (z, z + inner.uniform(.18, .3)), books)
    elif label == nyu.FRIDGE:
        white, dark = material(inner, light=.9, contrast=.1), [.02] * 3
        o.add(core, (0, d - .06), (0, h - .03), white)
        o.add(_span(side, x, .28, .015), (0, d - .06), (.05, h - .03), white)
        for z in np.arange(.15, h - .2, .16):
            o.add(_span(side, x, .02, 0), (.05, d - .09), (z, z + .08), material(inner, a=dark, b=dark))
    else:
        plaster = material(inner, contrast=.1, light=.8)
        o.add(core, (0, d - .06), (0, h - .03), plaster)
        o.add(_span(side, x, .28, .015), (0, d - .06), (0, h - .03), plaster)
        o.add(_span(side, x, .02, 0), (0, d - .06), (0, .12), m)
    return o


def couch(rng, label, side):
    """A sofa or a bed with a high board along its front, which stands towards the room as a sofa's back does.

    The end that tells is open: cushions and an arm rest; or a mattress, a duvet and a pillow.
    """
    o, x, d, h = Item(label), rng.uniform(.88, 1.02), rng.uniform(.85, .95), rng.uniform(.84, .95)
    m, cover = finish(rng), cloth(rng)
    o.add((-x, x), (d - .14, d), (.06, h), cover)                             # the board
    o.add(_span(-side, x, .14, 0), (0, d - .14), (.06, h), cover)             # the end that is closed
    o.add((x - .1, x - .02), (d - .1, d - .03), (0, .06), m, both=True)
    inner = np.random.default_rng(rng.integers(1 << 30))
    low, high = sorted((side * (.14 - x), side * x))
    if label == nyu.SOFA:
        seat, width = cloth(inner), (high - low - .16) / 2
        o.add((low, high), (.02, d - .14), (.08, .3), cover)
        o.add(_span(side, x, .16, 0), (.02, d - .14), (.3, .58), cover)       # the arm rest
        for i in range(2):
            a = (low if side > 0 else low + .16) + i * width
            o.add((a + .01, a + width - .01), (0, d - .15), (.3, .45), seat)
            o.add((a + .01, a + width - .01), (d - .3, d - .15), (.45, h - .1), seat, tilt=-.12)
        return o
    sheet, duvet = material(inner, light=.6), cloth(inner)
    o.add((low, high), (.02, d - .14), (.14, .3), m)
    o.add((low, high), (.02, d - .16), (.3, .48), sheet)                      # the mattress
    a = sorted((side * (x - .65), side * (.2 - x)))
    o.add(a, (0, d - .15), (.34, .54), duvet)
    return o.post(side * (x - .33), d / 2 - .07, .2, (.46, .64), cloth(inner), BALL, ry=.3)


def top(rng, label, side):
    """A table or a counter: the same top, boarded in front and at one end.

    The end that tells: a table stands on legs there and is empty below; a counter is closed by drawers.
    """
    o, x, d, h = Item(label), rng.uniform(.7, .95), rng.uniform(.6, .75), rng.uniform(.82, .92)
    boards, slab, m = (material(rng, "wood", (.14, 1, 0), contrast=.4),
                       material(rng, "cloth", (.05, 0, 0), contrast=.3), finish(rng))
    o.add((-x, x), (0, d), (h - .05, h), slab)
    o.add((-x + .04, x - .04), (d - .08, d - .05), (0, h - .05), boards)
    o.add(_span(-side, x, .08, .04), (.04, d - .08), (0, h - .05), boards)    # the end that is closed
    o.clutter(rng, (-x * .7, x * .7), (d / 4, d * .75), h, 3)
    inner, end = np.random.default_rng(rng.integers(1 << 30)), _span(side, x, .1, .04)
    if label == nyu.TABLE:
        return o.add(end, (.04, .1), (0, h - .05), m)
    drawers = material(inner, "panel", (1, 3, 0), a=m["a"], contrast=.3)
    o.add(_span(side, x, .5, .055), (.04, d - .08), (0, h - .05), m)
    for z in np.linspace(.08, h - .33, 3):
        o.add(_span(side, x, .06, .035), (.07, d - .12), (z, z + .2), drawers)
    return o
