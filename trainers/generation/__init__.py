"""Training data made by models: drafts, their selection, targets and verifiers."""
