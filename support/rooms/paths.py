"""The camera's walk through a room."""
import numpy as np

from support.rooms import DOUBTED, VARIED, VERSION, WIDE
from support.rooms.walks import wide_walk


def camera_path(room, frames, seed):
    """Handheld poses c2w (frames, 4, 4), float64, OpenCV axes (x right, y down, z forward): a walk around
    the room's loop, looking across it.

    13° of the loop per frame, about 0.25 m; 28 frames see the room all around.
    In a room of VARIED at most 17° and 0.2 to 0.38 m where the loop is widest. In a room of DOUBTED
    15°, always looking over to the other half of the room. In a room of WIDE as walks.py says.
    """
    rng = np.random.default_rng([seed, room.seed, VERSION])
    if room.seed in DOUBTED:
        return _poses(*_looking_over(rng, room, frames))
    if room.seed in WIDE:
        return _poses(*wide_walk(rng, room, frames))
    way = rng.choice([-1, 1])
    i = np.arange(frames)
    varied, step = room.seed in VARIED, np.radians(13)
    if varied:
        step = min(step * 1.3, rng.uniform(.2, .38) / room.loop[2:].max())
    angle = rng.uniform(0, 2 * np.pi) + way * step * (i + rng.uniform(-.12, .12, frames))
    phase = rng.uniform(0, 2 * np.pi, 4)
    sway = np.sin(angle[:, None] * (2, 3, 1, 2) + phase + (i // 28)[:, None])  # (frames, 4)
    radius = 1 + .06 * sway[:, 0]
    height = rng.uniform(1.38, 1.58) + .06 * sway[:, 1] + rng.normal(0, .01, frames)
    eye = np.stack([room.loop[0] + room.loop[2] * radius * np.cos(angle),
                    room.loop[1] + room.loop[3] * radius * np.sin(angle), height], 1)  # (frames, 3)
    yaw = np.arctan2(room.loop[1] - eye[:, 1], room.loop[0] - eye[:, 0])  # towards the loop's centre
    yaw = yaw + .12 * sway[:, 2] + rng.normal(0, .02, frames)
    pitch = -rng.uniform(.2, .3) + .04 * sway[:, 3] + rng.normal(0, .01, frames)
    roll = rng.normal(0, .015, frames)
    if varied:  # higher or lower, looking aside of the centre, more level
        eye[:, 2] += rng.uniform(-.15, .25)
        yaw, pitch = yaw + rng.choice([0, 1]) * rng.uniform(-.9, .9), pitch * rng.uniform(0, 1.3)
    return _poses(eye, yaw, pitch, roll)


def _looking_over(rng, room, frames):
    """Eyes (frames, 3), yaw, pitch and roll (frames,) of a walk around the loop at one end of a room, looking
    past what stands in its middle to what stands at its other end."""
    angle = rng.uniform(0, 2 * np.pi) + rng.choice([-1, 1]) * np.radians(15) * (
        np.arange(frames) + rng.uniform(-.12, .12, frames))
    sway = np.sin(angle[:, None] * (2, 3, 1, 2) + rng.uniform(0, 2 * np.pi, 4))          # (frames, 4)
    eye = np.stack([room.loop[0] + room.loop[2] * np.cos(angle), room.loop[1] + room.loop[3] * np.sin(angle),
                    rng.uniform(1.35, 1.5) + .1 * sway[:, 0] + rng.normal(0, .01, frames)], 1)
    aim = np.array([room.loop[0] + rng.uniform(-.3, .3), room.size[1] * rng.uniform(.1, .25)])
    to = aim + .25 * sway[:, 1:3] - eye[:, :2]                                           # (frames, 2)
    pitch = -rng.uniform(.1, .18) + .03 * sway[:, 3] + rng.normal(0, .01, frames)
    return eye, np.arctan2(to[:, 1], to[:, 0]), pitch, rng.normal(0, .015, frames)


def _poses(eye, yaw, pitch, roll):
    """c2w (F, 4, 4) of cameras at eye (F, 3) that look along yaw and pitch, rolled: (F,) each, radians."""
    forward = np.stack([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch)], 1)
    right = np.stack([np.sin(yaw), -np.cos(yaw), 0 * yaw], 1)
    down = np.cross(forward, right)
    c, s = np.cos(roll)[:, None], np.sin(roll)[:, None]
    c2w = np.tile(np.eye(4), (len(eye), 1, 1))
    c2w[:, :3] = np.stack([c * right + s * down, c * down - s * right, forward, eye], 2)
    return c2w
