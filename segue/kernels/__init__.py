"""The hot loops of mixers and models, each with its plain reference in the same file."""
