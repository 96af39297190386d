"""Studies of accuracy: the two papers, the scaling study, the training of the embedded models (not in the wheel)."""
