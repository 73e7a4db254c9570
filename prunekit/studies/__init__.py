"""Comparison studies, which are runs that train and measure several networks; and estimates of what a recipe will cost."""
