"""Methods by name, fitted to be compared."""
