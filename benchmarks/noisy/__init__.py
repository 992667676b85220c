"""Parts of noisy_labels.py: data sets, specifications, protocols, training, published numbers, results."""
