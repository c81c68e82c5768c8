"""Published encoder weights become weight sets: names converted, sizes read off the tensors."""
