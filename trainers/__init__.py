"""Turns queries into aggregation data, and data into checkpoints. Imports ``lm_eval_aft``, never the other way round.

``train`` (``aft train``) is the file to read first.
"""
