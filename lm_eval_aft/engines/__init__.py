"""Engines turn prompts into completions: hf, vllm, api and scripted."""
