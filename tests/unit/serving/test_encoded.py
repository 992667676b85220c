from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format
from packaging.requirements import Requirement
from tritonclient.grpc import model_config_pb2

import pixels
from contract import REQUEST_PHOTOS
from serving.repository.encoded import config_text, install
from serving.server.environment import REQUIREMENTS
from serving.signature import CONTRACT

ROOT = Path(__file__).parents[3]


def test_the_configuration_is_one_of_triton() -> None:
    config = text_format.Parse(config_text("products", instances=3), model_config_pb2.ModelConfig())
    assert (config.name, config.backend, config.max_batch_size) == ("products-encoded", "python", REQUEST_PHOTOS)
    assert [(tensor.name, list(tensor.dims)) for tensor in config.input] == [("photo", [1])]
    answers = {tensor.name: model_config_pb2.DataType.Name(tensor.data_type) for tensor in config.output}
    assert answers.items() >= {name: kind for name, kind in CONTRACT.items() if name != "image"}.items()
    assert set(answers) - set(CONTRACT) == {"error", "version"}
    assert config.instance_group[0].count == 3
    assert not config.HasField("version_policy")  # the newest of one


def test_it_is_laid_once_and_replaced_by_what_is_newer(tmp_path: Path) -> None:
    install(tmp_path, "products")
    folder = tmp_path / "products-encoded"
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    decoder = {f"1/pixels/{path.name}": path for path in Path(pixels.__file__).parent.glob("*.py")}
    assert set(files) == {"config.pbtxt", "1/model.py", "1/contract.py", *decoder}
    assert all(files[name].read_bytes() == path.read_bytes() for name, path in decoder.items())
    before = {name: path.stat().st_mtime_ns for name, path in files.items()}
    files["1/model.py"].write_text("older")
    (folder / "1" / "pixels.py").write_text("of an earlier release")
    install(tmp_path, "products")
    assert "older" not in files["1/model.py"].read_text()
    assert not (folder / "1" / "pixels.py").exists()
    for name in ("config.pbtxt", "1/pixels/__init__.py", "1/contract.py"):
        assert files[name].stat().st_mtime_ns == before[name]


@pytest.mark.parametrize("package", ["pillow", "simplejpeg"])
def test_the_server_decodes_with_the_packages_of_everybody_else(package: str) -> None:
    pins = []
    for path in (REQUIREMENTS, ROOT / "constraints.txt"):
        found = [Requirement(line) for line in path.read_text().splitlines()]
        pins += [str(pin.specifier) for pin in found if pin.name == package]
    assert len(pins) == 2
    assert len(set(pins)) == 1
