"""One round, and the start: what a client does, what the server does, the messages between them."""
