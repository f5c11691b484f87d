"""More kinds of damage for tests/fuzz.py: files that are what they should be, but for one thing.

Each takes a file of the scene, all of them, and the random numbers of its case.
"""
import os
import shutil

import numpy as np
import torch
from PIL import Image

WORDS = ["room$x_{$", "$\\foo$", "a\nb", "é" * 30, "\udce9", "x" * 300, " ", "-", "%s", "{name}", "\x1b[2J",
         "Wall"]
NUMBERS = [float("nan"), float("inf"), -1, 0, 10 ** 6, 10 ** 30, "5", None, True, [1], {}, 0.5]


def scans_of(files):
    """The folder of scenes."""
    return files[0].parents[2] if files[0].parent.name in ("color", "depth", "pose", "label-filt") else \
        next(path.parent for path in files if path.suffix == ".tsv")


def image_of(path, files, rng, *folders):
    """The file itself if it is an image of one of these folders, else one that is."""
    if path.parent.name in folders:
        return path
    return rng.choice([f for f in files if f.parent.name in folders and f.is_file() and not f.is_symlink()])


def sent(path, files, rng):
    """A checkpoint that somebody sent, one or two of its fields changed."""
    work = scans_of(files).parent
    state = torch.load(work.parent / "tiny.pt", weights_only=True)
    fields = {"run": sorted(state["run"]), "config": sorted(state["config"])}
    for _ in range(rng.choice([1, 1, 2])):
        part = rng.choice(["run", "config", "classes", "model", "step", "gone"])
        value = rng.choice([*WORDS, *NUMBERS, [rng.choice(WORDS)], str(work / "elsewhere")])
        if part in ("run", "config") and isinstance(state.get(part), dict):
            state[part][rng.choice(fields[part])] = value
        elif part == "model" and isinstance(state.get("model"), dict):
            name = rng.choice(sorted(state["model"]))
            state["model"][name] = rng.choice([
                state["model"][name] * float("nan"), torch.zeros(1).expand(10 ** 9), torch.zeros(0), value])
        elif part == "gone":
            state.pop(rng.choice(sorted(state)))
        else:
            state[part] = rng.choice([value, {"names": [value] * 20, "colours": [[0, 0, 0]] * 20}])
    torch.save(state, work / "tiny.pt")


def inks(path, files, rng):
    """A photograph in the colours of print, grey, with a palette or half transparent."""
    path = image_of(path, files, rng, "color")
    mode = rng.choice(["CMYK", "L", "P", "RGBA", "1"])
    Image.open(path).convert(mode).save(path, format="jpeg" if mode in ("CMYK", "L") else "png")


def bits(path, files, rng):
    """A map of other bits, of another kind inside, or of another size."""
    path = image_of(path, files, rng, "depth", "label-filt")
    image, what = Image.open(path), rng.randrange(6)
    if what < 4:
        values = (np.asarray(image) % 256).astype(np.uint8)
        image = Image.fromarray(values).convert(["L", "P", "1", "RGB"][what])
    elif what == 4:
        image = image.resize((max(1, image.width // 2), image.height))
    image.save(path, format="jpeg" if image.mode in ("L", "RGB") and rng.random() < 0.5 else "png")


def sparse(path, files, rng):
    """Three gigabytes, of which the disk holds the beginning."""
    os.truncate(path, 3 * 2 ** 30)


def names(path, files, rng):
    """A class list, a near_far.txt or a split whose words are odd."""
    scans, word = scans_of(files), rng.choice(WORDS)
    name, text = rng.choice([
        ("classes.csv", f"\ufeffid,name,colour\n1,{word},#000000\n3,b,#ffffff\n"),
        ("classes.csv", f"id,name,colour\n{rng.choice(NUMBERS)},a,#0000{rng.choice(['00', 'zz'])}\n"),
        ("scene0001_00/near_far.txt", f"{rng.choice(NUMBERS)} {rng.choice(NUMBERS)}"),
        ("split.txt", rng.choice(["", "# none\n", "train Scene0001_00\n", f"train {word}\n",
                                  "test scene0001_00\n", "train other\ntest scene0001_00\n"]))])
    (scans / name).write_bytes(text.encode(errors="surrogatepass"))


def titles(path, files, rng):
    """The scene has another name."""
    scene, word = scans_of(files) / "scene0001_00", rng.choice(WORDS)[:200].strip() or "."
    if scene.is_dir() and not (scene.parent / word).exists():
        scene.rename(scene.parent / word)


def cameras(path, files, rng):
    """Intrinsics for images of another size."""
    path = scans_of(files) / f"scene0001_00/intrinsic/intrinsic_{rng.choice(['color', 'depth'])}.txt"
    if path.is_file() and not path.is_symlink():
        f = rng.choice([0.25, 0.5, 0.8, 1.25, 2, 20])
        path.write_text(f"{50 * f} 0 {31 * f} 0\n0 {52 * f} {24.5 * f} 0\n0 0 1 0\n0 0 0 1\n")


def scene_files(files):
    """The files of color/, pose/, depth/ and label-filt/ that are still there."""
    return [path for path in files if path.parent.name in ("color", "pose", "depth", "label-filt")
            and path.is_file() and not path.is_symlink()]


def padded(path, files, rng):
    """Zeros before the numbers, of all frames or of some."""
    share = rng.choice([1, 1, 0.5])
    for file in scene_files(files):
        if file.stem.isdigit() and int(file.stem) < 110 * share:
            file.rename(file.with_name(f"{int(file.stem):04d}{file.suffix}"))


def again(path, files, rng):
    """A frame is there twice, under another number; perhaps with another pose."""
    number, posed = rng.choice(["6", "50"]), rng.choice(["6", "50"])
    for file in scene_files(files):
        if file.stem == (posed if file.parent.name == "pose" else number):
            shutil.copy(file, file.with_name(f"500{file.suffix}"))


def fewer(path, files, rng):
    """Images of some frames are gone, or of every second; all poses stay."""
    step = rng.choice([2, 5, 24])
    for file in scene_files(files):
        if file.parent.name != "pose" and file.stem.isdigit() and (int(file.stem) // 4) % step:
            if step < 24 or file.stem == "14":
                file.unlink()


def frames25k(path, files, rng):
    """scannet_frames_25k's places: six digits, cameras right in the scene, labels in label/."""
    scene = scans_of(files) / "scene0001_00"
    for file in scene_files(files):
        if file.stem.isdigit():
            file.rename(file.with_name(f"{int(file.stem) * 100:06d}{file.suffix}"))
    for kind in ("color", "depth"):
        (scene / f"intrinsic/intrinsic_{kind}.txt").rename(scene / f"intrinsics_{kind}.txt")
    (scene / "intrinsic").rmdir()
    if rng.random() < 0.5:
        (scene / "label-filt").rename(scene / "label")


def masks(path, files, rng):
    """Masks beside the images, of some frames: half of the image is not to be used, all, or nothing."""
    scene = scans_of(files) / "scene0001_00"
    (scene / "mask").mkdir()
    for file in scene_files(files):
        if file.parent.name == "color" and rng.random() < 0.7:
            mask = np.full((48, 64), 255, np.uint8)
            mask[:, :rng.choice([0, 32, 64])] = 0
            Image.fromarray(mask).save(scene / f"mask/{file.stem}.png")


def parts(path, files, rng):
    """A split of the scene's frames, good or not."""
    numbers = [2 + 4 * i for i in range(26)]
    text = rng.choice(["".join(f"{'test' if i % 4 == 3 else 'train'} {i}\n" for i in numbers),
                       "".join(f"test {i}\n" for i in numbers), "train 2\ntest 2\n", "train 9999\n",
                       "val 6\n", "train 06\n", "test x\n", "test -1\n"])
    (scans_of(files) / "scene0001_00/split.txt").write_text(text)


KINDS = [sent, inks, bits, sparse, names, titles, cameras, padded, again, fewer, frames25k, masks, parts]
