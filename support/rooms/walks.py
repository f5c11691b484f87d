"""The camera's walk through a room of WIDE: round, along a line, or turning on the spot; in steps of 5 to 60 cm.
A walk is drawn until one is in nobody's way, sees things, and sees them from several places."""
import numpy as np

from support.rooms.occlusion import SOURCES, TARGETS

GRID = np.stack(np.meshgrid([-.42, -.14, .14, .42], [-.3, 0, .3]), -1).reshape(-1, 2)  # image widths from the middle


def wide_walk(rng, room, frames):
    """Eyes (frames, 3), yaw, pitch and roll (frames,): the first of 24 draws that is good, each with smaller
    steps, or the best. All draws failing, the camera turns on a spot of room.loop, which is kept free."""
    step, height, pitch = np.exp(rng.uniform(np.log(.05), np.log(.6))), rng.uniform(.9, 1.8), rng.uniform(-.4, .1)
    height, best = min(height, room.size[2] - .45), (0, None)
    for trial in range(25):
        spot = room.loop[:2] + room.loop[2:] * np.array([1, 0])
        draw = _turning if trial == 24 else KINDS[rng.integers(len(KINDS))]
        plane, yaw = draw(rng, room, frames, .05 if trial == 24 else step * .94 ** trial, spot)
        sway = np.sin(np.arange(frames)[:, None] * rng.uniform(.2, .5, 3) + rng.uniform(0, 6.3, 3))
        eye = np.column_stack([plane, height + .04 * sway[:, 0] + rng.normal(0, .01, frames)])
        yaw = _steady(yaw + .1 * sway[:, 1] + rng.normal(0, .02, frames), .3 / room.focal)
        walk = eye, yaw, pitch + .05 * sway[:, 2] + rng.normal(0, .01, frames), rng.normal(0, .025, frames)
        if trial == 24 and best[1] is None:
            return walk
        grade = _grade(room, *walk[:3])
        if grade > .75:
            return walk
        best = max(best, (grade, walk), key=lambda pair: pair[0])
    return best[1]


def _round(rng, room, frames, step, _):
    """Round an ellipse, looking across it or at an angle to that. -> places (frames, 2), yaw (frames,)."""
    centre, radii = room.loop[:2], room.loop[2:] * rng.uniform(.7, 1.05)
    if rng.random() < .4:
        radii = rng.uniform(.15, .8, 2) * room.size[:2] / 2
        centre = rng.uniform(-.7, .7, 2) * (room.size[:2] / 2 - radii)
    angle = rng.uniform(0, 6.3) + rng.choice([-1, 1]) * np.arange(frames) * step / radii.max()
    plane = centre + radii * np.stack([np.cos(angle), np.sin(angle)], 1) * (1 + .03 * np.sin(3 * angle))[:, None]
    inward = np.arctan2(*(centre - plane).T[::-1])
    return plane, inward + rng.choice([0, 0, rng.uniform(-1.2, 1.2), np.pi])


def _line(rng, room, frames, step, _):
    """Along a line and back, looking at one point, or ever the same way: ahead, aside or back."""
    start, way = rng.uniform(-.42, .42, 2) * room.size[:2], rng.uniform(0, 6.3)
    length = rng.uniform(.3, 1) * min(step * frames, room.size[:2].mean())
    along = length * (1 - np.abs((np.arange(frames) * step / length) % 2 - 1))
    plane = start + along[:, None] * (np.cos(way), np.sin(way)) + rng.normal(0, .15 * step, (frames, 2))
    if rng.random() < .4:
        return plane, np.full(frames, way + rng.uniform(-1.8, 1.8))
    aim = rng.uniform(-.5, .5, 2) * room.size[:2]
    return plane, np.arctan2(*(aim - plane).T[::-1])


def _turning(rng, room, frames, step, spot):
    """On the spot, or nearly: round and round, or to and fro."""
    plane = spot + np.cumsum(rng.normal(0, .35 * min(step, .15), (frames, 2)), 0) * .5
    rate = np.arange(frames) * rng.uniform(.05, .2)
    back = rng.uniform(.5, 6.3)
    return plane, rng.uniform(0, 6.3) + (rate if rng.random() < .5 else back * (1 - np.abs(rate / back % 2 - 1)))


KINDS = (_round, _round, _round, _line, _line, _line, _turning)


def _steady(yaw, most):
    """The same, turning by at most so much between frames."""
    turns = (np.diff(yaw) + np.pi) % (2 * np.pi) - np.pi
    return yaw[0] + np.append(0, np.cumsum(turns.clip(-most, most)))


def _grade(room, eye, yaw, pitch):
    """0 where the camera is in or at something; else how much of the test views two source views have in their
    images, less where few things are seen or the nose is at one. Things count as the boxes around them."""
    things = np.reshape([(lo, hi) for name, lo, hi in room.objects if name != "way in"], (-1, 2, 3))
    gap = np.maximum(np.maximum(things[:, 0] - eye[:, None], eye[:, None] - things[:, 1]), 0)  # (F, O, 3)
    if (np.abs(eye[:, :2]) > room.size[:2] / 2 - .2).any() or (np.linalg.norm(gap, axis=2) < .14).any():
        return 0
    sources, targets = ([i for i in views if i < len(eye)] for views in (SOURCES, TARGETS))
    if not targets:
        return 1
    forward = np.stack([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch)], 1)
    right = np.stack([np.sin(yaw), -np.cos(yaw), 0 * yaw], 1)
    axes = np.stack([right, np.cross(forward, right), forward], 1)                             # (F, 3, 3)
    rays = np.append(GRID / room.focal, np.ones((len(GRID), 1)), 1) @ axes[targets]            # (T, G, 3)
    depth, on_things = _first(things, room.size, eye[targets], rays)
    point = eye[targets][:, None] + depth[..., None] * rays                                    # (T, G, 3)
    local = np.einsum("tgsj,sij->tgsi", point[:, :, None] - eye[sources], axes[sources])       # (T, G, S, 3)
    x, y, z = np.moveaxis(local, -1, 0)
    there = (z > .1) & (np.abs(x) < .5 / room.focal * z) & (np.abs(y) < .375 / room.focal * z)
    free = np.quantile(depth, .15)
    return np.mean(there.sum(2) >= 2) * min(1, on_things.mean() / .3) * min(1, free / .6)


def _first(things, size, eye, rays):
    """Depth (T, G) at which rays (T, G, 3) from eye (T, 3) meet a box of things (O, 2, 3) or the room's faces,
    whichever is first; and on which it is a thing's (T, G)."""
    boxes = np.append(things, [[[*-size[:2] / 2, 0], [*size[:2] / 2, size[2]]]], 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ends = (boxes - eye[:, None, None, None]) / rays[:, :, None, None]                     # (T, G, O + 1, 2, 3)
    enter, leave = ends.min(3).max(-1), ends.max(3).min(-1)                                    # (T, G, O + 1)
    wall, hit = leave[..., -1], np.where((enter < leave) & (enter > 0), enter, np.inf)[..., :-1]
    nearest = hit.min(-1, initial=np.inf)
    return np.minimum(nearest, wall), nearest < wall
