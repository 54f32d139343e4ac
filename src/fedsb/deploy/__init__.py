"""The same client and server behind Flower: its transport, TLS, node keys and processes; our rounds."""
