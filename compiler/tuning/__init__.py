"""Measuring candidates in pairs, and searching for the fastest."""
