"""Should I compress? Measured pieces, a model of the step, a ranked table, and one sentence."""
