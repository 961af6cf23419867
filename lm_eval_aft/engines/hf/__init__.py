"""The engine that generates in this process with transformers."""
