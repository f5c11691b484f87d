"""Rooms in which a view must be doubted. The camera walks at one end. Screens stand in the middle, doubles
behind them: so most points are in the image of a view that does not see them, and what a thing is may only
show from where its telling end can be seen."""
import numpy as np

from support.rooms.doubles import COUCHES, FRONTS, TOPS, couch, front, top
from support.rooms.floor import Floor
from support.rooms.furniture import bookshelf, chair, desk, other, picture, window
from support.rooms.screens import SCREENS


def furnish_doubted(rng):
    """A Floor on which all furniture stands, of a room 5.6 to 6.6 m wide and 5.4 to 6.2 m deep."""
    size = np.array([rng.uniform(5.6, 6.6), rng.uniform(5.4, 6.2), rng.uniform(2.5, 2.9)])
    radii = np.array([rng.uniform(1.7, 2.0), rng.uniform(.6, .75)])
    floor = Doubted(rng, False, size, np.array([rng.uniform(-.1, .1), radii[1] + .75 - size[1] / 2, *radii]))
    floor.stand_fronts()
    way = rng.choice([-1, 1])
    floor.stand_in_the_middle(couch, COUCHES, way)
    floor.stand_in_the_middle(top, TOPS, -way)
    for build in (window, desk, bookshelf, desk, picture, picture, picture, picture):
        floor.place(build)
    for build in (*rng.permutation(SCREENS)[:5], other, chair, chair):
        floor.place(build)
    return floor


class Doubted(Floor):
    """A floor whose far half holds doubles. Its front is the side of the camera's walk, at -y."""
    clear = .6

    def stand_fronts(self):
        """Three fronts in a row along the far wall, with gaps that show their ends."""
        apart = self.rng.uniform(1.4, 1.65)
        for x in apart * np.array([-1, 0, 1]) + self.rng.uniform(-.12, .12, 3):
            side = self.telling_side(x)
            self.stand("front", front(self.rng, self.rng.choice(FRONTS), -side),
                       (x, self.size[1] / 2 - 1e-3, np.pi))

    def stand_in_the_middle(self, build, labels, way):
        """A double to the left (-1) or right (1) whose front is turned to the camera's walk, more or less."""
        for _ in range(60):
            x, y = way * self.rng.uniform(.9, 1.6), self.rng.uniform(.17, .3) * self.size[1]
            yaw = np.pi + self.rng.uniform(-.25, .25)
            item = build(self.rng, self.rng.choice(labels), -self.telling_side(x))
            if self.stand(build.__name__, item, (x, y, yaw)):
                return

    def telling_side(self, x):
        """-1 or 1: the end that tells what stands at x is the one that nearer to 40% of the walk sees."""
        share = [np.mean(side * (self.way[:, 0] - x) > 1) for side in (-1, 1)]
        gap = np.abs(np.array(share) - .4) + self.rng.uniform(0, .15, 2)
        return (-1, 1)[gap.argmin()]

    def spot(self, build, lo, hi):
        """As Floor.spot: screens and chairs in the middle, all else against the two long walls."""
        rng, size = self.rng, self.size
        if build in SCREENS or build is chair:
            near = self.loop[1] + self.loop[3]
            return (rng.uniform(-.42, .42) * size[0], rng.uniform(near - 2 * self.loop[3], near + 2.2),
                    rng.normal(0, .25) + np.pi * (build is chair))
        for _ in range(30):
            spot = super().spot(build, lo, hi)
            if spot and abs(np.sin(spot[2])) > .5:
                return spot
        return None
