"""Targets of a fuzzer: one for each parser, coder, codec and layout; `python -m tests.support.fuzz` runs one."""
