"""A trained retriever as files that other libraries load without this package."""
