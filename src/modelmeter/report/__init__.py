"""Results as tables, Markdown, JSON and CSV. Formatters take rows and plain values, never traces."""
