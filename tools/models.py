"""Wide rooms with modelled furniture among the other: meshes of a library for Sweet Home 3D.

    apt-get download sweethome3d-furniture && dpkg-deb -x sweethome3d-furniture_*.deb models
    python -m tools.models models/usr/share/sweethome3d/furniture/BlendSwap-CC-0.sh3f --data data/models

BlendSwap-CC-0.sh3f holds 175 models in the public domain (CC0); LABELS names those that are used.
A third of what stands in a room is one of them, stretched and often of another colour; the rest is
00_rooms.py's. Models throw no shadow, and a triangle that reaches behind the camera is left out.
Test: pytest tests/test_tool_models.py
"""
import argparse
import re
import zipfile
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path

import numpy as np

from support.files import DataError, run_script
from support.rooms import WIDE, asked_seeds
from support.rooms import classes as nyu
from support.rooms.camera import on_film, pixels
from support.rooms.export import write_missing, write_split, write_whole
from support.rooms.materials import colour, material
from support.rooms.meshes import Place, albedo_of, draw, read_materials, read_mesh
from support.rooms.parts import Item

rooms = import_module("00_rooms")

LABELS = {  # the class that ScanNet's table gives a thing -> models; an armchair is a chair there
    nyu.CHAIR: "armchair oakChair plasticChair relaxChair sillaBlanca armchair2 chair modernArmchair chair2 "
               "chairWithCushion antiqueChair foldingChair osakaChair winchesterArmchair designChair thonet",
    nyu.SOFA: "L_shaped_sofa sofa couch couch2 sofa2 winchesterSofa",
    nyu.BED: "bed1 bed2 bed3 bedWithTexture",
    nyu.TABLE: "oakTable tableWithTablecloth table",
    nyu.DESK: "desk lbDesk",
    nyu.CABINET: "drawersCabinet highCabinet lowerCabinet lowerCornerCabinet cupboard",
    nyu.BOOKSHELF: "bookcase verticalShelves shelves",
    nyu.FRIDGE: "refrigerator largeFridge",
    nyu.TOILET: "toiletsUnit",
    nyu.SINK: "washbasin",
    nyu.OTHER: "dustbin wardrobeWithSlidingDoors radiator radiator1 radiator2 radiator3",
    nyu.PROP: "silla2 stool stool2 speaker2 speaker3 plant decorativePlant augalas pianoAQueue barrel crate "
              "box bench oven doubleOven babyRockingBed bidet umbrella"}
NAMES = [name for names in LABELS.values() for name in names.split()]
SHARES = {nyu.CHAIR: 14, nyu.SOFA: 12, nyu.TABLE: 8, nyu.CABINET: 8, nyu.BED: 6, nyu.PROP: 5}  # others: 3


@lru_cache(None)
def library(file):
    """An .sh3f file -> {name: (path, (width, depth, height) in metres)} of its models, and the file."""
    try:
        archive = zipfile.ZipFile(file)
        catalogue = archive.read("PluginFurnitureCatalog.properties").decode("latin-1")
    except (OSError, KeyError, zipfile.BadZipFile) as problem:
        raise DataError(f"{file}: not a furniture library for Sweet Home 3D ({problem})") from None
    rows = re.findall(r"^(\w+)#(\d+)=(.*)$", catalogue, re.M)
    said, sizes = {(key, int(n)): value.strip() for key, n, value in rows}, {}
    for (key, n), path in said.items():
        sides = [said.get((side, n)) for side in ("width", "depth", "height")]
        if key == "model" and None not in sides and ("modelRotation", n) not in said:
            size = [float(side) / 100 for side in sides]
            sizes[Path(path).stem] = (path.strip("/"), np.array(size))
    missing = [name for name in NAMES if name not in sizes]
    if missing:
        raise DataError(f"{file}: has no model {missing[0]}; BlendSwap-CC-0.sh3f of Debian's "
                        "sweethome3d-furniture 1.8 has all")
    return sizes, archive


@lru_cache(None)
def mesh_of(file, name):
    """The Mesh of a model."""
    sizes, archive = library(file)
    path, _ = sizes[name]

    def picture(named):
        there = str(Path(path).parent / Path(named.replace("\\", "/")).name)
        return albedo_of(archive.read(there)) if there in archive.namelist() else None
    text = archive.read(path).decode("latin-1")
    table = re.search(r"^mtllib (.*)$", text, re.M)
    there = str(Path(path).parent / table[1].strip()) if table else ""
    materials = archive.read(there).decode("latin-1") if there in archive.namelist() else ""
    return read_mesh(text, read_materials(materials, picture))


def builders(file):
    """For Wide.place: functions from a generator to an Item, a box where a model of a class will stand."""
    def build(label, rng):
        name = rng.choice(LABELS[label].split())
        w, d, h = library(file)[0][name][1]
        box = material(rng, "model", (NAMES.index(name), 0, 0))
        return Item(label).add((-w / 2, w / 2), (0, d), (0, h), box)
    made = []
    for label in LABELS:
        one = partial(build, label)
        one.__name__ = "model"
        made += [one] * SHARES.get(label, 3)
    return tuple(made)


def furnished(file, seed):
    """make_room, with models: their boxes leave its parts and come as Room.places."""
    room = rooms.make_room(seed, builders(file))
    rng, parts, m = np.random.default_rng([seed, 1]), room.parts, room.parts["material"]
    room.places, is_model = [], room.materials["texture"][m] == "model"
    for p in np.flatnonzero(is_model):
        mesh = mesh_of(file, NAMES[int(room.materials["p"][m[p], 0])])
        tints = [colour(rng) if rng.random() < .6 else None for _ in mesh.colours]
        room.places.append(Place(mesh, parts["centre"][p], parts["half"][p], parts["rot"][p],
                                 int(parts["label"][p]), tints))
    room.parts = {key: value[~is_model] for key, value in parts.items()}
    room.materials["texture"][room.materials["texture"] == "model"] = "plain"
    return room


def render(room, c2w, K, height, width):
    """00_rooms.render, and the models in front of it."""
    rgb, depth, label = rooms.render(room, c2w, K, height, width)
    for place in room.places:
        pixel, point, normal, albedo = draw(place, c2w, K, depth)
        if len(pixel):
            light = rooms.illuminate(room, list(np.float32(point)), list(np.float32(normal)))
            rgb.reshape(-1, 3)[pixel] = np.stack([on_film(a * x) for a, x in zip(albedo, light)], 1)
            label.ravel()[pixel] = place.label
    return rgb, depth, label


def settings(seed, file, **size):
    """What room.json says."""
    return rooms.settings(seed, **size, models=Path(file).name)


def write_room(root, name, seed, file, mark="", **size):
    """Write room `seed` with models as <root>/<name>."""
    write = partial(rooms.write_scene, seed=seed, **size, make=partial(furnished, file), draw=render,
                    models=Path(file).name)
    write_whole(Path(root) / name, settings(seed, file, **size), write, mark)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("library", help="BlendSwap-CC-0.sh3f")
    parser.add_argument("--data", required=True, help="write the rooms there, for --scene, with a split.txt")
    parser.add_argument("--seed", type=int, default=45000, help="the first's, of a wide room [45000]")
    parser.add_argument("--count", type=int, default=100, help="how many rooms")
    parser.add_argument("--width", type=pixels, default=320, help="in pixels")
    parser.add_argument("--height", type=pixels, default=240)
    args = parser.parse_args()
    seeds = asked_seeds(args.seed, args.count, 0)
    if seeds[0] not in WIDE:
        raise DataError(f"--seed {args.seed}: no wide room; give {WIDE.start} to {WIDE.stop - 1}")
    library(args.library)
    size = dict(file=args.library, frames=24, width=args.width, height=args.height)
    names = write_missing(args.data, seeds, partial(settings, **size), partial(write_room, **size))
    write_split(args.data, names)


if __name__ == "__main__":
    run_script(main)
