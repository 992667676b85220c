"""Training, cleaning and export, without an orchestrator, data versioning or a server."""

import os

from contract.environment import TELEMETRY_OFF

os.environ[TELEMETRY_OFF] = "1"  # read when a module of this package loads ONNX Runtime
