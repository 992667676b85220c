"""Parts of components.py: photos as features, steps of the ladder, members, figures."""
