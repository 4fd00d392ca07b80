"""The Chat tab: one conversation with three precisions side by side."""
