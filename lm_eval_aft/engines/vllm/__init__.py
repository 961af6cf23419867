"""The engine that generates in this process with vLLM."""
