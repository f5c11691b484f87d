"""tools/occlusion.py: how much of a folder's scenes must be doubted."""
from importlib import import_module

import numpy as np
import pytest

from support.files import DataError
from tools import occlusion

rooms, data = import_module("00_rooms"), import_module("01_data")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("occlusion")
    rooms.make_rooms(tmp_path / "rooms", [20000, 9000], 24, 64, 48, workers=1)
    return tmp_path / "rooms"


def by_loops(scene):
    """Of every seventh pixel: is it hidden from a source, and in how many images is it?"""
    sources, _, targets = data.protocol(scene)
    K, c2w, hidden, views = scene.K.double().numpy(), scene.c2w.double().numpy(), [], []
    depth = [scene.views([i]).depth[0].double().numpy() for i in range(24)]
    for t in targets:
        for n in range(0, 48 * 64, 7):
            v, u = divmod(n, 64)
            point = c2w[t] @ np.append(depth[t][v, u] * np.linalg.inv(K) @ (u, v, 1), 1)
            hidden.append(False), views.append(0)
            for s in sources:
                x, y, z = K @ (np.linalg.inv(c2w[s]) @ point)[:3]
                if z > .05 and 0 <= x / z <= 63 and 0 <= y / z <= 47:
                    views[-1] += 1
                    hidden[-1] |= z - depth[s][round(y / z), round(x / z)] > max(.05, .03 * z)
    return np.mean(hidden), np.mean(views)


def test_it_prints_what_loops_find(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["occlusion", str(root), "--height", "48", "--width", "64", "--cache",
                                     str(tmp_path / "cache")])
    occlusion.main()
    printed = {line.split()[0]: [float(x.strip("%")) for x in line.split()[-2:]]
               for line in capsys.readouterr().out.splitlines()[1:]}
    assert [*printed] == ["room20000_00", "room9000_00", "mean"]
    for name in ("room20000_00", "room9000_00"):
        hidden, views = by_loops(data.Scene(root / name, 48, 64, tmp_path / "cache"))
        assert printed[name] == [pytest.approx(100 * hidden, abs=2.5), pytest.approx(views, abs=.08)]
    assert printed["mean"] == pytest.approx((np.add(*[printed[k] for k in list(printed)[:2]])) / 2, abs=.06)
    assert printed["room20000_00"][0] > 30 > 15 > printed["room9000_00"][0]


def test_without_depth_it_says_so(root, tmp_path, monkeypatch):
    scene = data.Scene(root / "room9000_00", 48, 64, tmp_path / "cache")
    views = scene.views(range(12))
    views.depth = 0 * views.depth
    monkeypatch.setattr(scene, "views", lambda indices: views)
    with pytest.raises(DataError, match="no depth maps"):
        occlusion.scene_shares(scene)
