"""Comparison: methods by name, fitted and measured on data sets and on tasks."""
