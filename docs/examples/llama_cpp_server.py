"""Serves a GGUF file with llama.cpp's own server, from the wheel of xllamacpp: python llama_cpp_server.py FILE PORT."""

import sys
import threading

import xllamacpp

settings = xllamacpp.CommonParams()
settings.model.path = sys.argv[1]
settings.port = int(sys.argv[2])
settings.n_parallel = 4
# The context of all parallel texts together, in tokens.
settings.n_ctx = 8192
server = xllamacpp.Server(settings)
print(f"listening on {server.listening_address}", flush=True)
threading.Event().wait()
