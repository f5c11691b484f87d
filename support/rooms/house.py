"""A furnished room from a seed: `make_room`. The order of the draws is part of the generator's version."""
from dataclasses import dataclass, field

import numpy as np

from support.rooms import DOUBTED, VARIED, VERSION, WIDE
from support.rooms.classes import CEILING, FLOOR, LAMP, WALL
from support.rooms.doubted import furnish_doubted
from support.rooms.floor import Floor
from support.rooms.furniture import KINDS
from support.rooms.materials import cloth, finish, material
from support.rooms.parts import BOX
from support.rooms.wide import dress, furnish_wide


@dataclass
class Room:
    """All that `render` needs: P parts, of which the first six are the room's own faces, and M materials.
    Lengths are in metres, in world axes: z up, the origin in the middle of the floor."""
    seed: int
    kind: str
    size: np.ndarray  # (3,) the room is [-size/2, size/2] in x and y, [0, size z] in z
    loop: np.ndarray  # (4,) centre x, y and radii x, y of the camera's way
    focal: float      # focal length / image width
    parts: dict       # shape, label, material (P,); centre, half (P,3); rot (P,3,3) local to world
    materials: dict   # texture (M,), a (M,3), b (M,3), p (M,3), seed (M,), emit (M,)
    lamps: list       # (position (3,), linear RGB power (3,))
    objects: list     # (function's name, lo (3,), hi (3,)) of every placed item
    ambient: np.ndarray = field(default_factory=lambda: np.full(3, .3))
    shadows: list = field(default_factory=list, repr=False)  # per lamp (6,N,N) depth, filled at first use


def make_room(seed, more=()):
    """A furnished room, from `seed` alone. Kinds of room take turns: a few seeds in a row show all classes.

    Rooms are 4 to 5 m wide. Those of seeds in VARIED are 4 to 8 m wide, with more furniture, each piece up to
    a third larger or smaller, seats also in the middle, paler or not, other light, another field of view: a
    model that has only seen rooms of one size takes the walls of a larger one to be as near. Those of seeds
    in DOUBTED are made by doubted.py, with lamps half as bright again and a field of view of up to 76°, those
    in WIDE by wide.py, with the builders `more` among its own.
    """
    rng, varied = np.random.default_rng([seed, VERSION]), seed in VARIED
    kind = KINDS[seed % len(KINDS)]
    if seed in DOUBTED:
        kind, floor = "doubted", furnish_doubted(rng)
    elif seed in WIDE:
        floor = furnish_wide(rng, kind, more)
    else:
        floor = Floor(rng, varied, *_measure(rng, varied))
        floor.furnish(kind)
    size, loop = floor.size, floor.loop
    parts = _trim(rng, kind, size, floor.room).parts
    parts, materials = _pack(_shell(rng, kind, size) + parts)
    lamps = _lamps(rng, size[2], floor.objects)
    ambient = rng.uniform(.32, .45) * np.array([1, 1, rng.uniform(.95, 1.1)])
    focal = rng.uniform(.75, .95)
    if seed in DOUBTED:
        focal, lamps = focal * .85, [(position, power * 1.5) for position, power in lamps]
    if varied:
        ambient, focal = ambient * rng.uniform(.8, 1.8), rng.uniform(.65, 1.1)
        stronger = max(1, size[:2].mean() / 4.5) ** 1.5
        lamps = [(position, power * stronger * rng.uniform(.5, 1)) for position, power in lamps]
        # how far each material goes to off-white
        pale = rng.uniform(0, .9) * rng.uniform(0, 1, len(materials["a"]))[:, None] ** .5
        materials |= {k: materials[k] + pale * (np.array([.75, .74, .72]) - materials[k]) for k in "ab"}
    room = Room(seed, kind, size, loop, focal, parts, materials, lamps, floor.objects, ambient)
    return dress(rng, room) if seed in WIDE else room


def _measure(rng, varied):
    """size (3,) of the room and loop (4,) of the camera, see Room."""
    size = np.array([rng.uniform(4.0, 4.9), rng.uniform(4.0, 4.9), rng.uniform(2.4, 2.8)])
    loop = np.array([*rng.uniform(-.1, .1, 2), *np.minimum(rng.uniform(1.0, 1.2, 2), size[:2] / 2 - .9)])
    if varied:  # drawn anew
        size = np.array([*rng.uniform(3.8, 8.5, 2), rng.uniform(2.3, 3.3)])
        loop[2:] = np.minimum(rng.uniform(.4, .7, 2) * size[:2] / 2, size[:2] / 2 - .9)
    return size, loop


def _trim(rng, kind, size, room):
    """Add skirting boards, the ceiling lamp and often a rug."""
    hx, hy, top = size[0] / 2, size[1] / 2, size[2]
    trim = finish(rng)
    room.add((hx - .015, hx), (-hy, hy), (0, .09), trim, both=True)
    for y in (-hy, hy - .015):
        room.add((-hx, hx), (y, y + .015), (0, .09), trim)
    room.post(0, 0, .16, (top - .1, top), material(rng, light=1, emit=.8), label=LAMP)
    if rng.random() < .5 and kind != "bathroom":  # a rug belongs to the floor
        rw, rd = rng.uniform(.7, 1.1), rng.uniform(.6, .9)
        room.add((-rw, rw), (-rd, rd), (0, .012), cloth(rng), label=FLOOR)
    return room


def _shell(rng, kind, size):
    """The six faces of the room, as six parts of the same box: -x +x -y +y -z +z."""
    if kind == "bathroom" and rng.random() < .7:
        wall = material(rng, "tile", (rng.uniform(.15, .3), 0, 0), contrast=.25, light=.6)
    else:
        paper = "stripes" if rng.random() < .2 else "plain"
        wall = material(rng, paper, (rng.uniform(.15, .3), 0, 0), contrast=.15, light=.65)
    accent = material(rng, contrast=.15) if rng.random() < .4 else wall
    cover = "tile" if kind == "bathroom" else ("tile", "wood", "cloth")[rng.choice(3)]
    width = {"tile": rng.uniform(.25, .5), "wood": rng.uniform(.1, .2), "cloth": .1}[cover]
    ground = material(rng, cover, (width, 1, 0), contrast=.15 if cover == "cloth" else .3)
    faces = [wall, accent, wall, wall, ground, material(rng, light=.9, contrast=.05)]
    return [(BOX, np.array([0, 0, size[2] / 2]), size / 2, np.eye(3), m, label)
            for m, label in zip(faces, [WALL] * 4 + [FLOOR, CEILING])]


def _pack(parts):
    """Room's two dicts of arrays, parts and materials; a material that several parts share is kept once."""
    materials = list({id(part[4]): part[4] for part in parts}.values())
    index = {id(m): i for i, m in enumerate(materials)}
    names = ("shape", "centre", "half", "rot", "material", "label")
    columns = dict(zip(names, zip(*parts)))
    columns["material"] = [index[id(m)] for m in columns["material"]]
    return ({name: np.array(column) for name, column in columns.items()},
            {key: np.array([m[key] for m in materials]) for key in materials[0]})


def _lamps(rng, top, objects):
    """One lamp below the ceiling, and daylight where a window is: (position (3,), linear RGB power (3,))."""
    warm = np.array([1, rng.uniform(.85, 1), rng.uniform(.7, 1)])
    lamps = [(np.array([*rng.uniform(-.4, .4, 2), top - .25]), warm * rng.uniform(2.6, 3.6))]
    for name, lo, hi in objects:
        if name == "window" and len(lamps) < 2:
            centre = (lo[:2] + hi[:2]) / 2
            spot = np.append(np.where(np.abs(centre) > 1.5, .8 * centre, centre), 1.7)
            lamps.append((spot, np.array([.9, .95, 1]) * rng.uniform(.8, 2)))
    return lamps
