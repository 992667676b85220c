"""Python backend that LocalServer installs for tritonserver; run by the stub, never imported."""
