"""Labels of things in a room: NYU-40 ids, as in ScanNet's label table, which this file writes."""
import csv
import io

from support.files import write_atomically
from support.labels import SCANNET20

WALL, FLOOR, CABINET, BED, CHAIR, SOFA, TABLE, DOOR, WINDOW, BOOKSHELF, PICTURE, COUNTER, DESK, CURTAIN, \
    FRIDGE, SHOWER, TOILET, SINK, BATHTUB, OTHER = (row[0] for row in SCANNET20)
CEILING, LAMP, PROP = 22, 35, 40  # NYU-40 ids outside the 20 classes: 01_data.py makes them unlabelled

RAW = {  # NYU-40 id -> {raw category: raw id}: scanners' free-text names, several to a class
    WALL: {"wall": 1, "pillar": 222},
    FLOOR: {"floor": 3, "carpet": 1021},
    CABINET: {"cabinet": 7, "kitchen cabinet": 29, "wardrobe": 78},
    BED: {"bed": 11, "loft bed": 837},
    CHAIR: {"chair": 2, "office chair": 10, "armchair": 23},
    SOFA: {"couch": 6, "sofa chair": 1313},
    TABLE: {"table": 4, "coffee table": 24, "dining table": 45},
    DOOR: {"door": 5, "closet door": 276},
    WINDOW: {"window": 16, "windowsill": 141},
    BOOKSHELF: {"bookshelf": 18, "bookshelves": 88},
    PICTURE: {"picture": 15, "poster": 138},
    COUNTER: {"counter": 35, "bar": 307},
    DESK: {"desk": 9, "computer desk": 1357},
    CURTAIN: {"curtain": 21, "drapes": 89},
    FRIDGE: {"refrigerator": 27, "mini fridge": 98},
    SHOWER: {"shower curtain": 55},
    TOILET: {"toilet": 17},
    SINK: {"sink": 14, "bathroom sink": 1144},
    BATHTUB: {"bathtub": 42, "tub": 1170},
    CEILING: {"ceiling": 41},
    OTHER: {"plant stand": 484, "trash can": 56, "laundry basket": 164},
    LAMP: {"lamp": 28},
    PROP: {"monitor": 19, "cup": 300, "object": 1163}}
NYU = {i: name for i, name, _ in SCANNET20}
NYU |= {FRIDGE: "refridgerator", CEILING: "ceiling", LAMP: "lamp", PROP: "otherprop"}  # NYU-40 spells it so


def write_label_table(path):
    """scannetv2-labels.combined.tsv: the real header and line ends (CRLF), one row per raw category."""
    header = ("id raw_category category count nyu40id eigen13id nyuClass nyu40class eigen13class ModelNet40 "
              "ModelNet10 ShapeNetCore55 synsetoffset wnsynsetid wnsynsetkey mpcat40 mpcat40index").split()
    rows = sorted((i, category, nyu) for nyu, categories in RAW.items() for category, i in categories.items())
    text = io.StringIO()
    table = csv.DictWriter(text, header, delimiter="\t", restval="", lineterminator="\r\n")
    table.writeheader()
    for i, category, nyu in rows:
        table.writerow(dict(id=i, raw_category=category, category=category, count=1, nyu40id=nyu,
                            nyuClass=NYU[nyu], nyu40class=NYU[nyu]))
    write_atomically(path, lambda file: file.write(text.getvalue().encode()))
