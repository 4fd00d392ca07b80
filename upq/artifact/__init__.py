"""A packed model: what it is made of."""
