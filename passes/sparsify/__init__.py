"""Passes that take single weights, or patterns of them, away: shapes stay, zeros and their masks are kept."""
