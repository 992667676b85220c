"""Inference: begins at an ONNX file and ends at ranked products. Knows no torch, orchestrator or data versioning."""
