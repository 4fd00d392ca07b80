"""From prompts to batches: rows of any source, answered by the teacher, tokenised, planned and padded."""
