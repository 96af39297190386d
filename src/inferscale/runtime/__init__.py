"""Running a local model, for generators, reward models and thoughts alike."""
