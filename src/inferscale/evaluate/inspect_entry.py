"""Entry point ``inferscale`` of the group ``inspect_ai``: importing it registers the provider."""

from .inspect_ai import provider

provider()
