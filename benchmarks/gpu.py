"""Everything that is measured on a GPU: `bash benchmarks/gpu.sh`, within eight minutes on one data-centre card.

Parts, in the order in which they run:

- checks: the engine of the views and RBD against the CPU; nothing in a view waits for the GPU; a run in bf16 that was
  stopped and continued has the bits of one that was not;
- r50: MoCo v2 with a ResNet-50 at 224 px, batch 256, bf16, against two forwards and a backward of the same network on
  a tensor in memory; then what torch.compile, CUDA graphs and a fused optimiser would gain on that bare step;
- views: pairs of MoCo v2's views with DiLo's paste at 224 px, and the share of the copy bandwidth that their bytes take;
- rbd: saliency maps by RBD at 224 px;
- lightly: MoCo v2 with a ResNet-18 at 64 px, batch 128, and lightly's modules on the same card, if lightly is there;
- profile: where a step of r50 spends its time (torch.profiler), to profile.csv beside the table;
- imagenette: ResNet-18, 128 px, 200 epochs, MoCo v2, then DiLo: time, and kNN of the last epoch. It takes what is left
  of --minutes, stops, and goes on with the next call. --photos names the folder with train/ and val/.

The table goes to --csv (results/gpu.csv), a row for each figure, with the card and the versions. A part that could not run
has a row that says why. On a CPU nothing is measured and every row stays empty, unless --dry-run asks for every part in
miniature, which shows that the script runs and nothing else.
"""

import argparse
import importlib.util
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from dilo.augmentation import VIEW_RECIPES, PasteLaw, background_pool, make_views, mean_alpha, moco_v2
from dilo.config import parse_settings
from dilo.data import open_arrays, pack, render_world, write_photos_index
from dilo.evaluation import features, knn
from dilo.saliency import rbd_batch, saliency_maps
from dilo.training import Encoder, Interrupted, Run, pretrain

PARTS = ("checks", "r50", "views", "rbd", "lightly", "profile", "imagenette")
COLUMNS = ["part", "figure", "value", "asked", "note", "card", "torch"]


class Bench:
    "What all parts share: the device, whether this is the miniature, and the rows so far."

    def __init__(self, dry, minutes):
        self.gpu, self.dry, self.deadline = torch.cuda.is_available(), dry, time.monotonic() + 60 * minutes
        self.device, self.rows = torch.device("cuda" if self.gpu else "cpu"), []
        self.card = torch.cuda.get_device_name() if self.gpu else "CPU, miniature"

    def size(self, full, miniature):
        return miniature if self.dry else full

    def add(self, part, figure, value, asked="", note=""):
        row = dict(zip(COLUMNS, (part, figure, value, asked, note, self.card, torch.__version__)))
        self.rows.append(row)
        print(f"{part}, {figure}: {value if isinstance(value, str) else format(value, '.4g')} {note}", flush=True)

    def now(self):
        if self.gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    def rate(self, step, count, seconds=6.0):
        "Calls a second times `count`, after three calls that are not timed."
        for _ in range(3):
            step()
        started, calls = self.now(), 0
        while calls < self.size(10, 1) or (not self.dry and self.now() - started < seconds and calls < 200):
            step()
            calls += 1
        return calls * count / (self.now() - started)


def world_images(count, side):
    "Images of the world, enlarged to `side` px, and their masks: uint8 arrays."
    world = render_world(count, size=64)
    grow = [torch.nn.functional.interpolate(torch.from_numpy(x).float(), (side, side)) for x in (world.images, world.masks)]
    return [x.byte().numpy() for x in grow]


def settings_of(side, batch, precision="bf16", epochs=1000, recipe=None, **model):
    model = dict(backbone="resnet50", width=64, stem="imagenet") | model
    return parse_settings(
        dict(
            views=dict(size=side),
            model=model,
            moco_v2=dict(queue=max(4096, 2 * batch)),
            train=dict(epochs=epochs, batch=batch, lr=0.03 * batch / 256, precision=precision),
            recipes=dict(case=recipe or dict(method="moco_v2")),
            study=dict(recipes=["case"], seeds=[0]),
        )
    )


class Asking:
    "Images; after some batches somebody asks the run to stop, as Ctrl-C does."

    def __init__(self, images, batches):
        self.images, self.left, self.shape = images, batches, images.shape

    def __len__(self):
        return len(self.images)

    def __getitem__(self, rows):
        if not isinstance(rows, slice):
            self.left -= 1
            if self.left == 0:
                signal.raise_signal(signal.SIGINT)
        return self.images[rows]


def checks(bench):
    images, masks = (torch.from_numpy(x) for x in world_images(24, 96))
    pool, index = background_pool("inpaint", images, masks), np.arange(24)
    on = [x.to(bench.device) for x in (images, masks)]
    regions = np.tile([[[10.0, 10, 60, 60]]], (24, 1, 1)), np.ones((24, 1))
    close, area = [], mean_alpha(masks)
    for make in VIEW_RECIPES.values():
        recipe = make(48, PasteLaw(0.5, background="inpaint"))
        given = dict(regions=regions, area=area)
        here = make_views(recipe, images, index, masks, pool=pool, **given)
        there_pool = pool.to(bench.device)
        if bench.gpu:
            torch.cuda.set_sync_debug_mode("error")
        there = make_views(recipe, on[0], index, on[1], pool=there_pool, **given)
        if bench.gpu:
            torch.cuda.set_sync_debug_mode("default")
        close += [((a - b.cpu()).abs() < 1e-4).float().mean().item() for a, b in zip(here.images, there.images)]
    bench.add("checks", "values of the views within 1e-4 of the CPU's", min(close), ">= 0.999", "the lowest of all recipes")
    bench.add("checks", "waits for the GPU in a view", 0.0 if bench.gpu else "not run", "0", "an error if there were any")
    photos = torch.from_numpy(world_images(8, bench.size(224, 96))[0])
    apart = (rbd_batch(photos.to(bench.device)).cpu() - rbd_batch(photos)).abs().mean().item()
    bench.add("checks", "mean difference of RBD from the CPU's", apart, "<= 0.001", "levels from 0 to 1")

    small = settings_of(32, 16, epochs=3, backbone="resnet18", width=8, stem="small")
    images, rows = np.tile(images.numpy()[:, :, ::3, ::3], (2, 1, 1, 1)), np.arange(48)
    with tempfile.TemporaryDirectory() as folder:
        options = dict(progress=False)
        pretrain(small, "case", 0, images, rows, f"{folder}/whole", **options)
        try:
            pretrain(small, "case", 0, Asking(images, 5), rows, f"{folder}/cut", **options)
        except Interrupted:
            pretrain(small, "case", 0, images, rows, f"{folder}/cut", **options)
        same = [Path(folder, name, "encoder.safetensors").read_bytes() for name in ("whole", "cut")]
    bench.add("checks", "a continued run in bf16 has the same bits", float(same[0] == same[1]), "1")


def _bare_step(bench, encoder, key, x, optimiser=None):
    "Two forwards and a backward, as MoCo needs them; without loss, views, queue."

    def step():
        with torch.autocast(bench.device.type, torch.bfloat16):
            with torch.no_grad():
                key(x)
            out = encoder(x)
        out.float().square().mean().backward()
        if optimiser is not None:
            optimiser.step()
        encoder.zero_grad(set_to_none=True)

    return step


def _r50_run(bench, folder):
    side, batch = bench.size((224, 256), (32, 8))
    model = bench.size({}, dict(backbone="resnet18", width=8, stem="small"))
    images, masks = world_images(bench.size(2048, 24), bench.size(256, 48))
    run = Run(settings_of(side, batch, **model), "case", 0, images, np.arange(len(images)), folder, masks, False)
    return run, side, batch, model


def r50(bench):
    with tempfile.TemporaryDirectory() as folder:
        run, side, batch, model = _r50_run(bench, folder)
        ours = bench.rate(run.learn, run.at.steps * batch, seconds=20)
        if bench.gpu:
            bench.add("r50", "memory of MoCo v2, GiB", torch.cuda.max_memory_allocated() / 2**30)
        run.close()

    def networks():
        options = dict(backbone="resnet50", width=64, stem="imagenet") | model
        made = [Encoder(**options).to(bench.device, memory_format=torch.channels_last) for _ in range(2)]
        return made[0].train(), made[1].train().requires_grad_(False)

    x = torch.rand(batch, 3, side, side, device=bench.device).to(memory_format=torch.channels_last)
    bare = bench.rate(_bare_step(bench, *networks(), x), batch)
    bench.add("r50", "images/s of MoCo v2", ours)
    bench.add("r50", "images/s of two forwards and a backward", bare)
    bench.add("r50", "MoCo v2 over two forwards and a backward", ours / bare, ">= 0.9")
    kinds = {"torch.compile": {}, "CUDA graphs": dict(mode="reduce-overhead")}
    for name, options in bench.size(kinds, {"torch.compile": dict(backend="eager")}).items():
        if time.monotonic() > bench.deadline - bench.size(240, 0):
            bench.add("r50", f"{name}: gain over eager", "not run", note="no time left")
            continue
        encoder, key = networks()
        compiled = [torch.compile(m, **options) for m in (encoder, key)]
        speed = bench.rate(_bare_step(bench, *compiled, x), batch)
        bench.add("r50", f"{name}: gain over eager", speed / bare, "kept from 1.1")
        del compiled
        torch._dynamo.reset()
    for name, options in (("foreach", dict(foreach=True)), ("fused", dict(fused=True))):
        encoder, key = networks()
        optimiser = torch.optim.SGD(encoder.parameters(), 0.03, momentum=0.9, weight_decay=1e-4, **options)
        speed = bench.rate(_bare_step(bench, encoder, key, x, optimiser), batch)
        bench.add("r50", f"bare step with SGD, {name}: over the step without it", speed / bare)


def views(bench):
    side, batch = bench.size((224, 256), (32, 8))
    images, masks = (torch.from_numpy(x).to(bench.device) for x in world_images(batch, bench.size(256, 48)))
    recipe, index, area = moco_v2(side, PasteLaw(0.3)), np.arange(batch), mean_alpha(masks)
    epochs = iter(range(10**9))
    speed = bench.rate(lambda: make_views(recipe, images, index, masks, area=area, epoch=next(epochs)), 2 * batch)
    copied = torch.empty(bench.size(2**28, 2**20), dtype=torch.float32, device=bench.device)
    to = torch.empty_like(copied)
    bandwidth = bench.rate(lambda: to.copy_(copied), 8 * copied.numel())
    least = 3 * images.shape[2] ** 2 + 12 * side**2  # each image read once as bytes, each view written once as float32
    bench.add("views", "views/s", speed, ">= 20000")
    bench.add("views", "copy bandwidth, GB/s", bandwidth / 1e9, note="read and written")
    bench.add("views", "share of it that the views' bytes take", speed * least / bandwidth)


def rbd(bench):
    images = torch.from_numpy(world_images(bench.size(128, 4), bench.size(224, 96))[0]).to(bench.device)
    bench.add("rbd", "images/s", bench.rate(lambda: rbd_batch(images), len(images)), ">= 2000")


def lightly(bench):
    if importlib.util.find_spec("lightly") is None:
        return bench.add("lightly", "MoCo v2 over lightly's", "not run", note="lightly is not installed")
    if bench.dry:
        return bench.add("lightly", "MoCo v2 over lightly's", "not run", note="nothing to show in miniature")
    import train

    speed = "images_per_second_of_epochs"
    ours, theirs = train.run_dilo("moco_v2")[speed], train.run_lightly(8)[speed]
    bench.add("lightly", "images/s of MoCo v2, 64 px", ours)
    bench.add("lightly", "images/s of lightly's MoCo v2, 64 px", theirs, note="8 workers")
    bench.add("lightly", "MoCo v2 over lightly's", ours / theirs)


def profile(bench):
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.gpu else [])]
    with tempfile.TemporaryDirectory() as folder:
        run, *_ = _r50_run(bench, folder)
        run.learn(steps=2)
        with profiler(activities=kinds) as found:
            run.learn(steps=min(5, run.at.steps - run.at.step))
        run.close()
    key = "self_device_time_total" if bench.gpu else "self_cpu_time_total"
    rows = [(e.key, e.count, getattr(e, key) / 1000) for e in found.key_averages()]
    table = pd.DataFrame(rows, columns=["operation", "calls", "ms"]).sort_values("ms", ascending=False)
    table["share"] = table.ms / table.ms.sum()
    bench.profile = table.head(40).round(4)
    bench.add("profile", "share of the five longest operations", table.share.head(5).sum(), note="see profile.csv")


def _packed(bench, photos, work):
    "The photos as arrays with maps, made once: images, labels, rows of train and val."
    if not (work / "arrays/images.npy").is_file():
        write_photos_index(work / "index", photos, [work])
        pack(work / "index", work / "arrays", size=bench.size(160, 48), storage="packed", progress=False)
    arrays = open_arrays(work / "arrays")
    names = arrays.index.path.str.replace("\\", "/").str.split("/")
    labels = names.str[-2].astype("category").cat.codes.to_numpy()
    train = (names.str[-3] == "train").to_numpy()
    if not train.any() or train.all():
        raise FileNotFoundError(f"{photos}: needs train/<class>/ and val/<class>/")
    return arrays.images, labels, np.flatnonzero(train), np.flatnonzero(~train)


def imagenette(bench, photos, work):
    if photos is None:
        return bench.add("imagenette", "seconds of 200 epochs", "not run", note="--photos names no folder")
    started = time.monotonic()
    images, labels, train, val = _packed(bench, photos, work)
    options = dict(device="cuda") if bench.gpu else {}
    maps = saliency_maps(images, "rbd", bench.size(224, 96), out=work / "rbd.npy", progress=False, **options)
    bench.add("imagenette", "seconds of decoding and RBD", time.monotonic() - started, note="0 if kept from an earlier call")
    side, batch, epochs = bench.size((128, 256, 200), (32, 16, 2))
    model = dict(backbone="resnet18") | bench.size({}, dict(width=8, stem="small"))
    for name, recipe in (
        ("MoCo v2", dict(method="moco_v2")),
        ("DiLo", dict(method="moco_v2", saliency="rbd", probability=0.3)),
    ):
        settings = settings_of(side, batch, epochs=epochs, recipe=recipe, **model).model_dump()
        settings["moco_v2"] |= dict(queue=bench.size(4096, 64), momentum=0.99)
        settings["train"] |= dict(lr=0.06 * batch / 256, weight_decay=5e-4)
        folder = work / name.replace(" ", "-")
        run = Run(parse_settings(settings), "case", 0, images, train, folder, maps, False)
        run.files.begin(run.made | run.machine)
        while run.at.epoch < epochs and time.monotonic() < bench.deadline:
            run.learn()
        run.files.save(run.state())
        seconds = sum(len(train) // batch * batch / row["images_per_second"] for row in run.log.history)
        if run.at.epoch < epochs:
            note = f"epoch {run.at.epoch} of {epochs} after {seconds:.0f} s: the next call goes on"
            bench.add("imagenette", f"{name}: seconds of {epochs} epochs", "not finished", "<= 240", note)
            run.close()
            return
        encoder = run.learner.bare.encoder.eval()
        found = [features(encoder, images[rows], side) for rows in (train, val)]
        sides = [torch.from_numpy(labels[rows].astype(np.int64)).to(found[0].device) for rows in (train, val)]
        told = knn(found[0], sides[0], found[1], k=min(200, len(train) // 2))
        bench.add("imagenette", f"{name}: seconds of {epochs} epochs", seconds, "<= 240")
        bench.add("imagenette", f"{name}: kNN of the last epoch", (told == sides[1]).double().mean().item(), ">= 0.80")
        run.close()


def empty_rows(why):
    "The rows of a machine on which nothing was measured."
    figures = dict(
        checks=["values of the views within 1e-4 of the CPU's", "waits for the GPU in a view",
            "mean difference of RBD from the CPU's", "a continued run in bf16 has the same bits"],
        r50=["images/s of MoCo v2", "images/s of two forwards and a backward", "MoCo v2 over two forwards and a backward"],
        views=["views/s"],
        rbd=["images/s"],
        lightly=["MoCo v2 over lightly's"],
        imagenette=[f"{m}: {f}" for m in ("MoCo v2", "DiLo") for f in ("seconds of 200 epochs", "kNN of the last epoch")],
    )  # fmt: skip
    rows = [(part, figure, "", "", why, "", "") for part, names in figures.items() for figure in names]
    return pd.DataFrame(rows, columns=COLUMNS)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, default=ROOT / "results/gpu.csv", help="where the table goes")
    parser.add_argument("--minutes", type=float, default=8, help="after which imagenette stops and is kept (default: 8)")
    parser.add_argument("--photos", type=Path, help="a folder with train/<class>/ and val/<class>/, for imagenette")
    parser.add_argument("--work", type=Path, default=ROOT / "build/gpu", help="what imagenette keeps between calls")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="to run (default: all)")
    parser.add_argument("--dry-run", action="store_true", help="every part in miniature, on a CPU too; measures nothing")
    args = parser.parse_args()
    if not torch.cuda.is_available() and not args.dry_run:
        measured = args.csv.is_file() and pd.read_csv(args.csv).value.notna().any()
        if not measured:
            empty_rows("not measured: no GPU was at hand").to_csv(args.csv, index=False)
        sys.exit(f"no GPU here: nothing was measured, and {args.csv} {'was left alone' if measured else 'has empty rows'}")
    bench = Bench(args.dry_run, args.minutes)
    args.work.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        if part not in args.parts:
            continue
        try:
            if part == "imagenette":
                imagenette(bench, args.photos, args.work)
            else:
                globals()[part](bench)
        except Exception as e:  # the other parts are still worth their time
            bench.add(part, "all", "failed", note=f"{type(e).__name__}: {e}"[:300])
        args.csv.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(bench.rows, columns=COLUMNS).to_csv(args.csv, index=False, float_format="%.4g")
    if hasattr(bench, "profile"):
        bench.profile.to_csv(args.csv.with_name("profile.csv"), index=False)
    if args.dry_run:
        shutil.rmtree(args.work)
    print(pd.DataFrame(bench.rows, columns=COLUMNS).to_string(index=False))
    sys.exit(1 if any(row["value"] == "failed" for row in bench.rows) else 0)


if __name__ == "__main__":
    main()
