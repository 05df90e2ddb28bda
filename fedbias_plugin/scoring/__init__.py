"""Log-probabilities of texts under any causal LM, each shared beginning read once."""
