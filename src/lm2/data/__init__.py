"""The benchmark's data: the bAbI world, background text, BABILong samples, and the project's own tokenizer."""
