"""The top floor for speed: the same numbers sooner. 07 and 08 ask here, each in one line (docs/speed.md).

    attention.py, lookup.py, tokens.py, packed.py    a level that computes its valid tokens alone, on a CPU
    step.py                                          a training step on several cores
    render.py                                        images: skipping what weighs little, several cores
    gpu.py                                           the fused attention kernel, bfloat16, torch.compile
    choice.py                                        which of these, after comparing them with the lessons

Nothing is imported before it is asked for.
"""


def faster(model, step, args) -> tuple:
    """07's model and training_step, computing by fast/ on the model's device; the same parameters.

    args.fast: "auto" and "true" first compare fast/ with the lessons. Where they differ, "auto" says so and
    leaves the plain path, "true" raises DataError; "false" asks for the plain path. args.bf16, args.compile:
    networks in bfloat16, compiled. args.workers: threads that share a step.
    """
    from fast import choice
    return choice.faster(model, step, args)


def renderer(model, args):
    """08's model as fast/render.py's FastSRay: args.fast as above, args.keep, args.coarse_stride,
    args.workers ("false": on plain levels)."""
    from fast import choice
    return choice.renderer(model, args)
