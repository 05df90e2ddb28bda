"""Many runs: one frame, what may be compared, declared comparisons, and the page that shows them."""
