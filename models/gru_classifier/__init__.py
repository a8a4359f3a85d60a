"""A GRU that reads a word letter by letter and tells whether it is a friendly one."""
