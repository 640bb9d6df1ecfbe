"""What a fit reports: text, page, charts."""
