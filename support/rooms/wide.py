"""Rooms of WIDE: training data that carries over to scenes of another hand. From closets to halls, everything
stretched, some of it in the middle, materials as rich as photographs or plain, any light."""
import numpy as np

from support.rooms import furniture
from support.rooms.floor import Floor
from support.rooms.furniture import KINDS, RECIPES, SEATS, TABLES
from support.rooms.materials import colour
from support.rooms.parts import turn
from support.rooms.screens import SCREENS
from support.rooms.variants import HUNG, VARIANTS, seat_for_one

PIECES = tuple(dict.fromkeys(build for kind in KINDS for build in RECIPES[kind][1:]
                             if build is not furniture.armchair))
SMALL = (furniture.chair, furniture.table, furniture.desk, furniture.picture, furniture.washbasin,
         furniture.toilet, furniture.bathtub, furniture.sofa)  # in the pictures: more of these
WALLED = (furniture.door, furniture.window, furniture.picture, furniture.kitchen, furniture.washbasin, *HUNG)
PRINTED = ("poster", "leaves", "clouds", "stains", "wallpaper", "bricks", "parquet", "tile", "stripes",
           "cloth", "wood")  # the first for pictures
KEPT = ("panel", "books", "folds", "art")  # what these are is not for a print to hide, mostly


def furnish_wide(rng, kind, more=()):
    """A Floor on which all furniture stands, of a room 2.2 to 12 m wide and 2.2 to 4.5 m high."""
    side, aspect = np.exp(rng.uniform(np.log(2.2), np.log(12))), np.exp(rng.uniform(-.4, .4))
    size = np.array([side, np.clip(side * aspect, 2.2, 12), 2.2 + 2.3 * rng.random() ** 1.7])
    half = size[:2] / 2
    radii = np.maximum(np.minimum(rng.uniform(.2, .75, 2) * half, half - .8), .12)
    floor = Wide(rng, True, size, np.array([*rng.uniform(-.5, .5, 2) * (half - radii - .6).clip(0), *radii]))
    floor.clear = rng.uniform(.15, .35)
    count = int(min(12 + size[0] * size[1], 46) * rng.uniform(.6, 1.15))
    others = PIECES + 2 * SMALL + SCREENS + VARIANTS + more
    for i, other in enumerate(rng.integers(0, len(others), count)):
        named = i % 2 == 0 and i // 2 < len(RECIPES[kind])
        build = RECIPES[kind][i // 2] if named else others[other]
        floor.place(seat_for_one if build is furniture.armchair else build)
    return floor


class Wide(Floor):
    """A floor on which things stand along the walls, in the middle and near the camera's way."""

    def place(self, build):
        """Build up to 4 items, stretched along each axis, in small rooms rather shrunk, and try 10 places for
        each, until one fits."""
        for _ in range(4):
            item = build(self.rng)
            item.stretch(self.rng.uniform(.75, min(1.35, .75 + .15 * self.size[:2].min()), 3))
            bounds = item.bounds()
            for _ in range(10):
                spot = self.spot(build, *bounds)
                if spot is not None and self.stand(build.__name__, item, spot):
                    return

    def spot(self, build, lo, hi):
        """As Floor.spot, but most things may stand anywhere and turned by any angle, in halls more often."""
        rng, size = self.rng, self.size
        free = SCREENS + TABLES + SEATS
        if build in WALLED or rng.random() > (.75 if build in free else .12 + .04 * size[:2].mean()):
            return super().spot(furniture.door, lo, hi)
        yaw = rng.choice([rng.integers(4) * np.pi / 2, rng.uniform(0, 2 * np.pi)])
        place = rng.uniform(-.5, .5, 2) * size[:2]
        if rng.random() < .25:  # near the camera's way
            place = self.way[rng.integers(len(self.way))] + rng.normal(0, .9, 2)
        return *(place - (turn(yaw) @ ((lo + hi) / 2))[:2]), yaw

    def fits(self, lo, hi):
        """As Floor.fits; things above 0.6 m keep clear of the camera's way."""
        size = self.size
        if (lo[:2] < -size[:2] / 2 - 1e-6).any() or (hi[:2] > size[:2] / 2 + 1e-6).any() or hi[2] > size[2]:
            return False
        gap = np.maximum(np.maximum(lo[:2] - self.way, self.way - hi[:2]), 0)
        if hi[2] > .6 and lo[2] < 2 and np.hypot(*gap.T).min() < self.clear:
            return False
        low, high = np.reshape([(low, high) for _, low, high in self.objects], (-1, 2, 3)).transpose(1, 0, 2)
        return bool(((lo >= high - .01) | (hi <= low + .01)).any(1).all())


def dress(rng, room):
    """New materials, light and lens for a furnished room, in place. -> room."""
    old, n = room.materials, len(room.materials["seed"])
    rich = rng.uniform(0, .95) if rng.random() < .5 else rng.uniform(0, .08)  # every second room is plain
    pale, tone = rng.uniform(0, 1) * rng.random(), np.exp(rng.normal(0, .25))
    numbers = rng.integers(0, 1 << 20, (len(PRINTED), 2))  # two sheets of a kind to a room
    new = {key: list(value) for key, value in old.items()}
    for i in range(n):
        name = str(old["texture"][i])
        if name == "model":
            continue
        if name == "art" and not old["emit"][i] and rng.random() < .8:
            kind = 0
        elif not old["emit"][i] and rng.random() < rich * (.6 if name in KEPT else 1):
            kind = int(rng.integers(len(PRINTED)))
        else:
            for key in "ab":
                new[key][i] = (1 - pale) * old[key][i] ** tone + pale * .75
            continue
        new["texture"][i], new["p"][i] = PRINTED[kind], _pattern(rng, PRINTED[kind], numbers[kind])
        new["a"][i], new["b"][i] = _two_ends(rng)
    room.materials = {key: np.array(value) for key, value in new.items()}
    _light(rng, room)
    longest = np.clip(.3 * room.size[:2].min(), .75, 1.3)
    room.focal, room.kind = .55 * (longest / .55) ** rng.random(), f"wide {room.kind}"
    return room


def _two_ends(rng):
    """The albedos a and b of a print: two draws from the common palette, mostly far apart."""
    a, b = colour(rng, .1) * rng.uniform(.1, 1), np.maximum(colour(rng, .5), .15)
    return (a, b) if rng.random() < .8 else (a, (a + b) / 2)


def _pattern(rng, name, numbers):
    """Parameters p (3,) of a texture of PRINTED."""
    period = np.exp(rng.uniform(np.log(.35), np.log(2.5)))
    if name in ("poster", "leaves", "clouds", "stains"):
        return np.array([period, rng.choice(numbers), rng.uniform(0, 2 * np.pi)])
    if name in ("wallpaper", "bricks", "parquet"):
        return np.array([rng.uniform(.15, .6), rng.choice(numbers), rng.uniform(.25, 1)])
    return np.array([rng.uniform(.1, .4), rng.integers(2), 0])


def _light(rng, room):
    """A lamp over the camera's way, where nothing is tall, of a power that suits the room, and perhaps a
    window; more or less light all around."""
    spot = np.pi / 24 * rng.integers(48)
    place = room.loop[:2] + room.loop[2:] * (np.cos(spot), np.sin(spot))
    room.lamps[0] = np.append(place, room.size[2] - rng.uniform(.2, .4)), room.lamps[0][1]
    stronger = max(np.linalg.norm(room.size) / 6.5, .6) ** 1.2
    room.lamps = [(position, power * stronger * rng.uniform(.4, 1)) for position, power in room.lamps]
    room.ambient = room.ambient * rng.uniform(.8, 2)
