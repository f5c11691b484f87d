"""Other shapes of what furniture.py draws, for rooms of WIDE. As there, each function draws one item."""
import numpy as np

from support.rooms import classes as nyu
from support.rooms.furniture import armchair, cabinet, drape, sofa
from support.rooms.materials import cloth, finish, material
from support.rooms.parts import BALL, BOX, CYLINDER, Item


def stool(rng):
    """A seat without a back on one, three or four legs, or a cube to sit on: no chair in ScanNet's table."""
    o, r, h, m = Item(nyu.PROP), rng.uniform(.16, .24), rng.uniform(.4, .75), finish(rng)
    kind, seat = rng.integers(3), cloth(rng)
    if kind == 0:
        return o.post(0, r, r, (0, h), seat, BOX)
    o.post(0, r, r, (h - .06, h), seat, BOX if kind == 1 else CYLINDER)
    if kind == 2:
        return o.post(0, r, .03, (.03, h - .05), m).post(0, r, r * .8, (0, .03), m)
    for y in (.03, 2 * r - .03):
        o.post(r - .03, y, .02, (0, h - .05), m).post(.03 - r, y, .02, (0, h - .05), m)
    return o


def shell_chair(rng):
    """A round seat and a bent back on a foot, or a heavy block with arms."""
    o, m, x = Item(nyu.CHAIR), cloth(rng), rng.uniform(.24, .34)
    if rng.random() < .5:
        o.post(0, x, .03, (0, .4), finish(rng)).post(0, x, x * .8, (0, .03), m)
        return o.post(0, x, x, (.38, .52), m, BALL).post(0, .06, x, (.4, .9), m, BALL, ry=.08, tilt=.15)
    o.add((-x, x), (0, 2 * x), (.06, .42), m).add((-x, x), (0, .12), (.42, rng.uniform(.7, .95)), m)
    return o.add((x - .1, x), (.1, 2 * x), (.42, .6), m, both=True)


def trestle(rng):
    """A plain top on two boards or trestles: a table, or with a monitor on it a desk."""
    label = nyu.TABLE if rng.random() < .5 else nyu.DESK
    o, x, d, h = Item(label), rng.uniform(.4, 1.1), rng.uniform(.45, .9), rng.uniform(.5, .8)
    m, legs, thick = finish(rng), finish(rng), rng.uniform(.02, .07)
    o.add((-x, x), (0, d), (h - thick, h), m)
    o.add((x - rng.uniform(.05, .3), x - .03), (.05, d - .05), (0, h - thick), legs, both=True)
    if label == nyu.DESK:
        dark = material(rng, "art", (2, 2, 0), emit=.1)
        o.add((-.28, .28), (.1, .13), (h + .08, h + .44), dark, label=nyu.PROP)
        o.post(0, .1, .03, (h, h + .2), legs, label=nyu.PROP)
    return o.clutter(rng, (-x * .8, x * .8), (.2, d - .05), h, int(rng.integers(0, 5)))


def seat_for_one(rng):
    """An armchair or a sofa for one: a chair in ScanNet's table."""
    build = (armchair, couch, round_sofa)[int(rng.integers(3))]
    o = Item(nyu.CHAIR).put(build(rng) if build is armchair else build(rng, 1))
    o.parts = [(*part[:5], nyu.CHAIR) for part in o.parts]
    return o


def corner_sofa(rng):
    """A sofa whose end goes on to the front."""
    o, side = sofa(rng), rng.choice([-1, 1])
    lo, hi = o.bounds()
    m, x = o.parts[0][4], sorted((side * hi[0] * .98, side * (hi[0] - .75)))
    return o.add(x, (.5, hi[1] + rng.uniform(.4, .8)), (.05, rng.uniform(.35, .45)), m)


def mattress(rng):
    """A bed without boards: a mattress on the floor or on legs, a cover and pillows."""
    o, x, n = Item(nyu.BED), rng.uniform(.4, .9), rng.uniform(1.7, 2.1)
    z = rng.choice([0, rng.uniform(.1, .4)])
    if z:
        o.add((x - .08, x), (0, .08), (0, z), finish(rng), both=True)
        o.add((x - .08, x), (n - .08, n), (0, z), finish(rng), both=True)
    h = z + rng.uniform(.15, .35)
    o.add((-x, x), (0, n), (z, h), material(rng))
    o.add((-x - .01, x + .01), (rng.uniform(.4, 1.2), n + .01), (z + .02, h + .04), cloth(rng))
    return o.post(rng.uniform(-.3, .3) * x, .25, .3, (h - .03, h + .13), cloth(rng), BALL, ry=.2)


def cupboard(rng):
    """An open cabinet with things on its boards, or one on the wall."""
    if rng.random() < .3:
        return Item(nyu.CABINET).put(cabinet(rng, rng.uniform(.5, 1.4), rng.uniform(.4, .7), .34), z=1.35)
    o, x, d, h = Item(nyu.CABINET), rng.uniform(.3, .7), rng.uniform(.35, .6), rng.uniform(.5, 1.9)
    m = finish(rng)
    o.add((-x, x), (0, .02), (0, h), m).add((x - .03, x), (0, d), (0, h), m, both=True)
    for z in np.linspace(.05, h, max(2, round(h / .4))):
        o.add((-x, x), (0, d), (z - .03, z), m).clutter(rng, (-x * .7, x * .7), (.12, d - .1), z, 1)
    return o


def wall_shelf(rng):
    """Boards on the wall with books on them: a bookshelf."""
    o, x, z, m = Item(nyu.BOOKSHELF), rng.uniform(.3, .7), rng.uniform(.9, 1.3), finish(rng)
    for level in z + rng.uniform(.28, .4) * np.arange(rng.integers(1, 4)):
        o.add((-x, x), (0, .25), (level - .03, level), m)
        books = material(rng, "books", (rng.uniform(.03, .07), 0, 0), contrast=1)
        o.add((-x * rng.uniform(.2, .9), x * rng.uniform(.2, .9)), (.02, .2), (level, level + .22), books)
    return o


def hanging(rng):
    """A poster without a frame, a high or a long picture, or several small ones."""
    o, high = Item(nyu.PICTURE), rng.uniform(1.1, 1.6)
    for x in np.arange(rng.integers(1, 4)) * .55:
        w, h = rng.uniform(.15, .26), rng.uniform(.15, .6)
        art = material(rng, "art", (*rng.uniform(.8, 2.5, 2), 0), contrast=1)
        o.add((x - w, x + w), (0, .01), (high - h, high + h), art)
    return o


def curtain(rng):
    """A curtain of its own before a wall, or in the middle of a hall."""
    o, x = Item(nyu.CURTAIN), rng.uniform(.4, 1.1)
    drape(rng, o, -x, x, .08, (rng.uniform(0, .2), rng.uniform(1.9, 2.15)), nyu.CURTAIN)
    return o


def glass(rng):
    """A pane: the light outside nearly white, with something to see or without, or dark as at night."""
    a = rng.uniform(.8, 1) * np.array([.92, .96, 1])
    emit = rng.choice([0, rng.uniform(.2, .6), rng.uniform(.8, 1.3)])
    return material(rng, rng.choice(["outside", "plain"]), a=a, b=rng.choice([.5, 1]) * a, emit=emit)


def skylight(rng):
    """A window without curtains, high or narrow, of two panes."""
    o, w, h, z = Item(nyu.WINDOW), rng.uniform(.5, 1.8), rng.uniform(.5, 1.3), rng.uniform(.7, 1.3)
    pane = glass(rng)
    o.add((-w / 2, w / 2), (0, .01), (z, z + h), pane).add((-.03, .03), (0, .03), (z, z + h), finish(rng))
    return o.frame(w, (z, z + h), rng.uniform(.03, .09), (0, .04), finish(rng))


def sashes(rng):
    """A tall window, or a row of them down to the floor: panes between thin bars, some with a blind."""
    o, w, wide = Item(nyu.WINDOW), rng.uniform(.5, 1.1), int(rng.integers(1, 4))
    low, m = rng.choice([.02, rng.uniform(.2, .8)]), material(rng, light=rng.uniform(.2, .8))
    high = max(low + .7, rng.uniform(1.7, 2.15))
    pane = glass(rng)
    for i in range(wide):
        one = Item(nyu.WINDOW).add((-w / 2, w / 2), (0, .01), (low, high), pane)
        one.frame(w, (low, high), rng.uniform(.04, .1), (0, .05), m)
        for z in np.linspace(low, high, int(rng.integers(2, 6)))[1:-1]:
            one.add((-w / 2, w / 2), (0, .03), (z - .015, z + .015), m)
        for x in np.linspace(-w / 2, w / 2, int(rng.integers(2, 5)))[1:-1]:
            one.add((x - .015, x + .015), (0, .03), (low, high), m)
        o.put(one, (i - (wide - 1) / 2) * (w + .04))
    if rng.random() < .25:
        o.add((-wide * w / 2, wide * w / 2), (.05, .06), (high - rng.uniform(.2, .8), high), cloth(rng))
    return o


def couch(rng, n=None):
    """A sofa of cushions: a base, a seat and a back of two to four cushions each, arms or none, pillows."""
    o, d, m = Item(nyu.SOFA), rng.uniform(.75, 1), cloth(rng)
    x = rng.uniform(.7, 1.2) if n is None else rng.uniform(.35, .5)
    n, seat, back = n or max(2, round(x / .4)), rng.uniform(.36, .48), rng.uniform(.65, .95)
    arm, feet = rng.choice([0, rng.uniform(.1, .25)]), rng.uniform(.02, .15)
    o.add((-x, x), (0, d), (feet, seat - .14), m).add((-x, x), (0, .15), (feet, back - .1), m)
    wide = (2 * x - 2 * arm) / n
    for left in -x + arm + wide * np.arange(n):
        o.add((left + .01, left + wide - .01), (.12, d + .02), (seat - .14, seat), m)
        o.add((left + .01, left + wide - .01), (.12, .3), (seat, back), m)
        if rng.random() < .3:
            o.post(left + wide / 2, .42, .2, (seat, seat + .34), cloth(rng), BALL, ry=.09, tilt=.2)
    if arm:
        o.add((x - arm, x), (0, d), (feet, seat + rng.uniform(.08, .25)), m, both=True)
    return o


def lying(m, x, y, z, r, label):
    """A cylinder along y, from y[0] to y[1], of radius r around (x, z)."""
    mid, half = (y[0] + y[1]) / 2, (y[1] - y[0]) / 2
    turned = (mid - r, mid + r), (z - half, z + half)
    return Item(label).add((x - r, x + r), *turned, m, CYLINDER, tilt=np.pi / 2)


def round_sofa(rng, n=None):
    """A sofa of round forms for two or three: arms and back end in half a cylinder, cushions bulge."""
    n = n or int(rng.integers(2, 4))
    o, x, d, r = Item(nyu.SOFA), n * rng.uniform(.28, .38), rng.uniform(.75, 1), rng.uniform(.08, .15)
    m, low, seat = rng.choice([cloth, material])(rng), rng.uniform(.02, .12), rng.uniform(.36, .46)
    arm, back, end = seat + rng.uniform(.05, .2), rng.uniform(.62, .85), 2 * x / n
    o.add((-x, x), (r, d), (low, seat - .06), m).add((-x, x), (0, 2 * r), (low, back), m)
    reach = x + rng.choice([0, 2 * r])
    o.put(lying(m, r, (-reach, reach), back, r, nyu.SOFA), yaw=np.pi / 2)
    for left in -x + end * np.arange(n):
        o.add((left, left + end), (r, d + .04), (seat - .14, seat + .04), m, BALL)
        o.add((left, left + end), (r, 3.5 * r), (seat, back + r / 2), m, BALL)
        if rng.random() < .4:  # a square pillow
            o.post(left + end / 2, 3.5 * r, .2, (seat, seat + .4), cloth(rng), BOX, ry=.06, tilt=.3)
    for side in (-1, 1) if rng.random() < .85 else ():
        o.add(sorted((side * x, side * (x + 2 * r))), (0, d), (low, arm), m)
        o.put(lying(m, side * (x + r), (0, d), arm, r, nyu.SOFA))
    return o


def dining_chair(rng):
    """A chair with a high back: of cloth all over on thin legs, or of wood with upright bars."""
    o, x, d, m = Item(nyu.CHAIR), rng.uniform(.2, .27), rng.uniform(.4, .52), finish(rng)
    h, top, leg = rng.uniform(.42, .5), rng.uniform(.8, 1.1), rng.uniform(.015, .03)
    for y in (leg, d - leg):
        o.post(x - leg, y, leg, (0, h), m, BOX).post(leg - x, y, leg, (0, h), m, BOX)
    if rng.random() < .5:
        seat = rng.choice([cloth, material])(rng)
        o.add((-x, x), (0, d), (h - rng.uniform(.04, .14), h + .03), seat)
        return o.add((-x, x), (-.02, rng.uniform(.04, .1)), (h, top), seat, tilt=rng.uniform(0, .2))
    o.add((-x - .01, x + .01), (0, d + .01), (h - .03, h + .02), rng.choice([finish, cloth])(rng))
    o.add((x - .045, x), (0, .04), (h, top), m, both=True).add((-x, x), (0, .045), (top - .09, top), m)
    for bar in np.linspace(-x, x, int(rng.integers(4, 8)))[1:-1]:
        o.add((bar - .012, bar + .012), (.005, .03), (h, top - .06), m)
    return o


def box_table(rng):
    """A low table of boards with an open space under the top, on short legs or the floor, things on it."""
    o, x, d, h = Item(nyu.TABLE), rng.uniform(.35, .7), rng.uniform(.45, .8), rng.uniform(.3, .5)
    m, low, thick = finish(rng), rng.choice([0, rng.uniform(.05, .2)]), rng.uniform(.02, .05)
    o.add((-x, x), (0, d), (h - thick, h), m).add((-x, x), (0, d), (low, low + thick), m)
    o.add((x - thick, x), (0, d), (low, h), m, both=True)
    if rng.random() < .6:
        o.add((-thick, thick), (0, d), (low, h), m)
    for y in (.06, d - .06) if low else ():
        o.post(x - .06, y, .025, (0, low), m).post(.06 - x, y, .025, (0, low), m)
    return o.clutter(rng, (-x * .8, x * .8), (.1, d - .1), h, int(rng.integers(0, 7)))


def cooking_row(rng):
    """Cabinets under a worktop, a stove (no class) between them, a hood, cabinets on the wall."""
    o, wide, d, h = Item(nyu.COUNTER), rng.uniform(.5, 1.2, 2), rng.uniform(.55, .7), rng.uniform(.84, .95)
    top, dark, thick = finish(rng), material(rng, a=[rng.uniform(.01, .5)] * 3), rng.uniform(.03, .07)
    body = int(rng.integers(1 << 30))
    for left, w in ((-.3 - wide[0], wide[0]), (.3, wide[1])):
        o.put(cabinet(np.random.default_rng(body), w, h - thick, d - .03), left + w / 2)
        o.add((left, left + w), (0, d), (h - thick, h), top)
        o.clutter(rng, (left + .1, left + w - .1), (.1, d - .1), h, 3)
        if rng.random() < .7:
            o.put(cabinet(np.random.default_rng(body), w, rng.uniform(.5, .75), .33), left + w / 2, z=1.42)
    o.add((-.29, .29), (0, d), (.02, h), dark, label=nyu.PROP)
    for x in (-.15, .15):
        o.post(x, d / 2, .09, (h, h + .03), material(rng), label=nyu.PROP)
    o.add((-.3, .3), (0, .45), (1.5, 1.62), material(rng), label=nyu.PROP)
    return o.add((-.12, .12), (0, .25), (1.62, 2.2), material(rng), label=nyu.PROP)


def two_doors(rng):
    """A refrigerator of two doors side by side, each with a long grip."""
    o, x, d, h = Item(nyu.FRIDGE), rng.uniform(.38, .5), rng.uniform(.6, .75), rng.uniform(1.6, 2)
    m, grip = material(rng, light=.45), material(rng)
    o.add((-x, x), (0, d - .06), (.03, h), m).add((.008, x), (d - .07, d), (.06, h), m, both=True)
    o.add((.04, .07), (d, d + .04), (rng.uniform(.3, .8), rng.uniform(1.2, h - .1)), grip, both=True)
    if rng.random() < .5:  # water and ice
        o.add((-.7 * x, -.3 * x), (d - .01, d + .01), (1, 1.3), material(rng, a=[.03] * 3), label=nyu.FRIDGE)
    return o


def island(rng):
    """A counter in the middle or at a wall: a thick top on boards, on cupboards or on two sides."""
    o, x, d, h = Item(nyu.COUNTER), rng.uniform(.5, 1.4), rng.uniform(.5, 1), rng.uniform(.84, 1.08)
    top, thick, body = finish(rng), rng.uniform(.03, .09), rng.integers(3)
    if body == 0:
        o.put(cabinet(rng, 2 * x - .06, h - thick, d - .1))
    elif body == 1:
        o.add((-x + .05, x - .05), (0, d - rng.uniform(.05, .3)), (0, h - thick), finish(rng))
    else:
        o.add((x - .1, x - .03), (.03, d - .03), (0, h - thick), finish(rng), both=True)
    return o.add((-x, x), (0, d), (h - thick, h), top).clutter(rng, (-x * .8, x * .8), (.1, d - .1), h, 3)


def mess(rng):
    """Things on the floor, outside the classes: boxes, balls and cans, in a heap."""
    o = Item(nyu.PROP)
    for _ in range(int(rng.integers(2, 7))):
        r, h, shape = rng.uniform(.04, .2), rng.uniform(.03, .4), int(rng.integers(3))
        thing = Item(nyu.PROP).post(0, 0, r, (0, h), material(rng), shape, ry=r * rng.uniform(.5, 1))
        o.put(thing, *rng.uniform(-.3, .3, 2), rng.uniform(0, 3))
    return o


VARIANTS = (stool, shell_chair, trestle, corner_sofa, mattress, cupboard, wall_shelf, hanging, curtain,
            skylight, mess, sashes, couch, island, round_sofa, dining_chair, box_table, cooking_row,
            two_doors, seat_for_one, sashes, seat_for_one, round_sofa, dining_chair)  # some twice
HUNG = (cupboard, wall_shelf, hanging, skylight, sashes, cooking_row)  # on or at a wall
