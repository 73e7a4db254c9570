"""The steps of the job as functions. Each takes the results of the one before, and you can call each alone."""
