"""The network, and weights that fit or do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from models.errors import ConfigError, WeightsMismatch
from models.networks.network import EMBEDDING, build_network, count_parameters, set_size
from models.recipe.config import Member

TINY = Member(backbone="test_resnet", size=32)


def file_of(tmp_path: Path, tensors: dict[str, Tensor], name: str = "w.safetensors") -> Member:
    path = tmp_path / name
    if path.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    else:
        torch.save(tensors, path)
    return Member(backbone="test_resnet", size=32, weights=str(path))


def test_shapes_and_an_odd_size() -> None:
    network = build_network(Member(backbone="test_resnet", size=45), num_classes=7).eval()
    output = network(torch.rand(2, 3, 45, 45))
    assert (output.logits.shape, output.embedding.shape) == ((2, 7), (2, EMBEDDING))
    assert torch.equal(output.logits, output.embedding @ network.head.classifier.weight.T), "no bias"


def test_the_necks_shift_stays_at_zero() -> None:
    network = build_network(TINY, num_classes=4).train()
    before = count_parameters(network)
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    network(torch.rand(4, 3, 32, 32)).logits.square().sum().backward()
    optimizer.step()
    assert network.head.neck.bias.count_nonzero() == 0
    assert (network.head.neck.weight != 1).any(), "its gain does learn"
    network.head.neck.bias.requires_grad_(True)
    assert count_parameters(network) == before + EMBEDDING


def test_normalisation_is_timms_or_the_recipes() -> None:
    own: dict[str, Any] = timm.create_model("test_resnet").pretrained_cfg  # type: ignore[assignment]
    network = build_network(TINY, num_classes=2)
    assert network.mean.flatten().tolist() == pytest.approx(own["mean"])
    assert network.std.flatten().tolist() == pytest.approx(own["std"])
    grey = build_network(Member(backbone="test_resnet", size=32, mean=(0.1, 0.2, 0.3), std=(1, 1, 1)), num_classes=2)
    assert grey.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    pixels = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(grey.eval().features(pixels), grey.backbone(pixels - grey.mean))


def test_an_unknown_backbone_names_its_neighbours() -> None:
    with pytest.raises(ConfigError, match=r"members\.backbone: timm .* no model 'resnt18' \(did you mean .*resnet18"):
        build_network(Member(backbone="resnt18"), num_classes=2)


def test_arguments_and_sizes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ConfigError, match=r"members\.args or members\.size: test_resnet at 32 px: .*depth_of_field"):
        build_network(Member(backbone="test_resnet", size=32, args={"depth_of_field": 2}), num_classes=2)
    with pytest.raises(
        ConfigError, match=r"deit_tiny_patch16_224 at 40 px: its patches of 16 px would not cover the photo"
    ):
        build_network(Member(backbone="deit_tiny_patch16_224", size=40), num_classes=2)
    with pytest.raises(ConfigError, match=r"levit_128s at 64 px: .* must match .*; correct them"):
        build_network(Member(backbone="levit_128s", size=64), num_classes=2)


def test_position_embeddings_follow_the_size(tmp_path: Path) -> None:
    """Weights have the backbone's native size; the class token's embedding stays, the grid is resized like an image."""
    given = timm.create_model("deit_tiny_patch16_224", num_classes=0).state_dict()
    given["pos_embed"] = torch.randn_like(given["pos_embed"])
    save_file(given, tmp_path / "w.safetensors")
    member = Member(backbone="deit_tiny_patch16_224", size=48, weights=str(tmp_path / "w.safetensors"))
    network = build_network(member, num_classes=3)
    token, grid = given["pos_embed"][:, :1], given["pos_embed"][0, 1:].T.reshape(1, 192, 14, 14)
    resized = functional.interpolate(grid, (3, 3), mode="bicubic", antialias=True, align_corners=False)
    expected = torch.cat([token, resized.reshape(1, 192, 9).transpose(1, 2)], 1)
    found = network.backbone.state_dict()["pos_embed"]
    torch.testing.assert_close(found, expected)
    assert network.eval()(torch.rand(2, 3, 48, 48)).logits.shape == (2, 3)


def test_a_grid_that_is_enlarged_lies_between_its_neighbours() -> None:
    """Compared in one direction with a slow cubic interpolation (a = -0.5) whose weights add up to 1."""
    network = build_network(Member(backbone="deit_tiny_patch16_224", size=32), num_classes=3)
    before = network.backbone.get_parameter("pos_embed").data
    before[0, 1:] = torch.tensor([0.0, 1.0, 0.0, 1.0])[:, None]  # 2 x 2, rising from left to right
    set_size(network.backbone, Member(backbone="deit_tiny_patch16_224", size=48))
    after = network.backbone.get_parameter("pos_embed")[0, 1:, 0].reshape(3, 3)

    def cubic(x: float) -> float:
        x = abs(x)
        near, far = (lambda t: 1.5 * t**3 - 2.5 * t**2 + 1), (lambda t: -0.5 * (t**3 - 5 * t**2 + 8 * t - 4))
        return near(x) if x < 1 else far(x) if x < 2 else 0.0

    for column in range(3):
        place = (column + 0.5) * 2 / 3 - 0.5
        weights = [cubic(place - source) for source in (0, 1)]
        expected = weights[1] / sum(weights)
        torch.testing.assert_close(after[:, column], torch.full((3,), expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_weights_fit_and_their_classifier_is_left_over(tmp_path: Path, name: str) -> None:
    given = timm.create_model("test_resnet", num_classes=9).state_dict()
    network = build_network(file_of(tmp_path, given, name), num_classes=3)
    assert all(torch.equal(value, given[key]) for key, value in network.backbone.state_dict().items())


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    given = timm.create_model("test_resnet", num_classes=0).state_dict()
    first = next(iter(given))
    reason = f"w.safetensors does not fit test_resnet: .*, and 1 are not, first {first}, which"
    with pytest.raises(WeightsMismatch, match=reason):
        build_network(file_of(tmp_path, given | {first: torch.zeros(1)}), num_classes=3)
    with pytest.raises(WeightsMismatch, match=reason):
        build_network(file_of(tmp_path, {key: value for key, value in given.items() if key != first}), num_classes=3)


def test_a_deeper_networks_weights_are_not_taken_for_a_shallower_ones(tmp_path: Path) -> None:
    """The shallower network's tensors are all among them, so they would load without an error."""
    given = timm.create_model("test_resnet", num_classes=0).state_dict()
    deeper = given | {"layer4.7.conv1.weight": torch.zeros(3, 3)}
    with pytest.raises(WeightsMismatch, match=r"and 1 that it does not have, first layer4\.7\.conv1\.weight"):
        build_network(file_of(tmp_path, deeper), num_classes=3)


def test_weights_that_cannot_be_read(tmp_path: Path) -> None:
    missing = Member(backbone="test_resnet", size=32, weights=str(tmp_path / "none.safetensors"))
    with pytest.raises(WeightsMismatch, match=r"none\.safetensors does not exist"):
        build_network(missing, num_classes=3)
    for name in ("broken.safetensors", "broken.pt"):
        (tmp_path / name).write_bytes(b"these are no weights")
        with pytest.raises(WeightsMismatch, match=rf"{name} cannot be read"):
            build_network(Member(backbone="test_resnet", size=32, weights=str(tmp_path / name)), num_classes=3)
