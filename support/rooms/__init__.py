"""What the rooms of 00_rooms.py are made of, and how they come to disk; a pixel is made in 00_rooms.py.

A room, in the order in which it is made:
    classes.py    the labels of things, in NYU-40 numbering, and ScanNet's table of them
    materials.py  colours, and what things are made of
    parts.py      boxes, cylinders and balls; an item that is made of them
    furniture.py  20 functions that draw an item each; what a kind of room holds
    house.py      Room and make_room: walls, furniture and lamps
    paths.py      the camera's walk
A picture:
    bounds.py     which pixels a part may cover
    surface.py    normal and place on the face, where a ray hits a part
    textures.py   patterns on faces
    shadows.py    what a lamp sees
Files:
    export.py     folders that appear whole, written by several processes
    sheet.py      00_rooms.py's contact sheet

Test: pytest tests/test_support_rooms.py
"""
VERSION = 2  # raise when the pictures change: rooms on disk of another version are written anew
VARIED = range(5000, 9000)  # rooms of these seeds, for training only, differ far more: see house.make_room
