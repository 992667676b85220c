"""Load on an endpoint: generators of requests, endpoints to send them to, and limits to compare with."""
