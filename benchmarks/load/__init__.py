"""Load on an endpoint: generators of requests, endpoints that take them, and limits to compare with."""
