"""GGUF files, which llama.cpp reads: the format, the architectures, the tokenizer, and the model that they make."""
