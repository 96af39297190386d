"""What inspect_ai loads by the entry point ``inferscale`` of the group ``inspect_ai``: importing it registers us."""

from .inspect_ai import provider

provider()
