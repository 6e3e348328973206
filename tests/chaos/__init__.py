"""Chaos: a fleet of real servers under real traffic is replaced while everything round it is killed.

    make chaos SEED=1            a hundred servers, about ten minutes
    make chaos SEED=1 SERVERS=20

Real workers, coordinators, Valkey, HAProxy and servers. The seed chooses what strikes, in which order and whom.
"""
