"""A dataset for those who have none: procedural furnished rooms, written to disk as if ScanNet had scanned them.

S-Ray learns from posed photographs with class labels. ScanNet has them behind a signed form, so this file makes its
own: a room is a list of *parts* (boxes, cylinders, ellipsoids), each with a material and a label in NYU-40 numbering; a
numpy ray caster turns it into colour, depth and label images; `write_room` stores those in the layout of a ScanNet
export, which 01_data.py reads without knowing where they came from. They are always called rooms, never ScanNet.

One pixel, start to end. The ray of pixel (u, v) is  o + z R K⁻¹ [u, v, 1]ᵀ,  so its parameter z *is* the depth. In the
frame where a part is the unit cube (ball, cylinder), the direction stays affine in (u, v), and a box is a slab test:
    d(u, v) = M [u, v, 1]ᵀ,    z_near = max_k (−o_k/d_k − |1/d_k|),    z_far = min_k (−o_k/d_k + |1/d_k|).
Every part is tested against the rays of its projected rectangle only; a z-buffer keeps the nearest. Then each pixel is
shaded once, Lambertian (the same from every view):  colour = albedo · (ambient + Σ_lamps shadow · cosθ / distance²).
Shadows come from the same z-buffer, rendered once per room from each lamp into the six faces of a cube.

What makes the task honest: all classes draw colours from one palette, so a pixel's colour does not give its class away;
the camera walks a loop and looks across it, about 0.25 m and 13° a frame, so copying the nearest view is a poor answer.

Run:   python 00_rooms.py [--out outputs] [--count 6]      # a contact sheet, class shares, time per frame
Test:  pytest tests/test_00_rooms.py
"""
import argparse
import colorsys
import contextlib
import csv
import json
import multiprocessing
import os
import shutil
import signal
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from tqdm import tqdm

VARIED = range(5000, 9000)  # rooms of these seeds, for training only, differ from each other far more: see make_room
VERSION = 2  # raise when the pictures change: cached rooms of another version are written anew
SCANNET20 = (  # (nyu40 id, name, colour), the 20 classes of the ScanNet benchmark
    (1, "wall", (174, 199, 232)), (2, "floor", (152, 223, 138)), (3, "cabinet", (31, 119, 180)),
    (4, "bed", (255, 187, 120)), (5, "chair", (188, 189, 34)), (6, "sofa", (140, 86, 75)),
    (7, "table", (255, 152, 150)), (8, "door", (214, 39, 40)), (9, "window", (197, 176, 213)),
    (10, "bookshelf", (148, 103, 189)), (11, "picture", (196, 156, 148)), (12, "counter", (23, 190, 207)),
    (14, "desk", (247, 182, 210)), (16, "curtain", (219, 219, 141)), (24, "refrigerator", (255, 127, 14)),
    (28, "shower curtain", (158, 218, 229)), (33, "toilet", (44, 160, 44)), (34, "sink", (112, 128, 144)),
    (36, "bathtub", (227, 119, 194)), (39, "otherfurniture", (82, 84, 163)))
WALL, FLOOR, CABINET, BED, CHAIR, SOFA, TABLE, DOOR, WINDOW, BOOKSHELF, PICTURE, COUNTER, DESK, CURTAIN, FRIDGE, \
    SHOWER, TOILET, SINK, BATHTUB, OTHER = (row[0] for row in SCANNET20)
CEILING, LAMP, PROP = 22, 35, 40  # NYU-40 ids outside the 20: the reader makes them unlabelled
RAW = {  # NYU-40 id -> {raw category: raw id}: scanners' free-text names, several to a class
    WALL: {"wall": 1, "pillar": 222}, FLOOR: {"floor": 3, "carpet": 1021}, BED: {"bed": 11, "loft bed": 837},
    CABINET: {"cabinet": 7, "kitchen cabinet": 29, "wardrobe": 78}, SOFA: {"couch": 6, "sofa chair": 1313},
    CHAIR: {"chair": 2, "office chair": 10, "armchair": 23}, DOOR: {"door": 5, "closet door": 276},
    TABLE: {"table": 4, "coffee table": 24, "dining table": 45}, WINDOW: {"window": 16, "windowsill": 141},
    BOOKSHELF: {"bookshelf": 18, "bookshelves": 88}, PICTURE: {"picture": 15, "poster": 138},
    COUNTER: {"counter": 35, "bar": 307}, DESK: {"desk": 9, "computer desk": 1357}, SHOWER: {"shower curtain": 55},
    CURTAIN: {"curtain": 21, "drapes": 89}, FRIDGE: {"refrigerator": 27, "mini fridge": 98}, TOILET: {"toilet": 17},
    SINK: {"sink": 14, "bathroom sink": 1144}, BATHTUB: {"bathtub": 42, "tub": 1170}, CEILING: {"ceiling": 41},
    OTHER: {"plant stand": 484, "trash can": 56, "laundry basket": 164}, LAMP: {"lamp": 28},
    PROP: {"monitor": 19, "cup": 300, "object": 1163}}
NYU = {i: name for i, name, _ in SCANNET20}
NYU |= {FRIDGE: "refridgerator", CEILING: "ceiling", LAMP: "lamp", PROP: "otherprop"}  # NYU-40 spells it so

# ------------------------------------------------------------------------------------------------- materials and parts
BOX, CYLINDER, BALL = range(3)
PLAIN, WOOD, TILE, CLOTH, STRIPES, BOOKS, FOLDS, PANEL, ART, OUTSIDE = range(10)


def colour(rng, light=0.3):
    """One draw from the palette that *all* classes share: linear RGB albedo (3,). `light`: chance of an off-white."""
    kind = rng.random()
    if rng.random() < light:
        hsv = rng.uniform(0, 1), rng.uniform(0, .08), rng.uniform(.8, .95)
    elif kind < .3:
        hsv = rng.uniform(0, 1), rng.uniform(0, .12), rng.uniform(.15, .8)  # greys
    elif kind < .65:
        hsv = rng.uniform(.03, .12), rng.uniform(.2, .6), rng.uniform(.3, .85)  # woods and leathers
    else:
        hsv = rng.uniform(-.05, .72), rng.uniform(.12, .55), rng.uniform(.3, .85)  # paints and fabrics
    return np.array(colorsys.hsv_to_rgb(*hsv)) ** 2.2


def material(rng, texture=PLAIN, p=(0, 0, 0), a=None, b=None, contrast=.5, emit=0.0, light=.3):
    """texture id, two albedos a and b that the texture mixes, its parameters p, a seed, emitted light."""
    a = colour(rng, light) if a is None else np.asarray(a, float)
    if b is None:
        b = np.maximum(a, .02) ** (1 - contrast) * np.maximum(colour(rng, .2), .02) ** contrast
    return dict(texture=texture, a=a, b=b, p=np.asarray(p, float), seed=int(rng.integers(1 << 16)), emit=emit)


def wood(rng):
    """Planks with grain."""
    return material(rng, WOOD, (rng.uniform(.25, .6), 0, 0), contrast=.3)


def cloth(rng):
    """Woven or striped fabric."""
    return material(rng, STRIPES if rng.random() < .3 else CLOTH, (rng.uniform(.08, .2), 0, 0), contrast=.35)


def finish(rng):
    """What furniture is made of: painted, or wood."""
    return wood(rng) if rng.random() < .5 else material(rng)


def turn(yaw):
    """Rotation about z by yaw, (3, 3)."""
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


class Item:
    """An object made of parts, in its own frame: x to its right, y from its back (0) to its front, z up; metres."""

    def __init__(self, label):
        self.label, self.parts = label, []

    def add(self, x, y, z, mat, shape=BOX, label=None, tilt=0.0, both=False):
        """One part filling the ranges x, y, z (pairs), tilted about its x axis; both: and its mirror image at −x."""
        lo, hi = np.array([x, y, z], float).T
        c, s = np.cos(tilt), np.sin(tilt)
        rot = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
        self.parts.append((shape, (lo + hi) / 2, (hi - lo) / 2, rot, mat, label or self.label))
        return self.add((-x[1], -x[0]), y, z, mat, shape, label, tilt) if both else self

    def post(self, x, y, r, z, mat, shape=CYLINDER, label=None, ry=None, tilt=0.0):
        """A part around (x, y) with radius r (ry in y) over the range z: a cylinder unless told otherwise."""
        ry = ry or r
        return self.add((x - r, x + r), (y - ry, y + ry), z, mat, shape, label, tilt)

    def frame(self, w, z, b, y, mat):
        """Four bars of width b just inside ±w/2 and the range z: the edge of a picture or a window."""
        self.add((w / 2 - b, w / 2), y, (z[0] + b, z[1] - b), mat, both=True)
        return self.add((-w / 2, w / 2), y, (z[0], z[0] + b), mat).add((-w / 2, w / 2), y, (z[1] - b, z[1]), mat)

    def basin(self, w, y, top, depth, rim, mat, x=0.0, label=None):
        """An open box, w wide around x: four walls and a bottom, so that sinks and tubs are hollow."""
        lo, hi, z = x - w / 2, x + w / 2, (top - depth, top)
        self.add((lo + .01, hi - .01), (y[0] + .01, y[1] - .01), (z[0], z[0] + .04), mat, label=label)
        for a, b in ((lo, lo + rim), (hi - rim, hi)):
            self.add((a, b), y, z, mat, label=label)
        for a, b in ((y[0], y[0] + rim), (y[1] - rim, y[1])):
            self.add((lo + rim, hi - rim), (a, b), z, mat, label=label)
        return self

    def tap(self, rng, x, y, z, label=None):
        """A water tap at (x, y), standing on z."""
        m = material(rng)
        self.post(x, y, .018, (z, z + .2), m, label=label)
        return self.add((x - .015, x + .015), (y, y + .16), (z + .18, z + .21), m, label=label)

    def clutter(self, rng, x, y, z, n=2):
        """A few cups and books on a top: PROP, outside the 20 classes."""
        for _ in range(n):
            px, py, m = x[0] + (x[1] - x[0]) * rng.random(), y[0] + (y[1] - y[0]) * rng.random(), material(rng)
            if rng.random() < .5:
                self.post(px, py, .04, (z, z + .1), m, label=PROP)
            else:
                book = Item(PROP).post(0, 0, .1, (z, z + rng.uniform(.02, .08)), m, BOX, ry=.07)
                self.put(book, px, py, rng.uniform(0, 3))
        return self

    def put(self, other, x=0.0, y=0.0, yaw=0.0, z=0.0):
        """Another item's parts, turned by yaw and moved."""
        rot = turn(yaw)
        self.parts += [(shape, rot @ centre + (x, y, z), half, rot @ r, mat, label)
                       for shape, centre, half, r, mat, label in other.parts]
        return self

    def scale(self, s):
        """The same, s times as large."""
        self.parts = [(shape, s * centre, s * half, r, mat, label) for shape, centre, half, r, mat, label in self.parts]
        return self

    def bounds(self):
        """Axis-aligned (lo, hi), each (3,)."""
        reach = [(c, np.sqrt(r ** 2 @ h ** 2) if shape == BALL else np.abs(r) @ h)
                 for shape, c, h, r, _, _ in self.parts]
        return np.min([c - e for c, e in reach], 0), np.max([c + e for c, e in reach], 0)


# ----------------------------------------------------------------------------------- furniture: rng -> Item, at y >= 0
def chair(rng):
    """Four legs, seat and back, or a swivel chair with arm rests; about 0.5 m wide."""
    o, x, d = Item(CHAIR), rng.uniform(.22, .27), rng.uniform(.44, .52)
    h, top = rng.uniform(.42, .48), rng.uniform(.84, .98)
    m, seat = finish(rng), cloth(rng) if rng.random() < .6 else finish(rng)
    if rng.random() < .4:  # a swivel chair
        for yaw in (.4, .4 + np.pi / 2):
            o.put(Item(CHAIR).post(0, 0, .3, (.03, .09), m, BOX, ry=.03), 0, d / 2, yaw)
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
    w, d, h = (rng.uniform(.9, 1.2), rng.uniform(.5, .7), rng.uniform(.38, .48)) if low else \
        (rng.uniform(1.1, 1.6), rng.uniform(.75, .95), rng.uniform(.7, .76))
    o, m, legs = Item(TABLE), finish(rng), finish(rng)
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
    style, spots = int(rng.integers(1 << 30)), [(-w / 4, 0, 0), (w / 4, d, np.pi), (w / 4, 0, 0), (-w / 4, d, np.pi)]
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
    o, w, d, h = Item(DESK), rng.uniform(1.2, 1.7), rng.uniform(.65, .78), rng.uniform(.72, .78)
    m, side = finish(rng), int(rng.choice([-1, 1]))
    o.add((-w / 2, w / 2), (0, d), (h - .04, h), m).add((-w / 2 + .05, w / 2 - .05), (.03, .06), (.25, h - .04), m)
    drawers, knob, x = material(rng, PANEL, (1, 3, 0), a=m["a"], contrast=.3), material(rng), side * (w / 2 - .23)
    o.add((x - .21, x + .21), (.06, d - .04), (.03, h - .04), drawers)
    for z in (.19, .48, .77):
        o.add((x - .06, x + .06), (d - .04, d - .015), (z * h, z * h + .025), knob)
    o.post(-side * (w / 2 - .025), d / 2, .025, (0, h - .04), m, BOX, ry=d / 2 - .02)
    if rng.random() < .8:
        x, dark = rng.uniform(-.25, .25), material(rng, a=[.02] * 3, b=[.03] * 3)
        screen = material(rng, ART, (2, 2, 0), a=[.02, .03, .06], emit=.15)
        o.add((x - .28, x + .28), (.2, .23), (h + .1, h + .46), screen, label=PROP)
        o.post(x, .18, .03, (h, h + .3), dark, BOX, PROP).post(x, .2, .12, (h, h + .015), dark, BOX, PROP)
        o.post(x, .45, .2, (h, h + .02), material(rng), BOX, PROP, ry=.07)  # keyboard
    o.clutter(rng, (-w / 2 + .15, w / 2 - .15), (.25, d - .15), h)
    if rng.random() < .5:  # a hutch: a shelf standing on the desk
        o.add((-w / 2, w / 2), (0, .03), (h, h + .42), m).add((-w / 2, w / 2), (0, .2), (h + .42, h + .46), m)
        o.add((w / 2 - .03, w / 2), (.03, .2), (h, h + .42), m, both=True)
    return o.put(chair(rng), -side * .2, d + .5, np.pi + rng.normal(0, .4)) if rng.random() < .75 else o


def bed(rng):
    """Headboard, frame, mattress, duvet and one or two pillows."""
    o, x, n, h = Item(BED), rng.uniform(.5, .85), rng.uniform(1.95, 2.1), rng.uniform(.45, .6)
    m, sheet, duvet, pillow = finish(rng), material(rng, light=.6), cloth(rng), cloth(rng)
    o.add((-x, x), (0, .06), (0, rng.uniform(.85, 1.1)), m).add((-x, x), (.06, n), (.12, h - .2), m)  # headboard, frame
    o.add((x - .08, x), (n - .08, n), (0, .12), m, both=True)
    o.add((-x + .02, x - .02), (.06, n - .02), (h - .2, h), sheet)  # mattress
    o.add((-x - .02, x + .02), (.62, n + .01), (h - .17, h + .05), duvet)
    o.add((-x - .02, x + .02), (.6, .8), (h + .03, h + .07), sheet)
    return o.add((x / 2 - .3, x / 2 + .3), (.1, .52), (h - .03, h + .15), pillow, BALL, both=True) if x > .62 else \
        o.post(0, .31, .3, (h - .03, h + .15), pillow, BALL, ry=.21)


def sofa(rng, seats=None):
    """Base, back, arm rests, a pair of cushions a seat, loose pillows."""
    n = seats or int(rng.integers(2, 4))
    o, cw, arm = Item(SOFA), rng.uniform(.58, .7), rng.uniform(.14, .22)
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
    o, x, n = Item(BOOKSHELF), rng.uniform(.4, .7), int(rng.integers(4, 6))
    d, h = rng.uniform(.28, .36), rng.uniform(1.4, 2.1)
    m, step = finish(rng), (h - .1) / n
    o.add((x - .03, x), (0, d), (0, h), m, both=True).add((-x, x), (0, .02), (0, h), m)
    for z in .09 + step * np.arange(n + 1):
        o.add((-x + .03, x - .03), (.02, d - .01), (z - .03, z), m)
        if z < h - step and rng.random() < .9:
            end = min(-x + .03 + 2 * x * rng.uniform(.55, 1), x - .03)
            books = material(rng, BOOKS, (.055, 0, 0), contrast=1)
            o.add((-x + .03, end), (.02, d - .06), (z, z + step * rng.uniform(.7, .88)), books)
    return o


def cabinet(rng, w=None, h=None, d=None):
    """Doors or drawers with handles; low or as tall as a wardrobe unless a size is given."""
    w, h = w or rng.uniform(.8, 1.5), h or (rng.uniform(1.6, 2.1) if rng.random() < .45 else rng.uniform(.7, .95))
    d, o, m, knob = d or rng.uniform(.42, .55), Item(CABINET), finish(rng), material(rng)
    cols, rows = max(1, round(w / .5)), 1 if h > 1.2 or rng.random() < .6 else 3
    front = material(rng, PANEL, (cols, rows, .07), a=m["a"], contrast=.3)
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
    o, x, h, m, paint = Item(DOOR), rng.uniform(.4, .48), rng.uniform(2.0, 2.1), finish(rng), finish(rng)
    leaf = material(rng, PANEL, (int(rng.integers(1, 3)), int(rng.integers(1, 4)), .12), a=paint["a"], contrast=.3)
    o.add((x, x + .08), (0, .05), (0, h + .08), m, both=True).add((-x, x), (0, .05), (h, h + .08), m)
    k, metal = rng.choice([-1, 1]) * (x - .08), material(rng)
    o.add((-x, x), (0, .025), (0, h), leaf).post(k, .03, .03, (.95, 1.12), metal, BOX, ry=.005)
    return o.post(k, .06, .07, (1.03, 1.055), metal, BOX, ry=.012).post(k, .04, .015, (1.02, 1.06), metal, BOX, ry=.02)


def drape(rng, o, x0, x1, y, z, label):
    """Hanging cloth: a row of upright rolls in front of a sheet; the texture shades finer folds and prints."""
    print_ = rng.choice([0, 1, 2] if label == SHOWER else [0, 0, 2])
    m = material(rng, FOLDS, (rng.uniform(.1, .16), print_, 0), contrast=.7)
    o.add((x0, x1), (y - .02, y + .02), z, m, label=label)
    for x in np.linspace(x0 + .08, x1 - .08, max(2, round((x1 - x0) / .16))):
        o.post(x, y, .045, z, m, label=label, ry=.05)


def window(rng):
    """Frame, mullions, sill and a bright outside; mostly with a pair of curtains on a rod."""
    o, w, h, z = Item(WINDOW), rng.uniform(1.2, 1.8), rng.uniform(1.1, 1.4), rng.uniform(.8, 1.0)
    m, x = finish(rng), w / 2 + .4
    pane = material(rng, OUTSIDE, a=[.75, .85, 1], b=colour(rng), emit=rng.uniform(.5, .9))
    o.add((-w / 2, w / 2), (0, .01), (z, z + h), pane).frame(w, (z, z + h), .06, (0, .045), m)
    for t in np.linspace(-w / 2, w / 2, int(rng.integers(3, 5)))[1:-1]:
        o.add((t - .03, t + .03), (0, .04), (z + .06, z + h - .06), m)
    o.add((-w / 2 - .05, w / 2 + .05), (0, .14), (z - .04, z), m)
    if rng.random() < .8:
        low, cover, style = .05 if rng.random() < .6 else z - .25, rng.uniform(.3, .55), int(rng.integers(1 << 30))
        o.add((-x - .1, x + .1), (.15, .18), (z + h + .1, z + h + .13), material(rng), label=CURTAIN)
        for a, b in ((-x, cover - x), (x - cover, x)):
            drape(np.random.default_rng(style), o, a, b, .2, (low, z + h + .1), CURTAIN)
    return o


def picture(rng):
    """A frame around something painted."""
    o, w, h, z = Item(PICTURE), rng.uniform(.6, 1.3), rng.uniform(.5, .85), rng.uniform(1.2, 1.35)
    art = material(rng, ART, (rng.uniform(.8, 2.5), rng.uniform(.8, 2.5), 0), contrast=1)
    return o.add((-w / 2, w / 2), (0, .015), (z, z + h), art).frame(w, (z, z + h), .05, (0, .035), finish(rng))


def kitchen(rng):
    """Cabinets under a worktop (counter) with a sink set in, tiles behind, often cabinets on the wall."""
    o, w, d, h = Item(COUNTER), rng.uniform(1.7, 2.4), .6, rng.uniform(.86, .92)
    top, z, s = material(rng, CLOTH, (.05, 0, 0), contrast=.2), (h - .06, h), rng.uniform(-w / 5, w / 5)
    o.put(cabinet(rng, w - .02, h - .06, d - .04))
    o.add((-w / 2, s - .4), (0, d), z, top).add((s + .4, w / 2), (0, d), z, top)  # a hole for the sink
    o.add((s - .4, s + .4), (0, .1), z, top).add((s - .4, s + .4), (d - .08, d), z, top)
    o.add((-w / 2, w / 2), (0, .025), (h, h + rng.uniform(.2, .5)), material(rng, TILE, (.12, 0, 0), a=top["a"]))
    o.basin(.8, (.1, d - .08), h + .012, .16, .035, material(rng, light=.5), s, SINK).tap(rng, s, .1, h, SINK)
    o.clutter(rng, (-w / 2 + .1, s - .5), (.12, .4), h)
    return o.put(cabinet(rng, rng.uniform(.8, w), .62, .33), z=1.5) if rng.random() < .6 else o


def bar(rng):
    """A counter of its own: boarded below, with an overhanging top."""
    o, x, d, h = Item(COUNTER), rng.uniform(.6, .95), rng.uniform(.5, .65), rng.uniform(.88, .98)
    o.add((-x + .05, x - .05), (0, d - .12), (0, h - .06), material(rng, WOOD, (.14, 1, 0), contrast=.4))
    o.add((x - .05, x - .01), (0, d - .1), (0, h - .06), finish(rng), both=True)
    return o.add((-x, x), (0, d), (h - .06, h), material(rng, CLOTH, (.05, 0, 0), contrast=.3))


def fridge(rng):
    """Two doors of unequal height, each with a grip."""
    o, x, d, h = Item(FRIDGE), rng.uniform(.33, .45), rng.uniform(.62, .7), rng.uniform(1.6, 1.9)
    m, metal, side = material(rng, light=.45), material(rng), rng.choice([-1, 1])
    cut = rng.choice([.35, .65]) * h
    o.add((-x, x), (0, d - .07), (.04, h), m)
    for z, grip in (((.06, cut - .012), (max(.1, cut - .5), cut - .06)),
                    ((cut + .012, h), (cut + .06, min(h - .05, cut + .5)))):
        o.add((-x, x), (d - .06, d), z, m).post(side * (x - .08), d + .02, .015, grip, metal, BOX, ry=.02)
    return o


def toilet(rng):
    """Tank, bowl, seat, lid up or down."""
    o, m, k = Item(TOILET), material(rng, light=.45), rng.uniform(1.08, 1.25)
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
    o, m, w = Item(SINK), material(rng, light=.45), rng.uniform(.65, .95)
    d, h = rng.uniform(.5, .58), rng.uniform(.8, .88)
    o.post(0, .21, .11, (0, h - .15), m) if rng.random() < .5 else o.put(cabinet(rng, w * .9, h - .26, d - .06))
    return o.basin(w, (0, d), h, .26, .06, m).add((-w / 2, w / 2), (0, .02), (h, h + .15), m).tap(rng, 0, .07, h)


def bathtub(rng):
    """A hollow tub, mostly with a shower curtain on a rod along its open side."""
    o, m, w = Item(BATHTUB), material(rng, light=.45), rng.uniform(1.5, 1.75)
    d, h = rng.uniform(.72, .82), rng.uniform(.52, .6)
    o.basin(w, (0, d), h, h - .06, .08, m).add((-w / 2 - .02, w / 2 + .02), (d - .08, d + .02), (h - .04, h + .01), m)
    o.tap(rng, -w / 2 + .04, d / 2, h)
    if rng.random() < .85:
        side, n = rng.choice([-1, 1]), rng.uniform(.4, .65) * w
        o.add((-w / 2, w / 2), (d + .05, d + .08), (1.98, 2.01), material(rng), label=PROP)
        drape(rng, o, *sorted((side * w / 2, side * (w / 2 - n))), d + .065, (rng.uniform(.12, .3), 1.97), SHOWER)
    return o


def other(rng):
    """otherfurniture: a floor lamp, a plant, a bin or a stack of boxes."""
    o, m, kind, h = Item(OTHER), material(rng), rng.integers(4), rng.uniform(.5, .75)
    if kind == 0:
        shade = material(rng, light=.5, emit=.25)
        o.post(0, .26, .16, (0, .03), m).post(0, .26, .02, (0, h + .9), m)
        return o.post(0, .26, .22, (h + .8, h + 1.1), shade)
    if kind == 1:
        leaf = material(rng, CLOTH, (.06, 0, 0), contrast=.6)
        o.post(0, .28, .18, (0, .36), m).post(0, .28, .02, (.3, 1.0), m)
        for _ in range(7):
            x, y, z, r = rng.uniform(-.14, .14), rng.uniform(.18, .38), rng.uniform(.5, 1.15), rng.uniform(.1, .17)
            o.post(x, max(y, r * 1.5), r, (z - r * 1.4, z + r * 1.4), leaf, BALL, tilt=rng.uniform(-.5, .5))
        return o
    if kind == 2:
        return o.post(0, .22, .2, (0, h), m).post(0, .22, .21, (h, h + .06), material(rng))
    for r, z, top in ((.3, 0, .4), (.26, .4, .75), (.22, .75, 1.05))[:int(rng.integers(1, 4))]:
        card = material(rng, STRIPES, (.3, 0, 0), contrast=.2)
        o.put(Item(OTHER).post(0, 0, r, (z, top), card, BOX, ry=r * .8), 0, .34, rng.normal(0, .1))
    return o


# --------------------------------------------------------------------------------------------------------------- rooms
RECIPES = {  # what a kind of room holds; placed in this order as long as there is space
    "bathroom": (door, bathtub, toilet, washbasin, window, toilet, bathtub, washbasin, toilet, washbasin, cabinet,
                 other, picture),
    "living room": (door, window, sofa, bookshelf, coffee_table, armchair, cabinet, sofa, picture, other, picture,
                    window, other),
    "kitchen": (door, kitchen, fridge, window, table, bar, kitchen, cabinet, other, picture, picture),
    "bedroom": (door, bed, desk, window, cabinet, desk, bookshelf, bed, picture, other, armchair, picture),
    "studio": (door, bed, toilet, desk, fridge, washbasin, window, bathtub, table, bar, toilet, other, picture, picture,
               sofa),
    "office": (door, desk, desk, window, desk, bookshelf, cabinet, desk, table, other, picture, bookshelf, window,
               picture),
}
FILL = (other, picture, cabinet, armchair, bookshelf, other)  # then whatever still fits
SEATS = (sofa, armchair, chair)
KINDS = ("bathroom", "living room", "kitchen", "bedroom", "studio", "office", "bathroom", "kitchen")  # taking turns


@dataclass
class Room:
    """Everything `render` needs. P parts (the first six are the room's own faces), all arrays in world metres, z up."""
    seed: int
    kind: str
    size: np.ndarray  # (3,) the room is [-size/2, size/2] in x and y, [0, size z] in z
    loop: np.ndarray  # (4,) centre x, y and radii x, y of the camera's way
    focal: float  # focal length / image width
    parts: dict  # shape (P,), centre (P,3), half (P,3), rot (P,3,3) local to world, label (P,), material (P,)
    materials: dict  # texture (M,), a (M,3), b (M,3), p (M,3), seed (M,), emit (M,)
    lamps: list  # (position (3,), linear RGB power (3,))
    objects: list  # (function name, lo (3,), hi (3,)) of every placed item
    ambient: np.ndarray = field(default_factory=lambda: np.full(3, .3))
    shadows: list = field(default_factory=list, repr=False)  # per lamp (6,N,N) depth, filled at first use


def make_room(seed):
    """A furnished room, from `seed` alone. Kinds of room take turns: a few seeds in a row show all classes.

    A seed of VARIED gives a room of 4 to 8 m a side with more furniture, each piece up to a third larger or smaller, seats also in
    the middle of it, paler or not, other light, another field of view: a model that has seen only rooms of 4 to 5 m takes the walls
    of a larger one to be as near.
    """
    rng = np.random.default_rng([seed, VERSION])
    kind = KINDS[seed % len(KINDS)]
    size = np.array([rng.uniform(4.0, 4.9), rng.uniform(4.0, 4.9), rng.uniform(2.4, 2.8)])
    loop = np.array([*rng.uniform(-.1, .1, 2), *np.minimum(rng.uniform(1.0, 1.2, 2), size[:2] / 2 - .9)])
    varied, rounds, more = seed in VARIED, 1, 5
    if varied:
        size = np.array([*rng.uniform(3.8, 8.5, 2), rng.uniform(2.3, 3.3)])
        loop[2:] = np.minimum(rng.uniform(.4, .7, 2) * size[:2] / 2, size[:2] / 2 - .9)
        rounds, more = round(max(1, size[0] * size[1] / 20)), int(size[0] * size[1] / 4)
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    way = loop[:2] + loop[2:] * np.stack([np.cos(angle), np.sin(angle)], 1)  # (48, 2)
    room, objects = Item(WALL), []

    def fits(lo, hi):
        """May a box (lo, hi) stand there: inside the room, off the camera's way, clear of what is placed?"""
        if (lo[:2] < -size[:2] / 2 - 1e-6).any() or (hi[:2] > size[:2] / 2 + 1e-6).any() or hi[2] > size[2]:
            return False
        if hi[2] > 1.0 and lo[2] < 1.9:  # as tall as the camera: keep clear of its way
            gap = np.maximum(np.maximum(lo[:2] - way, way - hi[:2]), 0)
            if np.hypot(*gap.T).min() < .33:
                return False
        return all((lo >= h - .01).any() or (hi <= l + .01).any() for _, l, h in objects)

    def place(build):
        """Try to place a newly built item, against a wall or (tables, varied rooms' seats) in the middle; True if it found room."""
        for attempt in range(8):
            item = build(rng).scale(rng.uniform(.8, 1.35)) if varied else build(rng)
            lo, hi = item.bounds()
            for _ in range(30):
                if build is table or (build is coffee_table) or (varied and build in SEATS and rng.random() < .5):
                    yaw, shift = rng.choice([0, np.pi / 2]), rng.uniform(-.5, .5, 2)  # somewhere in the middle
                    if varied:
                        yaw, shift = rng.uniform(0, 2 * np.pi), shift * size[:2] / 2
                    x, y = shift - (turn(yaw) @ ((lo + hi) / 2))[:2]
                else:
                    side = int(rng.integers(4))
                    yaw, across = side * np.pi / 2, size[side % 2] / 2
                    free = across + np.array([lo[0], -hi[0]])  # keep the item between the two neighbouring walls
                    if free.min() < 0:
                        continue
                    back = -size[1 - side % 2] / 2 + 1e-3 - min(lo[1], 0)
                    x, y, _ = turn(yaw) @ (rng.uniform(-free[0], free[1]), back, 0)
                placed = Item(item.label).put(item, x, y, yaw)
                plo, phi = placed.bounds()
                if fits(plo, phi):
                    room.put(placed)
                    objects.append((build.__name__, plo, phi))
                    if build is door:  # leave room to walk in: a reservation without parts
                        c = (plo + phi) / 2
                        inward = -np.sign(c[:2]) * (np.abs(c[:2]) > size[:2] / 2 - .06)
                        objects.append(("way in", np.append(np.minimum(plo[:2], plo[:2] + .5 * inward), .0),
                                        np.append(np.maximum(phi[:2], phi[:2] + .5 * inward), 1.0)))
                    return True
        return False

    for build in RECIPES[kind] * rounds:
        place(build)
    for _ in range(more):
        place(FILL[int(rng.integers(len(FILL)))])
    hx, hy, top = size[0] / 2, size[1] / 2, size[2]
    trim = finish(rng)
    room.add((hx - .015, hx), (-hy, hy), (0, .09), trim, both=True)  # skirting boards
    for y in (-hy, hy - .015):
        room.add((-hx, hx), (y, y + .015), (0, .09), trim)
    room.post(0, 0, .16, (top - .1, top), material(rng, light=1, emit=.8), label=LAMP)
    if rng.random() < .5 and kind != "bathroom":  # a rug belongs to the floor
        rw, rd = rng.uniform(.7, 1.1), rng.uniform(.6, .9)
        room.add((-rw, rw), (-rd, rd), (0, .012), cloth(rng), label=FLOOR)

    if kind == "bathroom" and rng.random() < .7:
        wall = material(rng, TILE, (rng.uniform(.15, .3), 0, 0), contrast=.25, light=.6)
    else:
        paper = STRIPES if rng.random() < .2 else PLAIN
        wall = material(rng, paper, (rng.uniform(.15, .3), 0, 0), contrast=.15, light=.65)
    accent = material(rng, contrast=.15) if rng.random() < .4 else wall
    cover = TILE if kind == "bathroom" else rng.choice([TILE, WOOD, CLOTH])
    size_ = {TILE: rng.uniform(.25, .5), WOOD: rng.uniform(.1, .2), CLOTH: .1}[cover]
    ground = material(rng, cover, (size_, 1, 0), contrast=.15 if cover == CLOTH else .3)
    faces = [wall, accent, wall, wall, ground, material(rng, light=.9, contrast=.05)]  # −x +x −y +y −z +z
    shell = [(BOX, np.array([0, 0, top / 2]), size / 2, np.eye(3), m, label)
             for m, label in zip(faces, [WALL] * 4 + [FLOOR, CEILING])]
    parts = shell + room.parts
    index, mats = {}, []
    for part in parts:
        if id(part[4]) not in index:
            index[id(part[4])] = len(mats)
            mats.append(part[4])
    names = ("shape", "centre", "half", "rot", "material", "label")
    packed = {n: np.array([index[id(p[4])] if n == "material" else p[i] for p in parts]) for i, n in enumerate(names)}
    warm = np.array([1, rng.uniform(.85, 1), rng.uniform(.7, 1)])
    lamps = [(np.array([*rng.uniform(-.4, .4, 2), top - .25]), warm * rng.uniform(2.6, 3.6))]
    for name, lo, hi in objects:
        if name == "window" and len(lamps) < 2:  # daylight enters where a window is
            c = (lo[:2] + hi[:2]) / 2
            spot = np.append(np.where(np.abs(c) > 1.5, .8 * c, c), 1.7)
            lamps.append((spot, np.array([.9, .95, 1]) * rng.uniform(.8, 2)))
    mats = {k: np.array([m[k] for m in mats]) for k in mats[0]}
    ambient = rng.uniform(.32, .45) * np.array([1, 1, rng.uniform(.95, 1.1)])
    focal = rng.uniform(.75, .95)
    if varied:
        ambient, focal = ambient * rng.uniform(.8, 1.8), rng.uniform(.65, 1.1)
        lamps = [(position, power * max(1, size[:2].mean() / 4.5) ** 1.5 * rng.uniform(.5, 1)) for position, power in lamps]
        pale = rng.uniform(0, .9) * rng.uniform(0, 1, len(mats["a"]))[:, None] ** .5  # how far each material goes to off-white
        mats |= {k: mats[k] + pale * (np.array([.75, .74, .72]) - mats[k]) for k in "ab"}
    return Room(seed, kind, size, loop, focal, packed, mats, lamps, objects, ambient)


def intrinsics(room, width, height):
    """K (3,3) of the room's camera at this image size; pixel centres are integers."""
    f = room.focal * width
    return np.array([[f, 0, (width - 1) / 2], [0, f, (height - 1) / 2], [0, 0, 1.0]])


def camera_path(room, frames, seed):
    """Handheld poses c2w (frames, 4, 4), float64, OpenCV axes: a walk around the room's loop, looking across it.

    13° of the loop per frame, about 0.25 m; 28 frames see the room all around.
    In a room of VARIED at most 17° and 0.2 to 0.38 m where the loop is widest.
    """
    rng = np.random.default_rng([seed, room.seed, VERSION])
    way = rng.choice([-1, 1])
    i = np.arange(frames)
    varied, turn_ = room.seed in VARIED, np.radians(13)
    if varied:
        turn_ = min(turn_ * 1.3, rng.uniform(.2, .38) / room.loop[2:].max())
    angle = rng.uniform(0, 2 * np.pi) + way * turn_ * (i + rng.uniform(-.12, .12, frames))
    phase = rng.uniform(0, 2 * np.pi, 4)
    sway = np.sin(angle[:, None] * (2, 3, 1, 2) + phase + (i // 28)[:, None])  # (frames, 4)
    radius = 1 + .06 * sway[:, 0]
    height = rng.uniform(1.38, 1.58) + .06 * sway[:, 1] + rng.normal(0, .01, frames)
    eye = np.stack([room.loop[0] + room.loop[2] * radius * np.cos(angle),
                    room.loop[1] + room.loop[3] * radius * np.sin(angle), height], 1)  # (frames, 3)
    yaw = np.arctan2(room.loop[1] - eye[:, 1], room.loop[0] - eye[:, 0]) + .12 * sway[:, 2] + rng.normal(0, .02, frames)
    pitch = -rng.uniform(.2, .3) + .04 * sway[:, 3] + rng.normal(0, .01, frames)
    roll = rng.normal(0, .015, frames)
    if varied:  # higher or lower, looking aside of the centre, more level
        eye[:, 2] += rng.uniform(-.15, .25)
        yaw, pitch = yaw + rng.choice([0, 1]) * rng.uniform(-.9, .9), pitch * rng.uniform(0, 1.3)
    forward = np.stack([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch)], 1)
    right = np.stack([np.sin(yaw), -np.cos(yaw), 0 * yaw], 1)
    down = np.cross(forward, right)
    c, s = np.cos(roll)[:, None], np.sin(roll)[:, None]
    c2w = np.tile(np.eye(4), (frames, 1, 1))
    c2w[:, :3] = np.stack([c * right + s * down, c * down - s * right, forward, eye], 2)
    return c2w


# ------------------------------------------------------------------------------------------------------------ renderer
def _trace(room, c2w, K, height, width, near=.02):
    """Z-buffer: depth (H,W) float32 and part index (H,W) int32 of the nearest surface along every pixel's ray."""
    P = room.parts
    to_local = P["rot"].transpose(0, 2, 1) / P["half"][:, :, None]  # world to the frame where the part is a unit shape
    M = (to_local @ (c2w[:3, :3] @ np.linalg.inv(K))).astype(np.float32)  # (P,3,3): pixel -> local direction
    O = np.einsum("pij,pj->pi", to_local, c2w[:3, 3] - P["centre"]).astype(np.float32)  # (P,3) local origin
    signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    corners = P["centre"][:, None] + np.einsum("pij,cj,pj->pci", P["rot"], signs, P["half"])  # (P,8,3)
    cam = (corners - c2w[:3, 3]) @ c2w[:3, :3]
    front = cam[..., 2] > .05
    uv = cam[..., :2] / np.maximum(cam[..., 2:], .05) * (K[0, 0], K[1, 1]) + (K[0, 2], K[1, 2])
    lo, hi = np.floor(uv.min(1)).astype(int), np.ceil(uv.max(1)).astype(int) + 1
    part_lo = np.where(front.all(1, keepdims=True), np.clip(lo, 0, (width, height)), 0)
    part_hi = np.where(front.all(1, keepdims=True), np.clip(hi, 0, (width, height)), (width, height))
    u, v = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        inv = [1 / (M[0, k, 0] * u + (M[0, k, 1] * v + M[0, k, 2])) for k in range(3)]
        far = [np.abs(w) - O[0, k] * w for k, w in enumerate(inv)]  # inside the room its *far* side is seen
        depth = np.fmin(np.fmin(far[0], far[1]), far[2])  # fmin: a ray exactly along a wall gives NaN
        axis = np.where(far[2] == depth, 2, np.where(far[1] == depth, 1, 0))
        index = (2 * axis + (np.choose(axis, inv) > 0)).astype(np.int32)
        for p in range(6, len(P["shape"])):
            (x0, y0), (x1, y1) = part_lo[p], part_hi[p]
            if x0 >= x1 or y0 >= y1 or not front[p].any():
                continue
            us, vs, m, o = u[x0:x1], v[y0:y1], M[p], O[p]
            d = [m[k, 0] * us + (m[k, 1] * vs + m[k, 2]) for k in range(3)]  # local direction, (h,w) each
            enter = leave = None
            for k in range(3) if P["shape"][p] == BOX else (2,) if P["shape"][p] == CYLINDER else ():
                w = np.reciprocal(d[k])
                mid, size = w * -o[k], np.abs(w)
                z0, z1 = mid - size, mid + size
                enter, leave = (z0, z1) if enter is None else (np.maximum(enter, z0), np.minimum(leave, z1))
            if P["shape"][p] != BOX:  # |o + z d|² = 1 over x, y (cylinder) or x, y, z (ball)
                n = 2 if P["shape"][p] == CYLINDER else 3
                a, b = sum(d[k] * d[k] for k in range(n)), sum(d[k] * o[k] for k in range(n))
                root = np.sqrt(b * b - a * (sum(o[k] ** 2 for k in range(n)) - 1))  # NaN: the ray misses
                z0, z1 = (-b - root) / a, (-b + root) / a
                enter, leave = (z0, z1) if enter is None else (np.maximum(enter, z0), np.minimum(leave, z1))
            z = depth[y0:y1, x0:x1]
            hit = (enter < leave) & (enter > near) & (enter < z)
            np.copyto(z, enter, where=hit)
            np.copyto(index[y0:y1, x0:x1], p, where=hit)
    return depth, index


def _shadow_maps(room, n=128):
    """Depth from each lamp into the six faces of a cube around it: list of (6,n,n); face 2a+s looks along ±axis a."""
    K = np.array([[n / 2, 0, (n - 1) / 2], [0, n / 2, (n - 1) / 2], [0, 0, 1]])
    maps = []
    for position, _ in room.lamps:
        faces = []
        for axis in range(3):
            for sign in (-1, 1):
                c2w, z = np.eye(4), sign * np.eye(3)[axis]
                x = np.eye(3)[(axis + 1) % 3]
                c2w[:3, 0], c2w[:3, 1], c2w[:3, 2], c2w[:3, 3] = x, np.cross(z, x), z, position
                faces.append(_trace(room, c2w, K, n, n)[0])
        maps.append(np.stack(faces))
    return maps


def _lit(shadow, v, cos):
    """Share of four taps of the shadow map that see the points at v (3,N) from the lamp, lit under cos: (N,) in 0…1."""
    n = shadow.shape[1]
    mag = np.abs(v)
    axis = mag.argmax(0)
    pick = lambda k: np.where(k == 0, v[0], np.where(k == 1, v[1], v[2]))
    main = pick(axis)
    z = np.abs(main)
    sign = np.sign(main)
    x, y = pick((axis + 1) % 3) / z, sign * pick((axis + 2) % 3) / z  # cross(±e_a, e_a+1) = ±e_a+2
    face = (2 * axis + (main > 0)) * (n * n)
    px, py = (x + 1) * (n / 2) - .5, (y + 1) * (n / 2) - .5
    flat, limit, out = shadow.ravel(), z * (1 - .016 / np.maximum(cos, .1)) - .015, 0  # oblique light: more slack
    for du, dv in ((-.9, -.4), (.4, -.9), (.9, .4), (-.4, .9)):
        iu = np.clip(np.rint(px + du), 0, n - 1).astype(np.int32)
        iv = np.clip(np.rint(py + dv), 0, n - 1).astype(np.int32)
        out = out + (flat[face + iv * n + iu] > limit)
    return out.astype(np.float32) / 4


def _hash(i, j, seed):
    """Pseudo-random (N,) in 0…1 from integer cells: the same from every view."""
    i, j, seed = (x.astype(np.int64) for x in (i, j, seed))
    h = (i * 0x9E3779B1 + j * 0x85EBCA6B + seed * 0xC2B2AE35) & 0xFFFFFFFF
    h = ((h ^ (h >> 15)) * 0x2C1B3C6D) & 0xFFFFFFFF
    h = ((h ^ (h >> 12)) * 0x297A2D39) & 0xFFFFFFFF
    return ((h ^ (h >> 15)) >> 8).astype(np.float32) / (1 << 24)


def _line(x, period, width, foot):
    """Anti-aliased lines of `width` every `period`: coverage 0…1, given the pixel's footprint in the same unit."""
    d = np.abs(x / period - np.rint(x / period)) * period
    return np.clip((width / 2 + foot / 2 - d) / foot, 0, 1) * np.minimum(1, width / foot)


def _texture(kind, a, b, ha, hb, front, p, seed, foot):
    """(mix, gain), each (N,): albedo = (a + mix (b − a)) · gain.

    a, b: place on the face in −1…1 of its half sizes ha, hb in metres; front: the side with doors and spines; foot:
    metres of surface under the pixel, to fade a pattern before it aliases.
    """
    def wave(period, x):
        """A sine over x metres that fades out before it aliases."""
        return np.sin(2 * np.pi * x / period) * np.clip(1.5 - 3 * foot / period, 0, 1)

    s, t = a * ha, b * hb
    phase = (seed % 97).astype(np.float32)
    one = np.ones_like(s)
    if kind == WOOD:
        w = p[:, 0]
        plank = np.floor(t / w)
        tone = _hash(plank, np.floor(s / (w * 8) + _hash(plank, plank * 0, seed)), seed)
        grain = wave(.09, t + .03 * np.sin(s * 2.5 + phase + 6 * tone)) * .5 + .5
        return .5 * grain + .5 * tone, 1 - p[:, 1] * .55 * _line(t, w, .008, foot)
    if kind == TILE:
        w = p[:, 0]
        tone = _hash(np.floor(s / w), np.floor(t / w), seed)
        grout = np.maximum(_line(s, w, .012, foot), _line(t, w, .012, foot))
        return .6 * tone, 1 - .35 * grout
    if kind == CLOTH:
        w = p[:, 0] * 2
        warp, weft = .3 * w * np.sin(t / w * 3 + phase), .3 * w * np.sin(s / w * 2 + phase)
        return .5 + .25 * wave(w, s + warp) + .25 * wave(w * 1.3, t + weft), one
    if kind == STRIPES:
        return _line(s, p[:, 0], p[:, 0] * .45, np.maximum(foot, .01)), one
    if kind == BOOKS:
        w = p[:, 0]
        x = s + .012 * np.sin(s * 41 + phase)  # uneven spines
        book = np.floor(x / w)
        pick, tall = _hash(book, book * 0, seed), _hash(book, book * 0 + 7, seed)
        gap, band = _line(x, w, .008, foot), np.clip((.04 - np.abs(b - .1 - .5 * (tall - .5))) * 12, 0, 1)
        above = np.clip((b - .45 - .55 * tall) * 20, 0, 1)
        spine = (1 - .6 * gap) * (.55 + .6 * tall) * (1 - .8 * above)
        return np.where(front, np.clip(pick + .5 * band, 0, 1), .3), np.where(front, spine, .8)
    if kind == FOLDS:
        fold = wave(p[:, 0], s + .02 * np.sin(t * 2 + phase))
        dots = np.clip(wave(.3, s) * wave(.3, t) * 8 - 2.5, 0, 1)
        bands = _line(t, .36, .12, np.maximum(foot, .01))
        return .9 * np.where(p[:, 1] == 1, dots, np.where(p[:, 1] == 2, bands, 0)), .78 + .22 * fold
    if kind == PANEL:
        cols, rows, inset = p.T
        x, y = (a + 1) / 2 * cols, (b + 1) / 2 * rows
        dx, dy = np.abs(x - np.rint(x)) * 2 * ha / cols, np.abs(y - np.rint(y)) * 2 * hb / rows  # metres
        edge = np.minimum(dx, dy)
        gap = np.clip((.006 + foot / 2 - edge) / foot, 0, 1)
        groove = np.clip((.012 + foot / 2 - np.abs(edge - inset)) / foot, 0, 1) * (inset > 0)
        return np.where(front, (edge > inset) * .6, 0), np.where(front, (1 - .55 * gap) * (1 - .3 * groove), 1)
    if kind == ART:
        u = .5 + .5 * np.sin(p[:, 0] * 3 * a + 1.7 * np.sin(p[:, 1] * 2.5 * b + phase))
        return u, .55 + .45 * np.sin(p[:, 1] * 2.3 * b + 1.3 * np.sin(p[:, 0] * 2 * a + 2 * phase)) ** 2
    if kind == OUTSIDE:
        trees = -.2 + .15 * np.sin(2.2 * a + phase) + .06 * np.abs(np.sin(9 * a + 2 * phase))
        leaves = .55 + .2 * np.sin(7 * a + phase) * np.sin(9 * b)
        return np.clip((trees - b) * 5, 0, 1), np.where(b < trees, leaves, .85 + .15 * b)
    return .5 + .5 * np.sin(s * 1.3 + phase) * np.sin(t * 1.1 + 2 * phase), one  # PLAIN: a slow drift of tone


def render(room, c2w, K, height, width):
    """rgb (H,W,3) uint8, depth (H,W) float32 metres along z, label (H,W) uint8 NYU-40 id. K (3,3) pixels, c2w (4,4)."""
    if not room.shadows:
        room.shadows = _shadow_maps(room)
    P, Q = room.parts, room.materials
    depth, index = _trace(room, c2w, K, height, width)
    z, part = depth.ravel(), index.ravel()  # N = H·W from here on
    A = (c2w[:3, :3] @ np.linalg.inv(K)).astype(np.float32)
    u, v = np.tile(np.arange(width, dtype=np.float32), height), np.repeat(np.arange(height, dtype=np.float32), width)
    ray = [A[k, 0] * u + (A[k, 1] * v + A[k, 2]) for k in range(3)]
    point = [np.float32(c2w[k, 3]) + z * ray[k] for k in range(3)]  # (N,) each

    # The hit point in its part's unit frame, q; from it the face, the normal and the texture coordinates.
    half, rot = P["half"].astype(np.float32), P["rot"].astype(np.float32)
    inv = (rot.transpose(0, 2, 1) / half[:, :, None])
    off = -np.einsum("pij,pj->pi", inv, P["centre"].astype(np.float32))
    q = np.stack([sum(inv[:, k, j][part] * point[j] for j in range(3)) + off[:, k][part] for k in range(3)])  # (3,N)
    shape, h = P["shape"][part], half.T[:, part]  # (N,), (3,N)
    axis = np.abs(q).argmax(0)
    axis = np.where(shape == BOX, axis, np.where((shape == CYLINDER) & (np.abs(q[2]) > .9995), 2, 3))  # 3: a round side
    n_local = [np.where(axis == k, np.sign(q[k]), 0) for k in range(3)]
    round_ = np.flatnonzero(axis == 3)
    g = q[:, round_] / h[:, round_]
    g[2] *= shape[round_] == BALL
    g /= np.sqrt((g * g).sum(0)) + 1e-9
    for k in range(3):
        n_local[k][round_] = g[k]
    normal = [sum(rot[:, k, j][part] * n_local[j] for j in range(3)) for k in range(3)]
    facing = sum(normal[k] * ray[k] for k in range(3))
    flip = np.where(facing > 0, -1, 1).astype(np.float32)  # the room is seen from inside
    normal = [n * flip for n in normal]
    a, b = np.where(axis == 0, q[1], q[0]), np.where(axis == 2, q[1], q[2])
    ha, hb = np.where(axis == 0, h[1], h[0]), np.where(axis == 2, h[1], h[2])
    a[round_] = np.arctan2(q[1][round_], q[0][round_])  # a round side is unrolled
    length = np.sqrt(sum(r * r for r in ray))
    foot = z / K[0, 0] / np.clip(np.abs(facing) / length, .12, 1) + 1e-4  # metres of surface per pixel

    m = P["material"][part]
    mix, gain = np.zeros_like(z), np.ones_like(z)
    kinds = Q["texture"][m]
    for kind in np.unique(kinds):
        i = np.flatnonzero(kinds == kind)
        front = (axis[i] == 1) & (q[1][i] > 0)
        p, seed = Q["p"].astype(np.float32)[m[i]], Q["seed"][m[i]]
        mix[i], gain[i] = _texture(kind, a[i], b[i], ha[i], hb[i], front, p, seed, foot[i])

    # Light: ambient, darker in corners (and below things: see the shadow of the ceiling lamp), plus the lamps.
    occl = np.ones_like(z)
    for k in range(3):
        reach, mid = np.float32(room.size[k] / 2), np.float32(room.size[2] / 2 if k == 2 else 0)
        d = reach - np.abs(point[k] - mid)  # metres to the nearer of two opposite faces of the room
        occl *= 1 - .4 * np.exp(d * -4) * (1 - np.abs(normal[k]))
    sky = occl * (.85 + .15 * normal[2])
    light = [sky * np.float32(room.ambient[c]) for c in range(3)]
    for (position, power), shadow in zip(room.lamps, room.shadows):
        to = np.stack([point[k] - np.float32(position[k]) for k in range(3)])  # lamp to point, (3,N)
        d2 = (to * to).sum(0)
        cos = np.maximum(-sum(to[k] * normal[k] for k in range(3)) / np.sqrt(d2), 0)
        strength = cos * _lit(shadow, to, cos) / (d2 + .6)
        light = [light[c] + strength * np.float32(power[c]) for c in range(3)]
    emit = Q["emit"].astype(np.float32)[m]
    rgb = np.empty((height * width, 3), np.uint8)
    for c in range(3):
        ca, cb = Q["a"][:, c].astype(np.float32)[m], Q["b"][:, c].astype(np.float32)[m]
        x = (ca + mix * (cb - ca)) * gain * (light[c] + emit)
        x = x * (1 + x * .12) / (1 + .6 * x) * 1.25  # a film-like shoulder
        rgb[:, c] = np.clip(np.sqrt(x) * 255 + .5, 0, 255)
    return rgb.reshape(height, width, 3), depth, P["label"].astype(np.uint8)[index]


# -------------------------------------------------------------------------------------------------- the ScanNet export
def _settings(seed, frames, width, height):
    return dict(generator="00_rooms.py", version=VERSION, seed=int(seed), frames=int(frames), width=int(width),
                height=int(height))


def write_room(root, name, seed, frames=24, width=320, height=240):
    """Write room `seed` as `<root>/<name>`, laid out as a ScanNet export; the folder appears whole or not at all. Where another
    process has made it meanwhile, its room stays."""
    target = Path(root) / name
    temporary, old = (target.with_name(f".{name}.{os.getpid()}.{what}") for what in ("tmp", "old"))
    try:
        _write_scene(temporary, seed, frames, width, height)
        if not _is_there(target, _settings(seed, frames, width, height)):
            if target.exists():
                os.rename(target, old)  # away in one move, deleted afterwards: no half-deleted room under this name either
            try:
                os.rename(temporary, target)
            except OSError:
                if not target.is_dir():
                    raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return name


def _is_there(folder, want):
    """Has somebody written this room with these settings? room.json is the last file of a room."""
    try:
        have = json.loads((folder / "room.json").read_text())
        return {key: have.get(key) for key in want} == want
    except (OSError, ValueError, AttributeError):
        return False


def _write_scene(folder, seed, frames, width, height):
    room = make_room(seed)
    K, poses = intrinsics(room, width, height), camera_path(room, frames, seed)
    raw = np.zeros(256, np.uint16)  # NYU-40 id -> one of its raw ids, chosen per room
    for nyu, categories in RAW.items():
        raw[nyu] = list(categories.values())[seed % len(categories)]
    for part in ("color", "depth", "pose", "intrinsic", "label-filt"):
        (folder / part).mkdir(parents=True)
    K4 = np.eye(4)
    K4[:3, :3] = K
    for kind in ("color", "depth"):
        np.savetxt(folder / "intrinsic" / f"intrinsic_{kind}.txt", K4, fmt="%.6f")
    for i, c2w in enumerate(poses):
        rgb, depth, label = render(room, c2w, K, height, width)
        iio.imwrite(folder / "color" / f"{i}.jpg", rgb, quality=95)
        iio.imwrite(folder / "depth" / f"{i}.png", np.rint(depth * 1000).astype(np.uint16), compress_level=1)
        iio.imwrite(folder / "label-filt" / f"{i}.png", raw[label], compress_level=1)
        np.savetxt(folder / "pose" / f"{i}.txt", c2w, fmt="%.9f")
    about = _settings(seed, frames, width, height) | {"kind": room.kind}
    (folder / "room.json").write_text(json.dumps(about, indent=1))


def _write_table(path):
    """scannetv2-labels.combined.tsv: the real header and line ends (CRLF), one row per raw category."""
    header = ("id raw_category category count nyu40id eigen13id nyuClass nyu40class eigen13class ModelNet40 ModelNet10 "
              "ShapeNetCore55 synsetoffset wnsynsetid wnsynsetkey mpcat40 mpcat40index").split()
    rows = sorted((i, category, nyu) for nyu, categories in RAW.items() for category, i in categories.items())
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w", newline="") as f:
        table_ = csv.DictWriter(f, header, delimiter="\t", restval="", lineterminator="\r\n")
        table_.writeheader()
        for i, category, nyu in rows:
            table_.writerow(dict(id=i, raw_category=category, category=category, count=1, nyu40id=nyu,
                                 nyuClass=NYU[nyu], nyu40class=NYU[nyu]))
    os.replace(temporary, path)


def _job(job, root, frames, width, height):
    return write_room(root, job[0], job[1], frames, width, height)


def make_rooms(root, seeds, frames=24, width=320, height=240, workers=None):
    """Rooms `seeds` and the label table under `root`; those there with the same settings stay. -> scene names."""
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    _write_table(root / "scannetv2-labels.combined.tsv")
    for part in root.glob(".room*.*"):  # of writers that were killed
        with contextlib.suppress(OSError):  # or just finished
            if time.time() - part.stat().st_mtime > 3600:
                shutil.rmtree(part, ignore_errors=True)
    jobs, names = [], []
    for seed in seeds:
        names.append(f"room{seed:04d}_00")
        if not _is_there(root / names[-1], _settings(seed, frames, width, height)):
            jobs.append((names[-1], seed))
    workers = min(workers or os.cpu_count() or 1, len(jobs))
    work = partial(_job, root=str(root), frames=frames, width=width, height=height)
    bar_ = partial(tqdm, total=len(jobs), desc="rooms", unit="room", disable=not jobs)
    if workers <= 1:
        for _ in bar_(map(work, jobs)):
            pass
        return names
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # inherited by the workers: one thread each
    try:
        quiet = (signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends this process, and it ends them
        with multiprocessing.get_context("spawn").Pool(workers, signal.signal, quiet) as pool:
            for _ in bar_(pool.imap_unordered(work, jobs)):
                pass
    finally:
        os.environ.pop("OMP_NUM_THREADS") if threads is None else os.environ.update(OMP_NUM_THREADS=threads)
    return names


def main():
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    parser = argparse.ArgumentParser(description="Procedural rooms with exact depth and labels: a contact sheet.")
    parser.add_argument("--out", default="outputs", help="folder for 00_rooms.png")
    parser.add_argument("--count", type=int, default=6, help="how many rooms")
    args = parser.parse_args()
    palette = np.zeros((256, 3), np.uint8)
    for i, _, rgb in SCANNET20:
        palette[i] = rgb
    share, seconds = np.zeros(256), []
    fig, axes = plt.subplots(args.count, 6, figsize=(15, 2 * args.count + .8), squeeze=False)
    for row in range(args.count):
        room = make_room(row)
        K = intrinsics(room, 320, 240)
        for j, c2w in enumerate(camera_path(room, 24, row)[[0, 8]]):
            start = time.perf_counter()
            rgb, depth, label = render(room, c2w, K, 240, 320)
            seconds.append(time.perf_counter() - start)
            share += np.bincount(label.ravel(), minlength=256)
            for k, img in enumerate((rgb, depth, palette[label])):
                axes[row, 3 * j + k].imshow(img, cmap="viridis_r")
        axes[row, 0].set_ylabel(f"{room.kind}\n{len(room.parts['shape'])} parts")
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    handles = [plt.Rectangle((0, 0), 1, 1, color=np.array(c) / 255, label=n) for _, n, c in SCANNET20]
    fig.legend(handles=handles, loc="lower center", ncol=10, frameon=False)
    fig.subplots_adjust(.03, .8 / fig.get_figheight(), 1, 1, .02, .02)
    Path(args.out).mkdir(parents=True, exist_ok=True)
    fig.savefig(Path(args.out) / "00_rooms.png", dpi=80)
    print(f"{'class':16s} share of pixels")
    for i, name, _ in SCANNET20:
        print(f"{name:16s} {share[i] / share.sum():6.1%}")
    print(f"{'(not in the 20)':16s} {1 - sum(share[i] for i, _, _ in SCANNET20) / share.sum():6.1%}")
    print(f"median {np.median(seconds) * 1000:.0f} ms per 320x240 frame; saved {Path(args.out) / '00_rooms.png'}")


if __name__ == "__main__":
    main()
