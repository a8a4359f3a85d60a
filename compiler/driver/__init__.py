"""One compilation from beginning to end: the recipe, its steps, what is kept and what is refused."""
