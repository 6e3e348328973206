"""A cloud in a process of its own: prints its endpoint and one network as JSON, and ends with its standard input.

python -m simcloud [REGION] < a pipe that stays open
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from simcloud.cloud import SimCloud


def main() -> None:
    region = sys.argv[1] if len(sys.argv) > 1 else "eu-west-1"
    with SimCloud() as cloud:
        network = asdict(cloud.network(region=region))
        sys.stdout.write(json.dumps({"endpoint": cloud.url, "region": region, **network}) + "\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main()
