"""Statistics of a graph's values over calibration inputs."""
