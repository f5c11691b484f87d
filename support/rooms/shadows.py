"""Shadows: what a lamp does not see is not lit by it. A lamp looks into the six faces of a cube around it."""
import numpy as np


def cube_cameras(position, n):
    """Six cameras at position (3,), each with 90° field of view and n x n pixels: K (3, 3), c2w (6, 4, 4).
    Camera 2a looks backwards along axis a, camera 2a + 1 forwards."""
    K = np.array([[n / 2, 0, (n - 1) / 2], [0, n / 2, (n - 1) / 2], [0, 0, 1]])
    c2w = np.tile(np.eye(4), (6, 1, 1))
    for axis in range(3):
        for s, sign in enumerate((-1, 1)):
            x, z = np.eye(3)[(axis + 1) % 3], sign * np.eye(3)[axis]
            c2w[2 * axis + s, :3] = np.stack([x, np.cross(z, x), z, position], 1)
    return K, c2w


def lit(shadow, v, cos):
    """How much of its light the lamp sheds on N points: the share (N,), in 0…1, of four neighbouring pixels
    of the shadow map in which it sees as far as the point.

    shadow (6, n, n): depth in the six cameras; v (3, N): from the lamp to the points; cos (N,): of the angle
    between the light and the surface's normal.
    """
    n = shadow.shape[1]
    axis = np.abs(v).argmax(0)
    main, x, y = (np.take_along_axis(v, (axis + i)[None] % 3, 0)[0] for i in range(3))
    z = np.abs(main)  # depth in the camera that sees the point
    x, y = x / z, np.sign(main) * y / z
    face = (2 * axis + (main > 0)) * (n * n)
    px, py = (x + 1) * (n / 2) - .5, (y + 1) * (n / 2) - .5
    limit = z * (1 - .016 / np.maximum(cos, .1)) - .015  # a pixel is wide: oblique light gets more slack
    depth, share = shadow.ravel(), 0
    for du, dv in ((-.9, -.4), (.4, -.9), (.9, .4), (-.4, .9)):
        iu = np.clip(np.rint(px + du), 0, n - 1).astype(np.int32)
        iv = np.clip(np.rint(py + dv), 0, n - 1).astype(np.int32)
        share = share + (depth[face + iv * n + iu] > limit)
    return share.astype(np.float32) / 4
