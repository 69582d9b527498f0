"""Tasks made by code from a seed: what the papers' claims about recall are tested on."""
