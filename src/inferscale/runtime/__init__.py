"""What runs a local model, for generators, reward models and thoughts alike."""
