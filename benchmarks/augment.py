"""Speed and memory of the views: `python benchmarks/augment.py [SIZE ...] [--csv FILE]` (default: 32 128 224).

MoCo v2's recipe with DiLo's paste (probability .3, grey, half of the maps blurred) on one core, everybody from images in
memory: uint8 `(3, H, W)` tensors (for lightly, PIL images) with a map each, to normalised float32 views. Views of 32 px
come from 32 px, 128 from 160, 224 from 256. Peers, in the same run: lightly's MoCoV2Transform (on PIL images, as its docs
use it), kornia's augmentations on batches, torchvision's v2 transforms on tensors one by one. None of them pastes; each
gets the paste in its own means. Sigma is scaled with the side for all; kornia's and torchvision's kernels end at three of
the largest sigma. Peers that are not installed are left out, saying so: pip install lightly kornia.

Each is timed in turn, five times; the ratio is the median of the five ratios within a turn, since the speed of a shared
machine changes. Memory: the highest resident memory during a call less that before it, over the size of the views that
it returns. Where there is a GPU: the engine's views a second on it, from uint8 images in its memory, its memory, and the
share of the time in which the images could just be read and the views written at the speed of a copy.
"""

import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")  # read when NumPy is loaded

import argparse
import math
import random
import sys
import threading
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter, sleep

import numpy as np
import pandas as pd
import PIL.Image
import PIL.ImageFilter
import psutil
import torch
from torchvision.transforms import v2

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dilo.data import render_world
from dilo.augmentation import IMAGENET, PasteLaw, make_views, moco_v2

STORED = {32: 32, 64: 64, 128: 160, 224: 256}
COUNT = {32: 512, 64: 256, 128: 64, 224: 32}


def kernel_size(size):
    "Taps of a Gaussian that ends at three of the largest sigma."
    return 2 * math.ceil(3 * 2.0 * size / 224) + 1


def our_views(size, images, maps):
    recipe = moco_v2(size, PasteLaw())
    recipe = replace(recipe, views=tuple(replace(v, **IMAGENET) for v in recipe.views))
    index = np.arange(len(images))

    def run(epoch):
        return make_views(recipe, images, index, maps, epoch=epoch)

    return run


def lightly_views(size, images, maps):
    from lightly.transforms import MoCoV2Transform

    transform = MoCoV2Transform(input_size=size, sigmas=(0.1 * size / 224, 2.0 * size / 224))
    photos = [PIL.Image.fromarray(i.permute(1, 2, 0).numpy()) for i in images]
    alphas = [PIL.Image.fromarray(m[0].numpy()) for m in maps]
    radius = PasteLaw.blur_sigma * images.shape[-1]

    class Pasted(torch.nn.Module):
        "One view of lightly's, its image pasted before."

        def __init__(self, view):
            super().__init__()
            self.view = view

        def forward(self, photo, alpha):
            if random.random() < 0.3:
                blurred = alpha.filter(PIL.ImageFilter.GaussianBlur(radius)) if random.random() < 0.5 else alpha
                level = random.randrange(256)
                photo = PIL.Image.composite(photo, PIL.Image.new("RGB", photo.size, (level,) * 3), blurred)
            return self.view(photo)

    views = [Pasted(view) for view in transform.transforms]

    def run(epoch):
        return [torch.stack([view(photo, alpha) for photo, alpha in zip(photos, alphas)]) for view in views]

    return run


def kornia_views(size, images, maps):
    import kornia.augmentation as K
    from kornia.filters import gaussian_blur2d

    taps, scaled = kernel_size(size), (0.1 * size / 224, 2.0 * size / 224)
    view = torch.nn.Sequential(
        K.RandomResizedCrop((size, size), scale=(0.2, 1.0)),
        K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        K.RandomGrayscale(p=0.2),
        K.RandomGaussianBlur((taps, taps), scaled, p=0.5),
        K.RandomHorizontalFlip(p=0.5),
        K.Normalize(torch.tensor(IMAGENET["mean"]), torch.tensor(IMAGENET["std"])),
    )
    sigma = PasteLaw.blur_sigma * images.shape[-1]
    width = 2 * math.ceil(3 * sigma) + 1

    def paste(x, alpha):
        which = (torch.rand(len(x)) < 0.3).nonzero()[:, 0]
        a = alpha[which]
        blur = torch.rand(len(a)) < 0.5
        if blur.any():
            a[blur] = gaussian_blur2d(a[blur], (width, width), (sigma, sigma))
        level = torch.rand(len(a), 1, 1, 1)
        x[which] = a * x[which] + (1 - a) * level
        return x

    def run(epoch):
        with torch.no_grad():
            return [view(paste(images.float() / 255, maps.float() / 255)) for _ in range(2)]

    return run


def torchvision_views(size, images, maps):
    taps = kernel_size(size)
    blur = v2.GaussianBlur(taps, (0.1 * size / 224, 2.0 * size / 224))
    view = v2.Compose([
        v2.RandomResizedCrop(size, scale=(0.2, 1.0), antialias=True),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
        v2.RandomGrayscale(0.2),
        v2.RandomApply([blur], 0.5),
        v2.RandomHorizontalFlip(0.5),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(**IMAGENET),
    ])  # fmt: skip
    sigma = PasteLaw.blur_sigma * images.shape[-1]
    width = 2 * math.ceil(3 * sigma) + 1

    def paste(x, alpha):
        if random.random() >= 0.3:
            return x
        if random.random() < 0.5:
            alpha = v2.functional.gaussian_blur(alpha, [width, width], [sigma, sigma])
        a = alpha.float() / 255
        return (a * x + (1 - a) * random.randrange(256)).round().byte()

    def run(epoch):
        return [torch.stack([view(paste(x, a)) for x, a in zip(images, maps)]) for _ in range(2)]

    return run


MAKERS = {"dilo": our_views, "lightly": lightly_views, "kornia": kornia_views, "torchvision v2": torchvision_views}


def peak(run):
    "Bytes that a call needs at its highest, beyond those held before."
    me, done, highest = psutil.Process(), threading.Event(), []

    def watch():
        while not done.is_set():
            highest.append(me.memory_info().rss)
            sleep(0.0005)

    watcher = threading.Thread(target=watch)
    before = me.memory_info().rss
    watcher.start()
    views = run(0)
    done.set()
    watcher.join()
    del views
    return max(highest) - before


def gpu(size, count=512):
    "Prints what the engine does on a GPU."
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, STORED[size], STORED[size]), dtype=torch.uint8, generator=generator).cuda()
    maps = images[:, :1].contiguous()
    run = our_views(size, images, maps)
    run(0)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before, times = torch.cuda.memory_allocated(), []
    for turn in range(5):
        start = perf_counter()
        views = run(turn)
        torch.cuda.synchronize()
        times.append(perf_counter() - start)
    factor = (torch.cuda.max_memory_allocated() - before) / sum(v.nbytes for v in views.images)
    block, copied = torch.empty(2**28, dtype=torch.uint8, device="cuda"), []
    for _ in range(5):
        start = perf_counter()
        block.clone()
        torch.cuda.synchronize()
        copied.append(perf_counter() - start)
    least = 2 * (images.nbytes + maps.nbytes) + sum(v.nbytes for v in views.images)  # each image is read once for each view
    share = least / (2 * block.nbytes / min(copied)) / median(times)
    name, speed = torch.cuda.get_device_name(), 2 * count / median(times)
    print(f"{size} px on {name}: {speed:,.0f} views/s, memory {factor:.2f} times its views, {share:.0%} of a copy's speed")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sizes", nargs="*", type=int, default=[32, 128, 224])
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for size in args.sizes:
        world = render_world(COUNT[size], size=STORED[size])
        images, maps = torch.from_numpy(world.images), torch.from_numpy(world.masks)
        runs = {}
        for name, maker in MAKERS.items():
            try:
                runs[name] = maker(size, images, maps)
                runs[name](0)  # compiles, fills caches
            except ImportError as error:
                print(f"{name} is left out: {error}")
        times = {name: [] for name in runs}
        for turn in range(5):
            for name, run in runs.items():
                start = perf_counter()
                run(turn)
                times[name].append((perf_counter() - start) / (2 * len(images)))
        repeats = math.ceil(2**28 / (3 * 4 * size * size * 2 * len(images)))  # views of about 256 MiB
        many = images.repeat(repeats, 1, 1, 1), maps.repeat(repeats, 1, 1, 1)
        factor = peak(our_views(size, *many)) / (2 * len(many[0]) * 3 * 4 * size * size)
        print(f"{size} px from {STORED[size]} px, one core; memory of {len(many[0])} images: {factor:.2f} times their views")
        for name in runs:
            ratio = median(peer / ours for peer, ours in zip(times[name], times["dilo"]))
            print(f"  {name:16}{1 / median(times[name]):10,.0f} views/s   dilo is {ratio:5.1f} times as fast", flush=True)
            rows.append(dict(size=size, stored=STORED[size], what=name, views_per_second=round(1 / median(times[name])),
                             ratio=round(ratio, 1), memory=round(factor, 2) if name == "dilo" else None))  # fmt: skip
    if torch.cuda.is_available():
        for size in args.sizes:
            gpu(size)
    if args.csv:
        pd.DataFrame(rows).to_csv(args.csv, index=False)


if __name__ == "__main__":
    main()
