"""The verbs: fit, continue, update, evaluate, compare. They put the parts below together, and hold no method."""
