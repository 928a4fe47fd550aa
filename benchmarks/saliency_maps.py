"""Speed and memory of the batch runner: `python benchmarks/saliency_maps.py [world] [cores] [memory]` (default: all three).

world: RBD of 4,000 images of the embedded world, 64 px computed at 224, on two cores. cores: the same 652 photos with one
process and with two, five times in turn, and their ratio. memory: resident memory of this process and of its workers
while 10,000 photos go through `saliency_folder`, ten times on the way. Photos: saliency_objects and saliency_people
in the folder named by DILO_REAL_DATA (default ../shared/data from the project root), as often as it takes.
"""

import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")  # read when NumPy is loaded

import sys
import threading
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, sleep

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import psutil

from dilo.data import render_world
from dilo.saliency import saliency_folder, saliency_maps

DATA = Path(os.environ.get("DILO_REAL_DATA", ROOT.parent / "shared/data"))


def links(folder, count):
    "A folder of `count` links to photos."
    files = [f for name in ("saliency_objects", "saliency_people") for f in sorted((DATA / name / "images").glob("*.jpg"))]
    if not files:
        raise SystemExit(f"{DATA} holds neither saliency_objects nor saliency_people; set DILO_REAL_DATA")
    folder.mkdir()
    for i in range(count):
        (folder / f"{i:05}.jpg").symlink_to(files[i % len(files)].resolve())
    return folder


def seconds(function):
    start = perf_counter()
    function()
    return perf_counter() - start


def world(folder):
    images = render_world(4000).images
    saliency_maps(images[:64], jobs=2, progress=False)  # starts the processes
    spent = seconds(lambda: saliency_maps(images, jobs=2, progress=False))
    print(f"world: RBD of 4,000 images of 64 px at 224 on two cores: {spent:.1f} s", flush=True)


def cores(folder):
    photos = links(folder / "photos", 652)
    saliency_folder(photos, folder / "warm", jobs=2, progress=False)
    ratios = []
    for turn in range(5):  # alternating, since the speed of a shared machine changes
        one, two = (
            seconds(partial(saliency_folder, photos, folder / f"{jobs}-{turn}", jobs=jobs, progress=False))
            for jobs in (1, 2)
        )
        ratios.append(one / two)
        print(f"  652 photos: {one:.1f} s with one process, {two:.1f} s with two: {one / two:.2f}x", flush=True)
    print(f"cores: RBD on two cores against one, median of five: {median(ratios):.2f}x", flush=True)


def memory(folder):
    photos, out, done, samples = links(folder / "photos", 10_000), folder / "maps", threading.Event(), []

    def watch():
        me = psutil.Process()
        while not done.is_set():
            made = (out / ".progress").read_bytes().count(b"\n") if (out / ".progress").exists() else 0
            if made >= 1000 * (len(samples) + 1):
                workers = [p for p in me.children(recursive=True) if p.memory_info().rss > 5e7]
                samples.append((made, me.memory_info().rss / 2**20, sum(p.memory_info().rss for p in workers) / 2**20))
            sleep(0.5)

    watcher = threading.Thread(target=watch)
    watcher.start()
    spent = seconds(lambda: saliency_folder(photos, out, jobs=2, progress=False))
    done.set()
    watcher.join()
    print(f"memory: 10,000 photos in {spent:.0f} s; MiB of this process and of its workers")
    for made, own, workers in samples:
        print(f"  after {made:6,} photos: {own:6.0f} {workers:6.0f}", flush=True)


if __name__ == "__main__":
    for name in sys.argv[1:] or ("world", "cores", "memory"):
        with TemporaryDirectory() as place:
            {"world": world, "cores": cores, "memory": memory}[name](Path(place))
