"""Engines: what turns prompts into completions. Start with ``base``."""
