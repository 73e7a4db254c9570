INPUTS: dict = {}
