"""The embedded PostgreSQL for local use: its programs, its place, its server and the server's supervisor."""
