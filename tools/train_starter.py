"""Teach the starter backbone: python tools/train_starter.py weights/resnet18.pth

The teacher is a ResNet-18 trained on ImageNet. Images are drawn without end (`drawn_images.py`), cropped, and shown to
both networks; the starter learns to predict the teacher's layer2 and layer3. No photograph is used.

Loss: mean squared error of both maps, each channel scaled to mean 0 and deviation 1, so that all count alike.
Steps: 28 512, see `Plan`; 147 840 crops of 49 280 images, each seen about eight times; about four hours on two cores.
The same command goes on where it was stopped.
Result: patchcore_kit/starter.safetensors, the average of the last steps' weights, in float16.
"""

import math
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import click
import drawn_images
import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import fusion, parametrize

import patchcore_kit as pk
from patchcore_kit.starter import Starter
from patchcore_kit.transforms import IMAGENET_MEAN, IMAGENET_STD

OUT = Path(pk.__file__).with_name("starter.safetensors")
HELD_OUT = 512  # images that are never trained on


@dataclass(frozen=True)
class Plan:
    """How long and on what. Everything goes in chunks: draw some images, drop the oldest, train for a while.

    Small crops first: they cost half as much, so more images are seen in the same time.
    """

    small: int = 56  # chunks with small crops
    large: int = 80  # chunks with the size of the workshop
    fine: int = 80  # from this chunk on, more of small and fine things
    side: tuple[int, int] = (160, 224)
    batch: tuple[int, int] = (64, 32)
    images: int = 352  # new images in a chunk
    crops: int = 3  # from each
    pool: int = 8  # chunks whose crops are kept; each crop is seen about as often
    # the rate of learning (Muon's; AdamW's is a quarter) at some steps, straight lines between: two cycles
    knots: tuple[int, ...] = (0, 100, 5491, 13728, 13992, 28512)
    rates: tuple[float, ...] = (0, 1.6e-2, 1.6e-2, 0, 8e-3, 0)

    @property
    def chunks(self) -> int:
        return self.small + self.large

    @property
    def steps(self) -> list[int]:
        """Steps in each chunk."""
        return [self.images * self.crops * self.pool // self.batch[chunk >= self.small] for chunk in range(self.chunks)]


# --- what is shown ---------------------------------------------------------------------------------------------------


def crop(image: np.ndarray, rng: Generator, side: int) -> np.ndarray:
    """An image (S, S, 3) -> a piece of it (3, side, side): any scale, flip, turn, colours and contrast."""
    whole = len(image)
    width = whole * math.exp(rng.uniform(math.log(0.45), 0))
    height = min(whole, width * math.exp(rng.normal(0, 0.1)))
    x, y = rng.uniform(0, whole - width), rng.uniform(0, whole - height)
    piece = np.asarray(
        Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC, (x, y, x + width, y + height))
    )
    if rng.random() < 0.5:
        piece = piece[:, ::-1]
    piece = np.rot90(piece, rng.integers(4))[..., rng.permutation(3)]
    if rng.random() < 0.15:
        piece = 255 - piece
    if rng.random() < 0.5:
        piece = 255 * (piece / 255) ** math.exp(rng.normal(0, 0.35))
        middle = piece.mean()
        piece = (piece - middle) * math.exp(rng.normal(0, 0.25)) + middle + rng.normal(0, 8)
    return np.moveaxis(piece.clip(0, 255).astype(np.uint8), 2, 0)


def crops(seed: tuple[int, ...], count: int, side: int, fine: bool) -> np.ndarray:
    """Draw one image -> pieces of it (count, 3, side, side)."""
    rng = np.random.default_rng(seed)
    image = drawn_images.draw(rng, fine)
    return np.stack([crop(image, rng, side) for _ in range(count)])


def normalised(images: Tensor) -> Tensor:
    """Bytes (B, 3, H, W) -> the networks' input."""
    mean, deviation = torch.tensor((IMAGENET_MEAN, IMAGENET_STD), device=images.device).view(2, 3, 1, 1)
    return ((images / 255 - mean) / deviation).contiguous(memory_format=torch.channels_last)


class Teacher:
    """ResNet-18: bytes (N, 3, H, W) -> maps, each channel scaled by what it does on the images held out."""

    def __init__(self, weights: Path, held_out: Tensor, device: str) -> None:
        self.backbone = pk.load_backbone("resnet18", weights=weights, device=device)
        self.truth = self.maps(held_out)
        self.mean = [maps.mean((0, 2, 3), keepdim=True) for maps in self.truth]
        self.deviation = [maps.std((0, 2, 3), keepdim=True) for maps in self.truth]

    def maps(self, images: Tensor) -> list[Tensor]:
        outputs = []
        with torch.autocast(self.backbone.device.type, torch.bfloat16):
            for batch in images.split(64):
                outputs.append([maps.float() for maps in self.backbone(normalised(batch.to(self.backbone.device)))])
        return [torch.cat(maps) for maps in zip(*outputs, strict=True)]

    def lesson(self, images: Tensor) -> list[Tensor]:
        """What the starter is to predict, in one byte each."""
        return [
            ((maps - mean) / deviation).clamp(max=400).to(torch.float8_e4m3fn)
            for maps, mean, deviation in zip(self.maps(images), self.mean, self.deviation, strict=True)
        ]


# --- who learns --------------------------------------------------------------------------------------------------


class _Shape(nn.Module):
    """A matrix as the weight of a convolution."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, matrix: Tensor) -> Tensor:
        return matrix.view(self.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight.flatten(1)


def student(seed: int) -> Starter:
    """The network to train; it keeps the weights of inner convolutions as matrices, as Muon wants them."""
    torch.manual_seed(seed)
    network = Starter(norm=True)
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and module.in_channels > 3 and not name.startswith("layer"):
            parametrize.register_parametrization(module, "weight", _Shape(module.weight.shape))
    return network


def optimisers(network: Starter) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the matrices, AdamW for the rest; `Course.train` sets their rates."""
    matrices = [p for name, p in network.named_parameters() if name.endswith("weight.original")]
    rest = [p for name, p in network.named_parameters() if not name.endswith("weight.original")]
    return [
        torch.optim.Muon(matrices, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, weight_decay=0.01),
    ]


def shipped(network: Starter, teacher: Teacher) -> Starter:
    """The trained network as the kit uses it: batch norm folded in, and outputs on the teacher's scale."""
    final = Starter().eval()
    trained = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.BatchNorm2d)]
    for target in (module for module in final.modules() if isinstance(module, nn.Conv2d)):
        source = trained.pop(0)
        weight, bias = source.weight.detach(), source.bias
        if trained and isinstance(trained[0], nn.BatchNorm2d):
            norm = trained.pop(0)
            weight, bias = fusion.fuse_conv_bn_weights(
                weight, bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
        target.load_state_dict({"weight": weight, "bias": bias})
    for head, mean, deviation in zip((final.layer2[0], final.layer3[0]), teacher.mean, teacher.deviation, strict=True):
        head.weight.data *= deviation.view(-1, 1, 1, 1)
        head.bias.data = head.bias.data * deviation.flatten() + mean.flatten()
    return final.requires_grad_(False)


def explained(predicted: Tensor, truth: Tensor) -> tuple[float, float]:
    """Explained variance: the mean over channels, and of all channels together."""
    error = (predicted - truth).square().mean((0, 2, 3)).double()
    variance = truth.var((0, 2, 3)).double()
    return float(1 - (error / variance).mean()), float(1 - error.sum() / variance.sum())


# --- the lessons -------------------------------------------------------------------------------------------------


class Course:
    """A training that goes on from its last checkpoint."""

    def __init__(self, plan: Plan, seed: int, folder: Path, weights: Path, device: str, workers: int) -> None:
        self.plan, self.seed, self.device = plan, seed, device
        self.checkpoint = folder / "checkpoint.pt"
        self.pool = ProcessPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
        self.held_out = self.draw((10**6,), HELD_OUT, 1, plan.side[1])
        self.teacher = Teacher(weights, self.held_out, device)
        self.network = student(seed).to(device, memory_format=torch.channels_last)
        self.average = student(seed).to(device, memory_format=torch.channels_last)
        self.optimisers = optimisers(self.network)
        self.chunk = self.step = 0
        self.images, self.lessons = torch.empty(0), [torch.empty(0), torch.empty(0)]
        if self.checkpoint.exists():
            state = torch.load(self.checkpoint, map_location=device)
            self.chunk, self.step, self.images, self.lessons = (
                state[name] for name in ("chunk", "step", "images", "lessons")
            )
            for part, saved in zip(self.parts(), state["parts"], strict=True):
                part.load_state_dict(saved)

    def parts(self) -> list:
        return [self.network, self.average, *self.optimisers]

    def save(self) -> None:
        state = {name: getattr(self, name) for name in ("chunk", "step", "images", "lessons")}
        draft = self.checkpoint.with_suffix(".draft")
        torch.save(state | {"parts": [part.state_dict() for part in self.parts()]}, draft)
        draft.replace(self.checkpoint)

    def draw(self, seed: tuple[int, ...], images: int, count: int, side: int, fine: bool = False) -> Tensor:
        seeds = [(self.seed, *seed, n) for n in range(images)]
        parts = self.pool.map(crops, seeds, *([option] * images for option in (count, side, fine)), chunksize=8)
        return torch.from_numpy(np.concatenate(list(parts)))

    def refill(self) -> None:
        """New crops in, the oldest out."""
        plan = self.plan
        side = plan.side[self.chunk >= plan.small]
        fresh = self.chunk in (0, plan.small)  # start with enough for a little variety
        fine = self.chunk >= plan.fine
        images = self.draw((self.chunk,), plan.images * (3 if fresh else 1), plan.crops, side, fine)
        lessons = self.teacher.lesson(images)
        if fresh:
            self.images, self.lessons = images, lessons
        else:
            keep = plan.images * plan.crops * plan.pool
            self.images = torch.cat((self.images, images))[-keep:]
            self.lessons = [torch.cat(both)[-keep:] for both in zip(self.lessons, lessons, strict=True)]

    def train(self) -> float:
        """One chunk's steps -> the mean loss."""
        plan, total = self.plan, 0.0
        steps = plan.steps[self.chunk]
        rng = torch.Generator().manual_seed(1000 * self.seed + self.chunk)
        for _ in range(steps):
            rate = float(np.interp(self.step, plan.knots, plan.rates))
            for optimiser, share in zip(self.optimisers, (1, 1 / 4), strict=True):
                for group in optimiser.param_groups:
                    group["lr"] = rate * share
            chosen = torch.randint(len(self.images), (plan.batch[self.chunk >= plan.small],), generator=rng)
            with torch.autocast(torch.device(self.device).type, torch.bfloat16):
                predicted = self.forward(self.network, normalised(self.images[chosen].to(self.device)))
            loss = sum(
                F.mse_loss(maps.float(), lesson[chosen].float())
                for maps, lesson in zip(predicted, self.lessons, strict=True)
            )
            for optimiser in self.optimisers:
                optimiser.zero_grad()
            loss.backward()
            for optimiser in self.optimisers:
                optimiser.step()
            self.step += 1
            total += loss.item()
            self.follow()
        self.chunk += 1
        return total / steps

    @staticmethod
    def forward(network: Starter, images: Tensor) -> list[Tensor]:
        """The maps before the last ReLU, which would stop the gradient where the prediction is below 0."""
        eighth = network.eighth(network.stem(images))
        return [network.layer2[0](eighth), network.layer3[0](network.sixteenth(eighth))]

    @torch.no_grad()
    def follow(self) -> None:
        """Let the averaged network follow the trained one: about the last tenth of all steps, 2000 at most."""
        weight = max(1 / 2000, 10 / (self.step + 10))
        for ours, theirs in zip(self.average.state_dict().values(), self.network.state_dict().values(), strict=True):
            if ours.is_floating_point():
                ours.lerp_(theirs, weight)

    def result(self) -> tuple[Starter, list[tuple[float, float]]]:
        """The averaged network as it is shipped, and what it explains of the teacher on images held out."""
        final = shipped(self.average, self.teacher)
        for tensor in final.state_dict().values():  # as it will be stored
            tensor.copy_(tensor.half())
        outputs = [final(normalised(batch.to(self.device))) for batch in self.held_out.split(64)]
        predicted = [torch.cat(maps) for maps in zip(*outputs, strict=True)]
        return final, [explained(*both) for both in zip(predicted, self.teacher.truth, strict=True)]


@click.command(help=__doc__)
@click.argument("weights", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--out", type=click.Path(path_type=Path), default=OUT, help="Where to write the result.")
@click.option("--checkpoints", type=click.Path(path_type=Path), default="starter-training", show_default=True)
@click.option("--device", default="cpu", show_default=True, help="Where to train, such as cuda.")
@click.option("--workers", default=2, show_default=True, help="Processes that draw, and CPU threads that train.")
@click.option("--seed", default=0, show_default=True)
def main(weights: Path, out: Path, checkpoints: Path, device: str, workers: int, seed: int) -> None:
    checkpoints.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(workers)
    plan = Plan()
    course = Course(plan, seed, checkpoints, weights, device, workers)
    start = time.monotonic()
    while course.chunk < plan.chunks:
        course.refill()
        drawn = time.monotonic()
        loss = course.train()
        final, (layer2, layer3) = course.result()
        click.echo(
            f"chunk {course.chunk}/{plan.chunks}  step {course.step}  loss {loss:.3f}  explained "
            f"layer2 {layer2[0]:.4f} ({layer2[1]:.4f})  layer3 {layer3[0]:.4f} ({layer3[1]:.4f})  "
            f"{time.monotonic() - start:.0f} s (+{time.monotonic() - drawn:.0f} s training)"
        )
        save_file({name: tensor.half().contiguous() for name, tensor in final.state_dict().items()}, out)
        if course.chunk % 8 == 0 or course.chunk == plan.chunks:
            course.save()


if __name__ == "__main__":
    main()
