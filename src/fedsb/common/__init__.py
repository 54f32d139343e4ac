"""What every room stands on: generators, files, documents, text."""
