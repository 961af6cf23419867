"""Numbers from stored runs: cost, paired tests, votes, diagnosis and curves."""
