"""A session: front, supervisor, agent and module servers, what they say to each other, and clients."""
