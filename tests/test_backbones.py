"""Networks by name: what they compute, where their weights are found, and what is said when they are not."""

import gc
import http.server
import pickle
import re
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from huggingface_hub import constants
from safetensors.torch import save_file

import patchcore_kit as pk
from patchcore_kit import backbones, weights
from patchcore_kit.backbones import Backbone, load_backbone
from patchcore_kit.errors import SettingsError, WeightsError
from patchcore_kit.weights import backbone_names

REAL_LOOK_UP = socket.getaddrinfo
WEIGHTS = Path(__file__).resolve().parents[2] / "shared" / "weights" / "resnet18.pth"
needs_weights = pytest.mark.skipif(not WEIGHTS.is_file(), reason="no real weights beside the project")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """On a busy machine the threads of such small networks would mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No weights on this machine, no proxy, and a name server that knows no host."""

    def no_network(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    proxies = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    for variable in (*proxies, "TORCH_HUB", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("PATCHCORE_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))  # the variables are read at import
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "https://huggingface.co")


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    """Weights of a ResNet-18 that stop after layer1, as torchvision and timm name them."""
    return cut_weights("resnet18", ("layer1",), seed=7)


def cut_weights(name: str, layers: tuple[str, ...], seed: int = 0) -> dict[str, torch.Tensor]:
    """What a file would hold of a network with random weights, up to these layers."""
    cut = backbones._cut(backbones._build(weights.resolve(name), seed), layers, name)
    return {key: tensor for key, tensor in cut.state_dict().items() if not key.endswith("num_batches_tracked")}


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def load_layer1(name: str = "resnet18", weights: Path | str | None = None) -> Backbone:
    return load_backbone(name, ("layer1",), weights)


def has_weights(backbone: Backbone, tensors: dict[str, torch.Tensor]) -> bool:
    return backbone.fingerprint == backbones._checksum(tensors)


# --- maps -------------------------------------------------------------------------------------------------------


def plain(network: torchvision.models.ResNet, images: torch.Tensor) -> dict[str, torch.Tensor]:
    with torch.inference_mode():
        x = network.maxpool(network.relu(network.bn1(network.conv1(images))))
        maps = {}
        for layer in ("layer1", "layer2", "layer3"):
            for i, block in enumerate(getattr(network, layer)):
                x = maps[f"{layer}.{i}"] = maps[layer] = block(x)
    return maps


@needs_weights
def test_maps_equal_the_plain_forward_pass(images: torch.Tensor) -> None:
    network = torchvision.models.resnet18().eval()
    network.load_state_dict(torch.load(WEIGHTS, weights_only=True), strict=False)
    expected = plain(network, images)
    backbone = load_backbone("resnet18", weights=WEIGHTS)
    assert backbone.weights == WEIGHTS.name and not backbone.is_random
    assert backbone.channels == (128, 256)
    for output, layer in zip(backbone(images), ("layer2", "layer3"), strict=True):
        assert output.shape == expected[layer].shape
        assert (output - expected[layer]).abs().max() < 1e-5


def test_layers_come_in_the_order_given_also_nested_ones_and_their_parents(images: torch.Tensor) -> None:
    layers = ("layer3", "layer1.0", "layer2", "layer2.1")
    expected = plain(backbones._build(weights.resolve("resnet18"), seed=0), images)
    backbone = load_backbone("resnet18", layers, weights="random")
    assert backbone.layers == layers and backbone.channels == (256, 64, 128, 128)
    for output, layer in zip(backbone(images), layers, strict=True):
        assert torch.allclose(output, expected[layer], rtol=1e-5, atol=1e-5)


def test_batch_norm_becomes_part_of_the_convolutions(images: torch.Tensor, tmp_path: Path) -> None:
    network = torchvision.models.resnet18().eval()
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as if trained
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                tensor.data.uniform_(0.5, 1.5, generator=generator)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    expected = plain(network, images)
    backbone = load_backbone("resnet18", ("layer1.0.conv1", "layer2", "layer3"), weights=tmp_path / "w.pth")
    kinds = [type(module) for module in backbone._network.modules()]
    assert kinds.count(torch.nn.BatchNorm2d) == 1  # the one after the convolution that is asked for itself
    with torch.inference_mode():
        x = network.layer1[0].conv1(network.maxpool(network.relu(network.bn1(network.conv1(images)))))
    for output, wanted in zip(backbone(images), (x, expected["layer2"], expected["layer3"]), strict=True):
        assert torch.allclose(output, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def test_bfloat16(images: torch.Tensor) -> None:
    exact = load_backbone("resnet18", weights="random")
    half = load_backbone("resnet18", weights="random", precision="bfloat16")
    assert half.precision == "bfloat16" and half.fingerprint == exact.fingerprint
    assert {parameter.dtype for parameter in half._network.parameters()} == {torch.bfloat16}
    for output, wanted in zip(half(images), exact(images), strict=True):
        assert output.dtype == torch.float32
        error = (output - wanted).norm() / wanted.norm()
        assert 1e-5 < error < 0.02
    with pytest.raises(SettingsError, match="unknown precision 'float16': there are float32, tf32, bfloat16"):
        load_backbone("resnet18", weights="random", precision="float16")


def test_tf32_is_float32_without_a_gpu(images: torch.Tensor) -> None:
    exact, rounded = (load_backbone("resnet18", weights="random", precision=how) for how in ("float32", "tf32"))
    assert rounded.precision == "tf32" and rounded.fingerprint == exact.fingerprint
    assert all(map(torch.equal, rounded(images), exact(images)))


def test_nothing_after_the_last_layer_is_kept_and_nothing_is_trainable(images: torch.Tensor) -> None:
    network = load_backbone("resnet18", ("layer2", "layer1"), weights="random")._network
    assert {name.split(".")[0] for name in network.state_dict()} == {"conv1", "layer1", "layer2"}
    assert not network.training and not any(parameter.requires_grad for parameter in network.parameters())
    assert all(output.is_inference() for output in load_layer1(weights="random")(images))


def test_a_backbone_can_be_sent_to_another_process(images: torch.Tensor) -> None:
    backbone = load_layer1(weights="random")
    copy = pickle.loads(pickle.dumps(backbone))
    assert copy.fingerprint == backbone.fingerprint and torch.equal(copy(images)[0], backbone(images)[0])


@pytest.mark.parametrize(
    ("name", "layers", "shapes"),
    [
        ("vgg11", ("features.5", "features.10"), [(128, 56, 56), (256, 28, 28)]),
        ("densenet121", ("features.denseblock1", "features.denseblock2"), [(256, 56, 56), (512, 28, 28)]),
        ("googlenet", ("inception3a",), [(256, 28, 28)]),
        ("mnasnet_a1", ("blocks.1", "blocks.2.0"), [(24, 56, 56), (40, 28, 28)]),
        ("convnext_atto", ("stages.1", "stages.0.blocks.0.mlp"), [(80, 28, 28), (40, 56, 56)]),  # mlp: NHWC
    ],
)
def test_maps_of_other_families(name: str, layers: tuple[str, ...], shapes: list[tuple[int, ...]]) -> None:
    backbone = load_backbone(name, layers, weights="random")
    outputs = backbone(torch.randn(2, 3, 224, 224))
    assert [tuple(output.shape) for output in outputs] == [(2, *shape) for shape in shapes]
    assert backbone.channels == tuple(shape[0] for shape in shapes)


@pytest.mark.parametrize(
    ("name", "block", "stem", "before"),
    [
        ("vit_b_32", "encoder.layers.encoder_layer_0", "conv_proj", 1),  # a class token
        ("deit_tiny_distilled_patch16_224", "blocks.0", "patch_embed", 2),
    ],  # and a second one
)
def test_tokens_become_maps(name: str, block: str, stem: str, before: int) -> None:
    backbone = load_backbone(name, (block, stem), weights="random")
    images = torch.randn(2, 3, 224, 224)
    outputs = backbone(images)
    channels, side = backbone.channels[0], {"vit_b_32": 7}.get(name, 14)
    assert backbone.channels == (channels, channels)
    assert [tuple(output.shape) for output in outputs] == [(2, channels, side, side)] * 2
    with torch.inference_mode():
        tokens, _ = backbone._network(images)  # (B, N, C)
    assert tokens.shape == (2, before + side * side, channels)
    assert torch.equal(outputs[0][1, :, 3, 5], tokens[1, before + 3 * side + 5])

    with pytest.raises(SettingsError, match=r"256x224 pixels.*224x224"):
        backbone(torch.zeros(1, 3, 256, 224))


@pytest.mark.parametrize(
    "images", [torch.zeros(3, 64, 64), torch.zeros(1, 1, 64, 64), torch.zeros(1, 3, 64, 64, dtype=torch.uint8)]
)
def test_what_is_not_a_batch_of_images(images: torch.Tensor) -> None:
    with pytest.raises(SettingsError, match="float images"):
        load_layer1(weights="random")(images)


# --- DINOv2 and DINOv3 ------------------------------------------------------------------------------------------

DINO = {  # name: a square size and two more, in whole patches
    "vit_small_patch14_dinov2.lvd142m": [(518, 518), (224, 224), (154, 294)],
    "vit_small_patch14_reg4_dinov2.lvd142m": [(224, 224), (154, 294), (294, 154)],
    "vit_small_patch16_dinov3.lvd1689m": [(256, 256), (224, 224), (160, 288)],
    "convnext_tiny.dinov3_lvd1689m": [(224, 224), (256, 256), (160, 288)],
}


def dino(name: str, folder: Path, **options: object) -> tuple[torch.nn.Module, Path]:
    """timm's network and a file of its weights, whose blocks add more than the 1e-5 with which training began."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = timm.create_model(name, num_classes=0, **options).eval()
    for parameter, values in network.named_parameters():
        if "gamma" in parameter:
            values.data.fill_(1)
    torch.save(network.state_dict(), folder / "dino.pth")
    return network, folder / "dino.pth"


def timms_maps(network: torch.nn.Module, images: torch.Tensor, indices: list[int]) -> list[torch.Tensor]:
    with torch.inference_mode():
        return network.forward_intermediates(
            images, indices, norm=False, stop_early=True, output_fmt="NCHW", intermediates_only=True
        )


@pytest.mark.parametrize("name", DINO)
def test_dinos_maps_are_timms_at_every_size(name: str, tmp_path: Path) -> None:
    stages, options = ("stages", {}) if name.startswith("convnext") else ("blocks", {"dynamic_img_size": True})
    network, path = dino(name, tmp_path, **options)
    backbone = load_backbone(name, (f"{stages}.2", f"{stages}.0"), path)  # in any order
    assert not any(re.match(rf"{stages}\.[3-9]", key) for key in backbone._network.state_dict())
    for size in DINO[name]:
        images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
        last, first = backbone(images)
        expected = timms_maps(network, images, [0, 2])
        assert (last - first).std() > 0.1 if stages == "blocks" else last.shape[1] == 4 * first.shape[1]
        for output, wanted in zip((first, last), expected, strict=True):
            assert output.shape == wanted.shape and torch.allclose(output, wanted, rtol=1e-4, atol=1e-4)


def test_dinov2_at_its_own_size_is_as_it_was(tmp_path: Path) -> None:
    name = "vit_small_patch14_dinov2.lvd142m"
    network, path = dino(name, tmp_path)  # made for 518x518 alone
    images = torch.randn(1, 3, 518, 518, generator=torch.Generator().manual_seed(0))
    (output,) = load_backbone(name, ("blocks.1",), path)(images)
    assert torch.allclose(output, timms_maps(network, images, [1])[0], rtol=1e-4, atol=1e-4)
    with pytest.raises(AssertionError, match="doesn't match"):
        timms_maps(network, images[..., :224, :224], [1])


@pytest.mark.parametrize(("name", "patch"), [("dinov2_small", 14), ("dinov3_small", 16)])
def test_each_cell_of_a_dino_map_is_its_patch(name: str, patch: int) -> None:
    backbone = load_backbone(name, ("blocks.0", "patch_embed"), weights="random")
    images = torch.zeros(1, 3, 4 * patch, 7 * patch)
    before = backbone(images)
    images[0, :, patch : 2 * patch, 5 * patch : 6 * patch] = 1
    changes = [(a - b).abs().sum(1)[0] for a, b in zip(backbone(images), before, strict=True)]
    for change in changes:
        assert change.shape == (4, 7) and divmod(int(change.argmax()), 7) == (1, 5)
    assert int((changes[1] > 0).sum()) == 1  # only there, before the patches look at each other


@pytest.mark.parametrize(
    ("name", "size", "advice"),
    [
        ("dinov2_small", (250, 150), "a height of 238 or 252 and a width of 140 or 154, whole patches of 14x14"),
        ("dinov2_small", (252, 256), "a height of 252 and a width of 252 or 266,"),
        ("dinov3_small", (250, 160), "a height of 240 or 256 and a width of 160, whole patches of 16x16"),
        ("dinov3_small", (10, 160), "a height of 16 and a width of 160,"),
    ],
)
def test_sizes_that_are_no_whole_patches(name: str, size: tuple[int, int], advice: str) -> None:
    backbone = load_backbone(name, ("blocks.0",), weights="random")
    with pytest.raises(SettingsError, match=rf"{name} does not take .* {size[0]}x{size[1]} pixels: choose {advice}"):
        backbone(torch.zeros(1, 3, *size))


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("dinov2_small", "blocks.5 and blocks.8"),
        ("dinov3_small", "blocks.5 and blocks.8"),
        ("dinov3_convnext_tiny", "stages.1 and stages.2"),
        ("mnasnet_a1", "blocks.2 and blocks.4"),
    ],
)
def test_a_resnets_layers_are_not_everyones(name: str, layers: str) -> None:
    with pytest.raises(SettingsError, match=f"{name} has no layer 'layer2': choose {layers}, or from"):
        load_backbone(name, weights="random")


def test_layers_to_begin_with_in_a_deeper_network() -> None:
    network = torch.nn.Module()
    network.feature_info = [{"module": f"blocks.{i}", "reduction": 14} for i in range(24)]
    assert backbones._usual_layers(network) == ("blocks.11", "blocks.17")


def test_weights_as_dinos_makers_published_them(tmp_path: Path) -> None:
    def save(tensors: dict[str, torch.Tensor]) -> Path:
        torch.save(tensors, tmp_path / "original.pth")
        return tmp_path / "original.pth"

    images = torch.randn(1, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    name, layers = "vit_small_patch14_reg4_dinov2", ("blocks.1",)
    network, path = dino(name, tmp_path)
    tensors = network.state_dict()
    position = tensors.pop("pos_embed")
    original = {
        **tensors,
        "mask_token": torch.zeros(1, 384),
        "register_tokens": tensors.pop("reg_token"),
        "cls_token": tensors.pop("cls_token") - 2,
        "pos_embed": torch.cat([torch.full((1, 1, 384), 2.0), position], 1),
    }
    outputs = [load_backbone(name, layers, file)(images)[0] for file in (path, save(original))]
    assert torch.allclose(*outputs, atol=1e-5)

    name = "vit_small_patch16_dinov3"
    network, path = dino(name, tmp_path)
    new = {"reg_token": "storage_tokens", "gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}
    original = {re.sub("|".join(new), lambda m: new[m[0]], key): value for key, value in network.state_dict().items()}
    original |= {f"blocks.{i}.attn.qkv.bias": torch.zeros(3 * 384) for i in range(12)}
    original |= {"mask_token": torch.zeros(1, 384), "rope_embed.periods": torch.zeros(16)}
    outputs = [load_backbone(name, layers, file)(images)[0] for file in (path, save(original))]
    assert torch.equal(*outputs)


@pytest.mark.parametrize(("name", "size"), [("dinov2_small", (112, 168)), ("dinov3_small", (112, 176))])
def test_a_dino_in_bfloat16_and_in_another_process(name: str, size: tuple[int, int]) -> None:
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    exact, half = (
        load_backbone(name, ("blocks.1",), weights="random", precision=precision)
        for precision in ("float32", "bfloat16")
    )
    assert exact.fingerprint == half.fingerprint
    (wanted,) = exact(images)
    assert 1e-5 < (half(images)[0] - wanted).norm() / wanted.norm() < 0.02
    copy = pickle.loads(pickle.dumps(exact))
    assert torch.equal(copy(images)[0], wanted)
    other = images.transpose(2, 3)
    assert torch.equal(copy(other)[0], exact(other)[0])


@pytest.mark.parametrize(
    ("name", "layers", "resize", "grid"),
    [
        ("dinov2_small", ("blocks.1", "blocks.2"), (252, 252), (18, 18)),
        ("dinov3_small", ("blocks.1", "blocks.2"), (96, 160), (6, 10)),
        ("dinov3_convnext_tiny", ("stages.1", "stages.2"), (96, 160), (12, 20)),
    ],
)
def test_patchcore_on_a_dino(
    name: str,
    layers: tuple[str, ...],
    resize: tuple[int, int],
    grid: tuple[int, int],
    sample_root: Path,
    tmp_path: Path,
) -> None:
    category = pk.load_category(sample_root, "pill")
    backbone = load_backbone(name, layers, weights="random")
    detector = pk.PatchCore(backbone, resize=resize, progress=False).fit(category.train[:4])
    expected = detector.predict(category.test[:3])
    assert detector.grid_ == grid and expected.maps.shape == (3, *resize)
    detector.save(tmp_path / "model")
    loaded = pk.PatchCore.load(tmp_path / "model", progress=False)
    again = loaded.predict(category.test[:3])
    assert (again.scores == expected.scores).all() and (again.maps == expected.maps).all()


# --- random weights ---------------------------------------------------------------------------------------------


def test_random_weights_depend_on_the_seed_alone(images: torch.Tensor) -> None:
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    one, same, other = (load_backbone("resnet18", weights="random", seed=seed) for seed in (1, 1, 2))
    shorter = load_backbone("resnet18", ("layer2",), weights="random", seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert one.is_random and one.weights == "random" and one.seed == 1
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert torch.equal(one(images)[0], shorter(images)[0])
    assert re.fullmatch("[0-9a-f]{8}", one.fingerprint)


def test_the_fingerprint_sees_every_weight_but_not_the_order_of_layers(tmp_path: Path) -> None:
    one = load_backbone("resnet18", ("layer1", "layer2"), weights="random")
    two = load_backbone("resnet18", ("layer2", "layer1"), weights="random")
    tensors = cut_weights("resnet18", ("layer1", "layer2"))
    tensors["layer2.1.bn2.running_var"][5] += 1e-3
    torch.save(tensors, tmp_path / "w.pth")
    three = load_backbone("resnet18", ("layer1", "layer2"), weights=tmp_path / "w.pth")
    assert one.fingerprint == two.fingerprint != three.fingerprint


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_gives_the_same_fingerprint_and_maps(images: torch.Tensor) -> None:
    cpu, gpu = (load_backbone("resnet18", weights="random", device=device) for device in ("cpu", "cuda"))
    assert cpu.fingerprint == gpu.fingerprint
    for expected, output in zip(cpu(images), gpu(images), strict=True):
        assert output.is_cuda and torch.allclose(output.cpu(), expected, rtol=1e-2, atol=1e-2)


# --- names, layers, devices -------------------------------------------------------------------------------------


def test_every_reference_name_stands_for_a_network() -> None:
    starter, *names = backbone_names()
    names, dinos = names[:41], names[41:]
    assert starter == "starter" and names[0] == "alexnet" and names[-1] == "efficientnet_b3a"
    published = set(timm.list_pretrained())
    for name in names:
        if name == "bninception":
            with pytest.raises(WeightsError, match="no longer published"):
                weights.resolve(name)
            continue
        source = weights.resolve(name)
        if source.library == "torchvision":
            assert source.architecture in torchvision.models.list_models() and source.origin == "IMAGENET1K_V1"
            assert re.search(r"-[0-9a-f]{8}\.pth$", source.url_file)
        elif name != "resnet200":
            assert source.architecture in published
            assert source.hub == source.origin == f"timm/{source.architecture}"
    assert len(dinos) == 7
    for name in dinos:
        source = weights.resolve(name)
        assert name.startswith("dino") and source.architecture in published
        assert source.hub == f"timm/{source.architecture}"


def test_resnet200_was_never_published() -> None:
    with pytest.raises(WeightsError, match=r"nobody publishes weights for 'resnet200'.*random"):
        load_backbone("resnet200")


def test_names_outside_the_table() -> None:
    assert weights.resolve("resnet18").origin == "IMAGENET1K_V1"  # torchvision's before timm's
    assert weights.resolve("resnet18.a1_in1k").library == "timm"
    assert weights.resolve("vit_h_14").url_file.startswith("vit_h_14_lc_swag")  # made for 224x224


@pytest.mark.parametrize("name", ["wide_resnet50", "resnet18.a1_in2k", "", "../resnet18"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(SettingsError, match=f"no backbone is called {re.escape(repr(name))}"):
        load_backbone(name)
    with pytest.raises(SettingsError, match=r"did you mean .*wide_resnet50_2"):
        load_backbone("wide_resnet50")


def test_a_name_that_is_newer_than_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm, "list_models", lambda **_: ["resnet18"])
    with pytest.raises(SettingsError, match=r"'dinov3_small' is vit_small_patch16_dinov3\S+, which timm \S+ does not"):
        load_backbone("dinov3_small")


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (("layer2", "layer5"), "resnet18 has no layer 'layer5': choose .*layer4"),
        (("",), "from conv1, bn1"),
        (("layer1.conv1",), "layer1.0.conv1"),
        (("fc",), r"layer 'fc' of resnet18 gives \(1, 1000\), which is no map"),
        ((), "at least one"),
        (("layer2", "layer2"), "only once"),
    ],
)
def test_layers_that_cannot_be_used(layers: tuple[str, ...], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load_backbone("resnet18", layers, weights="random")


def test_a_layer_that_is_not_a_step_of_its_own() -> None:
    with pytest.raises(SettingsError, match=r"layer 'bn1\.act' .* not run as one step"):
        load_backbone("mnasnet_a1", ("bn1.act", "bn1"), weights="random")


def test_a_network_that_cannot_be_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x

    monkeypatch.setattr(torchvision.models.ResNet, "forward", forward)
    with pytest.raises(SettingsError, match=r"resnet18 cannot be cut \(TraceError"):
        load_layer1(weights="random")


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "mps"])
def test_devices_that_are_not_there(device: str) -> None:
    with pytest.raises(SettingsError, match=device):
        load_backbone("resnet18", weights="random", device=device)


# --- finding weights --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "file_name"),
    [
        *[("resnet18", f"resnet18{suffix}") for suffix in (".pth", ".pt", ".safetensors")],
        ("resnet18", "resnet18-f37072fd.pth"),
        ("resnet18.a1_in1k", "resnet18.a1_in1k.safetensors"),
        ("resnet18.a1_in1k", "resnet18.a1_in1k.pth"),
        ("resnet18.a1_in1k", "resnet18_a1_0-d63eafa0.pth"),
    ],
)
def test_weights_folder(name: str, file_name: str, tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "weights" / file_name
    path.parent.mkdir()
    (save_file if path.suffix == ".safetensors" else torch.save)(tensors, path)
    backbone = load_layer1(name)
    assert backbone.weights == path.name
    assert has_weights(backbone, tensors)


def test_a_files_name_may_be_the_kits_or_the_architectures() -> None:
    names = weights.resolve("wideresnet50").file_names
    assert names[0] == "wide_resnet50_2-95faca4d.pth" and {"wideresnet50.pth", "wide_resnet50_2.pt"} < set(names)
    names = weights.resolve("efficientnet_b3a").file_names
    assert names[0] == "efficientnet_b3.ra2_in1k.safetensors" and "efficientnet_b3a.pth" in names
    assert "resnet18.pth" not in weights.resolve("resnet18.a1_in1k").file_names  # another network's


def test_weights_of_the_work_folder(
    tensors: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PATCHCORE_WEIGHTS")
    monkeypatch.setenv("PATCHCORE_WORK", str(tmp_path))
    (tmp_path / "weights").mkdir()
    torch.save(tensors, tmp_path / "weights" / "resnet18.pth")
    assert load_layer1().weights == "resnet18.pth"


def test_torch_hub_cache(tensors: dict[str, torch.Tensor]) -> None:
    path = Path(torch.hub.get_dir(), "checkpoints", "resnet18-f37072fd.pth")
    path.parent.mkdir(parents=True)
    torch.save(tensors, path)
    backbone = load_layer1()
    assert backbone.weights == "IMAGENET1K_V1"
    assert has_weights(backbone, tensors)


def test_hugging_face_cache(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--timm--resnet18.a1_in1k"
    (repository / "snapshots" / "abc").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    save_file(tensors, repository / "snapshots" / "abc" / "model.safetensors")
    backbone = load_layer1("resnet18.a1_in1k")
    assert backbone.weights == "timm/resnet18.a1_in1k"
    assert has_weights(backbone, tensors)


# --- the network ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hanging", [False, True])
@pytest.mark.parametrize(
    ("name", "file_name", "host"),
    [
        ("wideresnet50", "wide_resnet50_2-95faca4d.pth", "download.pytorch.org"),
        ("vit_deit_base", "deit_base_patch16_224.fb_in1k.safetensors", "huggingface.co"),
        ("dinov2_small", "vit_small_patch14_dinov2.lvd142m.safetensors", "huggingface.co"),
        ("dinov3_base", "vit_base_patch16_dinov3.lvd1689m.safetensors", "huggingface.co"),
    ],
)
def test_without_a_network_the_error_comes_at_once(
    name: str, file_name: str, host: str, hanging: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if hanging:
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(4))
    started = time.monotonic()
    with pytest.raises(WeightsError, match=re.escape(host)) as caught:
        load_backbone(name)
    assert time.monotonic() - started < 2
    for part in (f"put {file_name} ", str(tmp_path / "weights"), "'starter'"):
        assert part in str(caught.value)


def test_hf_hub_offline_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE forbids downloads"):
        load_backbone("resnet18.a1_in1k")


def test_downloads_go_to_the_librarys_cache(
    tensors: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def from_torch(url: str, path: str, checksum: str | None) -> None:
        assert url == "https://download.pytorch.org/models/resnet18-f37072fd.pth" and checksum == "f37072fd"
        torch.save(tensors, path)

    def from_hub(repository: str, file_name: str) -> str:
        assert (repository, file_name) == ("timm/resnet18.a1_in1k", "model.safetensors")
        save_file(tensors, tmp_path / file_name)
        return str(tmp_path / file_name)

    monkeypatch.setattr(weights, "_answers", lambda *_: True)
    monkeypatch.setattr(torch.hub, "download_url_to_file", from_torch)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", from_hub)
    for name, origin in (("resnet18", "IMAGENET1K_V1"), ("resnet18.a1_in1k", "timm/resnet18.a1_in1k")):
        backbone = load_layer1(name)
        assert backbone.weights == origin
        assert has_weights(backbone, tensors)


def test_a_host_answers_even_if_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", REAL_LOOK_UP)
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:  # knows no HEAD
        monkeypatch.setattr(http.server.BaseHTTPRequestHandler, "log_message", lambda *_: None)
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/weights.pth"
        assert weights._answers(url, 5)
        thread.join()
    assert not weights._answers(url, 5)


def test_a_download_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_answers", lambda *_: True)
    with pytest.raises(WeightsError, match=r"cannot download the weights of 'resnet18' .*put resnet18-f37072fd"):
        load_backbone("resnet18")


# --- reading weights --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tensors: {"epoch": 3, "state_dict": tensors},
        lambda tensors: {"model": {f"module.{name}": tensor for name, tensor in tensors.items()}},
        lambda tensors: {**tensors, "fc.weight": torch.zeros(2, 2)},
        lambda tensors: {name: tensor.double() for name, tensor in tensors.items()},
    ],
)
def test_wrapped_weights(wrap: object, tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(wrap(tensors), tmp_path / "w.pth")
    backbone = load_layer1(weights=tmp_path / "w.pth")
    assert has_weights(backbone, tensors)
    assert all(tensor.dtype == torch.float32 for tensor in backbone._network.parameters())


def test_old_names_in_densenet_files(tmp_path: Path) -> None:
    whole = load_backbone("densenet201", ("features.denseblock1",), weights="random")
    tensors = cut_weights("densenet201", ("features.denseblock1",))
    old = {re.sub(r"(norm|conv)([12])\.", r"\1.\2.", name): tensor for name, tensor in tensors.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "w.pth")
    for name in ("densenet201", "densenet201.tv_in1k"):
        backbone = load_backbone(name, ("features.denseblock1",), weights=tmp_path / "w.pth")
        assert backbone.fingerprint == whole.fingerprint


def test_swin_transformers_and_timms_translation_of_older_files(tmp_path: Path) -> None:
    name, layers = "swin_tiny_patch4_window7_224", ("layers.1",)
    whole = load_backbone(name, layers, weights="random")
    (output,) = whole(torch.randn(2, 3, 224, 224))
    assert output.shape == (2, 192, 28, 28)  # from (B, h, w, C)
    # the original files have the down-sampling at the end of a stage
    old = {
        re.sub(r"layers.(\d).downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", key): tensor
        for key, tensor in cut_weights(name, layers).items()
    }
    assert "layers.0.downsample.reduction.weight" in old
    torch.save({"model": old}, tmp_path / "w.pth")
    assert load_backbone(name, layers, weights=tmp_path / "w.pth").fingerprint == whole.fingerprint


def test_weights_that_do_not_fit(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(tensors, path)
    with pytest.raises(WeightsError, match=r"w\.pth does not fit resnet18 .*it has no layer2\.0\.conv1\.weight"):
        load_backbone("resnet18", ("layer2",), weights=path)
    torch.save({**tensors, "layer1.0.bn1.running_mean": torch.zeros(65)}, path)
    with pytest.raises(WeightsError, match=r"its layer1\.0\.bn1\.running_mean is \(65,\), not \(64,\)"):
        load_layer1(weights=path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS pointer.*git lfs pull"),
        (b"not weights at all", "cannot be read as weights"),
        (b"", "cannot be read as weights"),
        (b"PK\x03\x04 cut short", "cannot be read as weights"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_that_hold_no_weights(content: bytes, message: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=message) as caught:
        load_layer1(weights=path)
    assert str(path) in str(caught.value)


def test_files_that_hold_something_else(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save([1, 2], path)
    with pytest.raises(WeightsError, match="holds no weights by name"):
        load_layer1(weights=path)
    torch.save(torch.nn.Linear(1, 1), path)  # a whole module would run code when unpickled
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        load_layer1(weights=path)
    with pytest.raises(WeightsError, match=r"none\.pth is not there"):
        load_layer1(weights=tmp_path / "none.pth")
    with pytest.raises(WeightsError, match="is a folder"):
        load_layer1(weights=tmp_path)


def test_a_network_goes_with_the_last_reference_to_it():
    """Not only when Python looks for circles: ten wide ResNet-50 would hold 2.6 GB until then."""

    def networks():
        return sum(type(thing).__name__ in ("ResNet", "GraphModule") for thing in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = networks()
        network = pk.load_backbone("resnet18", weights="random")
        alive = [weakref.ref(tensor) for tensor in network._network.parameters()]
        assert len(alive) > 20
        del network
        assert not any(tensor() is not None for tensor in alive)
        assert networks() == before
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda t: t.fill_(torch.nan), "conv1.weight holds values that are not finite"),
        (lambda t: t.index_fill(0, torch.tensor([3]), torch.inf), "conv1.weight holds values that are not finite"),
        (lambda t: t.to(torch.int8), "conv1.weight holds torch.int8, not torch.float32"),
        (lambda t: t > 0, "conv1.weight holds torch.bool, not torch.float32"),
        (lambda t: t.to(torch.complex64), "conv1.weight holds torch.complex64, not torch.float32"),
    ],
)
def test_weights_that_are_no_numbers(tmp_path, change, why):
    tensors = torchvision.models.resnet18(weights=None).state_dict()
    torch.save(tensors | {"conv1.weight": change(tensors["conv1.weight"].clone())}, tmp_path / "some.pth")
    with pytest.raises(pk.WeightsError, match=why) as refusal:
        pk.load_backbone("resnet18", weights=tmp_path / "some.pth")
    assert len(str(refusal.value)) < 300 and "some.pth" in str(refusal.value)


def test_maps_that_are_not_finite(tmp_path):
    tensors = torchvision.models.resnet18(weights=None).state_dict()
    torch.save(tensors | {"bn1.running_var": -torch.ones(64)}, tmp_path / "some.pth")  # finite, and no variance
    network = pk.load_backbone("resnet18", weights=tmp_path / "some.pth")
    with pytest.raises(pk.WeightsError, match=r"resnet18 with the weights some.pth makes values that are not finite"):
        network(torch.zeros(1, 3, 64, 64))
