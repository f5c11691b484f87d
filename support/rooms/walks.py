"""The camera's walk through a room of WIDE: round, along a line, or turning on the spot; in steps of 5 to 60
cm. Walks are drawn until one has its way free, sees things, and sees them from several places."""
import numpy as np

from support.rooms.occlusion import SOURCES, TARGETS

# places in the image, in image widths from its middle: (G, 2)
GRID = np.stack(np.meshgrid([-.42, -.14, .14, .42], [-.3, 0, .3]), -1).reshape(-1, 2)


def wide_walk(rng, room, frames):
    """Eyes (frames, 3), yaw, pitch and roll (frames,): the first of 24 draws that is good, each of smaller
    steps, or the best. Where none has its way free, the camera turns on a spot that is."""
    step, height, pitch = .05 * 12 ** rng.random() ** .65, rng.uniform(.9, 1.8), rng.uniform(-.5, .08)
    height, best = min(height, room.size[2] - .45), (0, None)
    for trial in range(25):
        draw = KINDS[rng.integers(len(KINDS))] if trial < 24 else _turning
        plane, yaw = draw(rng, room, frames, max(step * .97 ** trial, .05) if trial < 24 else .05)
        sway = np.sin(np.arange(frames)[:, None] * rng.uniform(.2, .5, 3) + rng.uniform(0, 6.3, 3))
        eye = np.column_stack([plane, height + .04 * sway[:, 0] + rng.normal(0, .01, frames)])
        yaw = _steady(yaw + .1 * sway[:, 1] + rng.normal(0, .02, frames), .2 / room.focal)
        walk = eye, yaw, pitch + .05 * sway[:, 2] + rng.normal(0, .01, frames), rng.normal(0, .025, frames)
        grade = _grade(room, *walk[:3])
        if grade > .72:
            return walk
        best = max(best, (grade, walk), key=lambda pair: pair[0])
    return best[1] or walk


def _round(rng, room, frames, step):
    """Round an ellipse, looking across it or at an angle to that. -> places (frames, 2), yaw (frames,)."""
    centre, radii = room.loop[:2], room.loop[2:] * rng.uniform(.7, 1.05)
    if rng.random() < .4:
        radii = rng.uniform(.15, .8, 2) * room.size[:2] / 2
        centre = rng.uniform(-.7, .7, 2) * (room.size[:2] / 2 - radii)
    angle = rng.uniform(0, 6.3) + rng.choice([-1, 1]) * np.arange(frames) * min(step / radii.mean(), .5)
    radii = radii * (1 + .03 * np.sin(3 * angle))[:, None]
    plane = centre + radii * np.stack([np.cos(angle), np.sin(angle)], 1)
    inward = np.arctan2(*(centre - plane).T[::-1])
    return plane, inward + rng.choice([0, 0, rng.uniform(-1.2, 1.2), np.pi])


def _line(rng, room, frames, step):
    """Along a line and back, looking at one point, or ever the same way: ahead, aside or back."""
    start, way = rng.uniform(-.42, .42, 2) * room.size[:2], rng.uniform(0, 6.3)
    length = rng.uniform(.3, 1) * min(step * frames, room.size[:2].mean())
    along = length * (1 - np.abs((np.arange(frames) * step / length) % 2 - 1))
    plane = start + along[:, None] * (np.cos(way), np.sin(way)) + rng.normal(0, .15 * step, (frames, 2))
    if rng.random() < .4:
        return plane, np.full(frames, way + rng.uniform(-1.8, 1.8))
    aim = max(rng.uniform(-.5, .5, (2, 2)) * room.size[:2], key=lambda x: np.linalg.norm(x - start))
    return plane, np.arctan2(*(aim - plane).T[::-1])


def _turning(rng, room, frames, step):
    """Within `step` of a spot that Floor keeps free, looking round and round, or to and fro."""
    spot = np.pi / 24 * rng.integers(48)
    way = np.cumsum(rng.uniform(.6, 1.4, frames))
    eye = room.loop[:2] + room.loop[2:] * (np.cos(spot), np.sin(spot))
    yaw, back = np.arange(frames) * rng.uniform(.05, .2), rng.uniform(.5, 6.3)
    if rng.random() < .5:
        yaw = back * (1 - np.abs(yaw / back % 2 - 1))
    return eye + min(step, .15) * np.stack([np.cos(way), np.sin(way)], 1), rng.uniform(0, 6.3) + yaw


KINDS = (_round, _round, _round, _line, _line, _line, _turning)


def _steady(yaw, most):
    """The same, turning by at most so much between frames."""
    turns = (np.diff(yaw) + np.pi) % (2 * np.pi) - np.pi
    return yaw[0] + np.append(0, np.cumsum(turns.clip(-most, most)))


def _grade(room, eye, yaw, pitch):
    """0 where the camera is in or at something; else how much of the test views two source views see, less
    where there are few things or one is right before the lens. Things count as the boxes around them."""
    things = np.reshape([(lo, hi) for _, lo, hi in room.objects], (-1, 2, 3))
    gap = np.maximum(things[:, 0] - eye[:, None], eye[:, None] - things[:, 1]).clip(0)         # (F, O, 3)
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
    way = point - eye[sources][:, None, None]                                                  # (S, T, G, 3)
    reach, _ = _first(things, room.size, eye[sources], way.reshape(len(sources), -1, 3))  # 1: to the point
    seen = there & (np.moveaxis(reach.reshape(way.shape[:3]), 0, 2) > .97)                     # (T, G, S)
    free = np.quantile(depth, .15)
    return np.mean(seen.sum(2) >= 2) * min(1, on_things.mean() / .4) * min(1, free / .5)


def _first(things, size, eye, rays):
    """Depth (T, G) at which rays (T, G, 3) from eye (T, 3) first meet one of the boxes `things` (O, 2, 3) or
    the room's faces; and on which of them it is a thing (T, G)."""
    boxes = np.append(things, [[[*-size[:2] / 2, 0], [*size[:2] / 2, size[2]]]], 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ends = (boxes - eye[:, None, None, None]) / rays[:, :, None, None]  # (T, G, O + 1, 2, 3)
    enter, leave = ends.min(3).max(-1), ends.max(3).min(-1)             # (T, G, O + 1)
    wall, hit = leave[..., -1], np.where((enter < leave) & (enter > 0), enter, np.inf)[..., :-1]
    nearest = hit.min(-1, initial=np.inf)
    return np.minimum(nearest, wall), nearest < wall
