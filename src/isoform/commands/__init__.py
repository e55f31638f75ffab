"""One function per command: each composes the library and prints the result."""
