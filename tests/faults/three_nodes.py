"""A run on a cluster of three nodes, one of which is killed while it works: python -m tests.faults.three_nodes CONFIG RUN

The driver sits on a node without CPUs for actors; all actors start on one of the other two, which is killed when
`--after` batches of iteration 1 were sent, whatever is on it.
"""

from __future__ import annotations

import argparse
import threading
import time
from pathlib import Path
from typing import Any

from tests.faults.harness import events


def kill_the_busy_node(cluster: Any, nodes: list[Any], run: Path, after: int) -> None:
    """Kill the node that has the run's placement group, once enough batches were sent."""
    from ray.util import placement_group_table

    while sum(one["event"] == "batch" and one["iteration"] == 1 for one in events(run)) < after:
        time.sleep(0.02)
    groups = [group for group in placement_group_table().values() if group["state"] == "CREATED"]
    busy = next(iter(groups[0]["bundles_to_node_id"].values()))
    node = next(one for one in nodes if one.node_id == busy)
    cluster.remove_node(node, allow_graceful=False)
    print(f"killed node {nodes.index(node) + 1}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("config")
    parser.add_argument("run", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--after", type=int, default=20)
    given = parser.parse_args()

    import ray
    from ray.cluster_utils import Cluster

    from selfloop.workflows.config import load_config
    from selfloop.workflows.executor.run import run

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=4) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False)
    killer = threading.Thread(
        target=kill_the_busy_node, args=(cluster, nodes, given.run, given.after), daemon=True
    )
    killer.start()
    try:
        run(load_config(given.config, given.overrides), given.run)
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()
