"Codes from captions: four priors, the loops that sample from them, and their training."
