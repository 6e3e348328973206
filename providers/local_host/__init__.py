"""The small local cloud: one daemon that owns server processes and HAProxy, as a hypervisor would.

daemon.py     one host on one state folder: lock, start, re-adopt, end
api.py        its API: JSON over HTTP/1.1 on a unix socket
servers.py    a server is a folder and a process on its own loopback address
images.py     an image is a compressed archive of a server's folder
haproxy.py    load balancers that are kept running from their configuration file
guest.py      what a look inside a server finds
processes.py  starting, finding and reaping processes; launch.py becomes a server's process
chores.py     heavy work on folders, in processes of its own: tree.py copies and measures, archive.py packs and unpacks
records.py    what is kept on disk; addresses.py who gets which address

Nothing of it belongs to a worker or to a terminal: it survives the death of the whole control plane.
"""
