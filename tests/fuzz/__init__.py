"""Damaged and hostile pictures through the decoder processes: `python -m tests.fuzz`, `make fuzz`."""
