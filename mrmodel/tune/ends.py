"""How a search on workers may end; a module of its own, because naming these needs no Optuna."""

BETTER, NOT_BETTER = "Better", "NotBetter"
# Flow runs of searches end in states of these names, for which automations can wait.
ENDS = (BETTER, NOT_BETTER)
