"""From a model to text: engines that take one token per sequence and step, and what writes with them."""
