"""What the rooms of 00_rooms.py are made of, and how they come to disk; a pixel is made in 00_rooms.py.

A room, in the order in which it is made:
    classes.py    the labels of things, in NYU-40 numbering, and ScanNet's table of them
    materials.py  colours, and what things are made of
    parts.py      boxes, cylinders and balls; an item that is made of them
    furniture.py  20 functions that draw an item each; what a kind of room holds
    floor.py      what fits where
    doubles.py    things of different classes that look the same but for one side
    screens.py    what is looked past: columns, open shelves, partitions, doorways, plants
    doubted.py    rooms of doubles behind screens
    variants.py   other shapes of furniture
    wide.py       rooms of every size and surface
    house.py      Room and make_room: walls, furniture and lamps
    paths.py      the camera's walk
    walks.py      other walks, in wide rooms
A picture:
    bounds.py     which pixels a part may cover
    surface.py    normal and place on the face, where a ray hits a part
    patch.py      points on faces as textures see them
    textures.py   patterns on faces
    sheets.py     pictures that prints are looked up in
    prints.py     textures as rich as photographs
    shadows.py    what a lamp sees
    camera.py     what a camera does to pictures and poses
Files:
    occlusion.py  which share of pixels a source view has in its image and does not see
    export.py     folders that appear whole, written by several processes
    sheet.py      00_rooms.py's contact sheet

Test: pytest tests/test_support_rooms.py
"""
from support.files import DataError

VERSION = 2  # raise when the pictures change: rooms on disk of another version are written anew
WIDE_VERSION = 3  # the same, of wide rooms
VARIED = range(5000, 9000)  # rooms of these seeds, for training only, differ far more: see house.make_room
DOUBTED = range(20000, 30000)  # rooms of these seeds are made to be doubted: see doubted.py
WIDE = range(40000, 50000)  # rooms of these seeds are for training what carries over: see wide.py
TEST = range(9000, 20000), range(29000, 30000), range(49000, 50000)  # for testing; DOUBTED's, WIDE's


def asked_seeds(seed, count, test):
    """Seeds of `count` rooms from `seed` on, and of `test` test rooms of their kind. DataError for none, and
    where they reach from one kind into the next."""
    ends = [end for kind in (VARIED, DOUBTED, WIDE, *TEST) for end in (kind.start, kind.stop)]
    last = min([end for end in ends if end > seed], default=10 ** 6)
    if not 0 <= seed < last:
        raise DataError(f"--seed {seed}: there is no such room; give 0 to {10 ** 6 - 1}")
    if not 1 <= count <= last - seed:
        raise DataError(f"--count {count}: give 1 to {last - seed}; seed {last} begins another kind of room")
    if not 0 <= test <= 1000:
        raise DataError(f"--test {test}: give 0 to 1000")
    return [*range(seed, seed + count), *test_seeds(seed, test)]


def test_seeds(seed, count):
    """The first `count` seeds of test rooms of the kind that room `seed` is of."""
    return TEST[(seed in DOUBTED) + 2 * (seed in WIDE)][:count]
