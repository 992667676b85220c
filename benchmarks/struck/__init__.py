"""Parts of unknown_encoders.py: more scores, and sums of two, judged on classes that are struck out of training."""
