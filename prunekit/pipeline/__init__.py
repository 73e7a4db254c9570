"""The stages in order, each alone or as a resumable run. Empty of imports, so that planning a budget needs no torch."""
