"""One function per verb: each composes the library and says how it went."""
