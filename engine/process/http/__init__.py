"""The side of an HTTP server that clients reach before anybody knows them: how it accepts, bounds and refuses."""
