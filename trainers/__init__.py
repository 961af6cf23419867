"""Commands that turn queries into training data, and data into checkpoints. Imports ``lm_eval_aft``, never the reverse.

Read ``train`` first.
"""
