"""What a run may be asked for: every setting with its type, range and help, and the presets of the methods."""
