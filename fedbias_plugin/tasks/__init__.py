"""What a row becomes: a text, its tokens, and which of them have a loss. Imports no torch."""
