"""A name -> a frozen network cut after its last used layer: images (B, 3, H, W) -> maps [(B, C, h, w), ...]."""

import contextlib
import difflib
import inspect
import logging
import math
import re
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, fx, nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.optimization import fuse
from torch.nn.utils import convert_conv2d_weight_memory_format

from patchcore_kit.errors import SettingsError, WeightsError, check_choice, whole_number
from patchcore_kit.files import user_path
from patchcore_kit.starter import Starter
from patchcore_kit.weights import Source, download, find, read, resolve

LOGGER = logging.getLogger(__name__)

PRECISIONS = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}
TURN = threading.RLock()  # of who has told torch whether to round
ROUNDING = {"float32": 1e-3, "tf32": 1e-2, "bfloat16": 0.02}


class Backbone:
    """A frozen network that turns images into the feature maps of some of its layers.

    name, layers, seed, device, precision: as given to `load_backbone`
    weights: where they came from: a file, the published weights' name, or "random"
    fingerprint: a checksum of all weights of the cut network, the same on every device and in every precision
    channels: C of each layer's map
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str,
        layers: tuple[str, ...],
        weights: str,
        seed: int,
        device: torch.device,
        precision: str,
        size: tuple[int, int],
        halves: bool,
        patch: tuple[int, int] | None,
        prefix_tokens: int,
    ) -> None:
        self.name, self.layers, self.weights, self.seed, self.device = name, layers, weights, seed, device
        self.precision, self.fingerprint = precision, _checksum(network.state_dict())
        # batch norm becomes part of the convolutions, whose weights are laid out as their images are
        folded = _freed(fuse(network.eval().requires_grad_(False), inplace=True, no_trace=True))
        # a GPU computes float32 a quarter faster the other way round
        first = device.type == "cuda" and precision == "float32"
        self._layout = torch.contiguous_format if first else torch.channels_last
        self._network = convert_conv2d_weight_memory_format(folded.to(PRECISIONS[precision]), self._layout)
        self._known: dict[tuple[int, int], list[torch.Size]] = {}
        self._size = size  # (H, W) that the network was made for
        self._halves = halves  # sides, in each step that makes them shorter
        self._patch = patch  # (H, W) whose multiples it takes, if that is the rule
        try:
            shapes = self._shapes(size)
        except Exception as error:
            raise SettingsError(
                f"{name} cannot be cut ({type(error).__name__} when tried): choose another backbone"
            ) from error
        self._formats = [self._format(layer, shape, prefix_tokens) for layer, shape in zip(layers, shapes, strict=True)]
        self.channels = tuple(
            shape[1 if form == "NCHW" else -1] for form, shape in zip(self._formats, shapes, strict=True)
        )

    def _shapes(self, size: tuple[int, int]) -> list[torch.Size]:
        """The layers' output shapes for one image, found once."""
        if size not in self._known:
            self._known[size] = self._halved(size) if self._halves else self._foreseen(size)
        return self._known[size]

    def _halved(self, size: tuple[int, int]) -> list[torch.Size]:
        """By the maps of one blank image, where each step halves sides and rounds them up.

        That is how the starter needs nothing of what `_foreseen` imports, for two seconds.
        """
        if size == self._size:
            with torch.inference_mode():
                blank = torch.zeros(1, 3, *size, device=self.device, dtype=PRECISIONS[self.precision])
                return [x.shape for x in self._network(blank)]
        known, whole = self._shapes(self._size), self._size[0]
        return [torch.Size((1, c, *(math.ceil(side / (whole // h)) for side in size))) for _, c, h, _ in known]

    def _foreseen(self, size: tuple[int, int]) -> list[torch.Size]:
        """Of any network, without computing anything."""
        with FakeTensorMode() as fake, torch.inference_mode():
            state = {
                name: fake.from_tensor(tensor)
                for name, tensor in [*self._network.named_parameters(), *self._network.named_buffers()]
            }
            image = torch.empty(1, 3, *size, device=self.device, dtype=PRECISIONS[self.precision])
            outputs = torch.func.functional_call(self._network, state, (image,))
        return [getattr(output, "shape", torch.Size()) for output in outputs]  # some layers return tuples

    def _format(self, layer: str, shape: torch.Size, prefix_tokens: int) -> str | int:
        """How a layer lays out its map: "NCHW", "NHWC", or the number of tokens (class, ...) before the map's."""
        if len(shape) == 4:
            return "NHWC" if shape[1] == shape[2] != shape[3] else "NCHW"  # maps of square images are square
        if len(shape) == 3:
            for before in (prefix_tokens, 0):
                h, w = _grid(shape[1] - before, *self._size)
                if h * w == shape[1] - before and h * self._size[1] == w * self._size[0]:
                    return before
        raise SettingsError(
            f"layer {layer!r} of {self.name} gives {tuple(shape)}, which is no map: choose another layer"
        )

    def __call__(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W), ImageNet-normalised -> one float32 (B, C, h, w) per layer, in the order of `layers`.

        A map is what the layer returned, except that later steps may have overwritten it in place (a ReLU after
        VGG's convolutions), as in the reference. Raises SettingsError for a shape that the network does not take,
        WeightsError if a map has values that are not finite.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise SettingsError(
                f"a backbone takes float images (B, 3, H, W), not {tuple(images.shape)} of {images.dtype}"
            )
        height, width = images.shape[2:]
        with torch.inference_mode():
            try:
                with tf32(self.device, self.precision == "tf32"):
                    images = images.to(self.device, PRECISIONS[self.precision])
                    outputs = self._network(images.contiguous(memory_format=self._layout))
            except Exception as error:
                try:
                    self._shapes((height, width))
                except Exception:
                    raise self._too_odd(height, width) from error
                raise  # not the size's fault: out of memory, for one
            maps = [
                self._as_map(output.float(), form, height, width)
                for output, form in zip(outputs, self._formats, strict=True)
            ]
            # their sums first, which is faster, and finite unless a value is not, or one of them is too large itself
            sums = torch.stack([x.sum() for x in maps])
            if not (bool(sums.isfinite().all()) or all(bool(x.isfinite().all()) for x in maps)):
                raise WeightsError(
                    f"{self.name} with the weights {self.weights} makes values that are not finite: give other weights"
                )
            return maps

    def _as_map(self, output: Tensor, form: str | int, height: int, width: int) -> Tensor:
        if form == "NCHW":
            return output
        if form == "NHWC":
            return output.permute(0, 3, 1, 2)
        tokens = output[:, form:].transpose(1, 2)  # (B, C, N)
        h, w = _grid(tokens.shape[2], height, width)
        if h * w != tokens.shape[2]:
            raise SettingsError(
                f"{self.name} makes no map of images of {height}x{width} pixels: choose {self._size[0]}x{self._size[1]}"
            )
        return tokens.unflatten(2, (h, w))

    def _too_odd(self, height: int, width: int) -> SettingsError:
        return SettingsError(
            f"{self.name} does not take images of {height}x{width} pixels: {self._advice(height, width)}"
        )

    def _advice(self, height: int, width: int) -> str:
        """What to choose instead of a size that the network does not take."""
        if self._patch is None:
            return f"it was made for {self._size[0]}x{self._size[1]}"
        down, across = (
            " or ".join(str(near) for near in sorted({side // of * of, -(-side // of) * of}) if near)
            for side, of in zip((height, width), self._patch, strict=True)
        )
        return f"choose a height of {down} and a width of {across}, whole patches of {self._patch[0]}x{self._patch[1]}"

    def empty_maps(self, height: int, width: int) -> list[Tensor]:
        """Maps as of one image of this size that have shapes but no values, found without computing anything.

        Raises SettingsError for a size that the network does not take.
        """
        try:
            shapes = self._shapes((height, width))
        except Exception as error:
            raise self._too_odd(height, width) from error
        outputs = (torch.empty(shape, device="meta") for shape in shapes)
        return [self._as_map(output, form, height, width) for output, form in zip(outputs, self._formats, strict=True)]

    @property
    def multiple(self) -> int:
        """Pixels that both sides of images are best a multiple of: its patches, where it takes no others, else 8."""
        return max(self._patch) if self._patch else 8

    @property
    def stride(self) -> int:
        """Pixels that a cell of the coarsest layer's map is wide."""
        return max(round(self._size[0] / x.shape[-2]) for x in self.empty_maps(*self._size))

    @property
    def rounding(self) -> float:
        """Share of a map's largest value by which the maps of two equal images may differ."""
        return ROUNDING[self.precision]

    @property
    def is_random(self) -> bool:
        """Whether the weights were drawn instead of trained."""
        return self.weights == "random"

    def __repr__(self) -> str:
        return f"Backbone({self.name!r}, layers={self.layers}, weights={self.weights!r}, device='{self.device}')"


def _checksum(tensors: dict[str, Tensor]) -> str:
    crc = 0
    for name, tensor in sorted(tensors.items()):
        if "num_batches_tracked" not in name and "_tensor_constant" not in name:  # counters, and tracing's
            crc = zlib.crc32(tensor.cpu().numpy().tobytes(), zlib.crc32(name.encode(), crc))
    return f"{crc:08x}"


def _grid(tokens: int, height: int, width: int) -> tuple[int, int]:
    """The map that N tokens of an image of this size make, if they make one: then h * w = N."""
    h = max(1, round(math.sqrt(max(0, tokens) * height / width)))
    return h, tokens // h


@contextlib.contextmanager
def tf32(device: torch.device, allowed: bool) -> Iterator[None]:
    """Whether a GPU rounds what it multiplies to 10 bits, which takes it a third of the time and less.

    torch rounds so in convolutions, unless it is told not to; then the coreset differs from the CPU's. It is told for
    the whole process: so threads take turns, as long as it takes to tell a GPU what to do.
    """
    if device.type != "cuda":
        yield
        return
    places = torch.backends.cudnn, torch.backends.cuda.matmul
    with TURN:
        before = [place.allow_tf32 for place in places]
        for place in places:
            place.allow_tf32 = allowed
        try:
            yield
        finally:
            for place, was in zip(places, before, strict=True):
                place.allow_tf32 = was


def load_backbone(
    name: str,
    layers: tuple[str, ...] = ("layer2", "layer3"),
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
    *,
    precision: str = "float32",
) -> Backbone:
    """Build a network by name, with trained weights, cut after the last of `layers`.

    name: "starter", whose weights come with the kit (see `starter.py`); another of `backbone_names()`; a torchvision
        classification network; or a timm model, with or without tag
    layers: names of modules (`layer2`, `layer2.1`, `features.denseblock1`, `blocks.2`), in any order; the default is a
        ResNet's, and other networks say what to choose
    weights: None looks in `$PATCHCORE_WEIGHTS` (else `weights/` in the work folder), then in the caches of torch
        and Hugging Face, then downloads; or a file, which may stop after the last used layer; or "random", drawn
        by `seed`
    device: "cpu", "cuda" or "cuda:1"
    precision: "float32"; "tf32", which GPUs compute three times as fast, and CPUs as float32; or "bfloat16", which
        CPUs with AVX512-BF16 or AMX compute about twice as fast, and GPUs four times
    Raises SettingsError for names, layers and devices that do not exist, and WeightsError for weights that are not
    found (within two seconds, imports aside, where there is no network), cannot be read or do not fit.
    """
    if not isinstance(name, str):
        raise SettingsError(f"backbone name is {name!r}: give it as text, such as 'wideresnet50'")
    deadline = time.monotonic() + 1.8
    seed = whole_number("seed", seed, 0)
    check_choice("precision", precision, PRECISIONS)
    layers = (layers,) if isinstance(layers, str) else tuple(layers)
    if not layers or len(set(layers)) < len(layers):
        raise SettingsError(f"layers={layers} must name at least one layer, and each only once")
    place = find_device(device)
    source = resolve(name)
    if weights == "random":
        path, origin = None, "random"
    elif weights is not None:
        path, origin = user_path(weights), Path(weights).name
    else:
        path, origin = find(source) or download(source, deadline)
    tensors = None if path is None else read(path)
    network = _build(source, seed).to(place)  # first: tracing may write the device down
    cut = _cut(network, layers, name)
    if tensors is not None:
        _fill(cut, network, tensors, path, source)
    LOGGER.info("%s with the weights %s", name, origin if path is None else path)
    # timm's networks say these two; torchvision's are all made for 224x224
    size = network.pretrained_cfg["input_size"][1:] if hasattr(network, "pretrained_cfg") else (224, 224)
    patch = network.patch_embed.patch_size if getattr(network, "dynamic_img_size", False) else None
    prefix_tokens = getattr(network, "num_prefix_tokens", int(hasattr(network, "class_token")))
    return Backbone(
        cut,
        name=name,
        layers=layers,
        weights=origin,
        seed=seed,
        device=place,
        precision=precision,
        size=tuple(size),
        halves=isinstance(network, Starter),
        patch=patch,
        prefix_tokens=prefix_tokens,
    )


def find_device(device: str | torch.device) -> torch.device:
    """A device by its name. Raises SettingsError if it is not there."""
    try:
        place = torch.device(device)
    except RuntimeError:
        place = torch.device("meta")  # as little use as a word that torch does not know
    if place.type not in ("cpu", "cuda"):
        raise SettingsError(f"device {str(device)!r} is not known here: choose 'cpu', 'cuda' or 'cuda:1'")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise SettingsError(
            f"there is no {place} on this machine ({torch.cuda.device_count()} CUDA devices): choose the CPU"
        )
    return place


def _build(source: Source, seed: int) -> nn.Module:
    """The whole network with weights drawn by `seed`; the caller's random state stays as it was."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        if source.library == "patchcore_kit":
            return Starter().to(memory_format=torch.channels_last).eval()  # as its images are
        if source.library == "torchvision":
            import torchvision

            options = {}
            if source.architecture in ("googlenet", "inception_v3"):  # what trained weights come with
                options = {"transform_input": True, "aux_logits": False, "init_weights": False}
            return torchvision.models.get_model(source.architecture, weights=None, **options).eval()
        import timm

        # DINO's transformers were made for more than one size: their position embedding is resampled to the image's
        options = {"dynamic_img_size": True} if re.match("vit_.*dino", source.architecture) else {}
        return timm.create_model(source.architecture, num_classes=0, **options).eval()


def _cut(network: nn.Module, layers: tuple[str, ...], name: str) -> fx.GraphModule:
    """The part of a network that the layers need, sharing its weights: images -> the layers' outputs in order."""
    modules = dict(network.named_modules())
    for layer in layers:
        if not layer or layer not in modules:
            top = [child for child, _ in network.named_children()]
            close = difflib.get_close_matches(layer, modules, n=5)
            usual = [one for one in _usual_layers(network) if one in modules]
            choices = [" and ".join(usual), " or ".join(close), f"from {', '.join(top)}"]
            raise SettingsError(f"{name} has no layer {layer!r}: choose {', or '.join(filter(None, choices))}")
    tracer = _Tracer(network)
    _, *options = inspect.signature(network.forward).parameters.values()
    defaults = {option.name: option.default for option in options if option.default is not option.empty}
    try:
        graph = tracer.trace(network, defaults)  # only the images are left open
    except Exception as error:
        raise SettingsError(
            f"{name} cannot be cut ({type(error).__name__} when traced): choose another backbone"
        ) from error
    finally:
        tracer.root = None  # what was traced refers to the tracer in a circle, and would keep the network alive
    outputs = [tracer.returned.get(layer) for layer in layers]
    for layer, output in zip(layers, outputs, strict=True):
        if not isinstance(output, fx.Proxy):
            raise SettingsError(
                f"layer {layer!r} of {name} is not run as one step with one result: choose a "
                "layer inside it or beside it"
            )
    *steps, end = graph.nodes
    end.args = ([output.node for output in outputs],)
    while not steps[-1].users:  # a check of a later shape would keep all that leads to it
        graph.erase_node(steps.pop())
    whole = fx.GraphModule(network, graph)
    whole.graph.eliminate_dead_code()
    return _freed(fx.GraphModule(network, whole.graph))  # takes along only what the remaining steps use


class _Tracer(fx.Tracer):
    """Writes down the network's steps, and what every module returns, without running it."""

    def __init__(self, network: nn.Module | None = None) -> None:  # None when torch unpickles a cut network
        self.leaves, functions = (), ()
        if hasattr(network, "pretrained_cfg"):  # timm's, which knows its modules that cannot be looked into
            from timm.layers import get_notrace_functions, get_notrace_modules

            self.leaves, functions = tuple(get_notrace_modules()), tuple(get_notrace_functions())
        operators = sys.modules.get("torchvision.ops")  # of a network that has any they are there
        modules = (math, operators) if operators else (math,)
        super().__init__(autowrap_modules=modules, autowrap_functions=functions)
        self.returned: dict[str, object] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self.leaves) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: object, args: tuple, kwargs: dict) -> object:
        result = super().call_module(m, forward, args, kwargs)
        self.returned[self.path_of_module(m)] = result
        return result


def _usual_layers(network: nn.Module) -> tuple[str, ...]:
    """The two layers to begin with, as far as timm describes the network; none for others.

    They are of an eighth and a sixteenth of the image's size, as a ResNet's layer2 and layer3. A transformer's are all
    of one size: the one halfway, and the one at three quarters.
    """
    stages = getattr(network, "feature_info", [])
    last = {stage["reduction"]: stage["module"] for stage in stages}
    if len(last) == 1:
        return tuple(stages[len(stages) * quarters // 4 - 1]["module"] for quarters in (2, 3))
    return (last[8], last[16]) if {8, 16} <= last.keys() else ()


def _freed(network: fx.GraphModule) -> fx.GraphModule:
    """A network that goes with the last reference to it, its weights at once: its graph refers back to it otherwise."""
    network.graph.owning_module = None
    return network


def _fill(cut: fx.GraphModule, network: nn.Module, tensors: dict[str, Tensor], path: Path, source: Source) -> None:
    """Copy a file's weights into the cut network; the file may hold more, but not less."""
    own = network.state_dict().keys()  # tracing adds constants that no file has
    wanted = {
        name: tensor
        for name, tensor in cut.state_dict().items()
        if name in own and not name.endswith("num_batches_tracked")
    }
    misfit = _misfit(wanted, tensors)
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if misfit and convert:  # timm's translation of older and foreign files, written for whole networks
        with contextlib.suppress(Exception):
            converted = convert(tensors, network)
            if not _misfit(wanted, converted):
                tensors, misfit = converted, ""
    if misfit:
        raise WeightsError(
            f"{path} does not fit {source.name} up to its last used layer, {misfit}: give weights "
            f"of {source.architecture}"
        )
    cut.load_state_dict({name: tensors[name] for name in wanted}, strict=False)


def _misfit(wanted: dict[str, Tensor], tensors: dict[str, Tensor]) -> str:
    """What keeps `tensors` from filling `wanted`, or ""."""
    for name, tensor in wanted.items():
        if name not in tensors:
            return f"it has no {name}"
        given = tensors[name]
        if given.shape != tensor.shape:
            return f"its {name} is {tuple(given.shape)}, not {tuple(tensor.shape)}"
        if given.layout != torch.strided:
            return f"its {name} is {given.layout}"
        odd = given.is_complex() or given.dtype == torch.bool  # neither a float nor a whole number
        if odd or given.is_floating_point() != tensor.is_floating_point():
            return f"its {name} holds {given.dtype}, not {tensor.dtype}"
        if not bool(given.isfinite().all()):
            return f"its {name} holds values that are not finite"
    return ""
