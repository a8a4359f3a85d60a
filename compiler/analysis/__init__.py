"""What is true of a graph: axis groups, cost, sensitivity, calibration statistics."""
