"""Files of weights: reading without executing code from them, what makes them a classifier's, strict loading.

The preprocessing belongs to the weights and travels with them. Where a net's weights come from: `backbones.pretrained`.
"""

from __future__ import annotations

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from backbones.resnet import ResNet
from backbones.resnet_spec import RESNETS
from backbones.zoo import NAMES
from configs.classification import IMAGENET_MEAN, IMAGENET_STD
from configs.errors import UserError, counted, examples, nearest
from configs.files import replacing
from configs.pickles import PickleError, read_pickle

FORMAT = 1
"""The version of this project's checkpoints."""
BOTTLENECK_NETS = tuple(name for name, row in RESNETS.items() if row.unit == "bottleneck")


@dataclass(frozen=True)
class Preprocessing:
    """What a net's input looks like: (pixel - mean) / std per channel, pixel in 0..255."""

    mean: tuple[float, float, float]
    """In units of uint8 (0..255), in the order of `channel_order`."""
    std: tuple[float, float, float]
    """As mean; MSRA's and Caffe's nets divide by nothing: 1."""
    channel_order: Literal["rgb", "bgr"] = "rgb"

    def to_dict(self) -> dict[str, Any]:
        """As stored in checkpoints."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """The inverse of `to_dict`.

        Raises:
            UserError: a key is missing, or a value is not what it must be.
        """
        known = values if isinstance(values, Mapping) else {}
        mean, std, order = _three(known, "mean"), _three(known, "std"), known.get("channel_order")
        if order not in ("rgb", "bgr") or min(std) <= 0:
            raise UserError(f"the checkpoint's preprocessing is damaged: {order!r:.20} pixels over {list(std)!r:.60}")
        return cls(mean, std, order)


def _three(values: Mapping[str, Any], name: str) -> tuple[float, float, float]:
    numbers = values.get(name)
    if isinstance(numbers, list | tuple) and len(numbers) == 3:
        red, green, blue = numbers
        if all(type(number) in (int, float) and abs(number) < 1e30 for number in numbers):  # NaN is not
            return red, green, blue
    raise UserError(f"the checkpoint's preprocessing: {name} is not three numbers")


IMAGENET = Preprocessing(IMAGENET_MEAN, IMAGENET_STD, "rgb")
"""torchvision's weights: mean 0.485, 0.456, 0.406 and std 0.229, 0.224, 0.225 times 255."""
MSRA = Preprocessing((102.9801, 115.9465, 122.7717), (1.0, 1.0, 1.0), "bgr")
"""The released ResNets of He et al. 2016 in Caffe and Caffe2."""
GOOGLENET = Preprocessing((127.5, 127.5, 127.5), (127.5, 127.5, 127.5), "rgb")
"""torchvision's GoogLeNet weights, which are TensorFlow's: inputs in [-1, 1] (its `transform_input`)."""
CAFFE_VGG = Preprocessing((103.939, 116.779, 123.68), (1.0, 1.0, 1.0), "bgr")
"""The released VGG nets of Simonyan & Zisserman in Caffe."""


# ---------------------------------------------------------------------------------------------- files


def read_weights_file(path: Path | str) -> dict[str, Any]:
    """The dict in a file: .safetensors, .pkl (arrays, of Python 2 or 3), everything else as torch's own format.

    A safetensors file whose metadata hold a checkpoint (see `write_safetensors`) gives that checkpoint.

    Raises:
        UserError: the file is missing, truncated, of another format, or would need code to be executed.
    """
    path = Path(path)
    _refuse_foreign(path)
    try:
        if path.suffix == ".safetensors":
            content = _read_safetensors(path)
        elif path.suffix == ".pkl":
            content = read_pickle(path.read_bytes())
        else:
            content = _load_torch(path)
    except UserError:
        raise
    except (pickle.UnpicklingError, PickleError) as error:
        raise UserError(
            f"{path}: not a weights file of tensors and arrays ({first_line(error)}); it is damaged, of another "
            "format, or holds objects whose loading would execute code"
        ) from None
    except Exception as error:  # what damaged bytes raise is without limit: EOFError, RuntimeError, KeyError, ...
        raise UserError(
            f"{path}: cannot be read as weights ({first_line(error)}); the file is truncated or of another format: "
            "fetch it again"
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not a dict of weights")
    for key, value in (("kind", content.get("kind")), ("format", content.get("format"))):
        if not isinstance(value, str | int | None):  # comparing a tensor has no answer
            raise UserError(f"{path}: its {key} is a {type(value).__name__}: the checkpoint is damaged")
    return content


_FOREIGN = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself: run git lfs pull",
    b"<!doctype": "a web page, not weights: the download needs another address or an account",
    b"<html": "a web page, not weights: the download needs another address or an account",
    b"<?xml": "XML, not weights: the server answered with an error",
    b"\x89hdf": "HDF5 (Keras or Caffe), which is not read here: convert it to .safetensors or a PyTorch file",
    b"gguf": "GGUF, which is not read here: convert it to .safetensors or a PyTorch file",
    b"\x1f\x8b": "compressed with gzip: unpack it",
    b"\xff\xd8\xff": "a picture, not weights",
    b"\x89png": "a picture, not weights",
}
"""First bytes of files that are often taken for weights."""


_TEXTS = (".yaml", ".yml", ".json", ".jsonl", ".txt", ".csv", ".xml", ".md")


def _weights_in(folder: Path) -> list[str]:
    """The names of a folder's weights files."""
    return sorted(item.name for item in folder.iterdir() if item.suffix in (".pt", ".pth", ".safetensors", ".pkl"))


def _refuse_foreign(path: Path) -> None:
    """Raise a UserError where a path is no file, or a file of something that is known not to be weights."""
    if path.is_dir():
        there = _weights_in(path)
        raise UserError(f"{path}: is a folder: give the file{f': {there[0]}' if there else ''}")
    if not path.is_file():
        there = _weights_in(path.parent) if path.parent.is_dir() else []
        hint = f": its folder has {examples(there)}" if there else ""
        raise UserError(f"{path}: there is no such weights file{hint}")
    if path.suffix.lower() in _TEXTS:
        raise UserError(f"{path}: is a text file, not weights: give last.pt or best.pt of a run")
    if path.suffix.lower() in (".onnx", ".pt2"):
        raise UserError(f"{path}: is an exported file, which runs as it is: give the checkpoint that it was made of")
    try:
        with path.open("rb") as file:
            start = file.read(64).lstrip().lower()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    for mark, what in _FOREIGN.items():
        if start.startswith(mark):
            raise UserError(f"{path}: is {what}")


_ADVICE = ("Weights only load failed", "(1) In PyTorch", "Please file an issue", "Check the documentation")
"""How lines begin that `torch.load` adds to a reason."""


def _load_torch(path: Path) -> Any:
    """The content of PyTorch's own file, whose parts' checksums must be right; torch.load itself does not look."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            # PyTorch stores its members; a compressed one can be a thousand times as large as the file.
            compressed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
            if compressed or not any(member.filename.endswith("data.pkl") for member in members):
                raise UserError(f"{path}: is an ordinary archive, not PyTorch's file of weights: unpack it")
            damaged = archive.testzip()
        if damaged is not None:
            raise UserError(f"{path}: the checksum of {damaged} is wrong: the file is damaged: fetch it again")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the pickle's version, before the error that says what is wrong
        return torch.load(path, map_location="cpu", weights_only=True)


def first_line(error: Exception) -> str:
    """What an error says first, shortened; torch's advice to load unsafely is passed over."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    text = next((line for line in lines if line.strip() and not line.startswith(_ADVICE)), "no weights")
    return text if len(text) < 160 else f"{text[:157]}..."


def write_safetensors(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Writes a checkpoint, whole or not at all: its tensors as safetensors, the rest as JSON in the metadata."""
    rest = {key: value for key, value in checkpoint.items() if key != "model"}
    tensors = {key: value.contiguous() for key, value in checkpoint["model"].items()}
    with replacing(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, metadata={"checkpoint": json.dumps(rest)})


def _read_safetensors(path: Path) -> dict[str, Any]:
    tensors = safetensors.torch.load_file(path)
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    if "checkpoint" in metadata:
        return {**json.loads(metadata["checkpoint"]), "model": tensors}
    return tensors


# ---------------------------------------------------------------------------------------------- sources


def as_classifier(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """The file's content as a classifier checkpoint: {"config", "preprocessing", "model", ...}.

    A bare torchvision state dict gets torchvision's preprocessing and stride style.

    Raises:
        UserError: a detector's or a localiser's checkpoint, or weights of another project's form.
    """
    if content.get("kind") == "detector":
        raise UserError(f"{path}: a detector's checkpoint, not a classifier's: start from it with --init-from")
    if content.get("kind") == "localiser":
        raise UserError(f"{path}: a localiser's checkpoint, not a classifier's: give the one that it started from")
    if content.get("kind") == "classifier":
        check_fields(content, path)
        return content
    state = {str(key).removeprefix("module."): value for key, value in content.items() if isinstance(value, Tensor)}
    bare = any(
        re.fullmatch(r"(layer\d+\.\d+\.conv\d|features\.\d+|inception3a\.\w+\.conv)\.weight", key) for key in state
    )
    if len(state) != len(content) or not bare:
        some = ", ".join(map(str, list(content)[:3]))
        raise UserError(
            f"{path}: neither a checkpoint of this project nor a torchvision state dict (it begins with {some}): "
            "convert it with tools/convert_weights.py"
        )
    check_tensors(state, path)
    googlenet = detect_net(state) == "googlenet"
    return {
        "config": {"model": {"stride_in_1x1": False}},
        "preprocessing": (GOOGLENET if googlenet else IMAGENET).to_dict(),
        # torchvision's file has auxiliary classifiers too, which nobody trained (its documentation).
        "model": {key: value for key, value in state.items() if not (googlenet and key.startswith("aux"))},
    }


def check_fields(content: Mapping[str, Any], path: Path | str) -> None:
    """Refuse a checkpoint of this project whose parts are missing or of another type.

    Raises:
        UserError: names the part.
    """
    missing = {"config", "preprocessing", "model"} - content.keys()
    if missing:
        raise UserError(f"{path}: the checkpoint lacks {', '.join(sorted(missing))}")
    for key in ("config", "preprocessing", "model", "card", "training"):
        if not isinstance(content.get(key, {}), Mapping):
            raise UserError(f"{path}: the checkpoint's {key} is a {type(content[key]).__name__}, not a mapping")
    config = content["config"]
    for section in ("model", "data", "train"):
        if not isinstance(config.get(section, {}), Mapping):
            raise UserError(f"{path}: the checkpoint's config.{section} is not a mapping")
    foreign = next((value for value in _leaves(config) if not isinstance(value, str | bool | int | float | None)), None)
    if foreign is not None:
        raise UserError(f"{path}: the checkpoint's config holds a {type(foreign).__name__}, not plain values only")
    names = content.get("class_names", [])
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: the checkpoint's class_names are not a list of texts")
    check_tensors(content["model"], path)
    if content.get("mean_image") is not None:
        check_tensors({"mean_image": content["mean_image"]}, path)
    try:
        Preprocessing.from_dict(content["preprocessing"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _leaves(value: Any) -> Iterator[Any]:
    """The values inside mappings and lists, at any depth."""
    inside = [value]
    while inside:
        one = inside.pop()
        if isinstance(one, Mapping):
            inside += one.values()
        elif isinstance(one, list | tuple):
            inside += one
        else:
            yield one


_MOST_REPEATED = 1 << 26
"""Bytes of a tensor that repeats what its file holds once (`torch.Tensor.expand`); more is made to fill memory."""


def check_tensors(state: Mapping[Any, Any], path: Path | str) -> None:
    """Refuse a state dict that is not one: names of text, dense tensors, finite numbers.

    Raises:
        UserError: names the first key that is wrong.
    """
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise UserError(f"{path}: {key!s:.60} is a {type(value).__name__}, not a tensor: the weights are damaged")
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise UserError(f"{path}: {key} is not a plain dense tensor")
        plain = value.is_floating_point() and value.element_size() >= 2  # float8's scales lie elsewhere
        if not plain and not key.endswith("num_batches_tracked"):  # a net would take them, rounded
            raise UserError(
                f"{path}: {key} has numbers of type {value.dtype}: "
                "weights are floating-point numbers of 16 bits or more"
            )
        if value.nbytes > max(value.untyped_storage().nbytes(), _MOST_REPEATED):
            raise UserError(f"{path}: {key} has {value.numel()} numbers, of which the file holds a part only")
        if plain and not torch.isfinite(value).all():
            raise UserError(f"{path}: {key} has values that are not finite: the weights have diverged or are damaged")


# ---------------------------------------------------------------------------------------------- loading


def check_net(stored: Mapping[str, Any], net: nn.Module, name: str, stride_in_1x1: bool, path: Path) -> None:
    """Refuses weights of another net or of another kind of the same net, also where every shape would fit."""
    trained_as = stored.get("backbone", name)
    if isinstance(trained_as, str) and trained_as != name:  # a table of one's own is compared key by key
        raise UserError(f"{path}: weights of {trained_as}, but the config's backbone is {name}")
    if not isinstance(net, ResNet):
        return
    style = bool(stored.get("stride_in_1x1"))
    if net.spec.unit == "bottleneck" and style != stride_in_1x1:
        where = {True: "1x1", False: "3x3"}
        raise UserError(
            f"{path}: trained with the stride in the {where[style]}, but the config's bottlenecks have it in the "
            f"{where[stride_in_1x1]}: set model.stride_in_1x1: {str(style).lower()}"
        )
    for key in ("plain", "shortcut"):
        value = getattr(net.spec, key)
        if stored.get(key) not in (None, value):
            raise UserError(f"{path}: trained with {key}: {stored[key]}, but this net has {key}: {value}")


def load_checked(net: nn.Module, state: Mapping[str, Tensor], name: str, path: Path, for_classification: bool) -> None:
    """Loads a classifier's weights strictly, but for layers of the classifier that do not fit, where it is not needed.

    Auxiliary classifiers, which only train classifiers, are not needed then either.

    Raises:
        UserError: see `check_keys`.
    """
    own = {key: value for key, value in net.state_dict().items() if not key.endswith("num_batches_tracked")}
    state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    if not for_classification:
        own, state = ({key: each[key] for key in each if not key.startswith("companions.")} for each in (own, state))
        layers = {key.rpartition(".")[0] for key in (*own, *state) if key.startswith(("fc.", "classifier."))}
        for layer in layers:
            keys = [f"{layer}.weight", f"{layer}.bias"]
            if any(key not in own or key not in state or own[key].shape != state[key].shape for key in keys):
                for key in keys:
                    own.pop(key, None)
                    state.pop(key, None)
    check_keys(own, state, name, path)
    net.load_state_dict(state, strict=False)  # check_keys was strict; here the batch counters may be absent


def check_keys(own: Mapping[str, Tensor], state: Mapping[str, Tensor], name: str, path: Path) -> None:
    """Refuses a state dict that does not fit key by key, naming the first that does not and why that may be."""
    for key in own:
        if key in state and own[key].shape != state[key].shape:
            in_file, in_net = ("x".join(map(str, each[key].shape)) for each in (state, own))
            cause = _other_net(name, state)
            if key.startswith(("fc.", "classifier.6.")) and not cause:
                cause = f": the file has {counted(len(state[key]), 'class')}, the config {len(own[key])}"
            raise UserError(f"{path}: {key} is {in_file} in the file and {in_net} in {name}{cause}")
    if missing := [key for key in own if key not in state]:
        cause = _cause(missing, name, own, state)
        raise UserError(f"{path}: {missing[0]} of {name} is missing{_more(missing)}{cause}")
    if unexpected := [key for key in state if key not in own]:
        cause = _cause(unexpected, name, own, state)
        raise UserError(f"{path}: {unexpected[0]} is not part of {name}{_more(unexpected)}{cause}")


def _more(keys: list[str]) -> str:
    return f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""


def _other_net(name: str, state: Mapping[str, Tensor]) -> str:
    found = detect_net(state)
    return f": these are the weights of {found}" if found not in (None, name) else ""


def _cause(keys: list[str], name: str, own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    if all("downsample" in key for key in keys):
        return ": the shortcut options differ (A has no projections, B some, C one in each unit; plain nets none)"
    if cause := _other_net(name, state):
        return cause
    if all(key.startswith(("fc.", "classifier.")) for key in keys):
        return ": the file has no classifier"
    near = nearest(keys[0], (own.keys() | state.keys()) - {keys[0]})
    return f": the nearest key is {near}" if near else ""


def detect_net(state: Mapping[str, Tensor]) -> str | None:
    """The name of the net whose state dict this is, from the number of units or convolutions; None: no net's."""
    if "features.0.weight" in state:
        depth = 3 + sum(key.startswith("features.") and value.dim() == 4 for key, value in state.items())
        return _known(f"vgg{depth}{'_bn' if 'features.1.running_mean' in state else ''}")
    if "inception3a.branch1.conv.weight" in state:
        return "googlenet"
    units: dict[str, int] = {}
    for key in state:
        if match := re.match(r"(layer\d+)\.(\d+)\.", key):
            units[match[1]] = max(units.get(match[1], 0), int(match[2]) + 1)
    if not units:
        return None
    depth = 2 + sum(units.values()) * (3 if "layer1.0.conv3.weight" in state else 2)
    return _known(f"resnet{depth}") if "layer4" in units else f"cifar_resnet{depth}"


def _known(name: str) -> str | None:
    return name if name in NAMES else None
