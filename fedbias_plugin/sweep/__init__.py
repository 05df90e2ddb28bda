"""Many runs from one file: the experiments of the paper, their plan and its execution."""
