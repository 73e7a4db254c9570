"""Inception-v3 as FID knows it: the network of 2015 with 1,008 classes, whose weights the user has.

The weights were converted from TensorFlow's for torch-fidelity and pytorch-fid, which both name the tensors as here; either file is
read. prunekit ships neither and downloads neither. torch-fidelity has the same network, but needs torchvision.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunekit._files import sha256_file
from prunekit.checkpoint.tensors import read_content
from prunekit.errors import FileFormatError, InputError, MissingFileError

__all__ = [
    "INCEPTION",
    "LAYERS",
    "InceptionExtractor",
    "InceptionV3",
    "cached_inception",
    "is_inception",
    "load_inception",
]

INCEPTION = "inception-v3"
"""Name of the extractor for commands, recipes and reports."""
LAYERS = (64, 192, 768, 2048)
"""Widths of the layers that features are taken from, as in torchmetrics; published figures are of the last one."""

_SIDE = 299
_CLASSES = 1008
_CHUNK = 32  # images per forward: bounds memory, not the result
_FILES = ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth")
"""Names under which torch-fidelity and pytorch-fid keep the file in torch's cache."""
_WHERE = (
    "download weights-inception-2015-12-05-6726825d.pth from "
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/ and name it by `inception_weights` "
    "(in a recipe, evaluation: {features: FILE})"
)

_Size = int | tuple[int, int]
_Layer = tuple[str, int, _Size]


class _Conv(nn.Module):
    """A convolution without bias, a batch norm and a ReLU."""

    def __init__(self, channels: int, out: int, size: _Size, stride: int = 1, padding: _Size = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, images: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(images)), inplace=True)


class _Mixed(nn.Module):
    """Branches of convolutions side by side, whose outputs are concatenated, and a pooled one.

    Args:
        channels: channels of the input.
        branches: for each branch its convolutions as (name, channels, size). A convolution whose name ends in ``a`` splits the
            branch: it and the next one, whose name ends in ``b``, both take what the branch has so far.
        pooled: channels of the pooled branch; 0 for the pooled input itself, which then has half the side.
        maximum: whether the pooled branch takes the maximum and not the mean. TensorFlow's mean leaves out the padding.
    """

    def __init__(self, channels: int, branches: list[list[_Layer]], pooled: int, maximum: bool = False) -> None:
        super().__init__()
        self.halves, self.maximum = pooled == 0, maximum
        self.names = [[name for name, _, _ in branch] for branch in branches]
        for branch in branches:
            width = channels
            for name, out, size in branch:
                stride = 2 if self.halves and (name, out, size) == branch[-1] else 1
                padding = 0 if stride == 2 else _same(size)
                self.add_module(name, _Conv(width, out, size, stride, padding))
                width = width if name.endswith("a") else out
        if pooled:
            self.branch_pool = _Conv(channels, pooled, 1)

    def forward(self, images: Tensor) -> Tensor:
        outputs = [part for names in self.names for part in self._branch(names, images)]
        if self.halves:
            return torch.cat([*outputs, functional.max_pool2d(images, 3, stride=2)], 1)
        if self.maximum:
            pooled = functional.max_pool2d(images, 3, stride=1, padding=1)
        else:
            pooled = functional.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
        return torch.cat([*outputs, self.branch_pool(pooled)], 1)

    def _branch(self, names: list[str], images: Tensor) -> list[Tensor]:
        split = [name for name in names if name[-1] in "ab"]
        for name in names[: len(names) - len(split)]:
            images = self.get_submodule(name)(images)
        return [self.get_submodule(name)(images) for name in split] or [images]


def _same(size: _Size) -> _Size:
    """The padding with which a convolution of this size leaves the sides as they are."""
    return size // 2 if isinstance(size, int) else (size[0] // 2, size[1] // 2)


def _a(channels: int, pooled: int) -> _Mixed:
    double = [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)]
    branches: list[list[_Layer]] = [[("branch1x1", 64, 1)], [("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)], [*double]]
    return _Mixed(channels, branches, pooled)


def _b(channels: int) -> _Mixed:
    double = [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)]
    return _Mixed(channels, [[("branch3x3", 384, 3)], [*double]], 0)


def _c(channels: int, inner: int) -> _Mixed:
    wide, high = (1, 7), (7, 1)
    one: list[_Layer] = [("branch7x7_1", inner, 1), ("branch7x7_2", inner, wide), ("branch7x7_3", 192, high)]
    sizes: list[_Size] = [1, high, wide, high, wide]
    widths = [inner] * 4 + [192]
    double: list[_Layer] = [
        (f"branch7x7dbl_{number}", width, size)
        for number, (width, size) in enumerate(zip(widths, sizes, strict=True), 1)
    ]
    return _Mixed(channels, [[("branch1x1", 192, 1)], one, double], 192)


def _d(channels: int) -> _Mixed:
    second: list[_Layer] = [("branch7x7x3_1", 192, 1), ("branch7x7x3_2", 192, (1, 7)), ("branch7x7x3_3", 192, (7, 1))]
    return _Mixed(
        channels, [[("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3)], [*second, ("branch7x7x3_4", 192, 3)]], 0
    )


def _e(channels: int, maximum: bool) -> _Mixed:
    wide, high = (1, 3), (3, 1)
    one: list[_Layer] = [("branch3x3_1", 384, 1), ("branch3x3_2a", 384, wide), ("branch3x3_2b", 384, high)]
    double: list[_Layer] = [("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3)]
    double += [("branch3x3dbl_3a", 384, wide), ("branch3x3dbl_3b", 384, high)]
    return _Mixed(channels, [[("branch1x1", 320, 1)], one, double], 192, maximum)


class InceptionV3(nn.Module):
    """The network of arXiv:1512.00567 with the layer names of the published weights; see :func:`load_inception`.

    Images are resized to 299×299 (bilinear, antialiased), as torchmetrics does by default. torchmetrics takes this network as
    ``feature``.

    Args:
        layer: one of :data:`LAYERS`.

    Raises:
        InputError: there is no such layer.
    """

    def __init__(self, layer: int = 2048) -> None:
        super().__init__()
        if layer not in LAYERS:
            raise InputError(f"Got layer {layer}; expected one of {', '.join(map(str, LAYERS))}.")
        self.num_features = layer
        self.Conv2d_1a_3x3 = _Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = _Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3, padding=1)
        self.MaxPool_1 = nn.MaxPool2d(3, stride=2)
        self.Conv2d_3b_1x1 = _Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = _Conv(80, 192, 3)
        self.MaxPool_2 = nn.MaxPool2d(3, stride=2)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _a(192, 32), _a(256, 64), _a(288, 64)
        self.Mixed_6a = _b(288)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = (
            _c(768, 128),
            _c(768, 160),
            _c(768, 160),
            _c(768, 192),
        )
        self.Mixed_7a, self.Mixed_7b, self.Mixed_7c = _d(768), _e(1280, maximum=False), _e(2048, maximum=True)
        self.fc = nn.Linear(2048, _CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Features of shape (N, layer), float32, of uint8 images (N, 1 or 3, H, W): a layer's channels, averaged over positions."""
        return self.of_levels(_coloured(images))

    def of_levels(self, images: Tensor) -> Tensor:
        """Features of shape (N, layer), float32, of levels 0 … 255 that need not be whole, shape (N, 3, H, W)."""
        images = images.to(self.fc.weight.dtype)
        side = (_SIDE, _SIDE)
        images = functional.interpolate(images, side, mode="bilinear", align_corners=False, antialias=True)
        images = (images - 128) / 128
        last = {64: "MaxPool_1", 192: "MaxPool_2", 768: "Mixed_6e", 2048: "Mixed_7c"}[self.num_features]
        for name, block in self.named_children():
            images = block(images)
            if name == last:
                break
        return images.mean((2, 3))


@dataclass(frozen=True, eq=False)
class InceptionExtractor:
    """Inception-v3 with the hash of its weights' file.

    Args:
        net: the network.
        sha256: hash of the file that it was read from.
    """

    net: InceptionV3
    sha256: str

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Features of shape (N, layer), float64 on the CPU, of uint8 images (N, 1 or 3, H, W), computed in chunks."""
        device = self.net.fc.weight.device
        return torch.cat([self.net(part.to(device)).cpu().double() for part in images.split(_CHUNK)])

    @torch.no_grad()
    def of_levels(self, levels: Tensor) -> Tensor:
        """Features of shape (N, layer), float64 on the CPU, of levels 0 … 255 that are not rounded, shape (N, 1 or 3, H, W)."""
        device, (channels, height, width) = self.net.fc.weight.device, levels.shape[1:]
        three = levels.expand(-1, 3 if channels == 1 else channels, height, width)
        return torch.cat([self.net.of_levels(part.to(device)).cpu().double() for part in three.split(_CHUNK)])

    def describe(self) -> dict[str, object]:
        """``name``, ``sha256``, ``resolution``, ``num_features``, and that its fit is not checked."""
        about = {"name": INCEPTION, "sha256": self.sha256, "own": True}
        return {**about, "resolution": _SIDE, "num_features": self.net.num_features}


def load_inception(path: Path | str | None = None, layer: int = 2048) -> InceptionExtractor:
    """Read Inception-v3 without running code from the file.

    Args:
        path: torch-fidelity's or pytorch-fid's file, or the same tensors as safetensors; None for the one in torch's cache.
        layer: one of :data:`LAYERS`.

    Raises:
        MissingFileError: there is no such file, or none in the cache; the message says where to get it.
        FileFormatError: it is broken, or holds another network.
    """
    path = cached_inception() if path is None else Path(path).expanduser()
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist; expected a feature extractor. For Inception-v3, {_WHERE}.")
    _, content = read_content(path)
    with torch.device("meta"):  # saves memory and random numbers for weights that are replaced at once
        net = InceptionV3(layer)
    wanted = {key: value.shape for key, value in net.state_dict().items()}
    counts = {key: torch.zeros((), dtype=torch.int64) for key in wanted if key.endswith("num_batches_tracked")}
    state = {**counts, **{key: value for key, value in content.items() if key in wanted}}
    wrong = next((key for key, shape in wanted.items() if not _fits(state.get(key), shape)), None)
    if wrong is not None:
        raise FileFormatError(
            f"{path} has no finite tensor {wrong} of shape {tuple(wanted[wrong])}; expected the weights of Inception-v3 for FID: "
            f"{_WHERE}."
        )
    net.load_state_dict(
        {key: value.float() if value.is_floating_point() else value for key, value in state.items()}, assign=True
    )
    if torch.cuda.is_available():
        net.cuda()  # 5.7 GMACs an image
    return InceptionExtractor(net.eval().requires_grad_(False), sha256_file(path))


def cached_inception() -> Path:
    """The weights that torch-fidelity or pytorch-fid keeps in torch's cache.

    Raises:
        MissingFileError: neither does; the message says where to get them.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    found = next((folder / name for name in _FILES if (folder / name).is_file()), None)
    if found is None:
        raise MissingFileError(f"Inception's weights are not in torch's cache ({folder}); {_WHERE}.")
    return found


def is_inception(tensors: Mapping[str, object]) -> bool:
    """Whether tensors by name look like Inception's."""
    return "Mixed_7c.branch_pool.conv.weight" in tensors


def _fits(value: object, shape: torch.Size) -> bool:
    return isinstance(value, Tensor) and value.shape == shape and bool(value.isfinite().all())


def _coloured(images: Tensor) -> Tensor:
    """Pictures with three channels; grey ones have three equal ones."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise InputError(
            f"Got images of {images.dtype} and shape {tuple(images.shape)}; expected uint8 (count, 1 or 3, height, width)."
        )
    return images.expand(-1, 3, -1, -1)
