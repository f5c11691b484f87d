"""The floor of a room while it is being furnished: what fits where."""
import numpy as np

from support.rooms.classes import WALL
from support.rooms.furniture import FILL, RECIPES, SEATS, TABLES, door
from support.rooms.parts import Item, turn


class Floor:
    """The floor while it is being furnished: what stands there, and where the camera will walk."""

    clear = .33  # metres between the camera's way and things as tall as the camera

    def __init__(self, rng, varied, size, loop):
        self.rng, self.varied, self.size, self.loop = rng, varied, size, loop
        angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        self.way = loop[:2] + loop[2:] * np.stack([np.cos(angle), np.sin(angle)], 1)  # (48, 2)
        self.room, self.objects = Item(WALL), []

    def furnish(self, kind):
        """Place what this kind's recipe names, then whatever still fits; in larger varied rooms more."""
        rounds, more = 1, 5
        if self.varied:
            area = self.size[0] * self.size[1]
            rounds, more = round(max(1, area / 20)), int(area / 4)
        for build in RECIPES[kind] * rounds:
            self.place(build)
        for _ in range(more):
            self.place(FILL[int(self.rng.integers(len(FILL)))])

    def place(self, build):
        """Build up to 8 items and try 30 places for each, until one fits; none may."""
        for _ in range(8):
            item = build(self.rng)
            if self.varied:
                item.scale(self.rng.uniform(.8, 1.35))
            bounds = item.bounds()
            for _ in range(30):
                spot = self.spot(build, *bounds)
                if spot is None:
                    continue
                if self.stand(build.__name__, item, spot):
                    if build is door:
                        self.reserve_way_in(*self.objects[-1][1:])
                    return

    def stand(self, name, item, spot):
        """Put an item down at a place (x, y, yaw), if it fits there. Does it?"""
        placed = Item(item.label).put(item, *spot)
        lo, hi = placed.bounds()
        if not self.fits(lo, hi):
            return False
        self.room.put(placed)
        self.objects.append((name, lo, hi))
        return True

    def spot(self, build, lo, hi):
        """A random place (x, y, yaw) for an item of bounds lo, hi (3,): against a wall, or in the middle for
        tables and half of varied rooms' seats. None where the wall is too short."""
        rng, size = self.rng, self.size
        if build in TABLES or (self.varied and build in SEATS and rng.random() < .5):
            yaw, shift = rng.choice([0, np.pi / 2]), rng.uniform(-.5, .5, 2)
            if self.varied:
                yaw, shift = rng.uniform(0, 2 * np.pi), shift * size[:2] / 2
            x, y = shift - (turn(yaw) @ ((lo + hi) / 2))[:2]
            return x, y, yaw
        side = int(rng.integers(4))
        yaw, across = side * np.pi / 2, size[side % 2] / 2
        free = across + np.array([lo[0], -hi[0]])  # keep the item between the two neighbouring walls
        if free.min() < 0:
            return None
        back = -size[1 - side % 2] / 2 + 1e-3 - min(lo[1], 0)
        x, y, _ = turn(yaw) @ (rng.uniform(-free[0], free[1]), back, 0)
        return x, y, yaw

    def fits(self, lo, hi):
        """May a box (lo, hi) stand there: inside the room, off the camera's way, clear of what is placed?"""
        size, way = self.size, self.way
        if (lo[:2] < -size[:2] / 2 - 1e-6).any() or (hi[:2] > size[:2] / 2 + 1e-6).any() or hi[2] > size[2]:
            return False
        if hi[2] > 1.0 and lo[2] < 1.9:  # as tall as the camera: keep clear of its way
            gap = np.maximum(np.maximum(lo[:2] - way, way - hi[:2]), 0)
            if np.hypot(*gap.T).min() < self.clear:
                return False
        return all((lo >= high - .01).any() or (hi <= low + .01).any() for _, low, high in self.objects)

    def reserve_way_in(self, lo, hi):
        """Leave 0.5 m to walk in at a door: an object without parts."""
        centre = (lo + hi) / 2
        inward = -np.sign(centre[:2]) * (np.abs(centre[:2]) > self.size[:2] / 2 - .06)
        self.objects.append(("way in", np.append(np.minimum(lo[:2], lo[:2] + .5 * inward), .0),
                             np.append(np.maximum(hi[:2], hi[:2] + .5 * inward), 1.0)))
