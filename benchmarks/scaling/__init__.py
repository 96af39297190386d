"""The scaling study on the embedded models: ``python -m benchmarks.scaling run`` and ``report``."""
