"""Sample products drawn by our own code: an assortment, photos of it, and deliveries with planted faults."""
