"""Parts of long_tail.py: data sets, trainings, balancing."""
