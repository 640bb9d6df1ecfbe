"""The second stage: candidates scored again."""
