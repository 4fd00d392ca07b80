"""A name becomes a vetted model: its files, its tokenizer, its structure, and where its weights lie."""
