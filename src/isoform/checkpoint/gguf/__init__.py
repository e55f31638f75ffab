"""GGUF files, the format of llama.cpp: the format itself, the architectures, the tokenizer, and the model."""
