"""From trained networks to one self-describing ONNX file."""
