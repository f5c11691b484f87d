"""Colours and materials. All classes draw from one palette, so a colour does not give its class away."""
import colorsys

import numpy as np


def colour(rng, light=0.3):
    """One draw from the common palette: linear RGB albedo (3,). `light`: chance of an off-white."""
    kind = rng.random()
    if rng.random() < light:
        hsv = rng.uniform(0, 1), rng.uniform(0, .08), rng.uniform(.8, .95)
    elif kind < .3:
        hsv = rng.uniform(0, 1), rng.uniform(0, .12), rng.uniform(.15, .8)  # greys
    elif kind < .65:
        hsv = rng.uniform(.03, .12), rng.uniform(.2, .6), rng.uniform(.3, .85)  # woods and leathers
    else:
        hsv = rng.uniform(-.05, .72), rng.uniform(.12, .55), rng.uniform(.3, .85)  # paints and fabrics
    return np.array(colorsys.hsv_to_rgb(*hsv)) ** 2.2


def material(rng, texture="plain", p=(0, 0, 0), a=None, b=None, contrast=.5, emit=0.0, light=.3):
    """A texture's name (see textures.py), the albedos a and b (3,) that it mixes, its parameters p (3,) and
    its seed, and the light that the surface emits.

    An albedo a that is not given is drawn; b then lies between a (contrast 0) and another draw (contrast 1).
    """
    a = colour(rng, light) if a is None else np.asarray(a, float)
    if b is None:
        b = np.maximum(a, .02) ** (1 - contrast) * np.maximum(colour(rng, .2), .02) ** contrast
    return dict(texture=texture, a=a, b=b, p=np.asarray(p, float), seed=int(rng.integers(1 << 16)), emit=emit)


def wood(rng):
    """Planks with grain."""
    return material(rng, "wood", (rng.uniform(.25, .6), 0, 0), contrast=.3)


def cloth(rng):
    """Woven or striped fabric."""
    texture = "stripes" if rng.random() < .3 else "cloth"
    return material(rng, texture, (rng.uniform(.08, .2), 0, 0), contrast=.35)


def finish(rng):
    """What furniture is made of: painted, or wood."""
    return wood(rng) if rng.random() < .5 else material(rng)
