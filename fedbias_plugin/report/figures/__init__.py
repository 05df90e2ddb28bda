"""The figures of a study, one a file; ``drawing`` holds what they share, ``every_figure`` lists them."""
