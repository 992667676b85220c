"""Map of a data version: its photos in two dimensions, similar ones close together."""
