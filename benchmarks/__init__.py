"""What a rollout costs, beside what the same work costs without us. `README.md` says how to run and read it."""
