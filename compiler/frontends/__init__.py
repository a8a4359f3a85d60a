"""What reads a model into the IR: one folder a format."""
