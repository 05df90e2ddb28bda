"""The plugin inside an OpenFedLLM checkout: lines that ``fedbias patch`` adds, and what they import."""
