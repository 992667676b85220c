"""Sample data drawn by this package: an assortment of products, photos of them, and deliveries with planted faults."""
