"""What runs, where and when: command line, job specification, orchestration."""
