"""fast/step.py: the lesson's training step, on several cores."""
from importlib import import_module

import pytest
import torch

from fast.step import StepOnCores

data, training = import_module("01_data"), import_module("07_train")


@pytest.fixture(scope="module")
def scenes(box_folder, tmp_path_factory):
    """The box scene, several times over."""
    scene = data.Scene(box_folder, 48, 64, cache=tmp_path_factory.mktemp("cache"))
    return [scene] * 6, [list(range(len(scene)))] * 6


def step_of(take_step, scenes, piece, **settings):
    """The parts of the loss and the gradients of one step."""
    config = training.Config(height=48, width=64, views=3, rays=30, coarse=5, fine=4, colour_jitter=0.2,
                             **settings)
    torch.manual_seed(0)
    model = training.SRay(config)
    parts = take_step(model, training.draw_batches(*scenes, config, 3), 3, piece)
    return parts, [p.grad for p in model.parameters()]


@pytest.mark.parametrize("piece", [0, 4])
@pytest.mark.parametrize("settings", [{}, {"targets": 3}, {"targets": 2,
                                                           "extra_views": 1, "source_loss": 5.}],
                         ids=["one target", "three targets", "source loss"])
@pytest.mark.parametrize("workers", [1, 3])
def test_it_sets_the_gradients_and_returns_the_parts_of_the_lessons_step(scenes, piece, settings, workers):
    parts, gradients = step_of(training.training_step, scenes, piece, **settings)
    parts_on_cores, on_cores = step_of(StepOnCores(training, workers), scenes, piece, **settings)
    assert parts_on_cores.keys() == parts.keys()
    assert parts_on_cores == pytest.approx(parts, rel=1e-5)
    largest = max(float(g.abs().max()) for g in gradients if g is not None)
    for ours, theirs in zip(on_cores, gradients):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6 * largest)


def test_who_finishes_first_does_not_matter(scenes):
    runs = [step_of(StepOnCores(training, workers), scenes, 4, targets=2)[1] for workers in (2, 2, 4)]
    for gradients in runs[1:]:
        assert all(a is b is None or torch.equal(a, b) for a, b in zip(gradients, runs[0]))
