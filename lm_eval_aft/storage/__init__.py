"""What runs leave on disk: the draft store, traces, lm-eval's results and checkpoint fingerprints."""
