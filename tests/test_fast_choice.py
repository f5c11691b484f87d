"""fast/choice.py: the faster form is taken where it equals the lessons, and nowhere else."""
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import fast
from fast import choice, gpu
from fast.packed import PackedLevel
from fast.step import StepOnCores
from support.files import DataError

data, cra, training = (import_module(name) for name in ("01_data", "04_cra", "07_train"))
ROOT = Path(__file__).parents[1]


@pytest.fixture
def model():
    """A small model of its own."""
    torch.manual_seed(0)
    return training.SRay(training.Config(coarse=5, fine=4))


def args(how="auto", **options):
    """What 07 and 08 hand over."""
    return SimpleNamespace(**{"fast": how,
                              "bf16": False, "compile": False, "workers": 1, "keep": 0, "coarse_stride": 1,
                              **options})


@pytest.mark.parametrize("how", ["auto", "true"])
def test_equal_forms_are_taken_with_the_models_own_parameters(model, how):
    before = {name: p for name, p in model.named_parameters()}
    ours, step = fast.faster(model, training.training_step, args(how))
    assert isinstance(ours.coarse, PackedLevel) and isinstance(ours.fine, PackedLevel)
    assert isinstance(step, StepOnCores)
    assert {name: id(p) for name, p in ours.named_parameters()} == {name: id(p) for name, p in before.items()}
    with torch.no_grad():
        assert isinstance(fast.renderer(training.SRay(model.config), args(how)).fine, PackedLevel)


def test_equal_forms_are_taken_where_near_and_far_follow_the_scene():
    """Whose scenes have a range of their own: without, no step could be compared."""
    torch.manual_seed(0)
    ours, step = fast.faster(training.SRay(training.Config(coarse=5, fine=4, typical=3)),
                             training.training_step, args("true"))
    assert isinstance(ours.fine, PackedLevel) and isinstance(step, StepOnCores)


def test_false_is_the_plain_path(model):
    ours, step = fast.faster(model, training.training_step, args("false"))
    assert type(ours.fine) is training.Level and step is training.training_step
    assert type(fast.renderer(model, args("false")).fine) is training.Level


def breaks():
    """Ways in which a fast form may be wrong, or a lesson edited."""
    def attention(monkeypatch):
        right = cra.attention
        monkeypatch.setattr(cra, "attention", lambda q, k, v, mask: right(-q, k, v, mask))

    def value(monkeypatch):
        right = PackedLevel.context_and_density
        monkeypatch.setattr(PackedLevel,
                            "context_and_density", lambda self, *a: (lambda c, s, rgb: (c, 1.001 * s, rgb))(
            *right(self, *a)))

    def gradient(monkeypatch):
        right = PackedLevel.semantics
        monkeypatch.setattr(PackedLevel, "semantics", lambda self, context, keep=None: (lambda x, w: (
            x + 0.01 * (x - x.detach()), w))(*right(self, context, keep)))

    def places(monkeypatch):
        right = cra.sample_positions
        monkeypatch.setattr(cra.CRA, "with_positions", lambda self, M: M.transpose(1, 2) + right(
            M.shape[1], M.shape[3], None, M.device).to(M.dtype))
    return [attention, value, gradient, places]


@pytest.mark.parametrize("break_it", breaks(), ids=lambda f: f.__name__)
def test_where_they_differ_the_plain_path_runs_and_says_so(monkeypatch, capsys, break_it):
    break_it(monkeypatch)
    torch.manual_seed(0)
    model = training.SRay(training.Config(coarse=5, fine=4))
    ours, step = fast.faster(model, training.training_step, args())
    assert type(ours.fine) is training.Level and step is training.training_step
    assert capsys.readouterr().out == "02-06 and fast/ differ: running the plain path\n"
    with pytest.raises(DataError, match="--fast true: 02-06 and fast/ differ"):
        fast.faster(model, training.training_step, args("true"))
    with pytest.raises(DataError, match="02-06 and fast/ differ"):
        fast.renderer(model, args("true"))


def test_an_edited_step_of_the_lesson_runs(monkeypatch, capsys, model):
    right = training.training_step

    def edited(model, batches, step, piece=0):
        parts = right(model, batches, step, piece)
        for p in model.parameters():
            p.grad = None if p.grad is None else 2 * p.grad
        return parts
    edited.__module__ = right.__module__
    _, step = fast.faster(model, edited, args())
    assert step is edited and "running the plain path" in capsys.readouterr().out


@pytest.mark.parametrize("module, name", [("GeometryNetwork", "L8"), ("GeometryNetwork", "blend"),
                                          ("WeightNetwork", "L2")])
def test_an_edit_that_renames_what_fast_relies_on_runs_plain(monkeypatch, capsys, module, name):
    lesson = {"GeometryNetwork": training.geometry, "WeightNetwork": training.weighting}[module]

    class Renamed(getattr(lesson, module)):
        """The lesson's, a layer of it under another name: the old one reads as missing."""
        def __init__(self, *a, **k):
            super().__init__(*a, **k)
            self.layer = self._modules.pop(name)

        def forward(self, *inputs):
            self.__dict__[name] = self.layer
            try:
                return super().forward(*inputs)
            finally:
                del self.__dict__[name]
    monkeypatch.setattr(lesson, module, Renamed)
    model = training.SRay(training.Config(coarse=5, fine=4))
    ours, step = fast.faster(model, training.training_step, args())
    assert type(ours.fine) is training.Level and step is training.training_step
    assert capsys.readouterr().out == "02-06 and fast/ differ: running the plain path\n"
    with pytest.raises(DataError, match="--fast true: 02-06 and fast/ differ"):
        fast.renderer(model, args("true"))


def test_an_edited_forward_or_rendering_of_the_lesson_runs(monkeypatch, capsys, model):
    right = training.geometry.coarse_samples

    def forward(self, sources, pixels, K, c2w, jitter=None, fine_only=False):
        """The coarse level places nothing: both see even samples."""
        c, (near, far) = self.config, training.depth_range(self.config, sources)
        rays = data.rays(pixels, K, c2w)
        z = right(near, far, len(pixels), c.fine, None)
        return {name: self.render_level(level, *rays, z, sources)
                for name, level in (("coarse", self.coarse), ("fine", self.fine))}
    monkeypatch.setattr(training.SRay, "forward", forward)
    ours = fast.renderer(model, args(keep=2))
    said = capsys.readouterr().out
    assert type(ours) is training.SRay and "running the plain path" in said and "no --keep" in said


def test_the_comparison_leaves_weights_gradients_and_random_numbers_alone(model):
    before, state = {k: x.clone() for k, x in model.state_dict().items()}, torch.get_rng_state()
    fast.faster(model, training.training_step, args())
    assert all(torch.equal(x, before[k]) for k, x in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None and p.dtype == torch.float32 for p in model.parameters())


def test_bfloat16_keeps_the_results_near(model):
    views = torch.rand(3, 3, 48, 64)
    plain = model.encoder(views)
    ours, _ = fast.faster(model, training.training_step, args("false", bf16=True))
    half = ours.encoder(views)
    assert half.dtype == torch.float32
    assert 0 < float((half - plain).abs().max()) < 0.1 * float(plain.abs().max())


def test_the_fused_attention_is_used_where_packing_is_not_and_sequences_are_long(model, monkeypatch):
    level = choice.fused(model.fine)
    assert level is model.fine and level.cra.L4.attend is level.geometry.L9.attend is gpu.attend
    for name in ("attention", "fused_attention"):
        monkeypatch.setattr(cra, name, lambda *_, name=name: name)
    tokens = {n: gpu.attend(*torch.zeros(3, 1, 1, n, 1), None) for n in (1, 16, 17, 64)}
    assert tokens == {1: "attention", 16: "attention", 17: "fused_attention", 64: "fused_attention"}


@pytest.mark.slow
def test_training_follows_a_flipped_sign_in_a_copy_of_04(tmp_path):
    for name in ("support", "fast"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for script in ROOT.glob("0[0-9]_*.py"):
        shutil.copy(script, tmp_path)

    def train(out):
        """The log of a training, and what it printed."""
        done = subprocess.run([sys.executable,
                               "07_train.py",
                               "--scene", "rooms", "--preset", "smoke", "--no-eval", "--out", out],
                              cwd=tmp_path, capture_output=True, text=True, env={"OMP_NUM_THREADS": "1",
                                                                                 "PATH": "/usr/bin:/bin"})
        assert done.returncode == 0, done.stderr
        rows = (tmp_path / out / "log.csv").read_text().splitlines()
        return [row.rsplit(",", 1)[0] for row in rows], done.stdout
    before, said = train("before")
    assert "differ" not in said
    lesson = (tmp_path / "04_cra.py").read_text()
    right, wrong = 'torch.einsum("bast,batd->basd", ', '-torch.einsum("bast,batd->basd", '
    assert lesson.count(right) == 1
    (tmp_path / "04_cra.py").write_text(lesson.replace(right, wrong))
    after, said = train("after")
    assert "02-06 and fast/ differ: running the plain path" in said and after != before
