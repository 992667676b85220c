"""Builds the sample data version of the repository: `python -m flows.sample.build`.

Draws the delivery `stock`, ingests it, and writes data.dvc, the DVC remote sample/ and the truth to the repository. Run
it after a change of the drawings, and commit the three together.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from flows.data.versions import DataVersions
from flows.delivery.build import build_version
from flows.sample.deliver import deliver, write_truth
from flows.settings import REPOSITORY
from flows.workspace import Workspace

SEED = 7
VAL_SHARE = 0.15
TRUTH = Path(__file__).with_name("truth.parquet")


def build_sample(repository: Path) -> str:
    """Writes the sample to the repository; returns the id of its data version."""
    with tempfile.TemporaryDirectory() as folder:
        truth = deliver(Path(folder) / "stock", seed=SEED, part="stock")
        workspace = Workspace.init(Path(folder) / "workspace")
        versions = DataVersions(workspace)
        files = versions.new_folder()
        build_version(Path(folder) / "stock", base=None, out=files, val_share=VAL_SHARE)
        version = versions.commit(files, step="ingest", message="the sample")
        shutil.rmtree(repository / "sample", ignore_errors=True)
        shutil.copytree(workspace.remote, repository / "sample")
        shutil.copyfile(workspace.pointer, repository / "data.dvc")
    write_truth(truth, TRUTH)
    return version


if __name__ == "__main__":
    print(build_sample(REPOSITORY))
