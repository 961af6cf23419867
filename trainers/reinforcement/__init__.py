"""Reinforcement learning: draft sets as prompts, rewards for texts, and TRL's trainer."""
