"""How data flows: sources, replicas, stitching, writers. Knows no command line."""
