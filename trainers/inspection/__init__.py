"""What training data holds: statistics, overlap of targets with drafts and test sets, and perplexity."""
