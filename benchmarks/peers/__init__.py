"""Ways to search the same vectors, a module for each library: ours and those that it is compared with."""
