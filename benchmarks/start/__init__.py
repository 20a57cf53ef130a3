"""How long a command takes from its start to its end, beside Python's own start and other programs of the kind."""
