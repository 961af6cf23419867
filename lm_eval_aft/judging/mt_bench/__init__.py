"""MT-Bench by FastChat's protocol."""
