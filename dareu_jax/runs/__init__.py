"""Run every stage of a configuration in a folder, and load what a finished run left."""
