"""Atomic writes: files are written aside and then moved into place, weights next to the file that names
them."""
