"""Parts of components.py: photos as features, steps of the ladder, ensembles, answers."""
