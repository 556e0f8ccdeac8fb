"""A backbone's name -> where its weights are published -> a file on this machine -> tensors by name.

Weights are looked for on this machine first. Only if they are nowhere is the network asked, once and briefly.
"""

import difflib
import logging
import os
import re
import threading
import time
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urljoin, urlsplit

import torch
from torch import Tensor

from patchcore_kit.errors import SettingsError, WeightsError, short
from patchcore_kit.files import is_lfs_pointer, user_path, work_folder

LOGGER = logging.getLogger(__name__)

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
# Short names of the kit's own. DINOv2 is that without registers, which AnomalyDINO takes.
_DINO_NAMES = MappingProxyType(
    {
        "dinov2_small": "timm:vit_small_patch14_dinov2.lvd142m",
        "dinov2_base": "timm:vit_base_patch14_dinov2.lvd142m",
        "dinov2_large": "timm:vit_large_patch14_dinov2.lvd142m",
        "dinov3_small": "timm:vit_small_patch16_dinov3.lvd1689m",
        "dinov3_base": "timm:vit_base_patch16_dinov3.lvd1689m",
        "dinov3_large": "timm:vit_large_patch16_dinov3.lvd1689m",
        "dinov3_convnext_tiny": "timm:convnext_tiny.dinov3_lvd1689m",
    }
)
_NAMES = MappingProxyType({**_REFERENCE_NAMES, **_DINO_NAMES})
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_STARTER = Path(__file__).with_name("starter.safetensors")  # comes with the package


def backbone_names() -> tuple[str, ...]:
    """`starter`, the reference implementation's 41 names, then the kit's own for DINOv2 and DINOv3.

    Every torchvision and timm name works as well.
    """
    return (_STARTER.stem, *_NAMES)


@dataclass(frozen=True, slots=True)
class Source:
    """What a name stands for: who builds the network, and where its weights are published ("" = nowhere)."""

    name: str
    library: str  # patchcore_kit, torchvision or timm
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


def resolve(name: str) -> Source:
    """What a name stands for: the kit's starter, one of the short names, torchvision's or timm's, in this order.

    Raises SettingsError for an unknown name, WeightsError for one whose network nobody publishes any more.
    """
    if name == _STARTER.stem:
        return Source(name, "patchcore_kit", name, origin=name)
    if _NAMES.get(name) == "":
        raise WeightsError(
            f"the network and the weights of {name!r} are no longer published: choose another "
            "backbone, such as 'wideresnet50'"
        )
    import torchvision  # here, as timm below: seconds that users of the starter need not wait for

    torchvision_names = torchvision.models.list_models(module=torchvision.models)  # classification only
    library, _, architecture = _NAMES.get(
        name, f"torchvision:{name}" if name in torchvision_names else f"timm:{name}"
    ).partition(":")
    if library == "torchvision":
        published = torchvision.models.get_model_weights(architecture)
        # the reference's; the two largest networks have none, and their last is the one for 224x224
        weights = published.__members__.get("IMAGENET1K_V1") or list(published)[-1]
        return Source(name, library, architecture, origin=weights.name, url=weights.url)

    import timm

    timm_names = timm.list_models()
    if architecture not in timm_names and architecture not in timm.list_models(include_tags=True):
        if name in _NAMES:
            raise SettingsError(
                f"{name!r} is {architecture}, which timm {timm.__version__} does not have: install a newer one"
            )
        close = difflib.get_close_matches(name, [*_NAMES, *torchvision_names, *timm_names], n=5)
        raise SettingsError(
            f"no backbone is called {name!r}: "
            + (
                f"did you mean {', '.join(dict.fromkeys(close))}?"
                if close
                else "give the name of a torchvision classification network or of a timm model"
            )
        )
    config = timm.models.get_pretrained_cfg(architecture)
    if config is None:  # a network that was registered with timm without saying anything of its weights
        return Source(name, library, architecture)
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


def find(source: Source) -> tuple[Path, str] | None:
    """The weights file on this machine and what to call it: in the weights folder, then torch's and HF's cache."""
    if source.library == "patchcore_kit":
        return _STARTER, source.origin
    for file_name in source.file_names:
        path = _weights_folder() / file_name
        if path.is_file():
            return path, path.name
    cached = _torchs_cache() / source.url_file
    if cached.is_file():
        return cached, source.origin
    if source.hub:
        from huggingface_hub import try_to_load_from_cache

        for file_name in _HUB_FILES:
            cached = try_to_load_from_cache(source.hub, file_name)
            if isinstance(cached, str):
                return Path(cached), source.origin
    return None


def any_file() -> bool:
    """Whether any file is where `find` looks for torchvision's weights, whose names take seconds to import."""
    return any(any(folder.glob("*")) for folder in (_weights_folder(), _torchs_cache()))


def _weights_folder() -> Path:
    return user_path(os.environ.get("PATCHCORE_WEIGHTS") or work_folder() / "weights")


def _torchs_cache() -> Path:
    return Path(torch.hub.get_dir(), "checkpoints")


def download(source: Source, deadline: float) -> tuple[Path, str]:
    """Fetch the published weights into the library's own cache, or say before `deadline` that this cannot be."""
    if not source.address:
        raise WeightsError(
            f"nobody publishes weights for {source.name!r}: give a file, or put {source.name}.pth into "
            f"{_weights_folder()}",
            ", or choose the weights 'random'",
        )
    advice = f"put {source.file_names[0]} (from {source.address}) into {_weights_folder()}"
    otherwise = f", or choose the backbone {_STARTER.stem!r}, whose weights are here"
    host, offline = source.url, False
    if source.hub:
        from huggingface_hub import constants, hf_hub_download

        host = constants.ENDPOINT
        offline = constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
    # importing timm may have used up most of the time
    if offline or not _answers(host, min(1.5, max(0.6, deadline - time.monotonic()))):
        why = "HF_HUB_OFFLINE forbids downloads" if offline else f"{urlsplit(host).hostname} does not answer"
        raise WeightsError(f"no weights for {source.name!r} here, and {why}: {advice}", otherwise)
    LOGGER.info("downloading the weights of %s from %s", source.name, source.address)
    try:
        if source.hub:
            return Path(hf_hub_download(source.hub, _HUB_FILES[0])), source.origin
        path = _torchs_cache() / source.url_file
        path.parent.mkdir(parents=True, exist_ok=True)
        checksum = torch.hub.HASH_REGEX.search(path.name)  # torch's files have it in their names
        torch.hub.download_url_to_file(source.url, str(path), checksum.group(1) if checksum else None)
        return path, source.origin
    except Exception as error:
        raise WeightsError(f"cannot download the weights of {source.name!r} ({error}): {advice}", otherwise) from error


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


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file by name, freed of the usual wrappers. Nothing in the file is executed."""
    if not path.is_file():
        raise WeightsError(
            f"{path} is {'a folder' if path.is_dir() else 'not there'}: give a weights file, "
            "nothing to have it found, or 'random'"
        )
    try:
        if is_lfs_pointer(path):
            raise WeightsError(
                f"{path} is only a Git LFS pointer to the weights: run `git lfs pull`, or copy the file itself"
            )
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            tensors = load_file(path)
        else:
            if zipfile.is_zipfile(path):  # torch writes nothing compressed, but would unpack it, however much it is
                with zipfile.ZipFile(path) as archive:
                    if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                        raise ValueError("it claims more than its bytes can hold")
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    except Exception as error:  # damaged files make torch raise nearly anything
        raise WeightsError(
            f"{path} cannot be read as weights ({type(error).__name__}), it is damaged or holds "
            "more than tensors: copy it again, or save the network's state_dict()"
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(tensors, dict) and isinstance(tensors.get(wrapper), dict):
            tensors = tensors[wrapper]
    found = tensors.items() if isinstance(tensors, dict) else ()
    found = {name: value for name, value in found if isinstance(name, str) and isinstance(value, Tensor)}
    if not found:
        raise WeightsError(f"{path} holds no weights by name: save a network's state_dict()")
    for name, value in found.items():
        if value.is_quantized or value.device.type != "cpu":
            raise WeightsError(
                f"{path} cannot be read as weights ({short(name)} is quantized, or has no values): save them as float32"
            )
    # torchvision's DenseNet files write norm.1 for what is called norm1
    return {
        re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", name.removeprefix("module.")): _plain(value)
        for name, value in found.items()
    }


def _plain(tensor: Tensor) -> Tensor:
    """A tensor that torch can compute with: of the floats of 8 bits float32, which holds each of their values."""
    return tensor.float() if tensor.is_floating_point() and tensor.itemsize == 1 else tensor
