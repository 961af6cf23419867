"""LLM judges: the client, its cache, MT-Bench and AlpacaEval."""
