"""Furniture: each function draws one item from a random generator, in the item's own frame (see parts.Item).

`o` is the item being built, w its width, d its depth, h its height, x half its width (metres), m its main
material. No two items of a kind are alike: sizes, materials and details are drawn.
"""
import numpy as np

from support.rooms import classes as nyu
from support.rooms.materials import cloth, colour, finish, material
from support.rooms.parts import BALL, BOX, Item, turn


def chair(rng):
    """Four legs, seat and back, or a swivel chair with arm rests; about 0.5 m wide."""
    o, x, d = Item(nyu.CHAIR), rng.uniform(.22, .27), rng.uniform(.44, .52)
    h, top = rng.uniform(.42, .48), rng.uniform(.84, .98)
    m, seat = finish(rng), cloth(rng) if rng.random() < .6 else finish(rng)
    if rng.random() < .4:  # a swivel chair
        for yaw in (.4, .4 + np.pi / 2):
            o.put(Item(nyu.CHAIR).post(0, 0, .3, (.03, .09), m, BOX, ry=.03), 0, d / 2, yaw)
        o.post(0, d / 2, .035, (.06, h), m).add((-x, x), (0, d), (h - .02, h + .07), seat)
        o.add((-x * .9, x * .9), (-.06, .02), (h + .14, top), seat, tilt=.12)
        o.add((x - .03, x + .03), (.08, d - .1), (h + .2, h + .24), m, both=True)  # arm rests
        return o.add((x - .02, x + .02), (.18, .24), (h, h + .2), m, both=True)
    o.add((x - .045, x), (d - .045, d), (0, h), m, both=True)  # legs
    o.add((x - .045, x), (0, .045), (0, top), m, both=True)  # those behind carry the back
    o.add((-x - .01, x + .01), (.01, d + .01), (h - .03, h + .03), seat)
    if rng.random() < .5:
        return o.add((-x + .045, x - .045), (.005, .04), (h + .12, top), seat)
    for z in np.linspace(h + .16, top - .09, 3):  # slats
        o.add((-x + .045, x - .045), (.005, .035), (z, z + .08), m)
    return o


def table(rng, low=None):
    """A table with its chairs around it, or a low coffee table."""
    low = rng.random() < .25 if low is None else low
    width, depth, height = ((.9, 1.2), (.5, .7), (.38, .48)) if low else ((1.1, 1.6), (.75, .95), (.7, .76))
    w, d, h = rng.uniform(*width), rng.uniform(*depth), rng.uniform(*height)
    o, m, legs = Item(nyu.TABLE), finish(rng), finish(rng)
    if rng.random() < .3:  # round, on a pedestal
        w = d = min(w, 1.15)
        o.post(0, d / 2, d / 2, (h - .05, h), m).post(0, d / 2, .06, (.04, h - .02), legs)
        o.post(0, d / 2, .28, (0, .05), legs)
    else:
        o.add((-w / 2, w / 2), (0, d), (h - .05, h), m)
        o.add((-w / 2 + .08, w / 2 - .08), (.08, d - .08), (h - .13, h - .05), legs)  # apron
        for y in (.04, d - .11):
            o.add((w / 2 - .11, w / 2 - .04), (y, y + .07), (0, h - .05), legs, both=True)
    o.clutter(rng, (-w / 3, w / 3), (d / 4, d * .75), h)
    style = int(rng.integers(1 << 30))
    spots = [(-w / 4, 0, 0), (w / 4, d, np.pi), (w / 4, 0, 0), (-w / 4, d, np.pi)]
    for x, y, yaw in spots[:0 if low else int(rng.integers(2, 5))]:  # of one style, half under the top
        yaw += rng.normal(0, .12)
        out = turn(yaw) @ (0, .33, 0)
        o.put(chair(np.random.default_rng(style)), x - out[0], y - out[1], yaw)
    return o


def coffee_table(rng):
    """A low table without chairs."""
    return table(rng, low=True)


def desk(rng):
    """Top, drawers on one side, mostly a monitor, a keyboard and a chair, sometimes a hutch."""
    o, w, d, h = Item(nyu.DESK), rng.uniform(1.2, 1.7), rng.uniform(.65, .78), rng.uniform(.72, .78)
    m, side = finish(rng), int(rng.choice([-1, 1]))
    o.add((-w / 2, w / 2), (0, d), (h - .04, h), m)
    o.add((-w / 2 + .05, w / 2 - .05), (.03, .06), (.25, h - .04), m)
    drawers, knob = material(rng, "panel", (1, 3, 0), a=m["a"], contrast=.3), material(rng)
    x = side * (w / 2 - .23)
    o.add((x - .21, x + .21), (.06, d - .04), (.03, h - .04), drawers)
    for z in (.19, .48, .77):
        o.add((x - .06, x + .06), (d - .04, d - .015), (z * h, z * h + .025), knob)
    o.post(-side * (w / 2 - .025), d / 2, .025, (0, h - .04), m, BOX, ry=d / 2 - .02)
    if rng.random() < .8:
        x, dark = rng.uniform(-.25, .25), material(rng, a=[.02] * 3, b=[.03] * 3)
        screen = material(rng, "art", (2, 2, 0), a=[.02, .03, .06], emit=.15)
        o.add((x - .28, x + .28), (.2, .23), (h + .1, h + .46), screen, label=nyu.PROP)
        o.post(x, .18, .03, (h, h + .3), dark, BOX, nyu.PROP)  # its stand
        o.post(x, .2, .12, (h, h + .015), dark, BOX, nyu.PROP)
        o.post(x, .45, .2, (h, h + .02), material(rng), BOX, nyu.PROP, ry=.07)  # keyboard
    o.clutter(rng, (-w / 2 + .15, w / 2 - .15), (.25, d - .15), h)
    if rng.random() < .5:  # a hutch: a shelf standing on the desk
        o.add((-w / 2, w / 2), (0, .03), (h, h + .42), m).add((-w / 2, w / 2), (0, .2), (h + .42, h + .46), m)
        o.add((w / 2 - .03, w / 2), (.03, .2), (h, h + .42), m, both=True)
    if rng.random() < .75:
        o.put(chair(rng), -side * .2, d + .5, np.pi + rng.normal(0, .4))
    return o


def bed(rng):
    """Headboard, frame, mattress, duvet and one or two pillows."""
    o, x, n, h = Item(nyu.BED), rng.uniform(.5, .85), rng.uniform(1.95, 2.1), rng.uniform(.45, .6)
    m, sheet, duvet, pillow = finish(rng), material(rng, light=.6), cloth(rng), cloth(rng)
    o.add((-x, x), (0, .06), (0, rng.uniform(.85, 1.1)), m)  # headboard
    o.add((-x, x), (.06, n), (.12, h - .2), m)  # frame
    o.add((x - .08, x), (n - .08, n), (0, .12), m, both=True)
    o.add((-x + .02, x - .02), (.06, n - .02), (h - .2, h), sheet)  # mattress
    o.add((-x - .02, x + .02), (.62, n + .01), (h - .17, h + .05), duvet)
    o.add((-x - .02, x + .02), (.6, .8), (h + .03, h + .07), sheet)
    if x > .62:
        return o.add((x / 2 - .3, x / 2 + .3), (.1, .52), (h - .03, h + .15), pillow, BALL, both=True)
    return o.post(0, .31, .3, (h - .03, h + .15), pillow, BALL, ry=.21)


def sofa(rng, seats=None):
    """Base, back, arm rests, a pair of cushions a seat, loose pillows."""
    n = seats or int(rng.integers(2, 4))
    o, cw, arm = Item(nyu.SOFA), rng.uniform(.58, .7), rng.uniform(.14, .22)
    d, h = rng.uniform(.85, .95), rng.uniform(.4, .46)
    m, x = cloth(rng), n * cw / 2
    pad = m if rng.random() < .6 else cloth(rng)
    o.add((-x, x), (.2, d), (.08, h - .14), m).add((-x, x), (0, .2), (.08, rng.uniform(.72, .82)), m)
    o.add((x, x + arm), (0, d), (.05, h + .17), m, both=True)
    for i in range(n):
        a, b = -x + i * cw + .015, -x + (i + 1) * cw - .015
        o.add((a, b), (.18, d + .02), (h - .14, h), pad).add((a, b), (.2, .36), (h, h + .4), pad, tilt=.18)
    for _ in range(int(rng.integers(0, 3))):
        o.post(rng.uniform(.2 - x, x - .2), .44, .2, (h, h + .38), cloth(rng), BALL, ry=.06, tilt=.3)
    return o


def armchair(rng):
    """A sofa for one."""
    return sofa(rng, 1)


def bookshelf(rng):
    """Sides, boards, and rows of books between them."""
    o, x, n = Item(nyu.BOOKSHELF), rng.uniform(.4, .7), int(rng.integers(4, 6))
    d, h = rng.uniform(.28, .36), rng.uniform(1.4, 2.1)
    m, step = finish(rng), (h - .1) / n
    o.add((x - .03, x), (0, d), (0, h), m, both=True).add((-x, x), (0, .02), (0, h), m)
    for z in .09 + step * np.arange(n + 1):
        o.add((-x + .03, x - .03), (.02, d - .01), (z - .03, z), m)
        if z < h - step and rng.random() < .9:
            end = min(-x + .03 + 2 * x * rng.uniform(.55, 1), x - .03)
            books = material(rng, "books", (.055, 0, 0), contrast=1)
            o.add((-x + .03, end), (.02, d - .06), (z, z + step * rng.uniform(.7, .88)), books)
    return o


def cabinet(rng, w=None, h=None, d=None):
    """Doors or drawers with handles; low or as tall as a wardrobe unless a size is given."""
    w = w or rng.uniform(.8, 1.5)
    h = h or rng.uniform(*((1.6, 2.1) if rng.random() < .45 else (.7, .95)))
    d, o, m, knob = d or rng.uniform(.42, .55), Item(nyu.CABINET), finish(rng), material(rng)
    cols, rows = max(1, round(w / .5)), 1 if h > 1.2 or rng.random() < .6 else 3
    front = material(rng, "panel", (cols, rows, .07), a=m["a"], contrast=.3)
    o.add((-w / 2, w / 2), (0, d), (.08, h - .03), front)
    o.add((-w / 2 - .02, w / 2 + .02), (0, d + .02), (h - .03, h), m)
    o.add((-w / 2 + .04, w / 2 - .04), (.02, d - .05), (0, .08), material(rng))
    for i in range(cols):
        for j in range(rows):
            x, z = (.5 if rows > 1 else .13 if i % 2 else .87), .08 + (j + .5) * (h - .11) / rows
            rx, rz = (.07, .012) if rows > 1 else (.012, .08)
            o.post(-w / 2 + (i + x) * w / cols, d + .015, rx, (z - rz, z + rz), knob, BOX, ry=.015)
    return o


def door(rng):
    """Leaf with panels, frame and handle."""
    o, x, h, m, paint = Item(nyu.DOOR), rng.uniform(.4, .48), rng.uniform(2.0, 2.1), finish(rng), finish(rng)
    cols, rows = int(rng.integers(1, 3)), int(rng.integers(1, 4))
    leaf = material(rng, "panel", (cols, rows, .12), a=paint["a"], contrast=.3)
    o.add((x, x + .08), (0, .05), (0, h + .08), m, both=True).add((-x, x), (0, .05), (h, h + .08), m)
    k, metal = rng.choice([-1, 1]) * (x - .08), material(rng)
    o.add((-x, x), (0, .025), (0, h), leaf).post(k, .03, .03, (.95, 1.12), metal, BOX, ry=.005)
    o.post(k, .06, .07, (1.03, 1.055), metal, BOX, ry=.012)
    return o.post(k, .04, .015, (1.02, 1.06), metal, BOX, ry=.02)


def drape(rng, o, x0, x1, y, z, label):
    """Hang cloth on o: upright rolls in front of a sheet; the texture shades finer folds and prints."""
    print_ = rng.choice([0, 1, 2] if label == nyu.SHOWER else [0, 0, 2])
    m = material(rng, "folds", (rng.uniform(.1, .16), print_, 0), contrast=.7)
    o.add((x0, x1), (y - .02, y + .02), z, m, label=label)
    for x in np.linspace(x0 + .08, x1 - .08, max(2, round((x1 - x0) / .16))):
        o.post(x, y, .045, z, m, label=label, ry=.05)


def window(rng):
    """Frame, mullions, sill and a bright outside; mostly with a pair of curtains on a rod."""
    o, w, h, z = Item(nyu.WINDOW), rng.uniform(1.2, 1.8), rng.uniform(1.1, 1.4), rng.uniform(.8, 1.0)
    m, x = finish(rng), w / 2 + .4
    pane = material(rng, "outside", a=[.75, .85, 1], b=colour(rng), emit=rng.uniform(.5, .9))
    o.add((-w / 2, w / 2), (0, .01), (z, z + h), pane).frame(w, (z, z + h), .06, (0, .045), m)
    for t in np.linspace(-w / 2, w / 2, int(rng.integers(3, 5)))[1:-1]:
        o.add((t - .03, t + .03), (0, .04), (z + .06, z + h - .06), m)
    o.add((-w / 2 - .05, w / 2 + .05), (0, .14), (z - .04, z), m)
    if rng.random() < .8:
        low = .05 if rng.random() < .6 else z - .25
        cover, style = rng.uniform(.3, .55), int(rng.integers(1 << 30))
        o.add((-x - .1, x + .1), (.15, .18), (z + h + .1, z + h + .13), material(rng), label=nyu.CURTAIN)
        for a, b in ((-x, cover - x), (x - cover, x)):
            drape(np.random.default_rng(style), o, a, b, .2, (low, z + h + .1), nyu.CURTAIN)
    return o


def picture(rng):
    """A frame around something painted."""
    o, w, h, z = Item(nyu.PICTURE), rng.uniform(.6, 1.3), rng.uniform(.5, .85), rng.uniform(1.2, 1.35)
    art = material(rng, "art", (rng.uniform(.8, 2.5), rng.uniform(.8, 2.5), 0), contrast=1)
    o.add((-w / 2, w / 2), (0, .015), (z, z + h), art)
    return o.frame(w, (z, z + h), .05, (0, .035), finish(rng))


def kitchen(rng):
    """Cabinets under a worktop (counter) with a sink set in, tiles behind, often cabinets on the wall."""
    o, w, d, h = Item(nyu.COUNTER), rng.uniform(1.7, 2.4), .6, rng.uniform(.86, .92)
    top, z, s = material(rng, "cloth", (.05, 0, 0), contrast=.2), (h - .06, h), rng.uniform(-w / 5, w / 5)
    o.put(cabinet(rng, w - .02, h - .06, d - .04))
    o.add((-w / 2, s - .4), (0, d), z, top).add((s + .4, w / 2), (0, d), z, top)  # a hole for the sink
    o.add((s - .4, s + .4), (0, .1), z, top).add((s - .4, s + .4), (d - .08, d), z, top)
    above = (h, h + rng.uniform(.2, .5))
    o.add((-w / 2, w / 2), (0, .025), above, material(rng, "tile", (.12, 0, 0), a=top["a"]))
    o.basin(.8, (.1, d - .08), h + .012, .16, .035, material(rng, light=.5), s, nyu.SINK)
    o.tap(rng, s, .1, h, nyu.SINK)
    o.clutter(rng, (-w / 2 + .1, s - .5), (.12, .4), h)
    return o.put(cabinet(rng, rng.uniform(.8, w), .62, .33), z=1.5) if rng.random() < .6 else o


def bar(rng):
    """A counter of its own: boarded below, with an overhanging top."""
    o, x, d, h = Item(nyu.COUNTER), rng.uniform(.6, .95), rng.uniform(.5, .65), rng.uniform(.88, .98)
    o.add((-x + .05, x - .05), (0, d - .12), (0, h - .06), material(rng, "wood", (.14, 1, 0), contrast=.4))
    o.add((x - .05, x - .01), (0, d - .1), (0, h - .06), finish(rng), both=True)
    return o.add((-x, x), (0, d), (h - .06, h), material(rng, "cloth", (.05, 0, 0), contrast=.3))


def fridge(rng):
    """Two doors of unequal height, each with a grip."""
    o, x, d, h = Item(nyu.FRIDGE), rng.uniform(.33, .45), rng.uniform(.62, .7), rng.uniform(1.6, 1.9)
    m, metal, side = material(rng, light=.45), material(rng), rng.choice([-1, 1])
    cut = rng.choice([.35, .65]) * h
    o.add((-x, x), (0, d - .07), (.04, h), m)
    for z, grip in (((.06, cut - .012), (max(.1, cut - .5), cut - .06)),
                    ((cut + .012, h), (cut + .06, min(h - .05, cut + .5)))):
        o.add((-x, x), (d - .06, d), z, m).post(side * (x - .08), d + .02, .015, grip, metal, BOX, ry=.02)
    return o


def toilet(rng):
    """Tank, bowl, seat, lid up or down."""
    o, m, k = Item(nyu.TOILET), material(rng, light=.45), rng.uniform(1.08, 1.25)
    lid = m if rng.random() < .6 else material(rng)
    o.add((-.22 * k, .22 * k), (0, .2 * k), (.38 * k, .8 * k), m)  # tank
    o.add((-.235 * k, .235 * k), (0, .215 * k), (.8 * k, .84 * k), m)
    o.post(0, .33 * k, .12 * k, (0, .25 * k), m, BOX, ry=.22 * k)
    o.post(0, .44 * k, .2 * k, (.12 * k, .56 * k), m, BALL, ry=.28 * k)  # bowl
    o.post(0, .46 * k, .21 * k, (.4 * k, .45 * k), lid, ry=.28 * k)
    if rng.random() < .5:  # lid up
        o.post(0, .24 * k, .2 * k, (.44 * k, .85 * k), lid, BOX, ry=.02, tilt=.1)
    return o


def washbasin(rng):
    """A sink on a pedestal, or set on a small cabinet."""
    o, m, w = Item(nyu.SINK), material(rng, light=.45), rng.uniform(.65, .95)
    d, h = rng.uniform(.5, .58), rng.uniform(.8, .88)
    if rng.random() < .5:
        o.post(0, .21, .11, (0, h - .15), m)
    else:
        o.put(cabinet(rng, w * .9, h - .26, d - .06))
    o.basin(w, (0, d), h, .26, .06, m).add((-w / 2, w / 2), (0, .02), (h, h + .15), m)
    return o.tap(rng, 0, .07, h)


def bathtub(rng):
    """A hollow tub, mostly with a shower curtain on a rod along its open side."""
    o, m, w = Item(nyu.BATHTUB), material(rng, light=.45), rng.uniform(1.5, 1.75)
    d, h = rng.uniform(.72, .82), rng.uniform(.52, .6)
    o.basin(w, (0, d), h, h - .06, .08, m)
    o.add((-w / 2 - .02, w / 2 + .02), (d - .08, d + .02), (h - .04, h + .01), m)
    o.tap(rng, -w / 2 + .04, d / 2, h)
    if rng.random() < .85:
        side, n = rng.choice([-1, 1]), rng.uniform(.4, .65) * w
        o.add((-w / 2, w / 2), (d + .05, d + .08), (1.98, 2.01), material(rng), label=nyu.PROP)
        x0, x1 = sorted((side * w / 2, side * (w / 2 - n)))
        drape(rng, o, x0, x1, d + .065, (rng.uniform(.12, .3), 1.97), nyu.SHOWER)
    return o


def other(rng):
    """otherfurniture: a floor lamp, a plant, a bin or a stack of boxes."""
    o, m, kind, h = Item(nyu.OTHER), material(rng), rng.integers(4), rng.uniform(.5, .75)
    if kind == 0:
        shade = material(rng, light=.5, emit=.25)
        o.post(0, .26, .16, (0, .03), m).post(0, .26, .02, (0, h + .9), m)
        return o.post(0, .26, .22, (h + .8, h + 1.1), shade)
    if kind == 1:
        leaf = material(rng, "cloth", (.06, 0, 0), contrast=.6)
        o.post(0, .28, .18, (0, .36), m).post(0, .28, .02, (.3, 1.0), m)
        for _ in range(7):
            x, y = rng.uniform(-.14, .14), rng.uniform(.18, .38)
            z, r = rng.uniform(.5, 1.15), rng.uniform(.1, .17)
            o.post(x, max(y, r * 1.5), r, (z - r * 1.4, z + r * 1.4), leaf, BALL, tilt=rng.uniform(-.5, .5))
        return o
    if kind == 2:
        return o.post(0, .22, .2, (0, h), m).post(0, .22, .21, (h, h + .06), material(rng))
    for r, z, top in ((.3, 0, .4), (.26, .4, .75), (.22, .75, 1.05))[:int(rng.integers(1, 4))]:
        card = material(rng, "stripes", (.3, 0, 0), contrast=.2)
        o.put(Item(nyu.OTHER).post(0, 0, r, (z, top), card, BOX, ry=r * .8), 0, .34, rng.normal(0, .1))
    return o


RECIPES = {  # what a kind of room holds; placed in this order as long as there is space
    "bathroom": (door, bathtub, toilet, washbasin, window, toilet, bathtub, washbasin, toilet, washbasin,
                 cabinet, other, picture),
    "living room": (door, window, sofa, bookshelf, coffee_table, armchair, cabinet, sofa, picture, other,
                    picture, window, other),
    "kitchen": (door, kitchen, fridge, window, table, bar, kitchen, cabinet, other, picture, picture),
    "bedroom": (door, bed, desk, window, cabinet, desk, bookshelf, bed, picture, other, armchair, picture),
    "studio": (door, bed, toilet, desk, fridge, washbasin, window, bathtub, table, bar, toilet, other,
               picture, picture, sofa),
    "office": (door, desk, desk, window, desk, bookshelf, cabinet, desk, table, other, picture, bookshelf,
               window, picture),
}
# of the rooms of seeds 0, 1, 2 …, in turns: eight in a row show all classes
KINDS = ("bathroom", "living room", "kitchen", "bedroom", "studio", "office", "bathroom", "kitchen")
FILL = (other, picture, cabinet, armchair, bookshelf, other)  # then whatever still fits
TABLES, SEATS = (table, coffee_table), (sofa, armchair, chair)
