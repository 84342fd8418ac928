"""How much memory a recipe takes, found without weights and without a GPU."""
