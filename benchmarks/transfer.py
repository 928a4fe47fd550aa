"""A step of `dilo transfer detect` against torchvision's own model and the loop that its reference script has, on the same
tensors:

`python benchmarks/transfer.py [--steps N] [--memory N] [--csv TABLE.csv]`. torchvision's model: Faster R-CNN, or Mask R-CNN,
on `_resnet_fpn_extractor` of torchvision's ResNet-18 with the same options as dilo's protocol; its loop: zero_grad, forward,
sum of the losses, backward, step. Both take N steps on the same scenes of the embedded world in turn, three times; the table
has the median of photos a second. With `--memory`: the process's memory after each tenth of N more steps of ours.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter

import pandas as pd
import psutil
import torch
import torchvision
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from dilo.training import Encoder
from dilo.transfer import TASKS, Problems, check_photos, protocol_of, write_transfer_world
from dilo.transfer.loop import Fit, new_accelerator
from dilo.transfer.scenes import read_coco_boxes


def theirs(protocol, classes):
    "torchvision's detector with the options of a protocol, and an optimiser of its reference script."
    body = _resnet_fpn_extractor(torchvision.models.resnet18(norm_layer=torch.nn.BatchNorm2d), 5)
    before_train, train, before_test, test = protocol.proposals
    options = dict(
        min_size=protocol.sizes, max_size=protocol.longest, box_detections_per_img=protocol.detections,
        box_batch_size_per_image=protocol.rois, rpn_pre_nms_top_n_train=before_train, rpn_pre_nms_top_n_test=before_test,
        rpn_post_nms_top_n_train=train, rpn_post_nms_top_n_test=test, box_roi_pool=MultiScaleRoIAlign(list("0123"), 7, 2),
        rpn_anchor_generator=AnchorGenerator(tuple((a,) for a in protocol.anchors), ((0.5, 1.0, 2.0),) * 5),
        box_head=TwoMLPHead(256 * 49, 256), box_predictor=FastRCNNPredictor(256, classes + 1),
    )  # fmt: skip
    if protocol.masks:
        options |= dict(mask_roi_pool=MultiScaleRoIAlign(list("0123"), 14, 2), mask_head=MaskRCNNHeads(256, [256] * 2, 1),
                        mask_predictor=MaskRCNNPredictor(256, 256, classes + 1))  # fmt: skip
    model = (MaskRCNN if protocol.masks else FasterRCNN)(body, **options).train()
    return model, torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9, weight_decay=1e-4)


def reference_steps(model, optimiser, batches, device):
    "torchvision's loop."
    for examples in batches:
        images = [one["image"].to(device) for one in examples]
        targets = [{k: v.to(device) for k, v in one["target"].items()} for one in examples]
        optimiser.zero_grad()
        losses = sum(model(images, targets).values())
        losses.item()  # the script watches for a loss that is no number
        losses.backward()
        optimiser.step()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--memory", type=int, default=0, metavar="N")
    parser.add_argument("--csv")
    args = parser.parse_args()
    rows, machine = [], new_accelerator("fp32")
    with tempfile.TemporaryDirectory() as folder:
        write_transfer_world(folder, 64, 2)
        train = check_photos(read_coco_boxes(Path(folder) / "scenes", Problems())[0], Problems())
        for name in ("small", "small_masks"):
            base = protocol_of("detect", name)
            schedule = replace(base.schedule, lr=0.001, warmup=0.0, epochs=None, steps=10**9)
            protocol = replace(base, box_head=256, schedule=schedule)
            task, size = TASKS["detect"], protocol.schedule.batch
            torch.manual_seed(0)
            examples = [task.example(train, row, protocol, True) for row in range(64)]
            batches = [examples[k * size % 64 :][:size] for k in range(args.steps)]
            network = task.network(Encoder("resnet18", 64, "imagenet"), protocol, train, False)
            fit = Fit(task, network, train, protocol, 0, Path(folder) / name, {}, machine)
            fit.network.train()
            model, optimiser = theirs(protocol, len(train.classes))
            model.to(machine.device)
            # the mask heads of ours are normalised; theirs are not, as torchvision has it
            runs = {"dilo": lambda fit=fit, b=batches: [fit.take_step(one) for one in b],
                    "torchvision": lambda m=model, o=optimiser, b=batches: reference_steps(m, o, b, machine.device)}
            found = {who: [] for who in runs}
            for turn in range(4):
                for who, run in runs.items():
                    start = perf_counter()
                    run()
                    if turn:  # the first is a warm-up
                        found[who].append(args.steps * size / (perf_counter() - start))
            rates = {who: median(values) for who, values in found.items()}
            speeds = {f"{who}_photos_per_second": round(rate, 2) for who, rate in rates.items()}
            rows.append(dict(protocol=name, **speeds,
                             ratio=round(rates["dilo"] / rates["torchvision"], 3)))  # fmt: skip
            for tenth in range(10 if args.memory else 0):
                for k in range(args.memory // 10):
                    fit.take_step(batches[k % len(batches)])
                used = psutil.Process().memory_info().rss / 2**20
                rows.append(dict(protocol=name, steps=(tenth + 1) * (args.memory // 10), memory_mib=round(used)))
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    if args.csv:
        table.to_csv(args.csv, index=False)


if __name__ == "__main__":
    main()
