"""Comparison studies: runs that train and measure several networks, and what a recipe will cost."""
