"""A folder that no reader knows: what was seen in it, and what to type next.

Test: pytest tests/test_cases.py
"""
import shlex
from itertools import islice
from pathlib import Path

VIDEOS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".3gp", ".insv")
PHOTOGRAPHS = (".jpg", ".jpeg", ".png", ".heic", ".tif", ".tiff", ".dng", ".webp")
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")
AGAIN = "then type this command again"
LIMIT = 20_000                                # files that are looked at


def quoted(path: Path) -> str:
    """A path as a shell takes it."""
    return shlex.quote(str(path))


def colmap_command(workspace: Path, images: Path) -> str:
    """The command that finds poses for photographs."""
    return (f"colmap automatic_reconstructor --workspace_path {quoted(workspace)} --image_path "
            f"{quoted(images)} "
            "--camera_model OPENCV --single_camera 1 --dense 0")


def files_of(folder: Path, endings: tuple) -> list[Path]:
    """The files right in a folder that end so, in name order."""
    try:
        there = islice(folder.iterdir(), LIMIT)
        return sorted(p for p in there if p.suffix.lower() in endings and p.is_file())
    except OSError:
        return []


def what_is(path: Path) -> str | None:
    """One line on a file or folder that is no layout we read; None where nothing is recognised."""
    if path.suffix.lower() in VIDEOS and path.is_file():
        return video(path)
    if not path.is_dir():
        return None
    for recognise in (known_sets, unpacked_archive, photographs):
        for folder in [path, *sorted(p for p in islice(path.glob("*"), LIMIT) if p.is_dir())[:50]]:
            line = recognise(folder)
            if line:
                return line
    return None


def video(path: Path) -> str:
    """How a video becomes images, and these get poses."""
    folder = path.with_suffix("")
    return (f"{path}: a video; images and poses are needed: mkdir -p {quoted(folder / 'images')} && ffmpeg "
            f"-i "
            f"{quoted(path)} -vf fps=2 -qscale:v 2 {quoted(folder / 'images')}/%04d.jpg && "
            f"{colmap_command(folder, folder / 'images')}, then import {quoted(folder)}")


def known_sets(folder: Path) -> str | None:
    """Data sets that are published in a layout of their own."""
    def has(pattern: str) -> bool:
        return next(folder.glob(pattern), None) is not None
    sets = (
        ("results/frame*.jpg", "Replica as NICE-SLAM renders it (results/, traj.txt), which has no labels; "
         "Semantic-NeRF's and vMAP's rendering are read (traj_w_c.txt beside rgb/)"),
        ("groundtruth.txt", "TUM's RGB-D layout (groundtruth.txt, rgb.txt), whose poses have times instead "
                            "of "
         "frames; write pose/<i>.txt, color/<i>.png and intrinsic/intrinsic_color.txt (docs/data.md, The "
         "layout)"),
        ("frame-*.pose.txt", "7-Scenes' layout; rename frame-000000.color.png to color/0.png and "
         "frame-000000.pose.txt to pose/0.txt, and write intrinsic/intrinsic_color.txt with 585 0 320, 0 "
         "585 240 "
         "(docs/data.md, The layout)"),
        ("cameras_sphere.npz", "the layout of IDR and NeuS (cameras_sphere.npz), which is not read; use "
                               "COLMAP's "
         "model of the images"),
        ("mesh.ply", "Replica's meshes, not photographs; Semantic-NeRF's rendering of them is read "
                     "(docs/data.md, "
         "Replica)"),
        ("keyframes/images", "Polycam's raw layout; turn it into transforms.json with ns-process-data "
                             "polycam"),
        ("EXR_RGBD/metadata", "Record3D's layout; turn it into transforms.json with ns-process-data "
                              "record3d"),
        ("dslr/resized_images", "ScanNet++ without dslr/nerfstudio/transforms_undistorted.json; download "
                                "that file"))
    for sign, words in sets:
        if has(sign):
            return f"{folder}: {words}"
    if has("seq-*/frame-*.pose.txt"):
        return f"{folder}: 7-Scenes' layout; name one sequence of it, such as {quoted(folder / 'seq-01')}"
    return None


def unpacked_archive(folder: Path) -> str | None:
    """Archives and nothing else."""
    archives = files_of(folder, ARCHIVES)
    if archives and not files_of(folder, PHOTOGRAPHS + VIDEOS):
        return f"{folder}: {len(archives)} archives ({archives[0].name}); unpack them, {AGAIN}"
    return None


def photographs(folder: Path) -> str | None:
    """Photographs without poses, or videos."""
    images, workspace = files_of(folder, PHOTOGRAPHS), folder
    if folder.name.startswith(("images", "input")):
        workspace = folder.parent
    if images:
        database = " (database.db is there: colmap mapper may be all that is missing)" * (
            workspace / "database.db").is_file()
        return (f"{folder}: {len(images)} photographs without poses{database}; COLMAP finds them: "
                f"{colmap_command(workspace, folder)}, {AGAIN}" + (f" for {quoted(workspace)}" * (
                    workspace != folder)))
    videos = files_of(folder, VIDEOS)
    return video(videos[0]) if videos else None


def level(path: Path, is_scene) -> str | None:
    """One line where the folder above, or one further below, is what is meant. is_scene(folder): is it
    one?"""
    full = path.resolve()
    for above in islice(full.parents, 3):
        if is_scene(above):
            return f"{path}: a part of the scene {above}; name that folder"
    below = sorted({p.parent.parent for depth in ("*/*/color",
                                                  "*/*/*/color") for p in islice(path.glob(depth), 100)
                    if is_scene(p.parent)})
    if below:
        return f"{path}: its scenes lie deeper; name {quoted(below[0])}"
    return None
