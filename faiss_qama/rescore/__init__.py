"""The second stage: rescorers, which score candidates again with the float query."""
