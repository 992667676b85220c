"""Export of trained networks as one self-describing ONNX file."""
