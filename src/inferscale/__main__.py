"""``python -m inferscale``."""

from .cli import main

main()
