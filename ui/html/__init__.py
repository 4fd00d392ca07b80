"""Safe HTML and what every tab draws with: parts, charts, axes, words."""
