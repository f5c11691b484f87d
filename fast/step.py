"""A training step on several cores: 07's training_step, with each of its targets on a core of its own, or, of
a single one, each piece of its rays.

What it buys: 0.20 s instead of 0.37 s a step of the laptop preset on two cores of an AMD EPYC, where
otherwise two threads share every small operation (`python 07_train.py --scene rooms --preset laptop --steps
50 --no-eval`, then with `--workers 1`). Processor time stays what it is. Gradients are added in order: the
result does not depend on who finishes first.

Test: pytest tests/test_fast_step.py
"""
import math

import torch
from torch import Tensor

from support import processes
from support.machine import core_pool


def add_up(gradients) -> Tensor | None:
    """The sum of those that are there, in order."""
    there = [g for g in gradients if g is not None]
    return sum(there[1:], there[0]) if there else None


class StepOnCores:
    """07's training_step, called as it is. lesson: the module that has it, and batch_loss, source_view_loss
    ..."""

    def __init__(self, lesson, workers: int = 0):
        self.lesson, self.workers, self.pool = lesson, workers, None

    def __call__(self, model, batches: list, step: int, piece: int = 0) -> dict[str, float]:
        """As training_step."""
        T, seed = len(batches), model.config.seed + 1
        R = len(batches[0].pixels)
        jobs = T if T > 1 else math.ceil(R / (piece or R))
        self.pool = self.pool or core_pool(batches[0].pixels.device, jobs, self.workers)
        shares = [processes.share(len(batch.pixels), T, i) for i, batch in enumerate(batches)]
        mine = [i for i in range(T) if shares[i].start < shares[i].stop]
        run = self.pool.map if self.pool else map
        outer, inner = (map, run) if len(mine) == 1 else (run, map)

        def gradients(i: int) -> tuple[list, Tensor]:
            """Of the i-th batch."""
            generator = self.lesson.generator_of(seed + i, step)
            return self.batch_gradients(model, batches[i], generator, shares[i], piece, inner)
        found = list(outer(gradients, mine))
        parameters = list(model.parameters())
        for parameter, *column in zip(parameters, *(grads for grads, _ in found)):
            total = add_up(column)
            # as backward() lays it out: the fused Adam reads memory in order, whatever the strides say
            parameter.grad = None if total is None else (total / T).contiguous()
        processes.add_gradients(parameters)
        parts = sum(parts for _, parts in found) / T                          # (4,)
        return dict(zip(self.lesson.PARTS, processes.sum_over_processes(*parts.tolist())))

    def batch_gradients(self, model, batch, generator: torch.Generator, mine: slice, piece: int, run):
        """The gradient of one batch's loss for each parameter, None where no loss reaches it, and its PARTS
        (4,). run: map, or that of a pool. torch.autograd.grad, for threads that share .grad would add in any
        order."""
        lesson, c, V, R = self.lesson, model.config, len(batch.sources.K), len(batch.pixels)
        parameters = list(model.parameters())
        features = model.encoder(torch.cat([batch.sources.images, batch.extra_images]))   # (N, C, h, w)
        leaf = features.detach().requires_grad_()
        sources = model.encode(batch.sources, leaf[:V])
        jitter = torch.rand(R, c.coarse + c.fine, generator=generator).to(leaf.device)    # (R, coarse + fine)
        rays = torch.arange(R, device=leaf.device)[mine]

        def backward(loss: Tensor, parts: Tensor) -> tuple:
            """A piece's gradients for the features and the parameters."""
            return torch.autograd.grad(loss, [leaf, *parameters], allow_unused=True), parts
        found = list(run(lambda part: backward(*lesson.batch_loss(model, sources, batch, part, jitter)),
                         rays.split(piece or R)))
        if c.source_loss:
            labels = torch.cat([batch.sources.labels, batch.extra_labels])    # (N, H, W)
            loss = lesson.source_view_loss(model, leaf, labels) * (len(rays) / R)
            parts = torch.stack([torch.zeros_like(loss)] * 2 + [loss, c.source_loss * loss]).detach()
            found.append(backward(c.source_loss * loss, parts))
        of_features, *sums = (add_up(column) for column in zip(*(grads for grads, _ in found)))
        encoded = torch.autograd.grad(features, parameters, of_features, allow_unused=True)
        # a parameter is the encoder's or a head's: one of a, b is None
        return [a if b is None else b for a, b in zip(sums, encoded)], sum(parts for _, parts in found)
