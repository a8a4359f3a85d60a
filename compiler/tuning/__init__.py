"""Search under budgets, and the measuring it rests on."""
