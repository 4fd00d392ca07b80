"""The two engines: block-wise reconstruction and distillation end to end."""
