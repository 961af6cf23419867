"""Training examples made by models: drafts, selection, targets and verifiers."""
