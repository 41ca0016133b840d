"""Fill a teacher cache: the command, and its work."""
