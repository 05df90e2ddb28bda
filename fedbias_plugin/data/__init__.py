"""Which client holds which rows: data sets, scenarios, loaders. Imports no torch, transformers or datasets."""
