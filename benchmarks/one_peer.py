"""Fit and predict one category with the kit, the reference or anomalib, and write what came out; see `peers.py`.

Stands alone: anomalib's environment need not have the kit.
"""

import argparse
import os
import re
import resource
import sys
import time
from pathlib import Path

import numpy as np


def resnet18(weights: str) -> "torch.nn.Module":  # noqa: F821  # loaded by the peers when they like: the kit goes first
    """torchvision's network with weights that may stop after layer3."""
    import torch
    from torchvision import models

    network = models.resnet18(weights=None)
    network.load_state_dict(torch.load(weights), strict=False)
    return network.eval()


def peak() -> float:
    """Gigabytes of resident memory at their highest (Linux)."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found.group(1) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024 / 1e9


def warm_up(device: str) -> "torch.cuda":  # noqa: F821
    """Let torch load what it computes with on a GPU, for which only the first image waits. Gives the GPU's module."""
    import torch

    image = torch.zeros(1, 8, 32, 32, device=device)
    torch.nn.functional.conv2d(image, image[:, :, :3, :3]).flatten(2).matmul(image.new_zeros(900, 8)).cpu()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda


def kit(options: argparse.Namespace) -> tuple:
    """-> callables that fit and predict; the second returns (scores, maps, paths)."""
    import patchcore_kit as pk

    category = pk.load_category(options.data, options.category)
    backbone = pk.load_backbone("resnet18", weights=options.weights, device=options.device, precision=options.precision)
    detector = pk.PatchCore(backbone, percentage=options.percentage, storage=options.storage, progress=False)

    def predict():
        predictions = detector.predict(category.test)
        return predictions.scores, predictions.maps, [str(sample.path) for sample in category.test]

    return lambda: detector.fit(category.train), predict


def reference(options: argparse.Namespace) -> tuple:
    """The reference's classes, as its command line sets them up, but with FAISS on the CPU and with these weights."""
    sys.path.insert(0, str(Path(options.checkout) / "src"))
    import torch
    from patchcore.common import FaissNN
    from patchcore.datasets.mvtec import DatasetSplit, MVTecDataset
    from patchcore.patchcore import PatchCore
    from patchcore.sampler import ApproximateGreedyCoresetSampler

    device = torch.device(options.device)
    sets = [
        MVTecDataset(options.data, options.category, 256, 224, split)
        for split in (DatasetSplit.TRAIN, DatasetSplit.TEST)
    ]
    pin = device.type == "cuda"
    train, test = (
        torch.utils.data.DataLoader(s, batch_size=2, num_workers=os.cpu_count(), pin_memory=pin) for s in sets
    )
    detector = PatchCore(device)
    network = resnet18(options.weights)
    network.name = "resnet18"
    detector.load(
        backbone=network,
        layers_to_extract_from=["layer2", "layer3"],
        device=device,
        input_shape=(3, 224, 224),
        pretrain_embed_dimension=1024,
        target_embed_dimension=1024,
        featuresampler=ApproximateGreedyCoresetSampler(options.percentage, device),
        nn_method=FaissNN(False, os.cpu_count()),
    )

    def predict():
        scores, maps, _, _ = detector.predict(test)
        return scores, maps, [path for *_, path, _ in sets[1].data_to_iterate]

    return lambda: detector.fit(train), predict


def anomalib(options: argparse.Namespace) -> tuple:
    """anomalib's PatchCore model in the loop that its engine runs, without the engine."""
    import torch
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel
    from PIL import Image
    from torchvision.transforms import v2

    folder = Path(options.data) / options.category
    paths = {split: sorted(folder.glob(f"{split}/*/*.png")) for split in ("train", "test")}
    transform = v2.Compose([
        v2.Resize(256), v2.CenterCrop(224), v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
        v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])  # fmt: skip

    class Images(torch.utils.data.Dataset):
        def __init__(self, split):
            self.paths = paths[split]

        def __len__(self):
            return len(self.paths)

        def __getitem__(self, i):
            return transform(Image.open(self.paths[i]).convert("RGB"))

    train, test = (
        torch.utils.data.DataLoader(Images(split), batch_size=8, num_workers=os.cpu_count()) for split in paths
    )
    model = PatchcoreModel(layers=["layer2", "layer3"], backbone="resnet18", pre_trained=False, num_neighbors=1)
    model.feature_extractor.feature_extractor.load_state_dict(torch.load(options.weights), strict=False)
    model.to(options.device)

    @torch.no_grad()
    def fit():
        model.train()
        for images in train:
            model(images.to(options.device))
        model.subsample_embedding(options.percentage)

    @torch.no_grad()
    def predict():
        model.eval()
        found = [model(images.to(options.device)) for images in test]
        scores, maps = (torch.cat([getattr(f, name) for f in found]).cpu() for name in ("pred_score", "anomaly_map"))
        return scores.flatten(), maps.reshape(len(scores), *maps.shape[-2:]), list(map(str, paths["test"]))

    return fit, predict


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("who", choices=("kit", "reference", "anomalib"))
    for name in ("data", "category", "weights", "out", "checkout"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--percentage", type=float)
    parser.add_argument("--storage", default="float32")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    fit, predict = {"kit": kit, "reference": reference, "anomalib": anomalib}[options.who](options)
    cuda = warm_up(options.device) if options.device != "cpu" else None
    imports, start = peak(), time.perf_counter()
    fit()
    if cuda:
        cuda.synchronize(options.device)
    fitted = time.perf_counter()
    scores, maps, paths = predict()
    done = time.perf_counter()
    gpu = cuda.max_memory_allocated(options.device) / 1e9 if cuda else 0
    np.savez(
        options.out,
        fit=fitted - start, predict=done - fitted, peak=peak() - imports, gpu=gpu,
        scores=np.asarray(scores), maps=np.asarray(maps, dtype=np.float32), paths=np.array(paths),
    )  # fmt: skip
