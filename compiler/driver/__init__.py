"""One compilation from import to artifact: recipe, steps, fidelity floor, final choice."""
