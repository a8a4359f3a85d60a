"""A MobileNet, small as its pictures, that reads handwritten digits."""
