"""Damage a small scene or capture in random ways and read it: each time training, evaluation or import must
succeed, or end with one clear line and status 2. No traceback, no hang, no more memory than a limit. Where it
succeeds, known points must be where they are known to be (fuzz_check.py): nothing is misread in silence.

    python tests/fuzz.py                  300 cases, about five minutes; exit status 1 if one of them fails
    python tests/fuzz.py --first 17 --cases 1 --verbose        one case again

A case is a function of (seed, number). Two of five import a capture (fuzz_captures.py), half of these
damaged; the others train or evaluate on a scene in ScanNet's layout. Nineteen of twenty run main() of the
script in one process that has imported PyTorch, under limits of memory and time, without the pictures and the
checkpoint, which read nothing; every twentieth is the real command.
"""
import argparse
import contextlib
import io
import json
import os
import random
import resource
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import zlib
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
runs, pictures = import_module("support.runs"), import_module("support.pictures")
run_script, KINDS = import_module("support.files").run_script, import_module("fuzz_kinds").KINDS
captures, check = import_module("fuzz_captures"), import_module("fuzz_check")
SECONDS, MEMORY = 60, 2 ** 30                 # for a case, beyond what a good scene takes
TINY = dict(height=32, width=32, views=4, rays=8, coarse=2, fine=2, steps=1)


# ------------------------------------------------------------------------------------------------- the damage

def flip(path, files, rng):
    """A few bytes become others."""
    content = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 20) if content else 0):
        content[rng.randrange(len(content))] = rng.randrange(256)
    path.write_bytes(content)


def cut(path, files, rng):
    """The end is missing, or everything."""
    content = path.read_bytes()
    path.write_bytes(content[:rng.choice([0, 1, 10, rng.randrange(len(content) + 1)])])


def swap(path, files, rng):
    """Two files change places, of one kind or of two."""
    other = rng.choice([f for f in files if f.exists()])
    a, b = path.read_bytes(), other.read_bytes()
    path.write_bytes(b), other.write_bytes(a)


def rename(path, files, rng):
    """Another name, usual or odd, perhaps one that is taken."""
    name = rng.choice(["3", "0", "99999999999999999999", "-1", "02", "²", "a b", "x\ny", " ", "NUL", ".2",
                       "é" * 60, "1e5"])
    path.rename(path.with_name(name + rng.choice([path.suffix, "", ".txt", ".PNG"])))


def remove(path, files, rng):
    """A file or its whole folder is gone."""
    if rng.random() < 0.2 and path.parent.parent.name.startswith("scene"):
        shutil.rmtree(path.parent)
    else:
        path.unlink()


def noise(path, files, rng):
    """Random bytes, perhaps after a true beginning."""
    path.write_bytes(path.read_bytes()[:rng.choice([0, 8, 33])] + rng.randbytes(rng.choice([1, 100, 20_000])))


NUMBERS = ("nan", "inf", "-inf", "-1", "0", "1e300", "1e-300", "1e40", "99999999999999999999", "word", "",
           "\0", "2.5", "../../x", "/etc/passwd", "0x10", "1_0", "-5", "é")


def numbers(path, files, rng):
    """A text's numbers become others; elsewhere, see flip."""
    if path.suffix not in (".txt", ".tsv"):
        return flip(path, files, rng)
    words = path.read_text().replace("\n", " \n ").replace("\t", " \t ").split(" ")
    places = [i for i, word in enumerate(words) if word.strip()]
    for i in rng.sample(places, min(len(places), rng.choice([1, 2, 16]))):
        words[i] = rng.choice(NUMBERS)
    path.write_text(" ".join(words))


def chunk(name: bytes, body: bytes) -> bytes:
    """A chunk of a png."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def bomb(path, files, rng):
    """A small file that claims, or unpacks, to be huge."""
    if path.suffix not in (".png", ".jpg"):
        return path.write_bytes(rng.choice([b"1 0 0 0\n", b"\0", b"nan " * 4]) * 300_000)
    width, height = rng.choice([(60_000, 60_000), (12_000, 12_000), (2 ** 31 - 1, 1), (1, 2 ** 31 - 1),
                                (0, 0), (1, 1), (9000, 3000)])
    rows = zlib.compress(bytes(min(height * (1 + width * rng.choice([1, 3])), 50_000_000)))
    header = struct.pack(">IIBBBBB", width, height, rng.choice([8, 16]), rng.choice([0, 2, 3, 6]), 0, 0, 0)
    text = rng.choice([b"", chunk(b"zTXt", b"a\0\0" + rows)])
    parts = [chunk(b"IHDR", header), text, chunk(b"IDAT", rows), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def odd(path, files, rng):
    """Something else of this name: a folder, a pipe, a device, a link to nowhere, in a circle, out of the
    scene."""
    path.unlink()
    what = rng.randrange(6)
    if what == 0:
        path.mkdir()
    elif what == 1:
        os.mkfifo(path)
    else:
        path.symlink_to(["/dev/zero", "nowhere", path.name, "/etc/passwd"][what - 2])


def lists(path, files, rng):
    """A split file, good or hostile."""
    line = rng.choice(["train ../x", "test /etc", "train scene0001_00", "valid a", "train", "train C:\\x",
                       "test .", "test \0", "test scene0001_00\ntrain scene0001_01",
                       "train " + "x" * 100_000])
    (files[0].parent.parent.parent / "split.txt").write_text(line + "\n")


DAMAGE = [flip, cut, swap, rename, remove, noise, numbers, bomb, odd, lists, *KINDS]
sparse = import_module("fuzz_kinds").sparse


# of these any file of a capture may suffer
ANYWHERE = [flip, cut, swap, rename, remove, noise, numbers, bomb, odd, sparse]


def damaged(scans: Path, rng: random.Random, acts=DAMAGE) -> list[str]:
    """Damage one to three files of the scene in scans -> what was done."""
    files = sorted(p for p in scans.rglob("*") if p.is_file())
    rare = [p for p in files if p.suffix in (".txt", ".tsv", ".json", ".npy", ".bin", ".sens")
            and p.parent.name != "pose"]
    done = []
    for _ in range(rng.choice([1, 1, 2, 3])):
        some = rare if rng.random() < 0.25 else files
        there = [p for p in some if p.is_file() and not p.is_symlink()]
        if not there:                         # the scene has another name by now
            break
        path, act = rng.choice(there), rng.choice(acts)
        try:
            act(path, files, rng)
        except (OSError, SyntaxError, ValueError, IndexError, StopIteration):
            if not done:                      # only what is damaged already may be damaged too much for it
                raise
        done.append(f"{act.__name__} {path.relative_to(scans)}")
    return done


# ------------------------------------------------------------------------------------------------ the reading

def arguments(work: Path, number: int) -> tuple[str, list[str]]:
    """Script and flags of a case: training or evaluation, a scene or a folder of scenes."""
    where = ["--scene", str(work / "scans") if number % 3 else str(work / "scans" / "scene0001_00"),
             "--cache", str(work / "cache")]
    if number % 2:
        checkpoint = str(work / "tiny.pt" if (work / "tiny.pt").exists() else work.parent / "tiny.pt")
        return "08_eval.py", [*where, "--checkpoint", checkpoint, "--out", str(work / "eval")]
    flags = [x for key, value in TINY.items() for x in (f"--{key}", str(value))]
    return "07_train.py", [*where, *flags, "--out", str(work / "run"), "--device", "cpu", "--no-eval"]


def verdict(status: int, errors: str) -> str:
    """"success", "refused", or what is wrong."""
    lines = [line for line in errors.replace("\r", "\n").splitlines() if line.startswith("error: ")]
    if "Traceback" in errors:
        return "a traceback"
    if status == 0:
        return "success"
    if status == 2 and len(lines) == 1 and len(lines[0]) < 2000:
        return "refused"
    return f"status {status} and {len(lines)} lines of error"


def in_here(script: str, flags: list[str]) -> tuple[int, str, str]:
    """Run a script's main() in this process -> exit status, what it wrote to stderr, and to stdout."""
    main = import_module(script.removesuffix(".py")).main
    errors, screen, sys.argv = io.StringIO(), io.StringIO(), [script, *flags]

    def too_long(*_):
        raise TimeoutError("a hang")          # an OSError, which run_script would catch: so its line says so
    signal.signal(signal.SIGALRM, too_long)
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(screen):
        try:
            signal.alarm(SECONDS)
            run_script(main)
            status = 0
        except SystemExit as end:
            status = end.code or 0
        except BaseException:                 # Python would print it
            traceback.print_exc()
            status = 1
        finally:
            signal.alarm(0)
    return status, errors.getvalue(), screen.getvalue()


def as_command(script: str, flags: list[str]) -> tuple[int, str, str]:
    """Run the real command, with the same limits -> exit status, what it wrote to stderr, and to stdout."""
    def limit():
        """Of its memory."""
        resource.setrlimit(resource.RLIMIT_DATA, (4 * MEMORY, 4 * MEMORY))
    what = [str(HERE.parent / script)] if script.endswith(".py") else ["-m", script]
    try:
        done = subprocess.run([sys.executable, *what, *flags], capture_output=True, text=True,
                              errors="replace", preexec_fn=limit, timeout=3 * SECONDS,
                              env={**os.environ, "OMP_NUM_THREADS": "1"})
        return done.returncode, done.stderr, done.stdout
    except subprocess.TimeoutExpired:
        return 1, "Traceback: a hang", ""


def scene_case(work: Path, good: Path, number: int, rng: random.Random, run) -> tuple[list[str], str, str]:
    """Copy the good scene, damage it, train or evaluate -> what was done, the verdict, stderr."""
    shutil.copytree(good, work / "scans")
    done = damaged(work / "scans", rng)
    status, errors, _ = run(*arguments(work, number))
    ended = verdict(status, errors)
    if ended == "success":
        acts = [line.split()[0] for line in done]
        ended = check.export_misread(good / "scene0001_00", work / "scans", acts) or ended
    return done, ended, errors


def capture_case(work: Path, rng: random.Random, run) -> tuple[list[str], str, str]:
    """Write a capture, damage it or not, import it -> what was done, the verdict, stderr."""
    source, out = work / "capture", work / "out"
    truth = captures.write(source, rng)
    before = check.digests(source)
    done = damaged(source, rng, ANYWHERE) if rng.random() < 0.5 else []
    after = check.digests(source)
    known = ["--near", "1", "--far", "5"] if rng.random() < 0.8 else []
    status, errors, screen = run("tools.import_scenes", [str(source), "--out", str(out), *known, "--every",
                                                         str(truth.every)])
    ended = verdict(status, errors)
    if ended == "success":
        ended = check.import_misread(out, truth, before, after, screen) or ended
    return [f"a capture ({truth.layout})", *done], ended, errors


def case(work: Path, good: Path, seed: int, number: int, real: bool) -> dict:
    """One case from its beginning to its end."""
    rng, run, start = random.Random(seed * 1_000_003 + number), as_command if real else in_here, time.time()
    work.mkdir()
    if number % 5 in (1, 3):
        done, ended, errors = capture_case(work, rng, run)
    else:
        done, ended, errors = scene_case(work, good, number, rng, run)
    shutil.rmtree(work)
    return {"case": number, "verdict": ended, "done": done, "errors": errors[-3000:],
            "seconds": time.time() - start}


def worker(args) -> None:
    """Run the cases one after the other, a line of JSON each, within the limits."""
    import torch
    torch.set_num_threads(1)
    pictures.evaluation_sheet = runs.write_state = lambda *_, **__: None
    import_module("support.sweep").VIEWS = 3                                  # a second, not four
    folder = Path(args.folder)

    answers, sys.stdout = sys.stdout, io.StringIO()                           # the check's scenes may speak
    # a good scene succeeds
    for script, flags in (arguments(folder / "good", 0), arguments(folder / "good", 1)):
        status, errors, _ = in_here(script, flags)
        assert status == 0, errors
    for what in ("run", "eval", "cache"):
        shutil.rmtree(folder / "good" / what, ignore_errors=True)
    if hasattr(resource, "RLIMIT_AS") and Path("/proc/self/statm").exists():
        limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    for number in range(args.first, args.first + args.cases):
        real = bool(args.real) and number % args.real == 0
        answer = case(folder / f"case{number}", folder / "good" / "scans", args.seed, number, real)
        if "a hang" in answer["errors"]:
            answer["verdict"] = "a hang"
        print(json.dumps(answer), file=answers, flush=True)


def good_scene(folder: Path) -> None:
    """What all cases begin with: the box, and a checkpoint of random weights."""
    conftest, training = import_module("conftest"), import_module("07_train")
    conftest.write_box_scene(folder / "good" / "scans" / "scene0001_00")
    config = training.Config(**TINY)
    runs.write_state(folder / "tiny.pt", {
        "model": training.SRay(config).state_dict(), "config": asdict(config), "step": 1,
        "run": {"data": "path", "root": str(folder), "train": [], "test": [], "seconds": 0.0, "command": "-",
                "finetuned": False}})


def show(answer: dict, failed: bool) -> None:
    """A line that says what was done, and one or more that say what came out."""
    text = answer["errors"] if failed else answer["errors"].strip().replace("\r", "\n").split("\n")[-1]
    words = f"{answer['case']:4} {answer['verdict']:8} {answer['seconds']:5.1f} s"
    print(f"{words}  {', '.join(answer['done'])}\n"
          f"     {text}", flush=True)


def answer_of(process: subprocess.Popen, number: int) -> dict:
    """What the worker says of a case; it may have died, or hang."""
    ready, _, _ = select.select([process.stdout], [], [], 5 * SECONDS)
    line = process.stdout.readline() if ready else ""
    if line:
        return json.loads(line)
    return {"case": number, "verdict": "the process died" if ready else "a hang", "done": [], "seconds": 0,
            "errors": f"status {process.poll()}"}


def run(first: int, cases: int, seed: int = 0, real: int = 20,
        verbose: bool = False) -> tuple[dict[str, int], list[dict]]:
    """All the cases, in workers -> how many ended how, and those that ended neither in success nor
    refused."""
    folder, counts, failed, last = Path(tempfile.mkdtemp(prefix="fuzz")), {}, [], first + cases
    try:
        good_scene(folder)
        while first < last:
            command = [sys.executable, __file__, "--worker", "--folder", folder, "--first", first, "--cases",
                       last - first, "--seed", seed, "--real", real]
            process = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True, cwd=folder,
                                       env={**os.environ, "OMP_NUM_THREADS": "1"})
            alive = True
            while alive and first < last:
                answer = answer_of(process, first)
                alive, first = bool(answer["done"]), first + 1
                counts[answer["verdict"]] = counts.get(answer["verdict"], 0) + 1
                if answer["verdict"] not in ("success", "refused"):
                    failed.append(answer)
                if verbose or answer in failed:
                    show(answer, answer in failed)
            process.kill()
            if process.wait() == 1:           # an error of these lines, not of a case
                break
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return counts, failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=300, help="how many [300]")
    parser.add_argument("--first", type=int, default=0, help="number of the first [0]")
    parser.add_argument("--seed", type=int, default=0, help="seed [0]")
    parser.add_argument("--real", type=int, default=20,
                        help="every so many cases through the real command [20; 0: none]")
    parser.add_argument("--verbose", action="store_true",
                        help="say for each case what was done and what came out")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(args)
    start = time.time()
    counts, failed = run(args.first, args.cases, args.seed, args.real, args.verbose)
    ended = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    print(f"{args.cases} cases in {time.time() - start:.0f} s: {ended}")
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
