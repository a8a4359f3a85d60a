"""What calibration data says of the values in a graph."""
