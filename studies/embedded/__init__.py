"""How the embedded models were made: data, optimiser, loop, rollouts and the process reward model."""
