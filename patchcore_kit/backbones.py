"""A name -> a frozen network cut after its last used layer: images (B, 3, H, W) -> maps [(B, C, h, w), ...].

    name -> Source -> weights file -> tensors -> network -> cut at the layers -> Backbone

Weights are looked for on this machine first. Only if they are nowhere is the network asked, once and briefly.
"""

import contextlib
import difflib
import inspect
import logging
import math
import os
import re
import sys
import threading
import time
import urllib.error
import urllib.request
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urljoin, urlsplit

import torch
import torchvision
from torch import Tensor, fx, nn
from torch._subclasses import FakeTensorMode

from patchcore_kit.errors import SettingsError, WeightsError
from patchcore_kit.files import is_lfs_pointer, work_folder

logger = logging.getLogger(__name__)

# The reference's names, each with the weights that it loaded. timm has renamed many since, and where its default
# weights have changed the tag keeps the old ones. densenet201's were torchvision's all along.
_REFERENCE_NAMES = MappingProxyType(
    {
        "alexnet": "torchvision:alexnet",
        "bninception": "",  # was in a package that is no longer kept
        "resnet50": "torchvision:resnet50",
        "resnet101": "torchvision:resnet101",
        "resnext101": "torchvision:resnext101_32x8d",
        "resnet200": "timm:resnet200",  # never had published weights: the reference's were random
        "resnest50": "timm:resnest50d_4s2x40d.in1k",
        "resnetv2_50_bit": "timm:resnetv2_50x3_bit.goog_in21k_ft_in1k",
        "resnetv2_50_21k": "timm:resnetv2_50x3_bit.goog_in21k",
        "resnetv2_101_bit": "timm:resnetv2_101x3_bit.goog_in21k_ft_in1k",
        "resnetv2_101_21k": "timm:resnetv2_101x3_bit.goog_in21k",
        "resnetv2_152_bit": "timm:resnetv2_152x4_bit.goog_in21k_ft_in1k",
        "resnetv2_152_21k": "timm:resnetv2_152x4_bit.goog_in21k",
        "resnetv2_152_384": "timm:resnetv2_152x2_bit.goog_teacher_in21k_ft_in1k_384",
        "resnetv2_101": "timm:resnetv2_101.a1h_in1k",
        "vgg11": "torchvision:vgg11",
        "vgg19": "torchvision:vgg19",
        "vgg19_bn": "torchvision:vgg19_bn",
        "wideresnet50": "torchvision:wide_resnet50_2",
        "wideresnet101": "torchvision:wide_resnet101_2",
        "mnasnet_100": "timm:mnasnet_100.rmsp_in1k",
        "mnasnet_a1": "timm:semnasnet_100.rmsp_in1k",
        "mnasnet_b1": "timm:mnasnet_100.rmsp_in1k",
        "densenet121": "timm:densenet121.ra_in1k",
        "densenet201": "torchvision:densenet201",
        "inception_v4": "timm:inception_v4.tf_in1k",
        "vit_small": "timm:vit_small_patch16_224.augreg_in21k_ft_in1k",
        "vit_base": "timm:vit_base_patch16_224.augreg_in21k_ft_in1k",
        "vit_large": "timm:vit_large_patch16_224.augreg_in21k_ft_in1k",
        "vit_r50": "timm:vit_large_r50_s32_224.augreg_in21k_ft_in1k",
        "vit_deit_base": "timm:deit_base_patch16_224.fb_in1k",
        "vit_deit_distilled": "timm:deit_base_distilled_patch16_224.fb_in1k",
        "vit_swin_base": "timm:swin_base_patch4_window7_224.ms_in22k_ft_in1k",
        "vit_swin_large": "timm:swin_large_patch4_window7_224.ms_in22k_ft_in1k",
        "efficientnet_b7": "timm:tf_efficientnet_b7.ra_in1k",
        "efficientnet_b5": "timm:tf_efficientnet_b5.ra_in1k",
        "efficientnet_b3": "timm:tf_efficientnet_b3.aa_in1k",
        "efficientnet_b1": "timm:tf_efficientnet_b1.aa_in1k",
        "efficientnetv2_m": "timm:tf_efficientnetv2_m.in1k",
        "efficientnetv2_l": "timm:tf_efficientnetv2_l.in1k",
        "efficientnet_b3a": "timm:efficientnet_b3.ra2_in1k",
    }
)
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")


def backbone_names() -> tuple[str, ...]:
    """The reference implementation's 41 names; every torchvision and timm name works as well."""
    return tuple(_REFERENCE_NAMES)


@dataclass(frozen=True, slots=True)
class Source:
    """What a name stands for: who builds the network, and where its weights are published ("" = nowhere)."""

    name: str
    library: str  # torchvision or timm
    architecture: str  # the library's name for it; timm's with the tag of its weights
    origin: str = ""  # what the published weights are called
    url: str = ""  # their file
    hub: str = ""  # their Hugging Face repository

    @property
    def address(self) -> str:
        """Where a person would download the weights."""
        return f"https://huggingface.co/{self.hub}/resolve/main/{_HUB_FILES[0]}" if self.hub else self.url

    @property
    def url_file(self) -> str:
        """The published file's own name, which it also has in torch's cache."""
        return Path(urlsplit(self.url).path).name

    @property
    def file_names(self) -> list[str]:
        """The names that a file in the weights folder may have; the first is the one to ask for."""
        names = [
            f"{stem}{suffix}" for stem in (self.architecture, self.name) for suffix in (".safetensors", ".pth", ".pt")
        ]
        return [name for name in ([*names, self.url_file] if self.hub else [self.url_file, *names]) if name]


def _resolve(name: str) -> Source:
    if _REFERENCE_NAMES.get(name) == "":
        raise WeightsError(
            f"the network and the weights of {name!r} are no longer published: choose another "
            "backbone, such as 'wideresnet50'"
        )
    torchvision_names = torchvision.models.list_models(module=torchvision.models)  # classification only
    library, _, architecture = _REFERENCE_NAMES.get(
        name, f"torchvision:{name}" if name in torchvision_names else f"timm:{name}"
    ).partition(":")
    if library == "torchvision":
        published = torchvision.models.get_model_weights(architecture)
        # the reference's; the two largest networks have none, and their last is the one for 224x224
        weights = published.__members__.get("IMAGENET1K_V1") or list(published)[-1]
        return Source(name, library, architecture, origin=weights.name, url=weights.url)

    import timm  # here and below: a second and more that most users need not wait for

    timm_names = timm.list_models()
    if architecture not in timm_names and architecture not in timm.list_models(include_tags=True):
        close = difflib.get_close_matches(name, [*_REFERENCE_NAMES, *torchvision_names, *timm_names], n=5)
        raise SettingsError(
            f"no backbone is called {name!r}: "
            + (
                f"did you mean {', '.join(dict.fromkeys(close))}?"
                if close
                else "give the name of a torchvision classification network or of a timm model"
            )
        )
    config = timm.models.get_pretrained_cfg(architecture)
    hub = config.hf_hub_id or ""
    url = config.url or ""
    tag = f".{config.tag}" if config.tag and (hub or url) else ""
    return Source(
        name,
        library,
        f"{config.architecture}{tag}",
        origin=hub or url,
        hub=hub,
        url="" if url.endswith(".npz") else url,
    )  # the others are not torch files


def _weights_folder() -> Path:
    return Path(os.environ.get("PATCHCORE_WEIGHTS") or work_folder() / "weights")


def _find(source: Source) -> tuple[Path, str] | None:
    """The weights file on this machine and what to call it: in the weights folder, then torch's and HF's cache."""
    for file_name in source.file_names:
        path = _weights_folder() / file_name
        if path.is_file():
            return path, str(path)
    cached = Path(torch.hub.get_dir(), "checkpoints", source.url_file)
    if cached.is_file():
        return cached, source.origin
    if source.hub:
        from huggingface_hub import try_to_load_from_cache

        for file_name in _HUB_FILES:
            cached = try_to_load_from_cache(source.hub, file_name)
            if isinstance(cached, str):
                return Path(cached), source.origin
    return None


def _answers(url: str, seconds: float) -> bool:
    """Whether a host answers in time, through the proxies that are set."""
    answered = threading.Event()

    def ask() -> None:
        try:
            request = urllib.request.Request(urljoin(url, "/"), method="HEAD")
            urllib.request.urlopen(request, timeout=seconds).close()
        except urllib.error.HTTPError:
            pass  # it refuses this page, but it is there
        except Exception:
            return
        answered.set()

    # a look-up of a name has no time limit of its own: wait beside it, not in it
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()


def _download(source: Source, deadline: float) -> tuple[Path, str]:
    """Fetch the published weights into the library's own cache, or say before `deadline` that this cannot be."""
    if not source.address:
        raise WeightsError(
            f"nobody publishes weights for {source.name!r}: give a file with weights=, put "
            f'{source.name}.pth into {_weights_folder()}, or choose weights="random"'
        )
    advice = f'put {source.file_names[0]} (from {source.address}) into {_weights_folder()}, or choose weights="random"'
    host, offline = source.url, False
    if source.hub:
        from huggingface_hub import constants, hf_hub_download

        host = constants.ENDPOINT
        offline = constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
    # importing timm may have used up most of the time
    if offline or not _answers(host, min(1.5, max(0.6, deadline - time.monotonic()))):
        why = "HF_HUB_OFFLINE forbids downloads" if offline else f"{urlsplit(host).hostname} does not answer"
        raise WeightsError(f"no weights for {source.name!r} here, and {why}: {advice}")
    logger.info("downloading the weights of %s from %s", source.name, source.address)
    try:
        if source.hub:
            return Path(hf_hub_download(source.hub, _HUB_FILES[0])), source.origin
        path = Path(torch.hub.get_dir(), "checkpoints", source.url_file)
        path.parent.mkdir(parents=True, exist_ok=True)
        checksum = torch.hub.HASH_REGEX.search(path.name)  # torch's files have it in their names
        torch.hub.download_url_to_file(source.url, str(path), checksum.group(1) if checksum else None)
        return path, source.origin
    except Exception as error:
        raise WeightsError(f"cannot download the weights of {source.name!r} ({error}): {advice}") from error


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file by name, freed of the usual wrappers. Nothing in the file is executed."""
    if not path.is_file():
        raise WeightsError(
            f"{path} is {'a folder' if path.is_dir() else 'not there'}: give a weights file, None "
            'to have it found, or weights="random"'
        )
    if is_lfs_pointer(path):
        raise WeightsError(
            f"{path} is only a Git LFS pointer to the weights: run `git lfs pull`, or copy the file itself"
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            tensors = load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files make torch raise nearly anything
        raise WeightsError(
            f"{path} cannot be read as weights ({type(error).__name__}), it is damaged or holds "
            "more than tensors: copy it again, or save the network's state_dict()"
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(tensors, dict) and isinstance(tensors.get(wrapper), dict):
            tensors = tensors[wrapper]
    if not isinstance(tensors, dict) or not any(isinstance(value, Tensor) for value in tensors.values()):
        raise WeightsError(f"{path} holds no weights by name: save a network's state_dict()")
    # torchvision's DenseNet files write norm.1 for what is called norm1
    return {
        re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", name.removeprefix("module.")): value
        for name, value in tensors.items()
        if isinstance(value, Tensor)
    }


def _build(source: Source, seed: int) -> nn.Module:
    """The whole network with weights drawn by `seed`; the caller's random state stays as it was."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        if source.library == "torchvision":
            options = {}
            if source.architecture in ("googlenet", "inception_v3"):  # what trained weights come with
                options = {"transform_input": True, "aux_logits": False, "init_weights": False}
            return torchvision.models.get_model(source.architecture, weights=None, **options).eval()
        import timm

        return timm.create_model(source.architecture, num_classes=0).eval()


class _Tracer(fx.Tracer):
    """Writes down the network's steps, and what every module returns, without running it."""

    def __init__(self, network: nn.Module | None = None) -> None:  # None when torch unpickles a cut network
        self.leaves, functions = (), ()
        if hasattr(network, "pretrained_cfg"):  # timm's, which knows its modules that cannot be looked into
            from timm.layers import get_notrace_functions, get_notrace_modules

            self.leaves, functions = tuple(get_notrace_modules()), tuple(get_notrace_functions())
        super().__init__(autowrap_modules=(math, torchvision.ops), autowrap_functions=functions)
        self.returned: dict[str, object] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self.leaves) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: object, args: tuple, kwargs: dict) -> object:
        result = super().call_module(m, forward, args, kwargs)
        self.returned[self.path_of_module(m)] = result
        return result


def _cut(network: nn.Module, layers: tuple[str, ...], name: str) -> fx.GraphModule:
    """The part of a network that the layers need, sharing its weights: images -> the layers' outputs in order."""
    modules = dict(network.named_modules())
    for layer in layers:
        if not layer or layer not in modules:
            top = [child for child, _ in network.named_children()]
            close = difflib.get_close_matches(layer, modules, n=5)
            raise SettingsError(
                f"{name} has no layer {layer!r}: choose "
                + (f"{' or '.join(close)}, or " if close else "")
                + f"from {', '.join(top)}"
            )
    tracer = _Tracer(network)
    _, *options = inspect.signature(network.forward).parameters.values()
    defaults = {option.name: option.default for option in options if option.default is not option.empty}
    try:
        graph = tracer.trace(network, defaults)  # only the images are left open
    except Exception as error:
        raise SettingsError(
            f"{name} cannot be cut ({type(error).__name__} when traced): choose another backbone"
        ) from error
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
    return fx.GraphModule(network, whole.graph)  # takes along only what the remaining steps use


def _misfit(wanted: dict[str, Tensor], tensors: dict[str, Tensor]) -> str:
    """What keeps `tensors` from filling `wanted`, or ""."""
    for name, tensor in wanted.items():
        if name not in tensors:
            return f"it has no {name}"
        if tensors[name].shape != tensor.shape:
            return f"its {name} is {tuple(tensors[name].shape)}, not {tuple(tensor.shape)}"
    return ""


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


def _grid(tokens: int, height: int, width: int) -> tuple[int, int]:
    """The map that N tokens of an image of this size make, if they make one: then h * w = N."""
    h = max(1, round(math.sqrt(max(0, tokens) * height / width)))
    return h, tokens // h


class Backbone:
    """A frozen network that turns images into the feature maps of some of its layers.

    name, layers, seed, device: as given to `load_backbone`
    weights: where they came from: a file, the published weights' name, or "random"
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
        size: tuple[int, int],
        prefix_tokens: int,
    ) -> None:
        self.name, self.layers, self.weights, self.seed, self.device = name, layers, weights, seed, device
        self._network = network.eval().requires_grad_(False)
        self._size = size  # (H, W) that the network was made for
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
        """The layers' output shapes for one image, found without computing anything."""
        with FakeTensorMode() as fake, torch.inference_mode():
            state = {
                name: fake.from_tensor(tensor)
                for name, tensor in [*self._network.named_parameters(), *self._network.named_buffers()]
            }
            image = torch.empty(1, 3, *size, device=self.device)
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
        """(B, 3, H, W), ImageNet-normalised -> one (B, C, h, w) per layer, in the order of `layers`.

        A map is what the layer returned, except that later steps may have overwritten it in place (a ReLU after
        VGG's convolutions), as in the reference. Raises SettingsError for a shape that the network does not take.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise SettingsError(
                f"a backbone takes float images (B, 3, H, W), not {tuple(images.shape)} of {images.dtype}"
            )
        height, width = images.shape[2:]
        with torch.inference_mode():
            try:
                outputs = self._network(images.to(self.device, torch.float32))
            except Exception as error:
                try:
                    self._shapes((height, width))
                except Exception:
                    raise SettingsError(
                        f"{self.name} does not take images of {height}x{width} pixels: it was "
                        f"made for {self._size[0]}x{self._size[1]}"
                    ) from error
                raise  # not the size's fault: out of memory, for one
            return [
                self._as_map(output, form, height, width) for output, form in zip(outputs, self._formats, strict=True)
            ]

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

    @property
    def is_random(self) -> bool:
        """Whether the weights were drawn instead of trained."""
        return self.weights == "random"

    @cached_property
    def fingerprint(self) -> str:
        """A checksum of all weights of the cut network, the same on every device."""
        crc = 0
        for name, tensor in sorted(self._network.state_dict().items()):
            if "num_batches_tracked" not in name and "_tensor_constant" not in name:  # counters, and tracing's
                crc = zlib.crc32(tensor.cpu().numpy().tobytes(), zlib.crc32(name.encode(), crc))
        return f"{crc:08x}"

    def __repr__(self) -> str:
        return f"Backbone({self.name!r}, layers={self.layers}, weights={self.weights!r}, device='{self.device}')"


def _device(device: str | torch.device) -> torch.device:
    try:
        place = torch.device(device)
    except RuntimeError:
        place = torch.device("meta")  # as little use as a word that torch does not know
    if place.type not in ("cpu", "cuda"):
        raise SettingsError(f"device {str(device)!r} is not known here: choose 'cpu', 'cuda' or 'cuda:1'")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise SettingsError(
            f"there is no {place} on this machine ({torch.cuda.device_count()} CUDA devices): choose device='cpu'"
        )
    return place


def load_backbone(
    name: str,
    layers: tuple[str, ...] = ("layer2", "layer3"),
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> Backbone:
    """Build a network by name, with trained weights, cut after the last of `layers`.

    name: one of `backbone_names()`, a torchvision classification network, or a timm model, with or without tag
    layers: names of modules (`layer2`, `layer2.1`, `features.denseblock1`, `blocks.2`), in any order
    weights: None looks in `$PATCHCORE_WEIGHTS` (else `weights/` in the work folder), then in the caches of torch
        and Hugging Face, then downloads; or a file, which may stop after the last used layer; or "random", drawn
        by `seed`
    device: "cpu", "cuda" or "cuda:1"
    Raises SettingsError for names, layers and devices that do not exist, and WeightsError for weights that are not
    found (within two seconds where there is no network), cannot be read or do not fit.
    """
    deadline = time.monotonic() + 1.8
    layers = (layers,) if isinstance(layers, str) else tuple(layers)
    if not layers or len(set(layers)) < len(layers):
        raise SettingsError(f"layers={layers} must name at least one layer, and each only once")
    place = _device(device)
    source = _resolve(name)
    if weights == "random":
        path, origin = None, "random"
    elif weights is not None:
        path, origin = Path(weights), str(weights)
    else:
        path, origin = _find(source) or _download(source, deadline)
    tensors = None if path is None else _read(path)
    network = _build(source, seed).to(place)  # first: tracing may write the device down
    cut = _cut(network, layers, name)
    if tensors is not None:
        _fill(cut, network, tensors, path, source)
    logger.info("%s with the weights %s", name, origin if path is None else path)
    # timm's networks say these two; torchvision's are all made for 224x224
    size = network.pretrained_cfg["input_size"][1:] if hasattr(network, "pretrained_cfg") else (224, 224)
    prefix_tokens = getattr(network, "num_prefix_tokens", int(hasattr(network, "class_token")))
    return Backbone(
        cut,
        name=name,
        layers=layers,
        weights=origin,
        seed=seed,
        device=place,
        size=tuple(size),
        prefix_tokens=prefix_tokens,
    )
