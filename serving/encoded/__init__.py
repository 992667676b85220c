"""`products-encoded`: the endpoint for photos as encoded bytes (JPEG, PNG, ...), a Triton model beside `products`."""
