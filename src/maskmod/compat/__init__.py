"""Other people's names for the same things, one module for each of them."""
