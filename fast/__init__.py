"""The top floor for speed: the same numbers sooner. 07 and 08 ask here, each in one line (docs/speed.md).

Nothing is imported before it is asked for.
"""


def faster(model, step, args):
    """07's model and training_step, computing by fast/ on the model's device: args.fast "true" or "auto",
    which first compare them with the lessons; args.bf16, args.compile, args.workers."""
    from fast import choice
    return choice.faster(model, step, args)


def renderer(model, args):
    """The model as fast/render.py's FastSRay: args.fast, args.keep, args.coarse_stride, args.workers."""
    from fast import choice
    return choice.renderer(model, args)
