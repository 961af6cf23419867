"""Turns queries into aggregation data, and data into checkpoints. Imports ``lm_eval_aft``, never the other way round.

Nothing is here yet but the name: data building and training follow in a later version.
"""
