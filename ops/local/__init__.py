"""The embedded PostgreSQL of local use: its programs, its place, its server and the parent that keeps it."""
