"""Graph transformations that several passes share."""
