"""The scaling study on the embedded models: ``python -m studies.scaling run`` and ``report``."""
