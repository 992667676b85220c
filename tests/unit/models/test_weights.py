"""Files of weights as people have them: loaded, or told what they hold and what to do."""

from __future__ import annotations

import argparse
import pickle
import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from models.errors import WeightsMismatch
from models.networks.network import build_network
from models.networks.weights import load_weights
from models.recipe.config import Member
from tests.hub import state_of

NAME = "test_resnet"


def backbone(name: str = NAME, *, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    made: nn.Module = timm.create_model(name, pretrained=False, num_classes=0)
    return made


def weights(*, num_classes: int = 7, name: str = NAME) -> dict[str, Tensor]:
    """A state_dict with a classifier."""
    torch.manual_seed(1)
    return dict(timm.create_model(name, pretrained=False, num_classes=num_classes).state_dict())


def with_prefix(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def older(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the counters that batch norms of old releases lacked."""
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


LIGHTNING: Callable[[dict[str, Tensor]], Any] = lambda w: {  # noqa: E731  # one row of the table below
    "state_dict": with_prefix("model.", w), "epoch": 3, "optimizer_states": [{"state": {}}], "hyper_parameters": {"lr": 0.1},
}  # fmt: skip
LAYOUTS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "plain": lambda w: w,
    "state_dict": lambda w: {"state_dict": w, "epoch": 3},
    "model": lambda w: {"model": w, "args": argparse.Namespace(lr=0.1, layers=[1, 2])},
    "model_state_dict": lambda w: {"model_state_dict": w, "loss": 0.2, "optimizer_state_dict": {"state": {}}},
    "net": lambda w: {"net": w, "acc": 91.2},
    "state_dict_ema alone": lambda w: {"state_dict_ema": w},
    "nested": lambda w: {"checkpoint": {"trainer": {"network": w}}},
    "module.": lambda w: with_prefix("module.", w),
    "_orig_mod.": lambda w: with_prefix("_orig_mod.", w),
    "backbone.": lambda w: with_prefix("backbone.", w) | {"projector.0.weight": torch.zeros(4, 4)},
    "encoder.": lambda w: {"model": with_prefix("encoder.", w) | {"decoder.weight": torch.zeros(2)}},
    "module._orig_mod.model.": lambda w: {"state_dict": with_prefix("module._orig_mod.model.", w)},
    "lightning": LIGHTNING,
    "half": lambda w: {key: value.half() if value.is_floating_point() else value for key, value in w.items()},
    "bfloat16": lambda w: {key: value.bfloat16() if value.is_floating_point() else value for key, value in w.items()},
    "without counters": older,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt"])
def test_weights_are_found_wherever_they_lie(tmp_path: Path, layout: str, suffix: str) -> None:
    file, given, network = tmp_path / f"w{suffix}", weights(), backbone()
    torch.save(LAYOUTS[layout](given), file)
    load_weights(network, file, name=NAME)
    for key, value in network.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.allclose(value, given[key], rtol=1e-2, atol=1e-3), key
            assert value.dtype == torch.float32


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pth"])
def test_safetensors_are_known_by_their_content(tmp_path: Path, suffix: str) -> None:
    file, network = tmp_path / f"w{suffix}", backbone()
    given = weights(num_classes=1000)
    save_file(with_prefix("module.", given), file)
    load_weights(network, file, name=NAME)
    assert all(torch.equal(value, given[key]) for key, value in network.state_dict().items())


def test_the_averaged_copy_is_taken(tmp_path: Path) -> None:
    averaged, network = {key: torch.ones_like(value) for key, value in weights().items()}, backbone()
    torch.save({"state_dict": weights(), "state_dict_ema": averaged}, tmp_path / "w.pth")
    load_weights(network, tmp_path / "w.pth", name=NAME)
    assert all((value == 1).all() for value in network.state_dict().values())


def refusal(file: Path, *, name: str = NAME) -> str:
    with pytest.raises(WeightsMismatch, match=rf"^members\.weights: {re.escape(str(file))} ") as caught:
        load_weights(backbone(name), file, name=name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


CONTENTS = {
    "empty": (b"", "is empty"),
    "pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
        r"pointer of Git LFS .*`git lfs pull`",
    ),
    "page": (b"\n<!DOCTYPE html><html>404</html>", "a web page and not weights"),
    "gzip": (b"\x1f\x8b\x08rest", "a gzip archive; unpack it"),
    "keras": (b"\x89HDF\r\n\x1a\nrest", "an HDF5 file"),
    "onnx": (b"\x08\x07\x12\x07pytorch", "an ONNX graph; give the weights of torch"),
    "text": (b"these are no weights", r"cannot be read \(\w+\).*download it again"),
}


@pytest.mark.parametrize("content", CONTENTS)
def test_other_files_are_told_apart(tmp_path: Path, content: str) -> None:
    file = tmp_path / "w.pth"
    file.write_bytes(CONTENTS[content][0])
    assert re.search(CONTENTS[content][1], refusal(file))


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "none.pt")
    assert "is a folder" in refusal(tmp_path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("share", [0.3, 0.99])
def test_a_file_that_is_cut_off(tmp_path: Path, suffix: str, share: float) -> None:
    file = tmp_path / f"w{suffix}"
    save_file(weights(), file) if suffix == ".safetensors" else torch.save(weights(), file)
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    assert re.search(r"cut off at .* bytes.*copy or download it again", refusal(file))


def test_a_zip_of_weights_names_what_is_in_it(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr("best.pth", b"1")
    assert "a zip archive of best.pth; unpack it" in refusal(tmp_path / "w.pth")


def test_torchscript_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:  # as torch.jit.save writes it
        for name in ("data.pkl", "code/__torch__.py", "constants.pkl", "version"):
            archive.writestr(f"w/{name}", b"1")
    assert "a TorchScript module; save its weights with torch.save(torch.jit.load(FILE)" in refusal(tmp_path / "w.pt")


class Trap:
    """An object that leaves a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("legacy", [True, False])
def test_a_pickled_module_is_never_opened(tmp_path: Path, legacy: bool) -> None:
    torch.save(backbone(), tmp_path / "whole.pt", _use_new_zipfile_serialization=not legacy)
    assert re.search(
        r"holds a pickled object \(timm\.models\.\w+\.\w+\), which could run any code", refusal(tmp_path / "whole.pt")
    )
    (tmp_path / "trap.pt").write_bytes(pickle.dumps({"model": Trap(tmp_path / "sprung")}))
    refusal(tmp_path / "trap.pt")
    assert not (tmp_path / "sprung").exists()


def test_contents_without_tensors(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "args": {"lr": 0.1}}, tmp_path / "w.pth")
    assert "holds no tensors, but the keys epoch, args; give a .safetensors file" in refusal(tmp_path / "w.pth")
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    assert "holds a Tensor; give" in refusal(tmp_path / "tensor.pth")


def test_weights_of_another_backbone_name_it(tmp_path: Path) -> None:
    torch.save({"state_dict": with_prefix("module.", weights(name="test_vit"))}, tmp_path / "w.pth")
    message = refusal(tmp_path / "w.pth", name="test_vit2")
    assert re.search(r"it holds \d+ tensors under state_dict, first module\.\w+ \(", message)
    assert "with prefix 'module.'" in message
    assert "set members.backbone to the backbone of these weights (these fit test_vit)" in message


def test_a_checkpoint_that_states_its_backbone(tmp_path: Path) -> None:
    torch.save({"arch": "resnet18", "state_dict": {"conv1.weight": torch.zeros(64, 3, 7, 7)}}, tmp_path / "w.pth")
    assert "(these fit resnet18)" in refusal(tmp_path / "w.pth")


def test_a_deeper_backbone_is_not_cut_to_fit(tmp_path: Path) -> None:
    torch.save({"model": with_prefix("module.", weights(name="resnet34"))}, tmp_path / "w.pth")
    message = refusal(tmp_path / "w.pth", name="resnet18")
    assert "that it does not have, first layer1.2" in message
    assert "(these fit resnet34)" in message


def test_position_embeddings_of_another_size_are_resized_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    given = state_of("test_vit", img_size=96, num_classes=5)
    torch.save({"model": with_prefix("module.", given)}, tmp_path / "w.pth")
    member = Member(backbone="test_vit", size=96, weights=str(tmp_path / "w.pth"))
    with caplog.at_level("INFO", "models"):
        network = build_network(member, num_classes=2)
        smaller = build_network(replace(member, size=64), num_classes=2).backbone.state_dict()
    assert torch.equal(network.backbone.state_dict()["pos_embed"], given["pos_embed"])  # not by way of timm's own size
    assert "weights of test_vit from w.pth: " in caplog.text
    assert re.search(r"left out: head\.weight, head\.bias", caplog.text)
    assert smaller["pos_embed"].shape == (1, 1 + 16, 64)
    assert torch.equal(smaller["blocks.0.mlp.fc1.weight"], given["blocks.0.mlp.fc1.weight"])
    assert "resized: pos_embed; left out" in caplog.text


def test_the_authors_own_names_are_translated(tmp_path: Path) -> None:
    """ConvNeXt as its authors published it: other names, and linear layers for 1 x 1 convolutions."""
    ours = state_of("test_convnext", num_classes=0)
    theirs = {}
    for key, value in ours.items():
        key = re.sub(r"stages\.(\d+)\.downsample\.(\d)", r"downsample_layers.\1.\2", key)
        key = re.sub(r"stages\.(\d+)\.blocks\.(\d+)", r"stages.\1.\2", key.replace("stem.", "downsample_layers.0."))
        key = key.replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv").replace("head.norm.", "norm.")
        theirs[key] = value
    torch.save({"model": theirs}, tmp_path / "convnext.pth")
    network = backbone("test_convnext")
    found = load_weights(network, tmp_path / "convnext.pth", name="test_convnext")
    assert all(torch.equal(value, ours[key]) for key, value in network.state_dict().items())
    assert found.fits
    assert not found.left_out


def test_what_is_not_in_the_file_and_what_is_left_out_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    given = state_of("test_convnext", num_classes=3)
    torch.save(
        {k: v for k, v in given.items() if "head.norm" not in k} | {"projector.0.weight": torch.zeros(2)},
        tmp_path / "w.pt",
    )
    with caplog.at_level("INFO", "models"):
        load_weights(backbone("test_convnext"), tmp_path / "w.pt", name="test_convnext")
    assert (
        "weights of test_convnext from w.pt: not in the file, initial values: head.norm.weight, head.norm.bias; "
        "left out: head.fc.fc.weight, head.fc.fc.bias, projector.0.weight"
    ) in caplog.text


def test_three_backbones_that_fit_are_named(tmp_path: Path) -> None:
    torch.save(weights(name="deit_tiny_patch16_224"), tmp_path / "deit_tiny_patch16_224-1.pth")
    message = refusal(tmp_path / "deit_tiny_patch16_224-1.pth", name="vit_small_patch16_224")
    names = re.search(r"\(these fit ([\w, ]+)\)$", message)
    assert names is not None
    found = names[1].split(", ")
    assert len(found) == 3
    for name in found:
        load_weights(backbone(name), tmp_path / "deit_tiny_patch16_224-1.pth", name=name)
