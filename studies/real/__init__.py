"""A real model on real problems: SmolLM2-135M-Instruct, a policy and judges made of it, on SVAMP and GSM8K.

Every command goes on where it was stopped, keeps its records, and stops by itself after ``--minutes``; ``python -m
studies.real COMMAND --help`` says what it takes. Needs the extras ``smollm2`` and ``peft``.
"""
