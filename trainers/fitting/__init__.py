"""One training run: examples, batches, model, loop, checkpoints and resume."""
