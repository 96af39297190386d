"""Inference-time scaling of language models."""
