"""The vocabulary of the package: errors, records, settings, chats and prompts. No torch, no lm_eval."""
