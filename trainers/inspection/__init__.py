"""What training examples hold: statistics, overlap with test sets and perplexity."""
