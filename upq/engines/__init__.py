"""Decoding engines: from a loaded model to logits, one token per sequence and step."""
