"""The hot loops behind mixers and models, each beside its plain reference."""
