"""Building blocks that the models share; batch first, masks boolean with True = valid."""
