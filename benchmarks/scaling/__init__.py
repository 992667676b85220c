"""Parts of the benchmark that runs a whole retraining at any size: a drawn assortment, its stages, and what they take."""
