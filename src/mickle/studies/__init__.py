"""One page of code per paper: claim, arms, rule; declared before it runs."""
