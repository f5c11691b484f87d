"""Triangle meshes in a room: reading Wavefront .obj files, and drawing them into a picture of a room."""
from typing import NamedTuple

import imageio.v3 as iio
import numpy as np

NEAR, MOST = .05, 1 << 21  # metres: a triangle with a nearer corner is left out; pixels tried at a time


class Mesh(NamedTuple):
    """T triangles in a box from -1 to 1 along each axis: x right, y to the front, z up."""
    corners: np.ndarray   # (T, 3, 3)
    normals: np.ndarray   # (T, 3, 3) of the corners, not of unit length
    uv: np.ndarray        # (T, 3, 2) where a corner is on its picture
    material: np.ndarray  # (T,)
    colours: list         # of each material: albedo (3,), or a picture (h, w, 3) of albedo


class Place(NamedTuple):
    """Where a mesh stands, and what of."""
    mesh: Mesh
    centre: np.ndarray  # (3,) metres
    half: np.ndarray    # (3,)
    rot: np.ndarray     # (3, 3) local to world
    label: int
    tints: list         # of each material: an albedo (3,) instead of its mean, or None


def read_materials(text, picture):
    """A .mtl file and a function from a picture's name to its albedo (h, w, 3) or None -> {name: colour},
    None for what one sees through."""
    found, name, clear = {}, None, set()
    for line in text.splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "newmtl":
            name = rest.strip()
            found[name] = np.full(3, .5)
        elif word == "Kd" and name:
            found[name] = np.array([float(x) for x in rest.split()[:3]]) ** 2.2
        elif word == "map_Kd" and (seen := picture(rest.split()[-1] if rest[0] == "-" else rest)) is not None:
            found[name] = seen
        elif word == "d" and float(rest.split()[-1]) < .6:
            clear.add(name)
    return {name: None if name in clear else colour for name, colour in found.items()}


def albedo_of(content, most=96):
    """A picture file's bytes -> linear albedo (h, w, 3), at most `most` pixels high and wide."""
    rgb = np.atleast_3d(iio.imread(content)).astype(float)[..., :3] / 255
    rgb = np.repeat(rgb, 3, axis=2) if rgb.shape[2] == 1 else rgb
    k = max(1, -(-max(rgb.shape[:2]) // most))
    h, w = rgb.shape[0] // k * k, rgb.shape[1] // k * k
    return (rgb[:h, :w] ** 2.2).reshape(h // k, k, w // k, k, 3).mean((1, 3))


def read_mesh(text, materials):
    """An .obj file (y up, z to the front) and its materials -> a Mesh, polygons cut into triangles."""
    vectors, faces, used, name = {"v": [], "vt": [], "vn": []}, [], [], None
    for line in text.splitlines():
        word, _, rest = line.partition(" ")
        if word in vectors:
            vectors[word].append([float(x) for x in rest.split()[:3 - (word == "vt")]])
        elif word == "usemtl":
            name = rest.strip()
        elif word == "f":
            corners = [(corner.split("/") + ["", ""])[:3] for corner in rest.split()]
            corners = [[_index(x, vectors[key]) for x, key in zip(corner, vectors)] for corner in corners]
            for i in range(1, len(corners) - 1):
                faces.append([corners[0], corners[i], corners[i + 1]])
                used.append(name)
    kept = [i for i, name in enumerate(used) if materials.get(name, 0) is not None]
    names = list(dict.fromkeys(used[i] for i in kept))
    faces, material = np.array(faces)[kept], np.array([names.index(used[i]) for i in kept])
    axes = np.array([[-1, 0, 0], [0, 0, 1], [0, 1, 0.0]])
    xyz = np.array(vectors["v"])[faces[..., 0]] @ axes.T                                  # (T, 3, 3)
    lo, hi = xyz.min((0, 1)), xyz.max((0, 1))
    xyz = (xyz - (lo + hi) / 2) / np.maximum((hi - lo) / 2, 1e-6)
    flat = np.cross(xyz[:, 1] - xyz[:, 0], xyz[:, 2] - xyz[:, 0])[:, None].repeat(3, 1)
    given = np.array(vectors["vn"] or [[0, 0, 0]]) @ axes.T * (hi - lo) / 2
    normals = np.where((faces[..., 2:] >= 0) & (len(vectors["vn"]) > 0), given[faces[..., 2]], flat)
    uv = np.array(vectors["vt"] or [[0, 0]])[np.maximum(faces[..., 1], 0)]
    arrays = (np.float32(x) for x in (xyz, normals, uv))
    return Mesh(*arrays, material, [materials.get(name, np.full(3, .5)) for name in names])


def _index(text, rows):
    """What an .obj calls a row, counted from 1 or backwards from -1 -> from 0; -1 where it is not given."""
    return -1 if not text else int(text) - 1 if int(text) > 0 else len(rows) + int(text)


def covered(uvz, height, width):
    """Triangles (T, 3, 3) of pixels u, v and depth -> of each pixel that one is the nearest at: its number
    (N,), the triangle (N,), depth (N,) and how much of each corner is there (N, 3)."""
    found = []
    lo = np.clip(np.ceil(uvz[..., :2].min(1)), 0, (width, height)).astype(int)            # (T, 2)
    hi = np.clip(np.floor(uvz[..., :2].max(1)) + 1, 0, (width, height)).astype(int)
    count = np.maximum(hi - lo, 0).prod(1) * (uvz[..., 2].min(1) > NEAR)
    some = np.flatnonzero(count)
    for part in np.split(some, np.flatnonzero(np.diff(count[some].cumsum() // MOST)) + 1):
        t = np.repeat(part, count[part])
        k = np.arange(len(t)) - np.repeat(count[part].cumsum() - count[part], count[part])
        wide = (hi - lo)[t, 0]
        u, v = lo[t, 0] + k % wide, lo[t, 1] + k // wide
        (x0, y0), (x1, y1), (x2, y2) = (uvz[t, i, :2].T for i in range(3))
        area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
        with np.errstate(divide="ignore", invalid="ignore"):
            b = ((u - x0) * (y2 - y0) - (x2 - x0) * (v - y0)) / area
            c = ((x1 - x0) * (v - y0) - (u - x0) * (y1 - y0)) / area
            inside = np.flatnonzero((b >= 0) & (c >= 0) & (b + c <= 1))
        t, b, c = t[inside], b[inside], c[inside]
        share = np.stack([1 - b - c, b, c], 1) / uvz[t, :, 2]                             # of 1 / z
        z = 1 / share.sum(1)
        found.append((v[inside] * width + u[inside], t, z, share * z[:, None]))
    pixel, t, z, share = (np.concatenate(x) for x in zip(*found))
    order = np.lexsort((z, pixel))
    first = order[np.append(True, np.diff(pixel[order]) > 0)] if len(order) else order
    return pixel[first], t[first], z[first], share[first]


def project(points, c2w, K):
    """Points (..., 3) -> pixel u, v and depth (..., 3), u and v of no meaning where depth is below NEAR."""
    seen = (points - np.float32(c2w[:3, 3])) @ np.float32(c2w[:3, :3] @ K.T)
    return np.concatenate([seen[..., :2] / np.maximum(seen[..., 2:], NEAR), seen[..., 2:]], -1)


def draw(place, c2w, K, depth):
    """What is seen of a place in front of depth (H, W), which is lowered there -> pixel (N,), point (3, N),
    normal (3, N) towards the camera, albedo (3, N). Nothing where it is behind the camera."""
    mesh, turned = place.mesh, place.rot * place.half                                     # (3, 3)
    box = np.stack(np.meshgrid(*[(-1, 1)] * 3), -1).reshape(-1, 3) @ turned.T + place.centre   # (8, 3)
    uvz = project(box, c2w, K)
    if (uvz[:, 2] < NEAR).all() or (uvz[:, 2] > NEAR).all() and (
            (uvz[:, :2].max(0) < 0).any() or (uvz[:, :2].min(0) > np.array(depth.shape)[::-1] - 1).any()):
        return np.zeros(0, int), *np.zeros((3, 3, 0))
    points = mesh.corners @ np.float32(turned.T) + np.float32(place.centre)               # (T, 3, 3)
    pixel, t, z, share = covered(project(points, c2w, K), *depth.shape)
    front = z < depth.ravel()[pixel]
    pixel, t, z, share = pixel[front], t[front], z[front], share[front]
    depth.ravel()[pixel] = z
    point, normal, uv = (np.einsum("nc,ncx->xn", share, x[t]) for x in (
        points, mesh.normals @ (place.rot / place.half).T, mesh.uv))
    normal = normal / np.maximum(np.linalg.norm(normal, axis=0), 1e-9)
    normal = np.where(((point - c2w[:3, 3:]) * normal).sum(0) > 0, -normal, normal)
    albedo = np.empty((3, len(t)))
    for m, (colour, tint) in enumerate(zip(mesh.colours, place.tints)):
        mine = mesh.material[t] == m
        if colour.ndim == 3:
            rows, columns = colour.shape[:2]
            i, j = (np.floor(x).astype(int) for x in (-uv[1, mine] * rows, uv[0, mine] * columns))
            here = colour[i % rows, j % columns].T
            if tint is not None:
                here = tint[:, None] * (here.mean(0) / colour.mean())
        else:
            here = (colour if tint is None else tint)[:, None]
        albedo[:, mine] = np.clip(here, 0, 1)
    return pixel, point, normal, albedo
