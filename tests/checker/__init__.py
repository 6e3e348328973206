"""A second opinion: reads what a rollout left behind and recomputes the promises I1 to I10 from it.

    python -m tests.checker FOLDER

It imports nothing of the product, nor of the rest of the tests: what it believes about steps, states and tags is
written down here a second time, from the documents. A mistake that both make is a mistake made twice.

| id | promise |
|---|---|
| I1 | each pool has `min_healthy` servers in rotation at every moment, as the balancer and as clients see it |
| I2 | no B enters a pool unless its smoke test has passed, for this instance and this boot |
| I3 | each server ends in one terminal state, and the world agrees with it |
| I4 | each effect once; what carries our tag is in the ledger, and what the ledger says lives does |
| I5 | nothing that was accepted or reported as ended is lost |
| I6 | the audit log is complete and legal, has an intent before every effect, and folds to the record |
| I7 | A leaves after B has served for the soak, is terminated after its retention, and never before |
| I8 | one owner per server, and a fence of its own for each, whatever the store forgot |
| I9 | while the control plane is down no user request fails |
| I10 | no secret is anywhere |

# The evidence folder

JSON, or JSON lines where the name ends in `.jsonl`. All times are seconds as floats, of one clock (or of clocks that
agree within `SKEW`). A field that may be left out is marked with "?". Lines stand in the order in which things
happened.

`plan.json` — what was asked for:
    {"rollout", "retain_seconds", "soak_seconds", "bake_seconds", "smoke_fresh_seconds",
     "smoke_passes": rounds in a row,
     "servers": {name: {"id": A's id, "pools": [pool, ..], "smoke_requests": requests a round}},
     "pools": {pool: {"port", "min_healthy", "members": {member: {"address", "port", "server"?}}}}}
    `members` are those before the rollout; `server` is whose A that is, where it has another name than the member
`cloud.jsonl` — every call that may change something, at the cloud or a balancer, as the resource itself saw it:
    {"at", "call", "id", "token"?, "name"?, "tags"?, "source"?, "address"?, "boot"?, "pool"?, "outcome", "effect"}
    `call`: ensure_image ensure_server start stop terminate delete_image protect tag, add restore remove.
    `outcome`: made, adopted, done, refused (by a guard), failed. `effect`: whether anything changed.
    A creation has token, name, tags and the id that it made; one of a server also its address and boot.
    A call at a balancer has the member's name as `id`, and `pool` and `address`.
`inventory.json` — what is there at the end, terminated things left out:
    [{"id", "kind": "image" | "server", "state", "tags", "name", "address"?, "boot"?}]
`balancer.jsonl` — each change of a pool, or a sample of it, in the balancer's own view:
    {"at", "pool", "members": {member: {"address", "port", "state": "serving" | "joining" | "draining" | "down"}}}
`probes.jsonl` — each request of a smoke test, as answered:
    {"at", "address", "boot", "passed"}
`audit.jsonl` — the audit log:
    {"rollout", "id", "at", "server", "n", "event", "actor", "was", "now", "detail", "after"}
    `after` is the record after the change, empty for a note; fields at their default are left out.
`ledger.json` — [{"key": "kind:token", "kind", "server", "state", "id"?, "until"?}]
`records.json` — {server: the record as stored at the end}

and where there is something to say:

`traffic.jsonl` — one user's request, as the client saw it: {"at", "id", "pool", "status": 0 if no answer, "served_by"?}
`orders.json` — {"sent": ids answered with success, "stored": ids found behind the sites, with repetitions}
`claims.jsonl` — each lease on a server that the store has given: {"at", "rollout", "server", "owner", "fence"}
`results.jsonl` — what Celery kept: {"at", "server", "task", "result"}
`secrets.json` — values that were planted and must be in no other file of the folder, nor of its folders
`incidents.jsonl` — what the test itself did to the world, and is not to be held against the product:
    {"at", "kind": "store lost", "since"}               the store forgot everything between `since` and `at`
    {"at", "kind": "control plane down", "until"}       nothing of the product ran
    {"at", "kind": "lost", "id", "until"?}              a server or image died, or somebody else stopped or deleted it
    {"at", "kind": "rebooted", "id", "boot"}            a server has started anew by itself; its boot since
    {"at", "kind": "untagged", "id"}                    somebody else took its tags away
    {"at", "kind": "member lost", "pool", "id", "until"?}   somebody else took that member out of a pool
    {"at", "kind": "member added", "pool", "id"}        somebody else put one in
    {"at", "kind": "left out", "server"}                nobody could say where it stood, with all of the store lost
    {"at", "kind": "given up"}                          nobody answered for a held server any more: it stays so
"""
