"""tools/explore.py: what the page carries is what the model computes, and in a real browser it shows that.

The browser's tests (marker `browser`) are left out of `pytest` and run by `pytest -m browser`.
"""
import base64
import copy
import json
import re
import shutil
import subprocess
import sys
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from browser import MISSING, Browser

from support.runs import write_state
from tools import explore

data, weighting, training = (import_module(name) for name in ("01_data", "05_weighting", "07_train"))
V, S, COARSE, STRIDE = 8, 5, 6, 8


@pytest.fixture(scope="module")
def model():
    """An untrained model whose views differ enough to meet the bounds of eq. 3."""
    torch.manual_seed(0)
    config = training.Config(height=48, width=64, coarse=COARSE, fine=S, near=0.4, far=5.0)
    model = training.SRay(config).eval()
    with torch.no_grad():
        model.fine.weights.L2[-1].weight *= 30
        model.fine.head.weight *= 4
    return model


@pytest.fixture(scope="module")
def scene(box_folder, tmp_path_factory):
    return data.Scene(box_folder, 48, 64, cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def content(model, scene):
    return explore.payload(model, scene, 1, stride=STRIDE)


@pytest.fixture(scope="module")
@torch.no_grad()
def truth(model, scene, content):
    """The model asked directly at the page's pixels: forward's fine level, and the fine level's own parts."""
    sources = model.encode(scene.views(explore.evaluation.source_views(scene)))
    view = scene.views([explore.evaluation.test_views(scene)[1]])[0]
    pixels = torch.tensor(unpacked(content, "pixels")).float()
    fine = model(sources, pixels, view.K, view.c2w, fine_only=True)["fine"]
    rays = data.rays(pixels, view.K, view.c2w)
    context, sigma, _ = model.fine.context_and_density(*rays, fine["z"], sources)
    return SimpleNamespace(sources=sources, view=view, pixels=pixels, fine=fine, context=context, sigma=sigma)


def unpacked(content, name):
    """An array of the page, read here without the page's program."""
    packed = content["arrays"][name]
    kind = {"share": "<u2", "byte": "i1"}.get(packed["kind"], "<" + packed["kind"])
    x = np.frombuffer(base64.b64decode(packed["text"]), kind).reshape(packed["shape"]).astype(np.float64)
    if packed["kind"] == "share":
        return x / 65535
    if packed["kind"] == "byte":
        return x * np.frombuffer(base64.b64decode(packed["scale"]), "<f4").reshape(-1, *[1] * (x.ndim - 1))
    return x


@torch.no_grad()
def at_tau(model, truth, tau):
    """The fine level's results with another tau in Table 10's network."""
    other = copy.deepcopy(model)
    other.fine.weights.tau = tau
    return other(truth.sources, truth.pixels, truth.view.K, truth.view.c2w, fine_only=True)["fine"]


# -------------------------------------------------------------------------------------- what the page carries

def test_the_pages_arrays_are_the_models(content, truth):
    for name in ("z", "weights", "depth", "colour", "logits"):
        np.testing.assert_allclose(unpacked(content, name), truth.fine[name], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(unpacked(content, "sigma"), truth.sigma, rtol=1e-5)
    assert (unpacked(content, "surface") == truth.fine["weights"].argmax(1).numpy()).all()
    bits = unpacked(content, "mask").astype(int)
    assert ((bits[..., None] >> np.arange(V) & 1) == truth.context[2].numpy()).all()
    assert bits.min() < bits.max()


@torch.no_grad()
def test_the_attentions_are_what_the_surface_sample_reads(content, truth, model):
    M, _, mask, _ = truth.context
    intra, across = model.fine.cra.maps(M, mask)
    for ray in range(0, len(M), 7):
        s = int(truth.fine["weights"][ray].argmax())
        for v in range(V):
            mean = sum(intra[ray, v, head, s] for head in range(4)) / 4 * mask[ray, :, v]
            np.testing.assert_allclose(unpacked(content, "intra")[ray, v], mean, atol=1e-5)
            mean = sum(across[ray, s, head, v] for head in range(4)) / 4 * mask[ray, s]
            np.testing.assert_allclose(unpacked(content, "cross")[ray, v], mean, atol=1e-5)


@torch.no_grad()
def test_scores_are_the_sigmoids_over_their_sum(content, truth, model):
    M, differences, mask, visibility = truth.context
    sigmoids = model.fine.weights.L2(torch.cat([M, differences, visibility], -1))[..., 0].sigmoid() * mask
    expected = sigmoids / sigmoids.sum(-1, keepdim=True).clamp(min=1e-8)
    np.testing.assert_allclose(unpacked(content, "scores"), expected, atol=1e-5)
    w = weighting.project_onto_C(torch.tensor(unpacked(content, "scores")), mask, model.config.tau)
    np.testing.assert_allclose(w, truth.fine["w"], atol=1e-4)


@pytest.mark.parametrize("tau", [0.1, 0.45, 1.0])
def test_the_answer_at_another_tau_follows_from_what_the_page_has(content, truth, model, tau):
    w = at_tau(model, truth, tau)["w"] - truth.fine["w"]                      # (R, S, V)
    D = torch.tensor(unpacked(content, "differences")).float()                # (R, S, V, L)
    change = torch.einsum("rs,rsv,rsvl->rl", truth.fine["weights"], w, D)
    assert D.sum(2).abs().max() < 0.05 * D.abs().max()                        # from the mean of the views
    expected = at_tau(model, truth, tau)["logits"] - truth.fine["logits"]
    assert expected.abs().max() > 0.01
    assert (change - expected).abs().max() < 0.02 * D.abs().max()
    np.testing.assert_allclose(change, expected, atol=float(D.abs().max()) / 127)


def test_the_grid_is_estimated_to_fit(content):
    H, W = content["size"]
    rays, spent = len(unpacked(content, "z")), sum(len(x["text"]) for x in content["arrays"].values())
    c = training.Config(coarse=COARSE, fine=S)
    assert fits(spent / rays * H * W * 1.3, c, H, W) == 1 and fits(spent, c, H, W) >= STRIDE
    paper = training.Config()
    assert 10 < explore.stride_that_fits(paper, 20, 8, 240, 320) < 24         # 64 samples: a coarser grid


def test_a_finer_grid_than_fits_is_refused(monkeypatch):
    monkeypatch.setattr(explore, "stride_that_fits", lambda *_: 9)
    room = import_module("01_data").example_views(48, 64, 8)
    scene = SimpleNamespace(classes=training.data.SCANNET, has_labels=True,
                            views=lambda ids: room[:8] if len(ids) > 1 else room[8:])
    monkeypatch.setattr(explore.evaluation, "source_views", lambda *_: list(range(8)))
    monkeypatch.setattr(explore.evaluation, "test_views", lambda *_: [8])
    model = training.SRay(training.Config(height=48, width=64, coarse=4, fine=4))
    with pytest.raises(explore.DataError, match="--stride 8: .*more than 8 MB; give 9 or more"):
        explore.payload(model, scene, 0, stride=8)


def fits(budget, c, H, W):
    old, explore.BUDGET = explore.BUDGET, budget
    try:
        return explore.stride_that_fits(c, 20, V, H, W)
    finally:
        explore.BUDGET = old


def test_the_page_asks_for_nothing_outside_and_holds_its_content(content):
    odd = {**content, "scene": "a</script>b"}
    text = explore.page(odd)
    inside = re.search(r'<script type="application/json" id="content">(.*?)</script>', text, flags=re.S)[1]
    assert json.loads(inside) == json.loads(json.dumps(odd))
    outside = r"<!--[A-Z]+-->|https?://|@import|\bfetch\(|<link[^>]+href=\"(?!data:)|\ssrc=\"(?!data:)"
    assert not re.search(outside, text)


def test_each_panel_names_code_that_is_there():
    names = re.findall(r'data-name="([^"]+)"', (explore.HERE / "explorer.html").read_text())
    assert len(names) >= 10
    for name in names:
        found = import_module(name.split(".")[0])
        for attribute in name.split(".")[1:]:
            found = getattr(found, attribute)


# -------------------------------------------------------------------------------------- truths and the tour

def test_views_see_a_box_from_inside_until_something_stands_before_it(scene):
    view, views = scene.views([10])[0], scene.views([4, 8, 14])
    pixels = data.pixel_grid(48, 64)[::97]
    points = data.unproject(pixels, view.depth.flatten()[::97], view.K, view.c2w)
    known = torch.ones(len(points), dtype=torch.bool)
    known[0] = False
    has = explore.what_views_have(points, known, views)
    for r, point in enumerate(points):
        for v in range(3):
            x, y, z = (views.K[v] @ views.c2w[v, :3, :3].T @ (point - views.c2w[v, :3, 3])).tolist()
            inside = z > 0 and -0.5 <= x / z <= 63.5 and -0.5 <= y / z <= 47.5
            assert has[r, v] in ([explore.UNKNOWN] if r == 0 else
                                 [explore.SEEN, explore.UNKNOWN] if inside else [explore.OUTSIDE])
    assert (has[1:] == explore.UNKNOWN).float().mean() < 0.1                  # pixels at the box's edges
    assert (has == explore.SEEN).sum() > 20 and (has == explore.OUTSIDE).sum() > 5
    views.depth[1] *= 0.5
    views.depth[2] = 0
    nearer = explore.what_views_have(points, known, views)
    assert (nearer[has[:, 1] == explore.SEEN, 1] == explore.HIDDEN).all()
    assert (nearer[:, 0] == has[:, 0]).all()
    assert (nearer[has[:, 2] == explore.SEEN, 2] == explore.UNKNOWN).all()
    assert ((nearer == explore.OUTSIDE) == (has == explore.OUTSIDE)).all()


def made_up_rays(**changes):
    """Twelve rays of a smooth wall, rightly seen by both views. changes: name -> {ray: value}."""
    R = 12
    rays = {"pixels": torch.stack([torch.arange(R) * 20.0, torch.zeros(R)], -1),
            "true_depth": torch.full((R,), 2.0), "depth": torch.full((R,), 2.0),
            "true_label": torch.zeros(R, dtype=torch.long), "jump": torch.ones(R),
            "contrast": torch.full((R,), 0.2), "one_label": torch.ones(R, dtype=torch.bool),
            "views": torch.full((R, 2), explore.SEEN), "w": torch.full((R, 2), 0.5),
            "z": torch.tensor([1.0, 2, 3, 4]).repeat(R, 1),
            "weights": torch.tensor([0, 0.9, 0.1, 0]).repeat(R, 1),
            "logits": torch.tensor([3.0, 0, 0]).repeat(R, 1)}
    for name, values in changes.items():
        for ray, value in values.items():
            rays[name][ray] = torch.tensor(value)
    return rays


def test_the_tour_finds_the_ray_that_each_stop_is_for():
    spread = [0.3, 0.2, 0.2, 0.3]
    rays = made_up_rays(contrast={1: 0.3, 4: 0.0}, jump={2: 1.5}, weights={2: spread, 4: spread, 7: spread},
                        views={3: [explore.SEEN, explore.HIDDEN], 8: [explore.SEEN, explore.HIDDEN],
                               5: [explore.SEEN, explore.OUTSIDE]}, w={3: [0.9, 0.1]},
                        logits={6: [0.0, 4, 0], 9: [0.0, 1, 0]})
    rays["views"] = torch.cat([rays["views"], torch.full((12, 1), explore.SEEN)], 1)      # three views
    rays["w"] = torch.cat([rays["w"], torch.zeros(12, 1)], 1)
    rays["views"][5, 2] = explore.OUTSIDE
    stops = {stop["title"]: stop for stop in explore.tour(rays, ["wall", "sofa", "lamp"], apart=5)}
    assert {title: stop["ray"] for title, stop in stops.items()} == {
        "a clear surface": 1, "an edge": 2, "an occluded view": 3, "a blank wall": 4, "few views": 5,
        "a wrong label": 6}
    assert all(len(stop["text"]) == 2 and all(line[-1] in ".?" for line in stop["text"])
               for stop in stops.values())
    assert "sofa" in stops["a wrong label"]["text"][0] and "0.9" in stops["a wrong label"]["text"][0]


def test_a_stop_that_no_ray_fits_is_left_out():
    unknown = {ray: 0.0 for ray in range(12)}
    rays = made_up_rays(true_depth=unknown, true_label={ray: -1 for ray in range(12)},
                        views={ray: [explore.UNKNOWN] * 2 for ray in range(12)})
    assert explore.tour(rays, ["wall", "sofa", "lamp"], apart=5) == []


def test_a_scene_without_truths_has_a_page(model, box_copy, tmp_path):
    shutil.rmtree(box_copy / "label-filt")
    shutil.rmtree(box_copy / "depth")
    scene = data.Scene(box_copy, 48, 64, cache=tmp_path)
    content = explore.payload(model, scene, 0, stride=16)
    assert list(content["layers"]["labels"]) == list(content["layers"]["depth"]) == ["ours"]
    assert content["tour"] == [] and content["miou"] is None
    assert (unpacked(content, "true_label") == 255).all()


@pytest.mark.slow
def test_the_command_writes_a_page_and_refuses_a_model_without_both_attentions(box_folder, tmp_path):
    for mode in ("full", "intra"):
        model = training.SRay(training.Config(height=48, width=64, coarse=4, fine=4, cra=mode))
        run = {"train": [], "test": [], "root": "x", "data": "rooms"}
        write_state(tmp_path / f"{mode}.pt", {"model": model.state_dict(), "config": vars(model.config),
                                              "step": 1, "run": run})
        flags = ["--checkpoint", f"{mode}.pt", "--data", str(box_folder.parent), "--scenes", box_folder.name,
                 "--out", f"{mode}.html", "--stride", "8"]
        done = subprocess.run([sys.executable, "-m", "tools.explore", *flags], cwd=tmp_path,
                              capture_output=True, text=True)
        if mode == "full":
            assert done.returncode == 0 and "48 rays" in done.stdout, done.stderr
            assert (tmp_path / "full.html").stat().st_size < 8_000_000
        else:
            assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "'intra'" in done.stderr


# ------------------------------------------------------------------------------------------- in a browser

def in_browser(test):
    """Mark a test that needs a browser."""
    return pytest.mark.slow(pytest.mark.browser(test))


@pytest.fixture(scope="module")
def opened(content, tmp_path_factory):
    """A browser with the page."""
    path = tmp_path_factory.mktemp("page") / "explorer.html"
    path.write_text(explore.page(content))
    try:
        browser = Browser()
    except FileNotFoundError:
        pytest.fail(MISSING)
    with browser:
        browser.open(path)
        yield browser
        assert browser.errors == []
        assert set(browser.fetched) == {path.resolve().as_uri()}              # nothing but the page itself


def click_pixel(browser, u, v):
    """Click on the target's pixel."""
    x, y, width, height = browser.run("scrollTo(0, 0), (({x, y, width, height}) => [x, y, width, height])"
                                      "(element('target').getBoundingClientRect())")
    browser.click(x + (u + 0.5) / 64 * width, y + (v + 0.5) / 48 * height)


def shown(browser, name):
    """The table under a chart, without its heads: a list of rows of text."""
    return browser.run(f"[...document.querySelectorAll('#{name}-numbers tr')].slice(1)"
                       ".map(row => [...row.children].map(cell => cell.textContent))")


def close(text, number):
    """Is the text the number, to its three digits after the point?"""
    return abs(float(text) - float(number)) <= 0.00051


@in_browser
@torch.no_grad()
@pytest.mark.parametrize("pixel", [(20, 12), (44, 36), (60, 44)])
def test_a_click_moves_the_ray_and_shows_the_models_numbers(opened, truth, model, pixel):
    click_pixel(opened, *pixel)
    ray = opened.run("state.ray")
    assert truth.pixels[ray].tolist() == list(pixel)
    assert opened.run("element('readout').textContent").startswith(f"pixel {pixel[0]}, {pixel[1]}")
    assert opened.run("element('live').textContent").startswith(f"Pixel {pixel[0]}, {pixel[1]}: ")
    fine, mask = truth.fine, truth.context[2]
    s = int(fine["weights"][ray].argmax())
    columns = fine["z"][ray], truth.sigma[ray], fine["weights"][ray]
    for row, z, sigma, weight in zip(shown(opened, "along"), *columns):
        assert close(row[4], z) and close(row[5], sigma) and close(row[6], weight)
    for v, row in enumerate(shown(opened, "weights")):
        assert close(row[2], fine["w"][ray, s, v]) if mask[ray, s, v] else row[2] == "–"
    top = fine["logits"][ray].softmax(0).topk(5)
    for row, share, label in zip(shown(opened, "answer"), *top):
        assert row[0] == model.classes.names[label] and close(row[1], share) and close(row[2], share)
    _, across = model.fine.cra.maps(truth.context[0], mask)
    for v, row in enumerate(shown(opened, "cross")):
        for u, cell in enumerate(row[1:]):
            both = mask[ray, s, v] and mask[ray, s, u]
            assert close(cell, across[ray, s, :, v, u].mean()) if both else cell == "–"


@in_browser
def test_keys_move_the_ray_and_take_the_tour(opened, content):
    opened.run("choose(0), document.activeElement.blur()")
    for key, ray in (("ArrowRight", 1), ("ArrowDown", 9), ("ArrowLeft", 8), ("ArrowLeft", 8), ("ArrowUp", 0),
                     ("ArrowUp", 0)):
        opened.press(key)
        assert opened.run("state.ray") == ray
    assert content["tour"]
    for i, stop in enumerate(content["tour"]):
        opened.press(str(i + 1))
        assert opened.run("state.ray") == stop["ray"]
        assert opened.run("element('words').textContent") == " ".join(stop["text"])
        pressed = opened.run("document.querySelector('#tour [aria-pressed=true]').textContent")
        assert pressed.endswith(stop["title"])


@in_browser
def test_the_pages_projection_onto_C_is_05s(opened):
    torch.manual_seed(1)
    for tau in (0.05, 0.3, 0.7, 0.95, 1.0):
        scores, mask = torch.rand(40, 8, dtype=torch.float64) ** 4, torch.rand(40, 8) < 0.7
        mask[0] = False
        scores[1] = 0.125                                                     # all alike
        scores = scores * mask / (scores * mask).sum(-1, keepdim=True).clamp(min=1e-8)
        expected = weighting.project_onto_C(scores, mask, tau)
        given = json.dumps([scores.tolist(), mask.tolist()])
        anew = f"([scores, mask]) => scores.map((row, i) => projectOntoC(row, mask[i], {tau}))"
        got = opened.run(f"({anew})({given})")
        np.testing.assert_allclose(got, expected, atol=1e-12)


@in_browser
def test_the_pages_cameras_are_01s(opened, truth, scene):
    origin, directions = data.rays(truth.pixels, truth.view.K, truth.view.c2w)
    for ray in (0, 13, 47):
        points = origin + truth.fine["z"][ray][:, None] * directions[ray]
        expected, _ = data.project(points, truth.sources.K, truth.sources.c2w)            # (S, V, 2)
        for v in range(V):
            dots = opened.run(f"dotsIn({ray}, {v})")
            assert [dot[2] for dot in dots] == truth.context[2][ray, :, v].nonzero()[:, 0].tolist()
            for x, y, s in dots:
                np.testing.assert_allclose([x, y], expected[s, v], atol=2e-3)


@in_browser
@pytest.mark.parametrize("tau", [0.05, 0.3, 0.99, 1.0])
def test_the_slider_projects_anew_and_changes_the_answer(opened, truth, model, tau):
    other, mask = at_tau(model, truth, tau), truth.context[2]
    for ray in (9, 30):
        opened.run(f"choose({ray}), setTau({tau + 0.01 if tau < 1 else 0.99}), element('tau').focus()")
        opened.press("ArrowLeft" if tau < 1 else "ArrowRight")                # a reader's own step
        assert float(opened.run("element('tau-shown').textContent")) == tau
        s = int(truth.fine["weights"][ray].argmax())
        for v, row in enumerate(shown(opened, "weights")):
            assert not mask[ray, s, v] or close(row[2], other["w"][ray, s, v])
        np.testing.assert_allclose(opened.run(f"logitsAt({ray}, state.tau)"), other["logits"][ray], atol=0.02)
        shares = other["logits"][ray].softmax(0)
        for name, now, _ in shown(opened, "answer"):
            assert abs(float(now) - shares[model.classes.names.index(name)]) < 0.004
    opened.run("element('tau-back').click()")
    assert opened.run("state.tau") == model.config.tau


@in_browser
def test_every_picture_speaks_and_nothing_is_wider_than_the_window(opened):
    said = opened.run("[...document.querySelectorAll('svg, canvas')].map(x => x.getAttribute('aria-label'))")
    assert len(said) == 1 + V + 5 and all(len(words) > 20 for words in said)
    for width in (640, 1024, 1280, 1920):
        opened.resize(width, 800)
        opened.settle()
        assert opened.run("document.documentElement.scrollWidth") <= width
        assert opened.run("parseFloat(getComputedStyle(document.body).fontSize)") >= 18
    opened.resize(1280, 800)


@in_browser
def test_every_layer_and_switch_can_be_chosen(opened, content):
    drawn = []
    for subject, versions in content["layers"].items():
        for version in versions:
            opened.run(f"document.querySelector('#subject [value={subject}]').click(),"
                       f"document.querySelector('#version [value={version}]').click()")
            opened.settle()
            assert opened.run("[state.subject, state.version]") == [subject, version]
            drawn.append(opened.run("element('target').toDataURL()"))
    assert len(set(drawn)) == len(drawn) == 9
    for name, option in (("dots", "rendering weight"), ("zoom", "around the surface")):
        before = opened.run("element('along').innerHTML + element('dotscale').innerHTML")
        opened.run(f"document.querySelector('#{name} [value=\"{option}\"]').click()")
        opened.settle()
        assert opened.run("element('along').innerHTML + element('dotscale').innerHTML") != before


def test_a_missing_browser_is_named_with_what_to_install(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError, match="apt-get install -y chromium"):
        Browser()
