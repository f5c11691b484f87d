"""How a GPU runs the lessons' modules: the fused attention kernel, bfloat16, torch.compile.

04's fused_attention never stores the scores. Dense attention at 1024 rays, 64 samples and 8 views has 4 GiB
of them. Its kernels work on 64 tokens at a time, and a sample's 8 views would fill an eighth of that: a step
of 1024 rays takes 0.058 s on an H100, and took 0.091 s by that kernel alone (results/gpu.md). `python -m
tools.benchmark --device cuda` times a step in float32, in bfloat16 and compiled.

Test: pytest tests/test_gpu.py
"""
from importlib import import_module

import torch
from torch import Tensor, nn

cra = import_module("04_cra")      # MultiHeadAttention, attention, fused_attention

SHORT = 16                         # tokens of a sequence that is not worth a kernel's tile


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """04's attention: of short sequences as the lesson has it, of long ones by PyTorch's fused kernel."""
    return (cra.attention if k.shape[2] <= SHORT else cra.fused_attention)(q, k, v, mask)


def fused(level: nn.Module) -> nn.Module:
    """The level itself, its attention by `attend`."""
    for module in level.modules():
        if isinstance(module, cra.MultiHeadAttention):
            module.attend = attend
    return level


def in_bfloat16(module: nn.Module) -> None:
    """The module's layers compute in bfloat16, its output is float32."""
    forward = module.forward

    def cast(*inputs):
        with torch.autocast(inputs[0].device.type, torch.bfloat16):
            return forward(*inputs).float()
    module.forward = cast


def run_in(model: nn.Module, bf16: bool, compiled: bool) -> None:
    """bf16: the encoder, CRA and the heads' MLPs in bfloat16. Between them are cameras, lookups and sums over
    the views, after them rendering and losses: these need float32. compiled: torch.compile the levels'
    modules, a minute or more at the first step."""
    if bf16:
        in_bfloat16(model.encoder)
    for level in (model.coarse, model.fine):
        for module in (level.reprojection, level.geometry, level.cra, level.weights) if compiled else ():
            module.compile()
        for module in (*level.geometry.children(), level.cra, *level.weights.children(), level.head):
            if bf16:
                in_bfloat16(module)
