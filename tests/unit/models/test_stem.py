from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from models.export.stem import with_scale_folded

SCALE = torch.tensor([0.017, 0.0175, 0.0174]).view(1, 3, 1, 1)
# plain, padded inside the convolution, patches, several branches on the input
NAMES = ("resnet10t", "tf_mobilenetv3_small_minimal_100", "vit_tiny_patch16_224", "mobileone_s0")


@pytest.mark.parametrize("name", NAMES)
def test_a_folded_backbone_answers_as_before(name: str) -> None:
    sized = {"img_size": 64} if name.startswith("vit") else {}
    backbone = timm.create_model(name, pretrained=False, num_classes=0, **sized).eval()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    folded = with_scale_folded(backbone, SCALE, size=64)
    assert folded is not None
    centred = torch.randint(-120, 136, (2, 3, 64, 64), generator=torch.Generator().manual_seed(1)).float()
    with torch.inference_mode():
        expected = backbone(centred * SCALE)
        torch.testing.assert_close(folded(centred), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())
    own = {id(tensor) for tensor in folded.parameters()} - {id(tensor) for tensor in backbone.parameters()}
    assert 1 <= len(own) <= 2, "only the first convolutions are copies"


class Skips(nn.Module):
    """A backbone that also uses its input past the first convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        return (self.convolution(pixels) + pixels).mean((2, 3))


@pytest.mark.parametrize(
    "backbone", [Skips(), nn.Sequential(nn.ReLU(), nn.Conv2d(3, 2, 3))], ids=["skips", "no convolution first"]
)
def test_a_backbone_that_uses_its_input_otherwise_is_left_alone(backbone: nn.Module) -> None:
    assert with_scale_folded(backbone, SCALE, size=16) is None


def test_normalised_weights_are_not_scaled() -> None:
    """Weight standardisation would cancel the scale."""
    backbone = timm.create_model("resnetv2_50x1_bit", pretrained=False, num_classes=0).eval()
    assert with_scale_folded(backbone, SCALE, size=64) is None
