"""Label issues for people to look at: photos of a data version, suggestions, filters, and what people decided."""
