"""The steps of the job as functions: each takes what the one before gives, and can be called alone."""
