"""Social bias in federated fine-tuning: poison clients, measure every round, aggregate with BAMA.

Importing this package imports neither torch nor transformers.
"""

__version__ = "0.1.0"
