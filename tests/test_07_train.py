"""07_train.py: the assembled model, its losses, training from disk, checkpoints, and how it refuses bad input."""
import csv
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

rooms, data, training = import_module("00_rooms"), import_module("01_data"), import_module("07_train")
ROOT = Path(__file__).parents[1]
SMALL = training.Config(height=48, width=64, views=3, rays=32, coarse=6, fine=5, steps=20, device="cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Two rooms of 64x48 on disk: one to train on, one unseen."""
    folder = tmp_path_factory.mktemp("rooms")
    rooms.make_rooms(folder, [0, 9000], frames=24, width=64, height=48, workers=1)
    return folder


@pytest.fixture(scope="module")
def scene(root, tmp_path_factory):
    return data.Scene(root / "room0000_00", 48, 64, cache=tmp_path_factory.mktemp("cache"))


def make_model(config=SMALL):
    torch.manual_seed(1)
    return training.SRay(config).eval()


def run(script: str, *arguments, cwd: Path) -> subprocess.CompletedProcess:
    """A script as a user runs it, in its own process."""
    return subprocess.run([sys.executable, str(ROOT / script), *map(str, arguments)], cwd=cwd, capture_output=True, text=True)


def turned_away(views, index: int, scene):
    """The same views, view `index` looking away from everything: straight up from high above."""
    c2w = views.c2w.clone()
    c2w[index] = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 50.0], [0, 0, 0, 1]])
    return replace(views, c2w=c2w)


def some_pixels(count=17):
    return torch.rand(count, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([63.0, 47.0])


# ---------------------------------------------------------------------------------------------------- the model

@pytest.mark.parametrize("mode", ["none", "intra", "cross", "full", "dense"])
def test_masking_a_view_equals_removing_it_through_the_whole_model(scene, mode):
    model = make_model(replace(SMALL, cra=mode))
    views, target = scene.views([9, 10, 12, 13]), scene.views([11])[0]
    blind = turned_away(views, 2, scene)
    with torch.no_grad():
        with_it = model(model.encode(blind), some_pixels(), target.K, target.c2w)
        without = model(model.encode(views[[0, 1, 3]]), some_pixels(), target.K, target.c2w)
        seen = model(model.encode(views), some_pixels(), target.K, target.c2w)
    for key in ("colour", "logits", "depth"):
        torch.testing.assert_close(with_it["fine"][key], without["fine"][key], atol=1e-5, rtol=1e-4)
    assert (seen["fine"]["colour"] - without["fine"]["colour"]).abs().max() > 1e-4     # the view does matter when it sees


def test_no_valid_view_anywhere_gives_finite_output_and_zero_density(scene):
    model, views = make_model(), scene.views([9, 10, 12])
    for index in range(3):
        views = turned_away(views, index, scene)
    target = scene.views([11])[0]
    out = model(model.encode(views), some_pixels(), target.K, target.c2w)["fine"]
    assert out["weights"].abs().max() == 0 and out["colour"].abs().max() == 0
    (out["logits"].sum() + out["colour"].sum() + out["depth"].sum()).backward()
    assert all(torch.isfinite(out[key]).all() for key in ("logits", "colour", "depth"))
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


def test_permuting_the_source_views_changes_no_pixel(scene):
    model, views, target = make_model(), scene.views([9, 10, 12]), scene.views([11])[0]
    with torch.no_grad():
        a = model(model.encode(views), some_pixels(), target.K, target.c2w)["fine"]
        b = model(model.encode(views[[2, 0, 1]]), some_pixels(), target.K, target.c2w)["fine"]
    torch.testing.assert_close(a["logits"], b["logits"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(a["w"][..., [2, 0, 1]], b["w"], atol=1e-5, rtol=1e-4)


def test_inference_needs_no_semantics_on_the_coarse_samples(scene, monkeypatch):
    model, views, target = make_model(), scene.views([9, 10, 12]), scene.views([11])[0]
    with torch.no_grad():
        sources = model.encode(views)
        full = model(sources, some_pixels(), target.K, target.c2w)["fine"]
        monkeypatch.setattr(model.coarse.cra, "forward", lambda *_: pytest.fail("CRA ran on the coarse samples"))
        light = model(sources, some_pixels(), target.K, target.c2w, fine_only=True)["fine"]
    for key in ("colour", "logits", "depth"):
        assert torch.equal(full[key], light[key])


@pytest.mark.parametrize("mode", ["none", "intra", "cross", "full", "dense"])
def test_keeping_some_samples_leaves_their_logits_and_drops_only_the_weight_of_the_rest(scene, mode):
    model, views, target = make_model(replace(SMALL, cra=mode)), scene.views([9, 10, 12]), scene.views([11])[0]
    with torch.no_grad():
        sources = model.encode(views)
        origin, directions = data.rays(some_pixels(), target.K, target.c2w)
        z = torch.linspace(1, 4, 6).expand(17, 6)
        context, seen, index = model.fine.look(origin, directions, z, sources, True)
        every, w = model.fine.label(context, seen, index, None)
        keep = torch.tensor([1, 2, 5]).expand(17, 3)
        some, w_some = model.fine.label(context, seen, index, keep)
        torch.testing.assert_close(some, every[:, [1, 2, 5]], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(w_some, w[:, [1, 2, 5]], atol=1e-6, rtol=1e-5)
        a, b, c = (model(sources, some_pixels(), target.K, target.c2w, keep=k)["fine"] for k in (0, 5, 2))
    assert torch.equal(a["logits"], b["logits"]) and torch.equal(a["colour"], c["colour"])       # 5 of 5 fine samples is all
    lost = a["weights"].sort(dim=1).values[:, :3].sum(1)
    assert c["w"].shape[1] == 2 and ((a["logits"] - c["logits"]).abs().amax(1) <= lost * every.abs().max() * 3 + 1e-5).all()


@pytest.mark.parametrize("stride", [1, 2])
def test_with_a_coarse_stride_pixels_between_take_their_samples_from_their_neighbours(scene, stride, monkeypatch):
    """Pixels of the grid the coarse level sees are those of the whole computation; one between two of them is what the mean of
    their coarse weights makes of it. stride: of the picture, as in a preview."""
    # chunk: so that a chunk's pixels lie in several rows
    model, views, target = make_model(replace(SMALL, chunk=100)), scene.views([9, 10, 12]), scene.views([11])[0]
    K, c2w, (H, W), rays, near = target.K, target.c2w, target.depth.shape, [], {"rtol": 1e-3, "atol": 1e-4}
    with torch.no_grad():
        model.coarse.geometry.L11.weight *= 30                               # so that neighbours' samples differ clearly
        sources = model.encode(views)
        whole = model.render_image(sources, K, c2w, H, W, stride=stride)
        coarse = model.coarse.look
        monkeypatch.setattr(model.coarse, "look", lambda origin, directions, *rest: rays.append(len(directions)) or
                            coarse(origin, directions, *rest))
        model.config.coarse_stride = 3
        some = model.render_image(sources, K, c2w, H, W, stride=stride)
        h, w = whole["depth"].shape
        assert sum(rays) == -(-h // 3) * -(-w // 3)
        for key in whole:
            torch.testing.assert_close(some[key][::3, ::3], whole[key][::3, ::3], **near)
        assert (some["depth"] - whole["depth"]).abs().max() > 0.05
        pixels = stride * torch.tensor([[3.0, 6.0], [6.0, 6.0], [4.0, 6.0]])
        weights = model.coarse_weights(sources, pixels, K, c2w)
        between = model(sources, pixels[2:], K, c2w, placing=(2 * weights[:1] + weights[1:2]) / 3)
    assert "coarse" not in between
    for key in whole:
        torch.testing.assert_close(some[key][6, 4], between["fine"][key][0], **near)


def test_the_semantic_loss_alone_moves_the_density(scene):
    model, views, target = make_model(), scene.views([9, 10, 12]), scene.views([11])[0]
    out = model(model.encode(views), some_pixels(), target.K, target.c2w)
    training.losses(out, torch.zeros(17, 3), torch.full((17,), 3))[0].backward()
    for level in (model.coarse, model.fine):
        assert level.geometry.L11.weight.grad.abs().max() > 0


def test_union_samples_hold_the_coarse_ones(scene):
    model, views, target = make_model(replace(SMALL, union=True)), scene.views([9, 10, 12]), scene.views([11])[0]
    with torch.no_grad():
        out = model(model.encode(views), some_pixels(), target.K, target.c2w)
    coarse, both = out["coarse"]["z"], out["fine"]["z"]
    assert both.shape == (17, 11) and (both.diff(dim=1) >= 0).all()
    assert all(torch.isin(coarse[r], both[r]).all() for r in range(17))


def test_image_equals_its_rays_whatever_the_chunk(scene):
    views, target = scene.views([9, 10, 12]), scene.views([11])[0]
    pictures = []
    for chunk in (1000, 3072):
        model = make_model(replace(SMALL, chunk=chunk))
        with torch.no_grad():
            sources = model.encode(views)
        pictures.append(model.render_image(sources, target.K, target.c2w, 48, 64))
    torch.testing.assert_close(pictures[0]["logits"], pictures[1]["logits"], atol=1e-4, rtol=1e-4)
    pixel = torch.tensor([[5.0, 7.0]])
    with torch.no_grad():
        one = model(sources, pixel, target.K, target.c2w)["fine"]
    torch.testing.assert_close(pictures[0]["colour"][7, 5], one["colour"][0], atol=1e-5, rtol=1e-4)


# ---------------------------------------------------------------------------------------------------- losses

def test_equation_1_against_a_hand_calculation():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [5.0, -5.0]])
    labels = torch.tensor([0, 0, data.IGNORE])
    by_hand = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1))) / 2    # -log softmax, mean over the two labelled rays
    result = {"coarse": {"logits": logits, "colour": torch.zeros(3, 3)}, "fine": {"logits": logits, "colour": torch.ones(3, 3)}}
    semantic, photometric = training.losses(result, torch.full((3, 3), 0.25), labels)
    assert semantic.item() == pytest.approx(2 * by_hand, rel=1e-6)
    assert photometric.item() == pytest.approx(0.25 ** 2 + 0.75 ** 2)


def test_unlabelled_pixels_are_ignored():
    logits, labels = torch.randn(6, 20), torch.tensor([3, data.IGNORE, 7, data.IGNORE, 0, 19])
    before = training.cross_entropy(logits, labels)
    logits[1] += 100
    assert torch.equal(before, training.cross_entropy(logits, labels))


def test_a_batch_without_labels_has_a_finite_loss():
    logits = torch.randn(4, 20, requires_grad=True)
    loss = training.cross_entropy(logits, torch.full((4,), data.IGNORE))
    loss.backward()
    assert loss.item() == 0 and (logits.grad == 0).all()


def test_source_view_loss_reads_the_label_under_each_feature(scene):
    model = make_model()
    labels = torch.full((1, 48, 64), 4)
    labels[:, ::4, ::4] = 9                                                   # pixel (4i, 4j) is feature (i, j)'s truth
    with torch.no_grad():
        model.source_head.weight.zero_()
        model.source_head.bias.zero_()
        model.source_head.bias[9] = 50.0
    features = model.encode(scene.views([3])).features
    assert training.source_view_loss(model, features, labels).item() < 1e-6


# ---------------------------------------------------------------------------------------------------- training

def test_the_segmenter_s_logits_stand_where_their_features_are(scene):
    model, images = make_model(), scene.views([3, 7]).images
    with torch.no_grad():
        small, full = model.source_head(model.features(images)), model.segment(images)
    assert full.shape == (2, 20, 48, 64)
    torch.testing.assert_close(full[:, :, ::4, ::4], small)
    torch.testing.assert_close(full[:, :, 8, 5:8], small[:, :, 2, 1, None] * torch.tensor([0.75, 0.5, 0.25]) +
                               small[:, :, 2, 2, None] * torch.tensor([0.25, 0.5, 0.75]))


def test_without_the_rays_losses_training_makes_a_2d_segmenter(scene):
    tables = import_module("11_tables")
    config = replace(SMALL, **{**tables.SEGMENTER, "extra_views": 3, "targets": 1})
    model = make_model(config).train()
    heads = {name: p.clone() for name, p in model.named_parameters() if not name.startswith(("encoder.", "source_head."))}
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(40):
        training.training_step(model, training.draw_batches([scene], [[3, 7, 11]], config, step), step)
        optimiser.step()
    views = scene.views([3, 7, 11])
    with torch.no_grad():
        right = (model.eval().segment(views.images).argmax(1) == views.labels)[views.labels >= 0].float().mean()
    assert right > 0.8, right
    assert all(torch.equal(p, heads[name]) for name, p in model.named_parameters() if name in heads)


def test_an_encoder_can_be_taken_from_another_run(root, tmp_path):
    small = ["--preset", "smoke", "--no-eval", "--steps", 1, "--lr", 1e-12, "--lr-final", 0]
    assert run("07_train.py", "--scene", root, *small, "--seed", 5, "--out", "first", cwd=tmp_path).returncode == 0
    done = run("07_train.py", "--scene", root, *small, "--cra", "none", "--encoder", "first/checkpoint.pt", "--out", "second", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = (training.load_checkpoint(tmp_path / name / "checkpoint.pt")[0].state_dict() for name in ("first", "second"))
    taken = [name for name in second if name.startswith(("encoder.", "source_head."))]
    assert all(torch.allclose(first[name], second[name], atol=1e-6) for name in taken)
    assert not torch.allclose(first["fine.head.weight"], second["fine.head.weight"], atol=1e-3)
    first_ones = ["--encoder", "first/checkpoint.pt", "--init", "first/checkpoint.pt"]
    for flags, words in ((["--encoder", "nowhere.pt"], "no such checkpoint"),
                         (first_ones, "new trainings"), (["--finetune", *first_ones[1:]], "new trainings"),
                         ([*first_ones[2:], "--cra", "none"], "drop the flag that changes the model"),
                         (["--encoder", "first/checkpoint.pt", "--finetune", "first/checkpoint.pt"], "new trainings")):
        done = run("07_train.py", "--scene", root, *small, *flags, "--out", "third", cwd=tmp_path)
        said = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("reading poses")]
        assert done.returncode == 2 and len(said) == 1 and words in said[0] and not (tmp_path / "third").exists()


def test_all_weights_can_be_taken_from_a_training_at_another_size(root, tmp_path):
    small = ["--preset", "smoke", "--no-eval", "--steps", 1, "--lr", 1e-12, "--lr-final", 0]
    assert run("07_train.py", "--scene", root, *small, "--seed", 5, "--out", "first", cwd=tmp_path).returncode == 0
    done = run("07_train.py", "--scene", root, *small, "--height", 60, "--width", 80, "--init", "first/checkpoint.pt", "--out", "second",
               cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (first, _), (second, state) = (training.load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("first", "second"))
    assert (second.config.height, second.config.seed, state["step"]) == (60, 0, 1)
    for name, value in second.state_dict().items():
        torch.testing.assert_close(value, first.state_dict()[name], atol=1e-6, rtol=0)


def test_another_light_is_the_same_for_all_views_of_a_scene_and_within_its_factor(scene):
    """A grey of one half becomes g * 0.5 ** gamma in each channel, at every pixel of every source and of the target alike."""
    images = torch.full((3, 3, 4, 5), 0.5)
    assert training.relight(images, 0.0, None) is images
    seen = torch.stack([training.relight(images, 0.5, torch.Generator().manual_seed(i)) for i in range(200)])
    torch.testing.assert_close(seen, seen[:, :1, :, :1, :1].expand_as(seen))
    low, high = 0.5 ** 1.5 / 1.5, 0.5 ** (1 / 1.5) * 1.5
    assert low <= seen.min() < low + 0.1 and high - 0.1 < seen.max() <= high
    plain, lit = (training.draw_batches([scene], [list(range(len(scene)))], replace(SMALL, colour_jitter=amount), 3)[0]
                  for amount in (0.0, 0.5))
    for channel in range(3):                                                  # log lit = log gain + gamma log plain, fitted on the sources
        pairs = [(a.sources.images[:, channel].flatten(), a.colours[:, channel]) for a in (plain, lit)]
        (x, target), (y, target_lit) = pairs
        inside, usable = (x > 0.02) & (y < 1), (target > 0.02) & (target_lit < 1)
        A = torch.stack([torch.ones_like(x), x.clamp(min=1e-3).log()], -1)[inside].double()
        gain, gamma = torch.linalg.lstsq(A, y[inside].log().double()[:, None]).solution[:, 0]
        assert 1 / 1.5 <= gamma <= 1.5 and 1 / 1.5 <= gain.exp() <= 1.5 and abs(gamma - 1) + gain.abs() > 1e-2
        torch.testing.assert_close(target_lit[usable], (gain.exp() * target[usable] ** gamma).float(), atol=1e-3, rtol=0)
    assert not torch.equal(plain.extra_images, lit.extra_images) or SMALL.extra_views == 0


def test_batches_hold_the_target_pixels_and_never_the_target_among_the_sources(scene):
    for step in range(20):
        batch = training.draw_batches([scene], [list(range(len(scene)))], SMALL, step)[0]
        assert not any(torch.equal(batch.c2w, c2w) for c2w in batch.sources.c2w)
        index = [i for i in range(len(scene)) if torch.equal(scene.c2w[i], batch.c2w)][0]
        image = scene.views([index]).images[0]
        u, v = batch.pixels.long().unbind(-1)
        assert torch.equal(image[:, v, u].T, batch.colours)
    again = training.draw_batches([scene], [list(range(len(scene)))], SMALL, 19)[0]
    assert torch.equal(again.pixels, batch.pixels) and torch.equal(again.c2w, batch.c2w)


def loss_in_one_graph(model, batch, generator):
    """Eq. 1, eq. 2 and the source-view loss as they are written: every ray in one graph, the encoder in it."""
    config = model.config
    views = torch.cat([batch.sources.images, batch.extra_images])
    features = model.encoder(views)
    sources = training.Sources(features[:len(batch.sources.K)], batch.sources.images, batch.sources.K, batch.sources.c2w)
    jitter = torch.rand(len(batch.pixels), config.coarse + config.fine, generator=generator)
    result = model(sources, batch.pixels, batch.K, batch.c2w, jitter)
    semantic = sum(F.cross_entropy(result[level]["logits"], batch.labels, ignore_index=-1) for level in ("coarse", "fine"))
    photometric = sum((result[level]["colour"] - batch.colours).square().mean() for level in ("coarse", "fine"))
    source = training.source_view_loss(model, features, torch.cat([batch.sources.labels, batch.extra_labels]))
    return config.lambda1 * semantic + config.lambda2 * photometric + config.source_loss * source


@pytest.mark.parametrize("piece", [1, 7, 29, 64])
def test_rays_in_pieces_give_the_gradient_of_them_all(scene, piece):
    config = replace(SMALL, rays=29, source_loss=0.5, piece=piece, lambda1=0.3)
    model = make_model(config)
    batch = training.draw_batches([scene], [list(range(len(scene)))], config, 0)[0]
    batch.labels[:9] = -1                                                     # pieces with few labelled rays, or none
    parameters = list(model.parameters())
    found, parts = training.batch_gradients(model, batch, parameters, training.generator_of(0, 3))
    loss = loss_in_one_graph(model, batch, training.generator_of(0, 3))
    expected = torch.autograd.grad(loss, parameters, allow_unused=True)
    assert float(parts["loss"]) == pytest.approx(loss.item(), rel=1e-5)
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-3)


def test_bfloat16_changes_the_gradient_little_and_keeps_rendering_in_float32(scene):
    config = replace(SMALL, rays=200, source_loss=0.5, coarse=16, fine=16)
    batch = training.draw_batches([scene], [list(range(len(scene)))], config, 0)[0]
    found = []
    for half in (False, True):
        model = make_model(replace(config, bf16=half))
        gradients, parts = training.batch_gradients(model, batch, list(model.parameters()), training.generator_of(0, 3))
        assert all(g.dtype == torch.float32 for g in gradients)
        found.append((torch.cat([g.flatten() for g in gradients]), float(parts["loss"])))
    (full, loss), (half, half_loss) = found
    assert loss != half_loss and half_loss == pytest.approx(loss, rel=0.02)
    assert F.cosine_similarity(full, half, dim=0) > 0.9
    with torch.no_grad():
        out = model(model.encode(batch.sources), batch.pixels, batch.K, batch.c2w)["fine"]
    assert all(out[key].dtype == torch.float32 for key in ("colour", "logits", "depth", "weights", "w"))


def test_after_the_first_pass_training_reads_decoded_frames_only(root, tmp_path, monkeypatch, capsys):
    names = data.list_scenes(root)
    scenes = [data.Scene(root / name, 48, 64, tmp_path) for name in names]
    frames = [list(range(len(scene))) for scene in scenes]
    training.decode_all(scenes, frames)
    assert "decoding frames, first time only" in capsys.readouterr().err
    assert all(scene.cached(i) for scene in scenes for i in range(len(scene)))
    monkeypatch.setattr(data.Scene, "decode", lambda *_: pytest.fail("a frame was decoded again"))
    training.decode_all(scenes, frames)
    assert capsys.readouterr().err == ""                                      # nothing to do, nothing to show
    for step in range(10):
        training.draw_batches(scenes, frames, SMALL, step)


def test_memory_does_not_grow_with_the_number_of_scenes(root, tmp_path):
    """3 scenes against 100: the frames of 97 more scenes would be 128 MB in memory, the process grows by next to nothing."""
    name = data.list_scenes(root)[0]
    (tmp_path / data.LABELS_TSV).symlink_to(root / data.LABELS_TSV)
    for i in range(100):
        (tmp_path / f"scene{i:04d}_00").symlink_to(root / name)
    code = ("import resource, sys; from importlib import import_module as i; from pathlib import Path; t = i('07_train'); d = t.data\n"
            "scenes = [d.Scene(p, 96, 128, Path(sys.argv[1]) / 'cache') for p in sorted(Path(sys.argv[1]).glob('scene*'))[:int(sys.argv[2])]]\n"
            "frames = [list(range(len(s))) for s in scenes]\n"
            "t.decode_all(scenes, frames)\n"
            "for step in range(150): t.draw_batches(scenes, frames, t.Config(height=96, width=128, views=4, rays=32), step)\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)")
    few, many = (float(subprocess.run([sys.executable, "-c", code, str(tmp_path), str(count)], cwd=ROOT, capture_output=True,
                                      text=True, check=True).stdout.split()[-1]) for count in (3, 100))
    assert many < few + 40, (few, many)


def test_the_test_views_of_validation_scenes_stay_out_of_training(scene):
    test = data.protocol(scene)[2]
    run = {"train": [scene.name, "another"], "test": ["unseen"], "finetuned": False}
    kept = training.training_frames(scene, run, replace(SMALL, validation=1))
    assert sorted(kept + test) == list(range(len(scene)))
    assert training.training_frames(scene, run, SMALL) == list(range(len(scene)))
    run["train"].reverse()                                                    # no longer among the first one
    assert training.training_frames(scene, run, replace(SMALL, validation=1)) == list(range(len(scene)))


def test_two_cores_with_a_batch_each_give_the_gradient_of_the_mean_loss(scene):
    config = replace(SMALL, targets=3, extra_views=2, source_loss=0.5, workers=2)
    model, frames = make_model(config), list(range(len(scene)))
    batches = training.draw_batches([scene], [frames], config, 0)
    assert [len(b.pixels) for b in batches] == [10, 10, 10] and all(len(b.extra_images) == 2 for b in batches)
    parts = training.training_step(model, batches, 5, training.core_pool(config, torch.device("cpu"), 2))
    got = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    loss = sum(loss_in_one_graph(model, b, training.generator_of(config.seed + 1 + i, 5)) for i, b in enumerate(batches)) / 3
    loss.backward()
    assert parts["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for name, p in model.named_parameters():
        torch.testing.assert_close(got[name], p.grad, atol=1e-5, rtol=1e-3)


def test_a_single_target_has_its_pieces_on_all_cores_and_the_same_gradient(scene):
    config = replace(SMALL, rays=29, source_loss=0.5, piece=8)
    model = make_model(config)
    batch = training.draw_batches([scene], [list(range(len(scene)))], config, 0)[0]
    found = []
    for workers in (1, 3):
        pool = training.step_pool(replace(config, workers=workers), torch.device("cpu"))
        assert (pool is None) == (workers == 1)
        parts = training.training_step(model, [batch], 5, pool)
        found.append(({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}, parts["loss"]))
    (plain, loss), (shared, shared_loss) = found
    assert shared_loss == pytest.approx(loss, rel=1e-6) and plain.keys() == shared.keys()
    for name in plain:
        torch.testing.assert_close(shared[name], plain[name], atol=1e-6, rtol=1e-4)


def test_sizes_of_pieces_and_chunks(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    config = training.Config()
    assert [training.piece_size(config, R, cpu) for R in (32, 128, 400, 1024)] == [64, 64, 200, 256]
    assert training.piece_size(config, 1024, cuda) == 1024 and training.piece_size(replace(config, piece=7), 1024, cuda) == 7
    assert training.chunk_size(config, cpu) == 256 and training.chunk_size(config, cuda) == 4096
    assert training.chunk_size(replace(config, union=True), cpu) == 128 and training.chunk_size(replace(config, chunk=9), cuda) == 9


def test_a_model_can_overfit_one_view(scene):
    config = replace(SMALL, rays=128, coarse=12, fine=12, views=4)
    model = make_model(config).train()
    views, target = scene.views([9, 10, 12, 13]), scene.views([11])[0]
    truth, labels = target.images.flatten(1).T, target.labels.flatten()
    grid = data.pixel_grid(48, 64)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(100):
        pick = torch.randint(len(grid), (config.rays,), generator=torch.Generator().manual_seed(step))
        batch = training.Batch(views, target.K, target.c2w, grid[pick], truth[pick], labels[pick], views.images[:0], views.labels[:0])
        training.training_step(model, [batch], step)
        optimiser.step()
    with torch.no_grad():
        out = model.render_image(model.encode(views), target.K, target.c2w, 48, 64)
    right = (out["logits"].argmax(-1).flatten() == labels)[labels >= 0].float().mean()
    error = (out["colour"].view(-1, 3) - truth).square().mean()
    assert right > 0.9, right
    assert -10 * torch.log10(error) > 20, error


def test_a_30_step_run_lowers_the_loss_on_data_read_from_disk(root, tmp_path):
    done = run("07_train.py", "--scene", root, "--preset", "smoke", "--steps", 30, "--out", "run", "--no-eval",
               "--keep-every", 15, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "run").glob("*.pt")) == ["checkpoint.pt", "checkpoint_15.pt", "checkpoint_30.pt"]
    assert training.load_checkpoint(tmp_path / "run/checkpoint_15.pt")[1]["step"] == 15
    assert "waiting for data" in done.stdout
    rows = list(csv.DictReader(open(tmp_path / "run/log.csv")))
    first, last = ({key: float(value) for key, value in row.items()} for row in (rows[0], rows[-1]))
    assert last["step"] == 30 and last["semantic"] < first["semantic"] - 0.1 and last["source"] < first["source"] - 0.1
    model, state = training.load_checkpoint(tmp_path / "run/checkpoint.pt")
    assert state["step"] == 30 and {"model", "config", "step"} <= set(state)


def test_checkpoint_reload_reproduces_the_image_bit_for_bit(scene, tmp_path):
    model = make_model()
    optimiser = torch.optim.Adam(model.parameters())
    training.save_checkpoint(tmp_path / "checkpoint.pt", model, optimiser, 7, {"train": []})
    loaded, state = training.load_checkpoint(tmp_path / "checkpoint.pt")
    views, target = scene.views([9, 10, 12]), scene.views([11])[0]
    pictures = []
    for m in (model, loaded.eval()):
        with torch.no_grad():
            pictures.append(m.render_image(m.encode(views), target.K, target.c2w, 48, 64))
    assert all(torch.equal(pictures[0][key], pictures[1][key]) for key in pictures[0])
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]          # nothing temporary is left


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(root, tmp_path):
    common = ("--scene", root, "--preset", "smoke", "--no-eval", "--save-every", 4, "--rays", 16)
    assert run("07_train.py", *common, "--steps", 8, "--out", "whole", cwd=tmp_path).returncode == 0
    # the same 8-step run, killed after its checkpoint at step 4
    code = ("import importlib, sys; sys.path.insert(0, sys.argv.pop(1)); sys.argv[0] = '07_train.py'\n"
            "t = importlib.import_module('07_train'); save = t.save_checkpoint\n"
            "def stop(*a):\n    save(*a)\n    if a[3]: raise SystemExit(9)\n"
            "t.save_checkpoint = stop; t.main()")
    killed = subprocess.run([sys.executable, "-c", code, str(ROOT), *map(str, common), "--steps", "8", "--out", "cut"], cwd=tmp_path)
    assert killed.returncode == 9
    assert training.load_checkpoint(tmp_path / "cut/checkpoint.pt")[1]["step"] == 4
    done = run("07_train.py", "--resume", "--out", "cut", "--no-eval", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    whole, cut = (training.load_checkpoint(tmp_path / name / "checkpoint.pt")[0].state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(whole[key], cut[key]) for key in whole)


def test_same_seed_same_start_and_another_seed_another(scene):
    a, b, c = (torch.cat([p.flatten() for p in make(seed).parameters()]) for make, seed in
               [(lambda s: (torch.manual_seed(s), training.SRay(SMALL))[1], s) for s in (0, 0, 1)])
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_fine_tuning_never_touches_the_test_views(root, tmp_path):
    assert run("07_train.py", "--scene", root, "--preset", "smoke", "--steps", 2, "--out", "base", "--no-eval",
               cwd=tmp_path).returncode == 0
    done = run("07_train.py", "--finetune", "base/checkpoint.pt", "--scene", root, "--scenes", "room9000_00", "--steps", 40,
               "--out", "tuned", "--cache", "tuned_cache", "--no-eval", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    scene = data.Scene(root / "room9000_00", 48, 64)
    source, tune, test = data.protocol(scene)
    decoded = {int(p.name.split("_")[0]) for p in tmp_path.glob("tuned_cache/room9000_00*/*.npy")}
    assert decoded == {scene.frames[i] for i in source + tune}                # 40 random steps have met all 16, and no other
    state = training.load_checkpoint(tmp_path / "tuned/checkpoint.pt")[1]
    assert state["run"]["test"] == ["room9000_00"] and state["step"] == 40


def test_a_scene_alone_keeps_its_test_views_out_of_training(root, tmp_path):
    done = run("07_train.py", "--scene", root / "room0000_00", "--preset", "smoke", "--steps", 60, "--out", "run", "--no-eval",
               "--rays", 4, "--coarse", 2, "--fine", 2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    scene = data.Scene(root / "room0000_00", 48, 64)
    test = {scene.frames[i] for i in data.protocol(scene)[2]}
    decoded = {int(p.name.split("_")[0]) for p in tmp_path.glob("cache/room0000_00*/*.npy")}
    assert len(decoded) == 20 and not decoded & test


# ---------------------------------------------------------------------------------------------------- bad input

def refused(done: subprocess.CompletedProcess, *words: str) -> None:
    """Status 2, and one line on stderr (after any progress bar) that has these words."""
    lines = [line for line in done.stderr.replace("\r", "\n").splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
    assert all(word in lines[0] for word in words), lines[0]


@pytest.mark.parametrize("arguments, words", [
    (["--scene", "nowhere"], ["nowhere", "no such folder"]),
    (["--scene", "scannet", "--data", "nowhere"], ["nowhere", "no such folder"]),
    (["--scene", "ROOT", "--scenes", "room0000_00,room7777_00"], ["room7777_00", "no such scene"]),
    (["--scene", "ROOT", "--views", "30"], ["room0000_00", "24 usable frames", "30 source views"]),
    (["--scene", "ROOT", "--tau", "1.5"], ["--tau 1.5"]),
    (["--scene", "ROOT", "--varied-rooms", "-1"], ["--varied-rooms -1"]),
    (["--scene", "ROOT", "--height", "20"], ["--height 20"]),
    (["--scene", "ROOT", "--finetune", "nothing.pt"], ["nothing.pt", "no such checkpoint"]),
    (["--export", "weights.pt"], ["--export weights.pt", "--resume --out"]),
])
def test_bad_input_ends_with_one_clear_line_and_status_2(root, tmp_path, arguments, words):
    arguments = [str(root) if a == "ROOT" else a for a in arguments]
    preset = [] if "--finetune" in arguments else ["--preset", "smoke"]
    refused(run("07_train.py", *arguments, *preset, "--out", "run", cwd=tmp_path), *words)
    assert not (tmp_path / "run").exists()                                    # nothing half-written


def test_a_checkpoint_of_another_shape_is_refused(root, tmp_path):
    config = replace(SMALL, cra="none")
    model = training.SRay(config)
    training.save_checkpoint(tmp_path / "none.pt", model, torch.optim.Adam(model.parameters()), 1,
                             {"data": "path", "root": str(root), "train": [], "test": ["room9000_00"], "seconds": 0.0})
    state = torch.load(tmp_path / "none.pt", weights_only=True)
    state["config"]["cra"] = "full"
    torch.save(state, tmp_path / "wrong.pt")
    refused(run("08_eval.py", "--checkpoint", "wrong.pt", cwd=tmp_path), "wrong.pt")
    refused(run("07_train.py", "--finetune", "none.pt", "--scene", root, "--scenes", "room9000_00", "--cra", "full", cwd=tmp_path),
            "none.pt", "another shape")
    (tmp_path / "torn.pt").write_bytes((tmp_path / "none.pt").read_bytes()[:5000])
    refused(run("08_eval.py", "--checkpoint", "torn.pt", cwd=tmp_path), "torn.pt")


@pytest.mark.parametrize("damage, words", [
    (lambda scene: (scene / "color/3.jpg").write_bytes((scene / "color/3.jpg").read_bytes()[:700]), ["color/3.jpg"]),
    (lambda scene: [(scene / f"label-filt/{i}.png").write_bytes(b"") for i in range(24)], ["label-filt"]),
    (lambda scene: (scene.parent / data.LABELS_TSV).unlink(), [data.LABELS_TSV]),
    (lambda scene: (scene / "intrinsic/intrinsic_color.txt").write_text("1 0 0 0"), ["intrinsic_color.txt"]),
    (lambda scene: [p.write_text("-inf " * 16) for p in (scene / "pose").iterdir()], ["pose"]),
])
def test_a_damaged_scene_is_named_and_leaves_nothing_behind(root, tmp_path, damage, words):
    shutil.copytree(root, tmp_path / "rooms")
    damage(tmp_path / "rooms/room0000_00")
    refused(run("07_train.py", "--scene", "rooms/room0000_00", "--preset", "smoke", "--steps", 200, "--rays", 4, "--coarse", 2,
                "--fine", 2, "--save-every", 1000, "--out", "run", "--no-eval", cwd=tmp_path), *words)
    assert not (tmp_path / "run").exists()


def test_a_non_finite_loss_stops_keeps_the_last_good_checkpoint_and_says_where(root, tmp_path):
    start = run("07_train.py", "--scene", root, "--preset", "smoke", "--steps", 3, "--out", "run", "--no-eval", cwd=tmp_path)
    assert start.returncode == 0, start.stderr
    good = (tmp_path / "run/checkpoint.pt").read_bytes()
    # a huge step: the loss at step 3 is still finite, the weights after it are useless, and must not replace the good ones
    done = run("07_train.py", "--resume", "--out", "run", "--steps", 9, "--save-every", 1, "--lr", 1e30, "--lr-final", 1e30,
               "--no-eval", cwd=tmp_path)
    refused(done, "step 4", "run/checkpoint.pt")
    assert (tmp_path / "run/checkpoint.pt").read_bytes() == good


def test_an_output_folder_with_a_run_in_it_is_not_overwritten(root, tmp_path):
    common = ("--scene", root, "--preset", "smoke", "--steps", 2, "--no-eval", "--out", "run")
    assert run("07_train.py", *common, cwd=tmp_path).returncode == 0
    before = (tmp_path / "run/checkpoint.pt").read_bytes()
    refused(run("07_train.py", *common, cwd=tmp_path), "run", "--resume")
    assert (tmp_path / "run/checkpoint.pt").read_bytes() == before


def test_without_scannet_it_says_so_and_calls_the_data_rooms(tmp_path):
    done = run("07_train.py", "--scene", "scannet", "--preset", "smoke", "--steps", 2, "--out", "run", "--no-eval", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sum("NO SCANNET" in line for line in done.stdout.splitlines()) == 1
    assert training.load_checkpoint(tmp_path / "run/checkpoint.pt")[1]["run"]["data"] == "rooms"


# ---------------------------------------------------------------------------------------------------- valid tokens alone

@pytest.mark.parametrize("settings", [{}, {"cra": "dense"}, {"cra": "none", "pooling": "weighted"}, {"position": "depth", "union": True}])
def test_packed_training_and_rendering_equal_those_of_all_tokens(scene, settings):
    views, target = turned_away(scene.views([9, 10, 12, 13]), 2, scene), scene.views([11])[0]
    batch = training.Batch(views, target.K, target.c2w, some_pixels(), torch.rand(17, 3), torch.arange(17) % 20,
                           views.images[:0], views.labels[:0])
    found = []
    for packed in (False, True):
        model = make_model(replace(SMALL, packed=packed, **settings)).double()
        wide = training.Batch(*(x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in batch))
        wide = wide._replace(sources=replace(views, images=views.images.double(), K=views.K.double(), c2w=views.c2w.double()))
        parts = training.training_step(model, [wide], 0)
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        with torch.no_grad():
            sources = model.encode(wide.sources)
            images = [model(sources, wide.pixels, wide.K, wide.c2w, fine_only=True, keep=keep)["fine"] for keep in (0, 2)]
        found.append((parts, gradients, images))
    (parts, gradients, images), (parts_packed, gradients_packed, images_packed) = found
    assert gradients.keys() == gradients_packed.keys() and parts_packed == pytest.approx(parts, rel=1e-9)
    for name in gradients:
        torch.testing.assert_close(gradients_packed[name], gradients[name], rtol=1e-5, atol=1e-9, msg=lambda text: f"{name}: {text}")
    for dense, packed in zip(images, images_packed):
        for key in dense:
            torch.testing.assert_close(packed[key], dense[key], rtol=1e-7, atol=1e-9)
