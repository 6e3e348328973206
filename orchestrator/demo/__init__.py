"""The parts of the demonstration: a site, the database behind it, and its users. Each is a process of its own."""
