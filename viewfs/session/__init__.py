"""A session: the supervisor, the agent in the view, the module servers, what they say to each other, and its
clients."""
