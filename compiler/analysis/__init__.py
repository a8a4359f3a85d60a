"""What is true of a graph. Reads only: nothing here changes one."""
