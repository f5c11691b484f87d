"""The top floor for speed: the same numbers sooner. 07 and 08 ask here, each in one line (docs/speed.md).

Nothing is imported before it is asked for.
"""


def faster(model, args):
    """The model, computing by fast/ on its device: args.fast "true" or "auto", which first compare it with the
    lessons; args.bf16, args.compile."""
    from fast import choice
    return choice.faster(model, args)


def renderer(model, args):
    """The model as fast/render.py's FastSRay: args.fast, args.keep, args.coarse_stride, args.workers."""
    from fast import choice
    return choice.renderer(model, args)
