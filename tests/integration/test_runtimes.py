"""The exported files in the versions of ONNX Runtime that Triton's containers carry: they load, and answers agree.

26.03 to 26.05 carry 1.24, 26.08 carries 1.28. Each version is installed by pip into a folder of its own.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from models.export import onnx_file
from models.export.graph import DeployGraph
from models.export.int8 import write_int8
from models.export.onnx_file import save, write_onnx
from models.export.precision import write_half
from models.networks.network import build_network
from models.recipe.config import Export, Member
from models.training.train import Trained
from tests.graphs import golden_images

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # downloads
VERSIONS = ("1.24.4", "1.28.0")
SIDE, CLASSES = 48, 7
# Prints the version that computed, and writes the answers to each graph of the folder named first.
ASK = """
import sys, pathlib, numpy, onnxruntime
folder = pathlib.Path(sys.argv[1])
photos = numpy.load(folder / "photos.npy")
answers = {}
for path in sorted(folder.glob("*.onnx")):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    answers[path.stem] = session.run(["probs"], {"image": photos})[0]
numpy.savez(sys.argv[2], **answers)
print(onnxruntime.__version__)
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of every kind of exported file that a CPU computes, and of photos."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    member = Member(backbone="test_resnet", size=32)
    network = build_network(member, num_classes=CLASSES).eval()
    trained = Trained(network, member, [str(number) for number in range(CLASSES)], 0.0)
    plain, photos = folder / "plain.onnx", golden_images(16, size=SIDE)
    graph = DeployGraph([trained], settings=Export(input_size=SIDE, crops=2))
    write_onnx(graph, plain, input_size=SIDE, metadata={"data_version": "1"})
    write_half(plain, folder / "fp16.onnx", precision="fp16")
    write_int8(plain, folder / "int8.onnx", photos=photos)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_file, "MAX_BYTES", 0)
        save(onnx.load(plain), folder / "external.onnx")
    assert (folder / "external.onnx.data").exists()
    np.save(folder / "photos.npy", photos)
    return folder


@pytest.fixture(scope="module")
def expected(files: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, NDArray[np.float32]]:
    """Answers of the installed version."""
    return answers(files, tmp_path_factory.mktemp("installed"), version=onnxruntime.__version__)


@pytest.mark.parametrize("version", VERSIONS)
def test_exported_files_agree_in_the_containers_runtimes(
    version: str, files: Path, expected: dict[str, NDArray[np.float32]], tmp_path: Path
) -> None:
    runtime = tmp_path / "runtime"
    install = ["pip", "install", "--quiet", "--no-deps", "--target", str(runtime), f"onnxruntime=={version}"]
    subprocess.run([sys.executable, "-m", *install], check=True)
    found = answers(files, tmp_path, version=version, runtime=runtime)
    assert found.keys() == expected.keys() == {"plain", "external", "fp16", "int8"}
    for name, probs in found.items():
        np.testing.assert_allclose(probs, expected[name], rtol=0, atol=1e-6 if name != "int8" else 1e-4)


def answers(files: Path, out: Path, *, version: str, runtime: Path | None = None) -> dict[str, NDArray[np.float32]]:
    """Probabilities by file, computed by a process that imports ONNX Runtime from the folder `runtime`."""
    variables = {"PYTHONPATH": str(runtime)} if runtime else {}
    command = [sys.executable, "-c", ASK, str(files), str(out / "answers.npz")]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == version
    with np.load(out / "answers.npz") as arrays:
        return {name: arrays[name] for name in arrays}
