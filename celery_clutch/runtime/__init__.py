"""What happens in a worker: jobs, their attempts, the internal tasks, and what follows."""
