"""The command line, one file per command; heavy imports live inside the commands."""
