"""Adding and removing a product in a finished file, compared with a torch module that has the same rows."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import nn
from torch.nn import functional

from models.errors import EnrolmentError
from models.export.enrol import (
    agreement,
    embeddings,
    enrol,
    enrolled,
    first_labels,
    labels_of,
    leaving_product,
    new_product,
    new_row,
    withdraw,
)
from models.export.graph import DeployGraph
from models.export.onnx_file import write_onnx
from models.export.patch import name_classes, read_graph, read_metadata
from models.export.session import open_session
from models.networks.network import build_network
from models.recipe.config import Export, Member
from models.training.train import Trained

SIZE = 40
CLASSES = ["apple", "bean", "corn", "dill"]
MANY = [f"product {number}" for number in range(14)]
LABEL = "fennel, näher"


def network(size: int, *, seed: int, classes: Sequence[str], has_bias: bool = False) -> Trained:
    """A network with batch norm statistics of random photos and a classifier with clear preferences."""
    torch.manual_seed(seed)
    member = Member(backbone="test_resnet", size=size, seed=seed)
    made = build_network(member, num_classes=len(classes)).train()
    for _ in range(3):
        made(torch.rand(8, 3, size, size))
    made.head.classifier.weight.data *= 20 * torch.linspace(0.5, 2, len(classes))[:, None]
    if has_bias:
        made.head.classifier.bias = nn.Parameter(torch.randn(len(classes)))
    return Trained(made.eval(), member, list(classes), 0.5)


def graph_of(classes: Sequence[str], *, crops: int = 2, biases: Sequence[bool] = (True, False)) -> DeployGraph:
    members = [network(size, seed=number, classes=classes, has_bias=has_bias)
               for number, (size, has_bias) in enumerate(zip((32, 24), biases, strict=False))]  # fmt: skip
    weights = [0.7, 0.3][: len(members)] if len(members) > 1 else None
    return DeployGraph(members, settings=Export(input_size=SIZE, crops=crops, enlarge=(1.25,)), weights=weights).eval()


def write(graph: DeployGraph, path: Path, classes: Sequence[str]) -> Path:
    metadata = name_classes(classes) | {"members": json.dumps([{}] * len(graph.branches)), "recipe": "tiny"}
    write_onnx(graph, path, input_size=SIZE, metadata=metadata)
    return path


def photos(count: int, *, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3)).astype(np.uint8)


def with_product(graph: DeployGraph, own: NDArray[np.uint8]) -> DeployGraph:
    """Copy of the module with the row appended that its embeddings of the photos give."""
    larger = copy.deepcopy(graph)
    with torch.no_grad():
        outputs = graph.output(torch.from_numpy(own))
        for branch, output in zip(larger.branches, outputs, strict=True):
            rows = branch.classifier.weight.data
            bias = torch.zeros(len(rows)) if branch.classifier.bias is None else branch.classifier.bias.data
            row, own_bias = new_row(rows.numpy(), bias.numpy(), output.embedding.transpose(0, 1).numpy())
            branch.classifier = nn.Linear(rows.shape[1], len(rows) + 1)
            branch.classifier.weight.data = torch.cat([rows, torch.from_numpy(row).float()[None]])
            branch.classifier.bias.data = torch.cat([bias, torch.tensor([own_bias])])
    return larger


def answers(path: Path, asked: NDArray[np.uint8]) -> list[NDArray]:
    return open_session(path).run(["ids", "probs", "known", "embedding"], {"image": asked})


@pytest.fixture(scope="module")
def own() -> NDArray[np.uint8]:
    return photos(3, seed=1)


@pytest.fixture(scope="module")
def asked() -> NDArray[np.uint8]:
    return photos(9, seed=2)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> tuple[DeployGraph, Path]:
    """Graph with fewer classes than an answer ranks, and two members, one of which has a bias."""
    graph = graph_of(CLASSES)
    return graph, write(graph, tmp_path_factory.mktemp("few") / "model.onnx", CLASSES)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[DeployGraph, Path]:
    """Graph with more classes than a member keeps."""
    graph = graph_of(MANY, crops=5)
    return graph, write(graph, tmp_path_factory.mktemp("many") / "model.onnx", MANY)


@pytest.mark.parametrize("which", ["few", "many"])
def test_the_patched_file_is_the_module_with_the_row_appended(
    which: str, request: pytest.FixtureRequest, own: NDArray[np.uint8], asked: NDArray[np.uint8], tmp_path: Path
) -> None:
    graph, path = request.getfixturevalue(which)
    enrol(path, own, label=LABEL, sha256=["a", "b", "c"], out=tmp_path / "model.onnx")
    with torch.inference_mode():
        expected = with_product(graph, own)(torch.from_numpy(np.concatenate([own, asked])))
    said = answers(tmp_path / "model.onnx", np.concatenate([own, asked]))
    assert np.array_equal(said[0], expected.ids.numpy())
    for one, other in zip(said[1:], expected[1:], strict=True):
        np.testing.assert_allclose(one, other.numpy(), rtol=0, atol=2e-6)
    num_classes = len(read_graph(path).labels)
    assert num_classes in said[0], "the new class is among the answers"
    for size in (1, 2, 7):
        np.testing.assert_allclose(
            answers(tmp_path / "model.onnx", asked[:size])[1], said[1][3 : 3 + size], rtol=0, atol=1e-6
        )


def test_embeddings_are_those_of_every_view(many: tuple[DeployGraph, Path], own: NDArray[np.uint8]) -> None:
    graph, path = many
    with torch.inference_mode():
        outputs = graph.output(torch.from_numpy(own))
    for found, output in zip(embeddings(path, own), outputs, strict=True):
        assert found.shape == (3, 5, 512)
        np.testing.assert_allclose(found, output.embedding.transpose(0, 1).numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("which", ["few", "many"])
def test_to_withdraw_undoes_to_enrol_bit_for_bit(
    which: str, request: pytest.FixtureRequest, own: NDArray[np.uint8], asked: NDArray[np.uint8], tmp_path: Path
) -> None:
    _, path = request.getfixturevalue(which)
    enrol(path, own, label=LABEL, sha256=["a", "b", "c"], out=tmp_path / "more.onnx")
    withdraw(tmp_path / "more.onnx", label=LABEL, out=tmp_path / "back.onnx")
    for one, other in zip(answers(path, asked), answers(tmp_path / "back.onnx", asked), strict=True):
        assert np.array_equal(one, other)
    before, after = read_metadata(path), read_metadata(tmp_path / "back.onnx")
    assert after == before | {"enrolled": "[]"}


def test_any_product_can_be_withdrawn_and_the_others_share_what_it_had(
    few: tuple[DeployGraph, Path], asked: NDArray[np.uint8], tmp_path: Path
) -> None:
    graph, path = few
    withdraw(path, label="bean", out=tmp_path / "model.onnx")
    smaller = copy.deepcopy(graph)
    for branch in smaller.branches:
        keep = [0, 2, 3]
        branch.classifier.weight.data = branch.classifier.weight.data[keep]
        if branch.classifier.bias is not None:
            branch.classifier.bias.data = branch.classifier.bias.data[keep]
    with torch.inference_mode():
        expected = smaller(torch.from_numpy(asked))
    ids, probs, *_ = answers(tmp_path / "model.onnx", asked)
    assert np.array_equal(ids, expected.ids.numpy())
    assert (ids[:, 3:] == -1).all()
    np.testing.assert_allclose(probs, expected.probs.numpy(), rtol=0, atol=2e-6)
    assert json.loads(read_metadata(tmp_path / "model.onnx")["labels"]) == ["apple", "corn", "dill"]


def test_the_card_names_the_product_and_its_photos(
    few: tuple[DeployGraph, Path], own: NDArray[np.uint8], tmp_path: Path
) -> None:
    _, path = few
    enrol(path, own, label=LABEL, sha256=["a", "b", "c"], out=tmp_path / "1.onnx")
    enrol(tmp_path / "1.onnx", photos(1, seed=5), label="garlic", sha256=["d"], out=tmp_path / "2.onnx")
    first = {"label": LABEL, "photos": 3, "sha256": ["a", "b", "c"]}
    assert enrolled(path) == []
    assert enrolled(tmp_path / "2.onnx") == [first, {"label": "garlic", "photos": 1, "sha256": ["d"]}]
    card = read_metadata(tmp_path / "2.onnx")
    assert {key: card[key] for key in ("labels", "labels_sha256")} == name_classes([*CLASSES, LABEL, "garlic"])
    assert card["recipe"] == "tiny"
    withdraw(tmp_path / "2.onnx", label="garlic", out=tmp_path / "3.onnx")
    assert enrolled(tmp_path / "3.onnx") == [first]


def test_members_that_share_their_constants_get_rows_of_their_own(own: NDArray[np.uint8], tmp_path: Path) -> None:
    """The exporter writes equal constants once, such as the bias of members that are adjusted by the same prior."""
    graph = graph_of(CLASSES, biases=(True, True))
    graph.branches[1].classifier.bias.data = graph.branches[0].classifier.bias.data.clone()
    path = write(graph, tmp_path / "model.onnx", CLASSES)
    shared = [
        node.input[2] for node in onnx.load(path).graph.node if node.op_type == "Gemm" and "classifier" in node.input[1]
    ]
    assert len(shared) == 2
    assert len(set(shared)) == 1
    enrol(path, own, label=LABEL, sha256=["a", "b", "c"], out=tmp_path / "more.onnx")
    with torch.inference_mode():
        expected = with_product(graph, own)(torch.from_numpy(own))
    np.testing.assert_allclose(answers(tmp_path / "more.onnx", own)[1], expected.probs.numpy(), rtol=0, atol=2e-6)


def test_weights_beside_the_file_come_along(
    few: tuple[DeployGraph, Path], own: NDArray[np.uint8], asked: NDArray[np.uint8], tmp_path: Path
) -> None:
    _, path = few
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    onnx.save(
        onnx.load(path),
        tmp_path / "in" / "model.onnx",
        save_as_external_data=True,
        location="w.data",
        size_threshold=1024,
    )
    enrol(path, own, label=LABEL, sha256=["a", "b", "c"], out=tmp_path / "whole.onnx")
    enrol(tmp_path / "in" / "model.onnx", own, label=LABEL, sha256=["a", "b", "c"], out=tmp_path / "out" / "model.onnx")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["model.onnx", "w.data"]
    for one, other in zip(
        answers(tmp_path / "whole.onnx", asked), answers(tmp_path / "out" / "model.onnx", asked), strict=True
    ):
        assert np.array_equal(one, other)
    found = agreement(tmp_path / "out" / "model.onnx", tmp_path / "in" / "model.onnx", label=LABEL, photos=asked)
    assert found.different_ids == 0


def test_a_product_and_a_bias_apart_and_transposed_are_read_too(
    few: tuple[DeployGraph, Path], own: NDArray[np.uint8], asked: NDArray[np.uint8], tmp_path: Path
) -> None:
    """Other tools write a linear layer as x @ W.T, then + b."""
    _, path = few
    model = onnx.load(path)
    gemm = next(
        node
        for node in model.graph.node
        if node.op_type == "Gemm" and len(node.input) == 3 and "classifier" in node.input[1]
    )
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == gemm.input[1])
    model.graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(weight).T.copy(), "turned"))
    position = list(model.graph.node).index(gemm)
    apart = [helper.make_node("MatMul", [gemm.input[0], "turned"], ["product"]),
             helper.make_node("Add", ["product", gemm.input[2]], list(gemm.output))]  # fmt: skip
    model.graph.node.remove(gemm)
    for node in reversed(apart):
        model.graph.node.insert(position, node)
    onnx.save(model, tmp_path / "apart.onnx")
    enrol(path, own, label=LABEL, sha256=["a", "b", "c"], out=tmp_path / "1.onnx")
    enrol(tmp_path / "apart.onnx", own, label=LABEL, sha256=["a", "b", "c"], out=tmp_path / "2.onnx")
    np.testing.assert_allclose(
        answers(tmp_path / "2.onnx", asked)[1], answers(tmp_path / "1.onnx", asked)[1], rtol=0, atol=1e-6
    )
    assert "product" not in {name for node in onnx.load(tmp_path / "2.onnx").graph.node for name in node.output}


def test_files_agree_but_for_the_product(
    few: tuple[DeployGraph, Path], own: NDArray[np.uint8], asked: NDArray[np.uint8], tmp_path: Path
) -> None:
    _, path = few
    enrol(path, own, label=LABEL, sha256=["a", "b", "c"], out=tmp_path / "more.onnx")
    found = agreement(tmp_path / "more.onnx", path, label=LABEL, photos=asked)
    assert (found.photos, found.different_ids) == (9, 0)
    assert found.probability < 1e-6
    other = write(graph_of(CLASSES, biases=(False, True)), tmp_path / "other.onnx", CLASSES)
    assert agreement(tmp_path / "more.onnx", other, label=LABEL, photos=asked).different_ids == 9


def test_swapped_names_are_no_agreement(
    few: tuple[DeployGraph, Path], own: NDArray[np.uint8], asked: NDArray[np.uint8], tmp_path: Path
) -> None:
    _, path = few
    enrol(path, own, label=LABEL, sha256=["a", "b", "c"], out=tmp_path / "more.onnx")
    model = onnx.load(path)
    helper.set_model_props(model, name_classes(["bean", "apple", "corn", "dill"]))
    onnx.save(model, tmp_path / "swapped.onnx")
    assert agreement(tmp_path / "more.onnx", tmp_path / "swapped.onnx", label=LABEL, photos=asked).different_ids > 0


def test_a_row_points_to_the_photos_and_is_as_long_as_the_others() -> None:
    rng = np.random.default_rng(0)
    rows, bias = rng.normal(size=(5, 8)), np.array([1.0, 2.0, 3.0, 4.0, -1e4])
    embedding = rng.normal(size=(4, 2, 8))
    row, own = new_row(rows, bias, embedding)
    length = np.linalg.norm(rows, axis=1).mean()
    assert np.linalg.norm(row) == pytest.approx(length)
    np.testing.assert_allclose(
        row / length, functional.normalize(torch.from_numpy(embedding.mean((0, 1))), dim=0).numpy()
    )
    assert own > 2.0, "a class that is never answered does not count"
    _, of_one = new_row(rows, bias, embedding[:1])
    assert of_one - 2.0 == pytest.approx(0.05 * length * np.linalg.norm(embedding[0], axis=1).mean())


@pytest.mark.parametrize(("scale", "shift"), [(3.0, 0.0), (1.0, 7.0)])
def test_a_temperature_or_a_common_bias_changes_no_decision(scale: float, shift: float) -> None:
    rng = np.random.default_rng(0)
    rows, bias, embedding = rng.normal(size=(5, 8)), rng.normal(size=5), rng.normal(size=(2, 1, 8))
    row, own = new_row(rows, bias, embedding)
    scaled_row, scaled_own = new_row(scale * rows, scale * bias + shift, embedding)
    np.testing.assert_allclose(scaled_row, scale * row)
    assert scaled_own == pytest.approx(scale * own + shift)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("", "LABEL '' is blank; give the name of a product"),
        (" \u200b", r"LABEL ' \\u200b' is blank; give the name of a product"),
        ("a\0b", r"LABEL 'a\\u0000b' holds a control character"),
        (" apple", "LABEL 'apple' is already a product of the current model"),
        ("be\u00adan\u200e", "LABEL 'bean' is already a product"),
        ("Bean", "LABEL 'Bean' and 'bean', a product of the current model, differ only in case or white space; choose"),
        (
            "be an",
            "LABEL 'be an' and 'bean', a product of the current model, differ only in case or white space; choose",
        ),
    ],
)
def test_a_label_that_cannot_be_added_is_refused(
    few: tuple[DeployGraph, Path], own: NDArray[np.uint8], tmp_path: Path, label: str, message: str
) -> None:
    with pytest.raises(EnrolmentError, match=message):
        enrol(few[1], own, label=label, sha256=[], out=tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_labels_are_folded_as_in_a_delivery(
    few: tuple[DeployGraph, Path], own: NDArray[np.uint8], tmp_path: Path
) -> None:
    enrol(few[1], own, label=" fennel,  na\u0308her\n", sha256=["a", "b", "c"], out=tmp_path / "more.onnx")
    assert labels_of(tmp_path / "more.onnx")[-1] == LABEL
    assert enrolled(tmp_path / "more.onnx")[0]["label"] == LABEL
    withdraw(tmp_path / "more.onnx", label="fennel,\u00a0näher\ufeff", out=tmp_path / "back.onnx")
    assert labels_of(tmp_path / "back.onnx") == CLASSES
    assert new_product("tea", ["te\u00ada", "x"][1:]) == "tea"
    with pytest.raises(EnrolmentError, match=r"'te\\u00ada' is already"):
        new_product("tea", ["te\u00ada", "x"])
    assert leaving_product("tea", ["te\u00ada", "x", "y"]) == "te\u00ada", "as a model of an earlier release has it"
    with pytest.raises(EnrolmentError, match="'Tea' is not a product of the current model; did you mean 'tea'"):
        leaving_product("Tea", ["tea", "x", "y"])


def test_a_label_that_cannot_be_taken_out_is_refused(few: tuple[DeployGraph, Path], tmp_path: Path) -> None:
    with pytest.raises(EnrolmentError, match=r"'beam' is not a product .* did you mean 'bean'"):
        withdraw(few[1], label="beam", out=tmp_path / "model.onnx")
    withdraw(few[1], label="bean", out=tmp_path / "3.onnx")
    withdraw(tmp_path / "3.onnx", label="corn", out=tmp_path / "2.onnx")
    with pytest.raises(EnrolmentError, match="1 products would be left"):
        withdraw(tmp_path / "2.onnx", label="dill", out=tmp_path / "1.onnx")


def test_a_graph_whose_classifier_cannot_be_read_is_refused_with_the_way_out(
    few: tuple[DeployGraph, Path], own: NDArray[np.uint8], tmp_path: Path
) -> None:
    """The weight is the result of an operator, as in a quantised graph."""
    model = onnx.load(few[1])
    gemm = next(node for node in model.graph.node if node.op_type == "Gemm" and "classifier" in node.input[1])
    model.graph.node.insert(0, helper.make_node("Identity", [gemm.input[1]], ["computed"]))
    gemm.input[1] = "computed"
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(
        EnrolmentError, match=r"the graph has 1 readable classifiers of 4 classes instead of 2.*retrain"
    ):
        enrol(tmp_path / "model.onnx", own, label=LABEL, sha256=[], out=tmp_path / "out.onnx")


def test_own_photos_come_out_as_the_product(
    few: tuple[DeployGraph, Path], own: NDArray[np.uint8], tmp_path: Path
) -> None:
    enrol(few[1], own[:1], label=LABEL, sha256=["a"], out=tmp_path / "model.onnx")
    assert first_labels(tmp_path / "model.onnx", own[:1]) == [LABEL]
    assert LABEL not in first_labels(few[1], own[:1])
