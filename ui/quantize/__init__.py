"""The Quantize tab: the form of a run and its progress."""
