"""Items made of parts: a part is a box, a cylinder or a ball (an ellipsoid), with a material and a label."""
import numpy as np

from support.rooms.classes import PROP
from support.rooms.materials import material

BOX, CYLINDER, BALL = range(3)


def turn(yaw):
    """Rotation about z by yaw, (3, 3)."""
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


class Item:
    """An object made of parts, in its own frame in metres: x to its right, y from its back (0) to its front,
    z up. A part is a tuple (shape, centre (3,), half (3,), rotation (3, 3), material, label)."""

    def __init__(self, label):
        self.label, self.parts = label, []

    def add(self, x, y, z, mat, shape=BOX, label=None, tilt=0.0, both=False):
        """One part filling the ranges x, y, z (pairs), tilted about its x axis; `both`: and its mirror image.
        Returns the item, as all methods but `bounds` do, so that calls can be chained."""
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
        self.add((-w / 2, w / 2), y, (z[0], z[0] + b), mat)
        return self.add((-w / 2, w / 2), y, (z[1] - b, z[1]), mat)

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
            px, py = x[0] + (x[1] - x[0]) * rng.random(), y[0] + (y[1] - y[0]) * rng.random()
            m = material(rng)
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
        self.parts = [(shape, s * centre, s * half, r, mat, label)
                      for shape, centre, half, r, mat, label in self.parts]
        return self

    def stretch(self, s):
        """The same, s (3,) times as wide, deep and high; what is turned stays a box, a cylinder or a ball."""
        self.parts = [(shape, s * centre, np.linalg.norm(s[:, None] * r, axis=0) * half, r, mat, label)
                      for shape, centre, half, r, mat, label in self.parts]
        return self

    def bounds(self):
        """Axis-aligned (lo, hi), each (3,)."""
        reach = [(c, np.sqrt(r ** 2 @ h ** 2) if shape == BALL else np.abs(r) @ h)
                 for shape, c, h, r, _, _ in self.parts]
        return np.min([c - e for c, e in reach], 0), np.max([c + e for c, e in reach], 0)
