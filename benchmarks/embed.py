"""`dilo.evaluation.embed_photos` against the loop that a plain script has, with the same network on the same photos:

`python benchmarks/embed.py [--photos N] [--memory] [--csv TABLE.csv]`. The loop: torchvision's ImageFolder with Resize,
CenterCrop and ToTensor, a DataLoader with a worker for each core, batches of 64, torchvision's resnet18 (random weights) in
eval mode without gradients. Both see N generated JPEG photos of 500 x 375 px at 224 px, in turn, three times; the table has
the median of photos a second. With `--memory`: the peak of memory of `dilo embed` on 1,000 and on 100,000 photos of 32 px
by a narrow network, each in a process of its own (some minutes).
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import pandas as pd
import torch
import torchvision
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dilo.data.world import background_photos
from dilo.evaluation import embed_photos
from dilo.training import Encoder, save_encoder

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def write_photos(folder, n, size):
    "n JPEG photos of `size` (width, height), cut from photographs at random places."
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    sources = [p for p in map(Image.fromarray, background_photos().values()) if p.mode == "RGB"]
    for i in range(n):
        source = sources[i % len(sources)]
        side = np.array(source.size) * generator.uniform(0.5, 1)
        x, y = generator.uniform(0, np.array(source.size) - side)
        source.resize(size, box=(x, y, x + side[0], y + side[1])).save(folder / f"{i:06}.jpg", quality=90)


@torch.no_grad()
def plain(folder, model):
    "Features by the loop of a plain script."
    seen = Compose([Resize(224), CenterCrop(224), ToTensor(), Normalize(MEAN, STD)])
    data = torchvision.datasets.ImageFolder(folder, seen)
    loader = torch.utils.data.DataLoader(data, batch_size=64, num_workers=os.cpu_count())
    return torch.cat([model(images) for images, _ in loader]).numpy()


def compare(n):
    "Rows of photos a second."
    torch.manual_seed(0)
    model = torchvision.models.resnet18()
    model.fc = torch.nn.Identity()
    encoder = Encoder("resnet18").eval()
    encoder.load_state_dict(model.state_dict())
    model.eval()
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        write_photos(place / "photos/all", n, (500, 375))
        ways = {
            "plain loop": lambda: plain(place / "photos", model),
            "dilo embed": lambda: embed_photos(place / "photos", encoder, place / "rows.npy", progress=False),
        }
        spent = {name: [] for name in ways}
        for _ in range(3):
            for name, way in ways.items():
                start = perf_counter()
                way()
                spent[name].append(perf_counter() - start)
        gap = np.abs(np.load(place / "rows.npy") - plain(place / "photos", model)).mean()
    rates = {name: n / median(times) for name, times in spent.items()}
    print({name: f"{rate:.1f} photos/s" for name, rate in rates.items()}, f"features differ by {gap:.4f} on average")
    print(f"dilo embed / plain loop: {rates['dilo embed'] / rates['plain loop']:.2f}")
    return [dict(what=name, photos=n, rate=round(rate, 2)) for name, rate in rates.items()]


def peak(n):
    "Peak of memory in MB of `dilo embed` on n small photos."
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        write_photos(place / "photos", n, (32, 32))
        save_encoder(Encoder("resnet18", 8, "small"), place / "e.safetensors", backbone="resnet18", width=8, stem="small")
        command = [sys.executable, "-m", "dilo.cli", "embed", place / "photos", "--weights", place / "e.safetensors"]
        command += ["--out", place / "rows.npy", "--size", "32", "--quiet"]
        child = f"import resource, subprocess, sys; subprocess.run({list(map(str, command))!r}, check=True); "
        child += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)"
        told = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True, cwd=ROOT)
        return float(told.stdout.split()[-1])


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--photos", type=int, default=512)
parser.add_argument("--memory", action="store_true")
parser.add_argument("--csv", type=Path)
args = parser.parse_args()
rows = compare(args.photos)
for n in (1_000, 100_000) if args.memory else ():
    rows.append(dict(what="dilo embed, peak of memory", photos=n, megabytes=round(peak(n), 1)))
    print(rows[-1], flush=True)
if args.csv:
    pd.DataFrame(rows).to_csv(args.csv, index=False)
