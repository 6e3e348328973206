"""The operations over HTTP, for programs: documents as `--output json` prints them, refusals as problem details."""
