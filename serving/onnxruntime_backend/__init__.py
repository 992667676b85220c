"""The python-based backend that LocalServer hands to tritonserver; run by its stub, never imported here."""
