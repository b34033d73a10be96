"""The bAbI tasks: stories, a simulator that makes them, a reader of the original files, and an independent solver."""
