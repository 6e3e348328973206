"""A cloud that speaks AWS' protocols and misbehaves as AWS does, in a process of ours: for tests and demonstrations.

moto answers the calls; what it gets wrong is put right here, and for each correction a test shows plain moto wrong.
Real boto3 clients reach it over the wire: `SimCloud().url` is its endpoint for every service. An EC2 instance is a real
process on its own loopback address. Nothing of the product imports this package.
"""
