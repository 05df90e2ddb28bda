"""One round, for every host: the session, the client, the server, and what is kept of a run."""
