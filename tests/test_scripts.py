"""Every numbered script runs alone: prints its table and one fact, and saves a picture worth opening."""
import os
import subprocess
import sys
from pathlib import Path

import imageio.v3 as iio
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("scripts")                                 # the example room is made once


@pytest.mark.slow
@pytest.mark.parametrize("script, words", [
    ("00_rooms.py", ["share of pixels", "ms per"]),
    ("01_data.py", ["images", "One fact", "see it"]),
    ("02_encoder.py", ["L19  Conv 1x1", "2,026,288", "One fact"]),
    ("03_reprojection.py", ["L21  MLP (Input 2)", "One fact"]),
    ("04_cra.py", ["L6", "One fact", "36,864", "262,144"]),
    ("05_weighting.py", ["eq.3", "One fact"]),
    ("06_geometry_render.py", ["L11", "One fact", "weights sum to 1.000"]),
])
def test_each_script_runs_alone_and_saves_its_picture(folder, script, words):
    done = subprocess.run([sys.executable, str(ROOT / script)], cwd=folder, capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert all(word in done.stdout for word in words), done.stdout
    picture = iio.imread(folder / "outputs" / script.replace(".py", ".png"))
    assert picture.shape[0] > 300 and picture.shape[1] > 600 and picture[..., :3].std() > 10
