"""The privileged process inside the view, and what it forks: workers, and servers of viewfs's own."""
