"""Triton model `products-encoded`, which takes encoded photos (JPEG, PNG, ...) for the model `products`."""
