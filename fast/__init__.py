"""The top floor for speed: the same numbers sooner. 07 and 08 ask here in one line each (docs/speed.md).

    attention.py, lookup.py, tokens.py, packed.py    a level that computes its valid tokens alone, on a CPU
    gpu.py                                           the fused kernel, bfloat16, torch.compile
    render.py                                        images: skipping what weighs little, several cores
    choice.py                                        which of them, after comparing them with the lessons

Nothing is imported before it is asked for.
"""


def faster(model, args):
    """The model itself, its levels in the faster form for its device, if that has the lessons' values and
    gradients.

    args.fast: "auto", where they differ the plain levels stay and a line says so; "true", DataError there;
    "false", plain. args.bf16, args.compile: whether its networks run in bfloat16, compiled.
    """
    from fast import choice
    return choice.faster(model, args)


def renderer(model, args):
    """`faster`, as a model whose render_image is fast/render.py's, with args.keep, args.coarse_stride,
    args.workers (with "false" too, on plain levels)."""
    from fast import choice
    return choice.renderer(model, args)
