"""Whole rollouts in virtual time, under one scheduler and one seed, with everything going wrong that may.

    from tests.simulation.simulation import simulate
    outcome = simulate(7)                                # raises Failed, which tells how to see it again
    simulate(7, evidence=Path("folder"), patches=[...])  # what an outsider saw; bugs switched on by context managers

`python -m tests.simulation 7` prints what happened under seed 7.
"""
