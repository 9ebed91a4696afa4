"""The command line of `dareu`, one file for each command."""
