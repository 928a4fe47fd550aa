"""What moves the bits of a run: `python benchmarks/repeat.py [--csv FILE] [--steps N]`, on the CPU of this machine.

The same short run (MoCo v2 with DiLo's paste, the world's network, 64 px, batch 64) is learned again and again, each time
in a process of its own in which one thing is different: the number of threads; the instructions that oneDNN (convolutions),
ATen (sums, BatchNorm) and MKL (matrix products) may use, as an older processor would have them; the precision. The table
says whether the encoder has the same bits as the first run of its precision, how far its weights are from it, and how fast
the run was. Two precisions are never the same, so each has a first run of its own.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

THREADS = [{"OMP_NUM_THREADS": str(n)} for n in (1, 2, 4)]
ONEDNN = [{"ONEDNN_MAX_CPU_ISA": isa} for isa in ("SSE41", "AVX2", "AVX512_CORE", "AVX512_CORE_BF16")]
ATEN = [{"ATEN_CPU_CAPABILITY": kind} for kind in ("default", "avx2", "avx512")]
MKL = [{"MKL_CBWR": kind} for kind in ("COMPATIBLE", "AVX2", "AVX512")]
OLDER = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2"}
CASES = [{}, {}, *THREADS, *ONEDNN, *ATEN, *MKL, OLDER, OLDER | {"OMP_NUM_THREADS": "1"}]


def learn(precision, steps, weights):
    "Learns for some steps, writes the encoder to the file `weights`, prints a line of JSON."
    import numpy as np
    import torch

    from dilo.config import parse_settings
    from dilo.data import render_world
    from dilo.training import Run, made_on

    batch, images = 64, 640
    settings = parse_settings(
        dict(
            model=dict(backbone="resnet18", width=16, stem="small"),
            moco_v2=dict(queue=512, momentum=0.99),
            train=dict(epochs=1000, batch=batch, lr=0.06, weight_decay=0.0005, warmup=1, precision=precision),
            recipes=dict(dilo=dict(method="moco_v2", saliency="true_mask", probability=0.3)),
            study=dict(recipes=["dilo"], seeds=[0]),
        )
    )
    world = render_world(images)
    run = Run(settings, "dilo", 0, world.images, np.arange(images), tempfile.mkdtemp(), world.masks, False)
    run.learn(steps=2)  # compiles the kernels of the views
    started = perf_counter()
    while run.at.done < steps:
        run.learn()
    speed = (run.at.done - 2) * batch / (perf_counter() - started)
    flat = torch.cat([p.detach().double().flatten() for p in run.learner.bare.encoder.parameters()])
    torch.save(flat, weights)
    digest = hashlib.sha256(flat.numpy().tobytes()).hexdigest()
    print(json.dumps(dict(digest=digest, images_per_second=speed, **made_on(torch.device("cpu")))))


def measure(changes, precision, steps, weights):
    "The numbers of a run in a process of its own, in an environment with changes."
    command = [sys.executable, __file__, "--one", precision, "--steps", str(steps), "--weights", str(weights)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | changes)
    if done.returncode:
        sys.exit(f"{changes}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", help="write the table there")
    parser.add_argument("--steps", type=int, default=100, help="of each run (default: 100)")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--weights", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return learn(args.one, args.steps, args.weights)
    import torch

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for precision in ("fp32", "bf16"):
            first = None
            for number, changes in enumerate(CASES):
                weights = Path(folder) / f"{precision}-{number}.pt"
                found = measure(changes, precision, args.steps, weights)
                flat = torch.load(weights, weights_only=True)
                first = (found["digest"], flat) if first is None else first
                same, apart = found["digest"] == first[0], float((flat - first[1]).norm() / first[1].norm())
                changed = ", ".join(f"{k}={v}" for k, v in changes.items()) or ("again" if number else "as it is")
                rows.append(dict(precision=precision, changed=changed, same_bits=same, apart=apart, **found))
                print(f"{precision}, {changed}: {'same' if same else 'OTHER'} bits, {apart:.1e} apart", flush=True)
    table = pd.DataFrame(rows).drop(columns="digest").assign(steps=args.steps)
    if args.csv:
        table.to_csv(args.csv, index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
