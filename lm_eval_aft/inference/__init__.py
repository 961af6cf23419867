"""From a question to its answer: drafts, aggregation layers and selection. Start with ``schedule``."""
